"""`power.parquet`: the sampler's readings as a table, with each column's unit in its field's metadata."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pytest_llem.errors import JsonValue, StoreError

UNITS = {
    "_ns": "ns",
    "_s": "s",
    "_w": "W",
    "_mw": "mW",
    "_j": "J",
    "_mj": "mJ",
    "_uj": "uJ",
    "_c": "degC",
    "_mhz": "MHz",
    "_bytes": "B",
    "_percent": "%",
    "_rel": "1",
}


def unit_of(column: str) -> str | None:
    """The unit that a column's suffix names; `None` for counts and names."""
    return UNITS.get("_" + column.rpartition("_")[2])


def write_power(samples: Path, power: Path) -> bool:
    """Write the readings of `samples.jsonl` to `power.parquet`; `False` when there are none.

    Columns are the readings' keys; a key that a reading lacks is null. Times are CLOCK_MONOTONIC of the worker.
    """
    if not samples.exists():
        return False
    rows = list(_readings(samples))
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if not columns:
        return False
    table = pa.Table.from_pylist([{name: row.get(name) for name in columns} for row in rows])
    schema = pa.schema(
        [field.with_metadata({"unit": unit}) if (unit := unit_of(field.name)) else field for field in table.schema],
        metadata={"clock": "CLOCK_MONOTONIC"},
    )
    partial = power.with_name(f".{power.name}.partial")
    pq.write_table(table.cast(schema), partial)
    partial.replace(power)
    return True


def _readings(samples: Path) -> Iterator[dict[str, JsonValue]]:
    for number, line in enumerate(samples.read_text(encoding="utf-8").splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            return
        try:
            yield json.loads(line)
        except ValueError as problem:
            raise StoreError(f"{samples}:{number}: {problem}") from None
