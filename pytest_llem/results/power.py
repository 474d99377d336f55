"""`power.parquet`: the sampler's readings as a table, with each column's unit in its field's metadata."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pytest_llem.energy.readings import UNITS, Sample, read_samples
from pytest_llem.errors import StoreError

TYPES = {
    "t_ns": pa.int64(),
    "device": pa.string(),
    "memory_bytes": pa.int64(),
    "bracket_ns": pa.int64(),
}
SCHEMA = pa.schema(
    [
        pa.field(name, TYPES.get(name, pa.float64()), metadata={"unit": UNITS[name]} if UNITS.get(name) else None)
        for name in Sample._fields
    ],
    metadata={"clock": "CLOCK_MONOTONIC of the worker"},
)


def write_power(samples: Path, power: Path) -> bool:
    """Write the readings of `samples.jsonl` to `power.parquet`; `False` when there are none.

    One row per reading with the columns of `Sample`; a quantity that was not read at that time is null.
    """
    try:
        rows = list(read_samples(samples))
    except (ValueError, TypeError) as problem:
        raise StoreError(f"{samples}: {problem}") from None
    if not rows:
        return False
    columns = [list(values) for values in zip(*rows, strict=True)]
    partial = power.with_name(f".{power.name}.partial")
    pq.write_table(
        pa.Table.from_arrays([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA),
        partial,
    )
    partial.replace(power)
    return True
