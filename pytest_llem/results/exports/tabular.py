"""CSV and Parquet: one row per result, the stable columns first, then the settings as `config.PATH`."""

from __future__ import annotations

from pathlib import Path

import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from pytest_llem.results.loading import Results


def export_csv(results: Results, out: Path) -> None:
    """`results.to_table()` as CSV; an empty cell was not measured."""
    pa_csv.write_csv(results.to_table(), out)


def export_parquet(results: Results, out: Path) -> None:
    """`results.to_table()` as Parquet, with units in the fields' metadata."""
    pq.write_table(results.to_table(), out)
