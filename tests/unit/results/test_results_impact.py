"""Grams and money beside joules: a figure without its source, or one that reaches a gate, would do harm."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest

from pytest_llem.errors import SettingsError, StudyError
from pytest_llem.job.metric_names import metric_name
from pytest_llem.results.attempts import get_or_measure
from pytest_llem.results.exports import export
from pytest_llem.results.impact import GRAMS, MONEY, figures, impacts, made_of
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.manifest import StudyPlan, read_manifest, rebuild_manifest
from pytest_llem.results.reading import load
from pytest_llem.results.report.page import write_report
from pytest_llem.results.store import RunStore
from pytest_llem.results.summary import summarise, with_impact, write_summary
from pytest_llem.session.reporting.github import summary_markdown
from pytest_llem.session.reporting.summary import summary_lines
from pytest_llem.study import load_study
from pytest_llem.study.report_settings import Grid, Price, ReportSettings

if TYPE_CHECKING:
    from tests.unit.results.conftest import Bench, Worker

REPORT = ReportSettings(Grid(350, "UBA 2024, <DE>"), 1.2, Price(0.3, "EUR"))
GIVEN = "{grid_gco2e_per_kwh: {value: 350, source: 'UBA 2024'}, pue: 1.2, price_per_kwh: {value: 0.3, currency: EUR}}"


def test_a_joule_per_token_is_so_many_grams_and_euros_a_million_tokens() -> None:
    """1 J a token is 1 MJ a million, 0.2778 kWh, at a PUE of 1.2 a third of a kilowatt-hour."""
    found = figures(REPORT, 1.0, 0.03)
    assert found[GRAMS].value == pytest.approx(350 / 3)
    assert found[MONEY].value == pytest.approx(0.1)
    assert (found[GRAMS].unit, found[MONEY].unit) == ("g", "EUR")
    for figure in found.values():
        assert figure.uncertainty == pytest.approx(0.03 * figure.value)
    assert figures(ReportSettings(Grid(360, "x")), 1.0, None)[GRAMS].value == pytest.approx(100)
    assert figures(REPORT, None, None) == {}
    assert impacts(ReportSettings(pue=1.5)) == []


def test_the_caption_has_values_source_and_boundary() -> None:
    said = made_of(REPORT, {"gpu_board"})
    assert "350 gCO2e/kWh (UBA 2024, <DE>); 0.3 EUR/kWh" in said
    assert "the GPU boards, with cooling and distribution by PUE 1.2; not the rest of the host" in said
    assert "without cooling and distribution" in made_of(replace(REPORT, pue=None), ())
    assert made_of(ReportSettings(), {"gpu_board"}) == ""


@pytest.mark.parametrize(
    ("written", "place", "said"),
    [
        ("{grid_gco2e_per_kwh: 350}", "2:30", 'no source, .*write grid_gco2e_per_kwh: {value: 350, source: "publisher'),
        ("{grid_gco2e_per_kwh: {value: 350}}", "2:30", "'source' is missing"),
        ("{price_per_kwh: 0.3}", "2:25", "no currency, .*write price_per_kwh: {value: 0.3, currency: EUR}"),
        ("{price_per_kwh: {value: 1, currency: euro}}", "2:46", "three letters"),
        ("{pue: 0.9}", "2:15", "report.pue: expected greater than or equal to 1"),
        ("{grid: 3}", "2:10", "unknown setting report.grid"),
    ],
)
def test_a_number_that_nobody_can_check_is_refused_where_it_stands(
    tmp_path: Path, written: str, place: str, said: str
) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(f"model: m\nreport: {written}\n")
    with pytest.raises(StudyError, match=said) as refused:
        load_study(path)
    assert f"study.yaml:{place}: " in str(refused.value)


def test_no_hash_and_no_gate_knows_of_it(tmp_path: Path) -> None:
    """A tariff that changes would make every baseline another experiment, and a build red."""
    path = tmp_path / "study.yaml"
    path.write_text("model: m\n")
    plain = load_study(path)
    path.write_text(f"model: m\nreport: {GIVEN}\n")
    priced = load_study(path)
    assert priced.report.pue == 1.2
    assert plain.study_hash == priced.study_hash
    assert plain.experiments[0].config_hash == priced.experiments[0].config_hash
    for name in (GRAMS, MONEY):
        with pytest.raises(SettingsError):
            metric_name(name)


@pytest.fixture
def run(tmp_path: Path, bench: Bench, worker: Callable[..., Worker]) -> Path:
    """Two experiments of two cycles whose study states factors."""
    store = RunStore.create(tmp_path / "out", "run-1", environment={})
    keys = [CycleKey("study", f"a:{a}", f"{a:016x}", cycle) for a in (1, 2) for cycle in (1, 2)]
    for key in keys:
        get_or_measure(store, key, worker(key, bench.measurement(10.0 + key.cycle / 10)))
    rebuild_manifest(store.run_dir, finished=True, studies=(StudyPlan("study", None, report=REPORT),))
    return store.run_dir


def test_summaries_tables_report_and_exports_have_them_beside_the_joules(run: Path, tmp_path: Path) -> None:
    store, manifest = RunStore.open(run), read_manifest(run / "run.json")
    assert manifest.studies[0].report == REPORT
    keys = [CycleKey("study", f"a:{a}", f"{a:016x}", cycle) for a in (1, 2) for cycle in (1, 2)]
    rows = list(with_impact(summarise(keys, store.outcome), manifest.studies))
    joules = rows[0].metrics["joules_per_output_token"]
    grams = rows[0].impact[GRAMS]
    assert joules.uncertainty is not None
    assert (grams.value, grams.uncertainty) == pytest.approx((joules.value * 350 / 3, joules.uncertainty * 350 / 3))

    write_summary(run, rows, plans=manifest.studies)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["experiments"][0]["impact"][MONEY]["value"] == pytest.approx(joules.value * 0.1)
    assert "UBA 2024" in summary["impact"]["study"]
    (line, *_) = csv.DictReader(io.StringIO((run / "summary.csv").read_text()))
    assert float(line[f"{GRAMS}_value"]) == pytest.approx(grams.value)
    assert (line[f"{MONEY}_unit"], line[f"{GRAMS}_unit"]) == ("EUR", "g")

    printed = "\n".join(line.text for line in summary_lines(rows, manifest.studies, run, 160))
    assert "gCO2e/Mtoken" in printed
    assert "EUR/Mtoken" in printed
    assert "CPU packages, with cooling" in printed.replace("\n", " ").replace("    ", "")
    assert "EUR/Mtoken" in "\n".join(summary_markdown(rows, manifest.studies, (), (), "run-1"))

    write_report([run], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert ">gCO2e/Mtoken<" in page
    assert "UBA 2024, &lt;DE&gt;" in page
    assert "the CPU packages, with cooling and distribution by PUE 1.2" in page

    export(load(run), "parquet", tmp_path / "all.parquet")
    (first, *_) = pq.read_table(tmp_path / "all.parquet").to_pylist()
    assert first[GRAMS] == pytest.approx(first["joules_per_output_token"] * 350 / 3)
    assert first[f"{GRAMS}_uncertainty"] == pytest.approx(first["joules_per_output_token_uncertainty"] * 350 / 3)
    assert (first["grid_source"], first["pue"], first["price_currency"]) == ("UBA 2024, <DE>", 1.2, "EUR")


def test_nothing_is_added_where_the_study_states_nothing(run: Path, tmp_path: Path) -> None:
    rebuild_manifest(run, finished=True, studies=(StudyPlan("study", None),))
    export(load(run), "csv", tmp_path / "all.csv")
    assert GRAMS not in (tmp_path / "all.csv").read_text()
    write_report([run], tmp_path / "report.html")
    assert "gCO2e" not in (tmp_path / "report.html").read_text()
