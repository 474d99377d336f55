"""A path, or a name on the hub, that a study names: whether it is here, and what is wrong if it has to be and is not.

`named_files` looks at models with it, `named_data` at data sets. A name that means something elsewhere, in an image or
to a server, must not be refused for lacking here.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from pytest_llem.engines.model_files import GGUF
from pytest_llem.errors import JsonValue, LlemError, ModelNotFoundError, WorkloadError
from pytest_llem.job.config import DATA_FILES
from pytest_llem.job.files import expanded, found, is_path, reason
from pytest_llem.study import Study
from pytest_llem.workload.hub import cached_repository

UNREADABLE = "make it readable to this user, or name another"

Wrong = tuple[str, JsonValue, LlemError]
"""A setting, its value in the study, and what is wrong with it."""


@dataclass(frozen=True)
class Named:
    """A path, or a name on the hub: as the study writes it, and as the worker gets it.

    `elsewhere`: it may mean something where cycles run, in an image, to a server that runs already or to an engine of
    another package; only relative paths are this machine's there.
    """

    study: Study
    setting: str
    written: str
    resolved: str
    elsewhere: bool

    def is_here(self) -> bool:
        """Whether something lies there that can be looked at. Raises `LlemError` where it has to."""
        if found(self.resolved) is not None:
            return True
        is_name = self.resolved == self.written and not is_path(self.written)
        if is_name and (self.elsewhere or not self._means_a_path()):
            return False
        if self.elsewhere and not self._relative:
            return False
        if is_name and self.setting == "workload.dataset":
            from pytest_llem.workload.rows import unknown_ending  # with what it takes to read data sets

            raise unknown_ending(self.written)
        looked = "" if self.resolved == self.written else f": {expanded(self.resolved)}"
        try:
            expanded(self.resolved).stat()
        except (OSError, ValueError) as problem:
            raise self.error(problem, looked, self._advice()) from None
        return True

    def error(self, problem: Exception, looked: str = "", fix: str = UNREADABLE) -> LlemError:
        """The error for what the system says of the path; `fix` is for one where nothing lies."""
        kind = WorkloadError if self.setting == "workload.dataset" else ModelNotFoundError
        text = f"{self.setting} {self.written!r}: {reason(problem).lower()}{looked}"
        return kind(text, fix=UNREADABLE if isinstance(problem, PermissionError) else fix)

    @property
    def _relative(self) -> bool:
        return not self.written.startswith(("/", "~"))

    def _means_a_path(self) -> bool:
        """Whether what could be a name on the hub is a path that lacks its `./`, or has none of the hub's forms."""
        beside = found(str(self.study.path.parent / self.written))
        if self.setting == "workload.dataset":
            return beside is not None and beside.is_file()
        if self.written.count("/") > 1 or self.written.lower().endswith(GGUF):
            return True
        cached = found(str(cached_repository("models", self.written)))
        return "/" in self.written and cached is None and beside is not None and any(beside.glob("*config.json"))

    def _may_be(self, path: Path) -> bool:
        suffix = path.suffix.lower()
        return suffix in DATA_FILES if self.setting == "workload.dataset" else suffix == GGUF or path.is_dir()

    def _advice(self) -> str:
        study = self.study.path.parent
        written_in = Path(self.study.locate(self.setting, self.written).file).parent
        for base in (study, Path.cwd(), written_in) if self._relative else ():
            if found(str(base / self.written)) is not None:
                path = os.path.relpath(base / self.written, study)
                return f"write {path if path.startswith('..') else f'./{path}'}: a relative path starts at the study"
        target = expanded(self.resolved)
        beside: list[Path] = []
        with suppress(OSError):  # there is no such directory, or it may not be read
            beside = sorted(target.parent.iterdir())
        close = get_close_matches(target.name, [path.name for path in beside if self._may_be(path)], n=1)
        if close:
            return f"did you mean {str(Path(self.written).with_name(close[0]))!r}?"
        return "correct the path" + ("; a relative one starts at the study" if self._relative else "")
