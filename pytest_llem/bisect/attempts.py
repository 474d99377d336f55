"""Builds a commit and measures it once with a pytest of its own, and keeps what came of it.

`command` calls it. Each attempt is a folder, written before the next begins: `attempt.json` last, so that a folder
without it is one that was broken off. Attempts of an earlier search are used by a later one under the same recipe.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Literal
from urllib.parse import unquote, urlsplit

from pytest_llem.bisect.commits import environment
from pytest_llem.errors import SettingsError
from pytest_llem.job.files import log_tail, write_json, write_text
from pytest_llem.job.wire import encode, read_versioned
from pytest_llem.worker.lifeline import command

ATTEMPT_VERSION = 1
"""Raised when a field is renamed, removed or changes its meaning."""
ATTEMPT = "attempt.json"
BUILD_LOG, PYTEST_LOG = "build.log", "pytest.log"
EXECUTE = "import os, sys; os.execvp(sys.argv[1], sys.argv[1:])"
LINES = 5
"""Of a log, shown where something failed. Chosen: what a compiler or pytest ends with."""

Outcome = Literal["not_built", "broken", "measured"]


@dataclass(frozen=True)
class Recipe:
    """What is done with every commit: only attempts under one recipe are held against each other.

    `python` is the interpreter that measures; a relative one lies in the commit's work tree.
    """

    study: str
    build: str | None
    python: str
    pytest: str
    cycles: int | None


@dataclass(frozen=True)
class Attempt:
    """`attempt.json`: a commit was built, and measured unless it could not be; `reason` says why it was not.

    Seconds are `null` for what was not done: a build that was there already, or a measurement.
    """

    commit: str
    number: int
    recipe: Recipe
    outcome: Outcome
    reason: str
    build_s: float | None
    measure_s: float | None
    schema_version: int = ATTEMPT_VERSION

    @property
    def folder(self) -> str:
        """Its folder's name; its run lies in there."""
        return folder_name(self.number, self.commit)


def folder_name(number: int, commit: str) -> str:
    """That of an attempt: in order of time."""
    return f"{number:04}-{commit[:10]}"


class Attempts:
    """The attempts in a folder, in order. `built` is the commit built last; `check_out` puts one into the work tree."""

    def __init__(
        self,
        directory: Path,
        worktree: Path,
        check_out: Callable[[str], None],
        recipe: Recipe,
        variables: Mapping[str, str],
    ) -> None:
        self._directory, self._worktree, self._check_out = directory, worktree, check_out
        self._recipe, self._variables = recipe, variables
        self.built: str | None = None
        directory.mkdir(parents=True, exist_ok=True)
        if not (directory.parent / ".gitignore").exists():
            write_text(directory.parent / ".gitignore", "# Written by pytest-llem.\n*\n")

    def stored(self) -> list[Attempt]:
        """Those that were ended, oldest first; what was broken off is removed. `StoreError` for a broken file."""
        found = []
        for folder in sorted(self._directory.iterdir()):
            if (folder / ATTEMPT).exists():
                found.append(read_versioned(Attempt, folder / ATTEMPT, ATTEMPT_VERSION, "attempt"))
            else:
                shutil.rmtree(folder, ignore_errors=True)
        return found

    def usable(self) -> list[Attempt]:
        """Those under this recipe."""
        return [attempt for attempt in self.stored() if attempt.recipe == self._recipe]

    def path(self, attempt: Attempt) -> Path:
        """Its folder."""
        return self._directory / attempt.folder

    def make(self, commit: str) -> Attempt:
        """Build a commit, unless it is what was built last, and measure it once; the attempt, which is stored."""
        number = max((attempt.number for attempt in self.stored()), default=0) + 1
        folder = self._directory / folder_name(number, commit)
        folder.mkdir()
        failed, build_s, measure_s = "", None, None
        outcome: Outcome = "measured"
        if self.built != commit:
            failed, build_s = self._build(commit, folder)
        if failed:
            outcome = "not_built"
        elif shutil.which(self.python) is None:
            outcome, failed = "broken", f"no interpreter {self.python} (a relative one lies in the commit's work tree)"
        else:
            begun = time.monotonic()
            code = self._call(self._pytest(commit, folder), commit, folder / PYTEST_LOG)
            measure_s = time.monotonic() - begun
            if code not in (0, 1):
                outcome, failed = "broken", f"pytest ended with exit code {code}: {_last_lines(folder / PYTEST_LOG)}"
        attempt = Attempt(commit, number, self._recipe, outcome, failed, build_s, measure_s)
        write_json(folder / ATTEMPT, encode(attempt))
        return attempt

    def _build(self, commit: str, folder: Path) -> tuple[str, float | None]:
        """Check a commit out and build it; why that failed, and the seconds that the build took."""
        self.built = None
        try:
            self._check_out(commit)
        except SettingsError as error:
            return error.message, None
        code, seconds = 0, None
        if self._recipe.build is not None:
            begun = time.monotonic()
            code = self._call(["sh", "-c", self._recipe.build], commit, folder / BUILD_LOG)
            seconds = time.monotonic() - begun
        if code:
            return f"the build ended with exit code {code}: {_last_lines(folder / BUILD_LOG)}", seconds
        self.built = commit
        return "", seconds

    def log(self, attempt: Attempt) -> str:
        """The last lines of what pytest said, for an attempt that has no valid cycle."""
        return _last_lines(self.path(attempt) / PYTEST_LOG)

    @property
    def python(self) -> str:
        """The interpreter that measures."""
        own = self._worktree / self._recipe.python  # which an absolute path leaves as it is
        return str(own) if "/" in self._recipe.python else self._recipe.python

    def _pytest(self, commit: str, folder: Path) -> list[str]:
        named = self._named(commit)
        options = [Template(word).safe_substitute(named) for word in shlex.split(self._recipe.pytest)]
        arguments = [self.python, "-m", "pytest", self._recipe.study, f"--llem-out={folder}", "-k", "test_experiment"]
        if self._recipe.cycles is not None:
            arguments.append(f"--llem-cycles={self._recipe.cycles}")
        return [*arguments, *options]

    def _named(self, commit: str) -> dict[str, str]:
        return {**self._variables, "LLEM_BISECT_COMMIT": commit, "LLEM_BISECT_WORKTREE": str(self._worktree)}

    def _call(self, program: Sequence[str], commit: str, log: Path) -> int:
        """Run a program in the work tree, its output to a file; it ends with this process, however that ends."""
        with log.open("wb") as output:
            process = subprocess.Popen(
                command("run", "-c", EXECUTE, *program),
                cwd=self._worktree,
                env={**environment(), **self._named(commit)},
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            assert process.stdin is not None
            try:
                return process.wait()
            finally:
                process.stdin.close()
                process.wait()


def _last_lines(log: Path) -> str:
    return " | ".join(line for line in log_tail(log, LINES) if line.strip()) or "it printed nothing"


def installed_from(python: str, repository: Path, worktree: Path) -> list[str]:
    """The packages that an interpreter imports from the user's own work tree, whatever commit is in `worktree`.

    By the `direct_url.json` of editable installs (PEP 610).
    """
    code = (
        "import json, importlib.metadata as m\n"
        "for d in m.distributions():\n"
        "    text = d.read_text('direct_url.json')\n"
        "    url = json.loads(text) if text else {}\n"
        "    if url.get('dir_info', {}).get('editable'): print(d.metadata['Name'], url['url'])"
    )
    try:
        done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=False)
    except OSError:
        return []
    lines = [line.partition(" ") for line in done.stdout.splitlines()]
    places = [(name, Path(unquote(urlsplit(url).path))) for name, _, url in lines]
    return [name for name, place in places if place.is_relative_to(repository) and not place.is_relative_to(worktree)]
