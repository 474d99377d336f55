"""Results in other tools' formats: `llem export --format NAME`. One file per format; other packages add theirs.

`results.commands` calls `export`. Each exporter's docstring documents its mapping, which must follow the other tool's
format: what that cannot hold is left out, and what was not measured is `null` or absent, as it prescribes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from importlib.metadata import EntryPoint
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, cast

from pytest_llem.errors import SettingsError
from pytest_llem.job.files import writing
from pytest_llem.job.registered import blamed, load, registered
from pytest_llem.results.reading import Results
from pytest_llem.results.terminal import spreadsheet

if TYPE_CHECKING:
    import pyarrow as pa

Export = Callable[[Results, Path], None]

FORMATS = {
    "csv": "pytest_llem.results.exports:export_csv",
    "parquet": "pytest_llem.results.exports:export_parquet",
    "requests": "pytest_llem.results.exports.requests:export",
    "vllm-bench": "pytest_llem.results.exports.vllm_bench:export",
    "mlperf": "pytest_llem.results.exports.mlperf:export",
    "aienergyscore": "pytest_llem.results.exports.aienergyscore:export",
    "otel": "pytest_llem.results.exports.otel:export",
}


GROUP = "pytest_llem.exports"


def registered_formats() -> dict[str, EntryPoint]:
    """The formats that other packages add, by name. `SettingsError` for a name that is taken."""
    return registered(GROUP, "export format", FORMATS)


def export(results: Results, name: str, out: Path) -> None:
    """Write results as `name` to `out`, a file, or a folder for a file per result. `SettingsError` if unknown."""
    others = registered_formats()
    if name in others:
        write = cast("Export", load(others[name], "export format"))
    elif name in FORMATS:
        write = resolve_name(FORMATS[name])
    else:
        raise SettingsError(f"unknown export format {name!r}", fix=f"use one of: {', '.join([*FORMATS, *others])}")
    with blamed(others[name], "export format") if name in others else nullcontext(), writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        write(results, out)


def export_csv(results: Results, out: Path) -> None:
    """`results.to_table()` as CSV; an empty cell was not measured, and no text is a formula."""
    import pyarrow.csv as pa_csv

    pa_csv.write_csv(without_formulas(results.to_table()), out)


def without_formulas(table: pa.Table) -> pa.Table:
    """A table whose texts and names no spreadsheet takes for formulas."""
    import pyarrow as pa

    for index, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            texts = [spreadsheet(text) for text in table.column(index).to_pylist()]
            table = table.set_column(index, field, pa.array(texts, field.type))
    return table.rename_columns([spreadsheet(name) for name in table.column_names])


def export_parquet(results: Results, out: Path) -> None:
    """`results.to_table()` as Parquet, with units in the fields' metadata."""
    import pyarrow.parquet as pq

    pq.write_table(results.to_table(), out)
