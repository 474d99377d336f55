"""Reading results back: typed, from a file, a run or a folder of runs, whatever version wrote them.

Older formats are brought up to date step by step before they are validated; a newer one is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import ValidationError

from pytest_llem.errors import JsonValue, StoreError
from pytest_llem.job import read_json
from pytest_llem.results.schema import RESULT_VERSION, Result

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
    while version < RESULT_VERSION:
        data = {**MIGRATIONS[version](data), "schema_version": version + 1}
        version += 1
    try:
        return Result.model_validate_json(json.dumps(data))
    except ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise StoreError(f"{path}: {where}: {first['msg']} ({problem.error_count()} problems in all)") from None
