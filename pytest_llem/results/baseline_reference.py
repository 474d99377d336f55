"""Opens what a reference to a baseline names: a saved name, a run or folder of runs, a file, or a history.

The session, `compared_sides` and commands call it: wherever a baseline can be named, all of these can.
"""

from __future__ import annotations

from pathlib import Path

from pytest_llem.errors import StoreError
from pytest_llem.job.files import slug
from pytest_llem.results.baselines import (
    HISTORY,
    Baseline,
    baseline_files,
    baseline_of,
    is_baseline,
    read_baseline,
    required_cycles,
    with_repeatability,
)
from pytest_llem.results.history.baseline import open_history
from pytest_llem.results.layout import MANIFEST
from pytest_llem.results.reading import load_rows


def open_baseline(reference: str, directory: Path) -> Baseline:
    """The baseline that `--llem-baseline=REF` names: a saved name, a run or folder of runs, a file, or a history.

    `directory` holds the named baselines. Raises `StoreError` when there is no such baseline.
    """
    saved, path = saved_baseline(reference, directory), Path(reference)
    if saved is None and path.exists():
        saved = baseline_of(reference, required_cycles(path, load_rows(path)))
    if saved is not None:
        return with_repeatability(saved, directory)
    raise StoreError(
        f"no baseline {reference!r}: neither {directory / reference} nor the path exists",
        fix=f"save one with --llem-save-baseline={slug(reference)}, or name a run's directory",
        details={"baseline": reference},
    )


def saved_baseline(reference: str, directory: Path) -> Baseline | None:
    """The baseline of this name in `directory`, the file or folder of files at this path, or `history:DIR`.

    `None` if it is none; `StoreError` where the history has no folder, or names none.
    """
    if reference.startswith(HISTORY):
        folder = reference.removeprefix(HISTORY)
        if not folder:
            raise StoreError(f"{reference}: it names no folder", fix="write history:DIR, such as history:llem-history")
        # A shell leaves the ~ of history:~/DIR as it is.
        return open_history(reference, Path(folder).expanduser())
    path = Path(reference)
    files = baseline_files(directory / reference) or [each for each in baseline_files(path) if is_baseline(each)]
    if not files and path.is_file() and path.name != MANIFEST and is_baseline(path):
        files = [path]
    return Baseline(reference, {entry.study: entry for entry in map(read_baseline, files)}) if files else None
