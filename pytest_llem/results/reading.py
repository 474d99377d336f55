"""Reading results back: typed, from a file, a run or a folder of runs, whatever version wrote them.

Older formats are brought up to date step by step before they are validated; a newer one is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import ValidationError

from pytest_llem.errors import JsonValue, StoreError
from pytest_llem.job.files import read_json
from pytest_llem.results.layout import MANIFEST, RESULT, cycle_directories, run_directories
from pytest_llem.results.schema import RESULT_VERSION, Result
from pytest_llem.results.state import read_state

Migration = Callable[[dict[str, JsonValue]], dict[str, JsonValue]]

MIGRATIONS: Mapping[int, Migration] = {}


def read_result(path: Path) -> Result:
    """One `result.json`; `StoreError` when it is absent, broken, or of a newer version than this one reads."""
    data = read_json(path)
    version = data.get("schema_version")
    if not isinstance(version, int) or version < 1:
        raise StoreError(f"{path}: not a result: no schema_version")
    if version > RESULT_VERSION:
        raise StoreError(
            f"{path}: result format {version} is newer than {RESULT_VERSION}, the newest this version reads",
            fix="read it with the version of pytest-llem that wrote it, or a newer one",
        )
    older = version < RESULT_VERSION
    while version < RESULT_VERSION:
        data = {**MIGRATIONS[version](data), "schema_version": version + 1}
        version += 1
    try:
        return Result.model_validate_json(json.dumps(data) if older else path.read_bytes())
    except ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise StoreError(f"{path}: {where}: {first['msg']} ({problem.error_count()} problems in all)") from None


def result_files(path: Path) -> list[Path]:
    """The `result.json` files that `path` stands for: itself, a cycle, a study or a run, or a folder of runs.

    Superseded attempts are left out. `StoreError` when there is nothing to read.
    """
    if path.is_file() and path.name != MANIFEST:
        return [path]
    root = path.parent if path.is_file() else path
    runs = [root] if (root / MANIFEST).exists() else run_directories(root)
    if runs:
        found = [
            directory / RESULT
            for run in runs
            for directory in cycle_directories(run)
            if (state := read_state(directory)) is not None and state.state in ("valid", "invalid")
        ]
    else:
        found = [
            file
            for file in sorted(root.rglob(RESULT))
            if not any(part.startswith("attempt-") for part in file.relative_to(root).parts)
        ]
    if not found:
        raise StoreError(f"{path}: no results here", fix="name a run's directory, a results folder or a result.json")
    return found


def cycle_seconds(path: Path) -> tuple[str, float] | None:
    """The `config_hash` of a result and the seconds that its cycle took, starting included; `None` if it cannot say."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        timing, full = result["timing"], result["experiment"]["config_hash"]
        return str(full), float(timing["cycle_s"]) + float(timing.get("startup_s") or 0.0)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def recorded_durations(path: Path) -> dict[str, float]:
    """Mean seconds of a cycle by `config_hash`, over a run, a folder of runs or a result.

    Raises `StoreError` when there is nothing that tells a time.
    """
    found: dict[str, list[float]] = {}
    for file in result_files(path):
        known = cycle_seconds(file)
        if known is not None:
            found.setdefault(known[0], []).append(known[1])
    if not found:
        raise StoreError(f"{path}: no result here says how long its cycle took", fix="name runs that have ended")
    return {full: sum(times) / len(times) for full, times in found.items()}
