"""Where the task files of lm-evaluation-harness are, the user's own before those that it ships.

`harness` asks it for the directory that a task is loaded from. It must find what the harness's own index finds, and say
what is wrong where that passes over a file without a word.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pytest_llem.errors import WorkloadError

HARNESS = "lm_eval"
"""The harness's package, and what the names of its tasks begin with in a study."""
INCLUDE = "workload.include_path"
TASK = "task"

_NAMED = re.compile(r"""^(task|group|tag)[ \t]*:[ \t]*["']?([^\s"'#\[\]{},]+)["']?[ \t]*(?:#.*)?$""", re.MULTILINE)
_TAGS = re.compile(r"^tag[ \t]*:[ \t]*\n((?:[ \t]*-[ \t]*[^\s\[\]{},]+[ \t]*\n)+)", re.MULTILINE)


def index_of(directory: Path) -> Any:
    """The harness's own index of one directory, which loads its tasks."""
    import lm_eval.tasks

    return lm_eval.tasks.TaskManager(include_path=str(directory), include_defaults=False)


def directory_of(name: str, include_path: str | None) -> Path:
    """The directory that holds a task's file. Raises `WorkloadError`; `details` name the setting, if another one."""
    own = None if include_path is None else Path(include_path)
    names: list[str] = []
    if own is not None:
        if not own.is_dir():
            raise _of_include(f"{INCLUDE}: no such directory: {own}", "correct the path; it is relative to the study")
        index = index_of(own).task_index
        names.extend(index)
        if name in index:
            kind = index[name].kind.name.lower()
            return _of_task(name, "group" if kind == "group" else "tag" if kind == "tag" else TASK, own)
    shipped = _shipped()
    if name in shipped:
        return _of_task(name, *shipped[name])
    if own is not None:
        _require_readable(own)
    near = get_close_matches(name, names, n=1) or get_close_matches(name, shipped, n=1)
    where = f"{own} and " if own is not None else ""
    raise WorkloadError(
        f"workload.task {HARNESS}:{name}: no such task in {where}lm-evaluation-harness {version(HARNESS)}",
        fix=f"did you mean {HARNESS}:{near[0]}?"
        if near
        else f"`lm-eval ls tasks` lists them; {INCLUDE} names a directory with files of your own",
    )


def _of_task(name: str, kind: str, directory: Path) -> Path:
    if kind == TASK:
        return directory
    text = f"workload.task {HARNESS}:{name} is a {kind} of tasks, and their scores are of different questions"
    raise WorkloadError(text, fix="name one of its tasks; a sweep over workload.task measures several")


@lru_cache(maxsize=1)
def _shipped() -> dict[str, tuple[str, Path]]:
    """Kind and directory of what the harness ships, by name.

    Its own index parses all of its 14,000 files, which takes ten seconds; names stand at the beginning of a line. Of
    two files with a name the first counts, as there.
    """
    import lm_eval.tasks

    found: dict[str, tuple[str, Path]] = {}
    for file in sorted(Path(lm_eval.tasks.__file__).parent.rglob("*.yaml"), key=Path.as_posix):
        text = file.read_text(encoding="utf-8", errors="replace")
        named = dict(_NAMED.findall(text))
        kind = "group" if "group" in named else TASK
        if kind in named:
            found.setdefault(named[kind], (kind, file.parent))
        listed = [line.strip("- \t") for tags in _TAGS.findall(text) for line in tags.splitlines()]
        for tag in (*listed, named.get("tag", "")):
            found.setdefault(tag, ("tag", file.parent))
    return found


def _require_readable(directory: Path) -> None:
    """Raise `WorkloadError` for the first task file that is no YAML."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Reads a task's functions as nothing."""

    Loader.add_multi_constructor("!", lambda loader, suffix, node: None)
    for file in sorted(directory.rglob("*.yaml")):
        try:
            yaml.load(file.read_bytes(), Loader)
        except yaml.MarkedYAMLError as problem:
            mark = problem.problem_mark
            where = f"{file}:{mark.line + 1}:{mark.column + 1}" if mark else str(file)
            raise _of_include(f"{where}: no YAML: {problem.problem}", "correct the task file") from None
        except (OSError, yaml.YAMLError) as problem:
            text = " ".join(str(problem).split())
            raise _of_include(f"{file}: unreadable: {text}", "correct the task file") from None


def _of_include(text: str, fix: str) -> WorkloadError:
    return WorkloadError(text, fix=fix, details={"setting": INCLUDE})
