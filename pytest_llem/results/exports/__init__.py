"""Results in other tools' formats: `llem export --format NAME`. One file per format; other packages add theirs.

`results.commands` calls `export`. Each exporter's docstring documents its mapping, which must follow the other tool's
format: what that cannot hold is left out, and what was not measured is `null` or absent, as it prescribes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path
from pkgutil import resolve_name
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

from pytest_llem.errors import SettingsError
from pytest_llem.job.files import writing
from pytest_llem.job.registered import blamed, load, registered
from pytest_llem.results.impact import figures
from pytest_llem.results.layout import MANIFEST
from pytest_llem.results.manifest import read_manifest
from pytest_llem.results.reading import Results, measurement_id
from pytest_llem.results.terminal import spreadsheet
from pytest_llem.study.report_settings import ReportSettings

if TYPE_CHECKING:
    import pyarrow as pa

Export = Callable[[Results, Path], None]

FORMATS = {
    "csv": "pytest_llem.results.exports:export_csv",
    "parquet": "pytest_llem.results.exports:export_parquet",
    "requests": "pytest_llem.results.exports.requests:export",
    "vllm-bench": "pytest_llem.results.exports.vllm_bench:export",
    "mlperf": "pytest_llem.results.exports.mlperf:export",
    "boamps": "pytest_llem.results.exports.boamps:export",
    "aienergyscore": "pytest_llem.results.exports.aienergyscore:export",
    "otel": "pytest_llem.results.exports.otel:export",
}
STATING = ("boamps",)
"""Those that also take what no run knows: facts that people state, by their names in the format."""
GROUP = "pytest_llem.exports"


def registered_formats() -> dict[str, EntryPoint]:
    """The formats that other packages add, by name. `SettingsError` for a name that is taken."""
    return registered(GROUP, "export format", FORMATS)


def export(results: Results, name: str, out: Path, stated: Mapping[str, str] = MappingProxyType({})) -> None:
    """Write results as `name` to `out`, a file, or a folder for a file per result. `SettingsError` if unknown.

    `stated` are facts that no run knows, for a format that asks for some.
    """
    others = registered_formats()
    if name in others:
        write = cast("Export", load(others[name], "export format"))
    elif name in FORMATS:
        write = resolve_name(FORMATS[name])
    else:
        raise SettingsError(f"unknown export format {name!r}", fix=f"use one of: {', '.join([*FORMATS, *others])}")
    if name in STATING:
        write = partial(resolve_name(FORMATS[name]), stated=stated)
    elif stated:
        raise SettingsError(f"--set: {name} takes nothing that a run does not know", fix=f"only with {STATING[0]}")
    with blamed(others[name], "export format") if name in others else nullcontext(), writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        write(results, out)


def export_csv(results: Results, out: Path) -> None:
    """`results.to_table()` as CSV; an empty cell was not measured, and no text is a formula."""
    import pyarrow.csv as pa_csv

    pa_csv.write_csv(without_formulas(with_impact(results)), out)


def with_impact(results: Results) -> pa.Table:
    """`results.to_table()`, with grams of CO2e and money of those whose study states factors, and these beside them."""
    import pyarrow as pa

    settings: dict[tuple[Path, str], ReportSettings] = {}
    rows: list[dict[str, object]] = []
    for result in results:
        directory = results.directories.get(measurement_id(result))
        run = next((each for each in directory.parents if (each / MANIFEST).exists()), None) if directory else None
        if run is not None and (run, result.study) not in settings:
            settings |= {(run, plan.name): plan.report for plan in read_manifest(run / MANIFEST).studies}
        report = settings.get((run, result.study), ReportSettings()) if run is not None else ReportSettings()
        energy = result.energy
        found = figures(report, energy.joules_per_output_token, energy.joules_per_output_token_uncertainty)
        row: dict[str, object] = {}
        for name, figure in found.items():
            row |= {name: figure.value, f"{name}_uncertainty": figure.uncertainty}
        rows.append(row | (_factors(report) if found else {}))
    table = results.to_table()
    for name in dict.fromkeys(name for row in rows for name in row):
        table = table.append_column(name, pa.array([row.get(name) for row in rows]))
    return table


def _factors(report: ReportSettings) -> dict[str, object]:
    """What the figures were made with, in the columns' names."""
    grid, price = report.grid_gco2e_per_kwh, report.price_per_kwh
    made: dict[str, object] = {} if grid is None else {"grid_gco2e_per_kwh": grid.value, "grid_source": grid.source}
    if price is not None:
        made |= {"price_per_kwh": price.value, "price_currency": price.currency, "price_source": price.source}
    return made | {"pue": report.pue}


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

    pq.write_table(with_impact(results), out)
