"""Every request of the chosen results in one table for `llem export`: Parquet, or CSV where the file ends in `.csv`.

`exports` loads it by name. A row is a row of a cycle's `requests.parquet`, behind the columns that say which result it
belongs to, named as in the formats `csv` and `parquet`, and before the settings in which the experiments differ, named
as in a study.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from pytest_llem.errors import SettingsError, StoreError
from pytest_llem.job.job import JobDir
from pytest_llem.results.axes import differing
from pytest_llem.results.comparability import written_settings
from pytest_llem.results.exports import without_formulas
from pytest_llem.results.reading import Results, measurement_id, typed
from pytest_llem.results.requests_table import CLOCK, SCHEMA, read_requests

OF_RESULT = ("run_id", "source_run", "study", "experiment", "config_hash", "cycle", "attempt", "valid")
CHUNK_ROWS = 100_000
"""Rows that are written together. Chosen: some 10 MiB, however many cycles there are."""


def export(results: Results, out: Path) -> None:
    """The requests of all results, valid or not. `StoreError` where those of one are not there."""
    if out.suffix not in (".parquet", ".csv"):
        raise SettingsError(f"{out}: requests are written as Parquet or CSV", fix="end its name in .parquet or .csv")
    of_results = _of_results(results)
    fields = list(of_results.schema)
    schema = pa.schema([*fields[: len(OF_RESULT)], *SCHEMA, *fields[len(OF_RESULT) :]], metadata=CLOCK)
    partial = out.with_name(f".{out.name}.partial")
    try:
        if out.suffix == ".csv":
            header = without_formulas(schema.empty_table()).schema
            with pa_csv.CSVWriter(partial, header) as csv_writer:
                for table in _chunks(results, of_results, schema):
                    csv_writer.write_table(without_formulas(table))
        else:
            with pq.ParquetWriter(partial, schema) as writer:
                for table in _chunks(results, of_results, schema):
                    writer.write_table(table)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)


def _of_results(results: Results) -> pa.Table:
    """What stands beside the requests: a row per result."""
    settings = {str(place): written_settings(result) for place, result in enumerate(results)}
    table = results.to_table().select(OF_RESULT)
    for axis in differing(settings).axes:
        name = f"sweep.{axis.name}" if axis.name in (*OF_RESULT, *SCHEMA.names) else axis.name
        table = table.append_column(name, typed([each.get(axis.name) for each in settings.values()]))
    return table


def _chunks(results: Results, of_results: pa.Table, schema: pa.Schema) -> Iterator[pa.Table]:
    waiting: list[pa.Table] = []
    for place, result in enumerate(results):
        directory = results.directories.get(measurement_id(result))
        if directory is None:
            raise StoreError(f"{result.study}[{result.experiment.id}]: nobody knows where its requests lie")
        requests = read_requests(JobDir(directory).requests)
        beside = of_results.take(pa.array([place] * requests.num_rows, pa.int64()))
        columns = {**_columns(beside), **_columns(requests)}
        waiting.append(pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema))
        if sum(table.num_rows for table in waiting) >= CHUNK_ROWS:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def _columns(table: pa.Table) -> dict[str, pa.ChunkedArray]:
    return dict(zip(table.column_names, table.columns, strict=True))
