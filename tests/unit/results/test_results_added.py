"""Metrics and export formats of other packages: as good as shipped ones, and no danger to those."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_llem.errors import LlemWarning, SettingsError
from pytest_llem.job.metric_names import COLUMNS, METRIC_NAMES
from pytest_llem.results import metrics, reading
from pytest_llem.results.baselines import baseline_of
from pytest_llem.results.exports import export
from pytest_llem.results.gate_report import GateRow
from pytest_llem.results.judging import judge_experiment
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.metrics import METRICS, metric
from pytest_llem.results.reading import Results
from pytest_llem.results.state import Outcome
from pytest_llem.results.summary import summarise, summary_csv, write_summary
from pytest_llem.study.limits import Budget, Comparison, parse_fail_if
from tests.installed import Site
from tests.unit.results.conftest import Bench

SOURCE = """
from pytest_llem import Metric

def made(of, uncertainty=None, unit="J*s", name="twice"):
    return Metric(name=name, unit=unit, higher_is_better=False, description="Twice the energy", energy=True, of=of,
                  uncertainty=uncertainty)

def double(result):
    return 2 * result.energy.joules_per_request

TWICE = made(double, lambda result: 2 * result.energy.joules_per_request_uncertainty)
BARE = made(double)
RAISES = made(lambda result: result.energy.gone)
INFINITE = made(lambda result: float("inf"))
NO_UNIT = made(double, unit="J per s")
RENAMED = made(double, name="thrice")
NUMBER = 3

def lines(results, out):
    out.write_text("".join(result.experiment.id + "\\n" for result in results))

def broken(results, out):
    raise KeyError("colour")
"""


@pytest.fixture
def added(site: Site) -> Site:
    site.add("llem-twice", SOURCE, metrics="twice = llem_twice:TWICE", exports="lines = llem_twice:lines")
    return site


@pytest.fixture
def cycles(bench: Bench, key: CycleKey, tmp_path: Path) -> list[Outcome]:
    """Five cycles that use a little more than 6.5 J per request each."""
    outcomes = []
    for cycle, noise in enumerate((1.0, 1.01, 0.99, 1.005, 0.995), 1):
        each = replace(key, cycle=cycle)
        result = bench.result(bench.measurement(10 * noise), each)
        outcomes.append(Outcome("valid", each, tmp_path, result, None, 1, ()))
    return outcomes


def results(cycles: list[Outcome], run_id: str = "run-1") -> Results:
    found = [outcome.result for outcome in cycles if outcome.result is not None]
    return Results(tuple(result.model_copy(update={"run_id": run_id}) for result in found))


def budget(cycles: list[Outcome]) -> GateRow:
    (row,) = judge_experiment(cycles, [Budget("twice", "<=", 20.0)]).rows
    return row


def test_it_is_gated_on_like_any_other(added: Site, cycles: list[Outcome]) -> None:
    compare = Comparison((parse_fail_if("twice", "5%"), parse_fail_if("twice", "0.5 J*s")))
    baseline = baseline_of("before", results(cycles, "run-0"))
    report = judge_experiment(cycles, [Budget("twice", "<=", 20.0)], compare, baseline)
    assert [row.status for row in report.rows] == ["pass", "pass", "pass"]
    assert report.rows[0].current == pytest.approx(2 * 20 / 6, rel=1e-3)
    assert report.rows[2].limit == "+0.5 J*s"


def test_it_is_in_every_file_after_what_is_shipped(added: Site, cycles: list[Outcome], tmp_path: Path) -> None:
    """Columns are promised to be added at the end alone: a package must not move those of others."""
    known = {outcome.key: outcome for outcome in cycles}
    (row,) = summaries = list(summarise(known, known.get))
    assert row.metrics["twice"].value == pytest.approx(2 * 20 / 6, rel=1e-3)
    assert row.metrics["twice"].uncertainty is not None
    write_summary(tmp_path, summaries)
    assert json.loads((tmp_path / "summary.json").read_text())["units"]["twice"] == "J*s"
    header, first = csv.reader(io.StringIO(summary_csv(summaries)))
    place = header.index("twice")
    assert place > header.index("cycles_reused")
    assert float(first[place]) == row.metrics["twice"].median
    table = results(cycles).to_table()
    assert table.column_names[len(reading.COLUMNS)] == "twice"
    assert table.field("twice").metadata == {b"unit": b"J*s"}
    assert table.column("twice").to_pylist()[0] == pytest.approx(2 * 20 / 6)
    assert baseline_of("now", results(cycles)).studies["study"].experiments["batch_size:1"].runs[0].values["twice"]


def test_a_baseline_that_holds_it_is_read_without_its_package(
    added: Site, cycles: list[Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    baseline = baseline_of("before", results(cycles, "run-0"))
    added.add("llem-twice", SOURCE)
    assert "twice" not in METRICS
    compare = Comparison((parse_fail_if("energy_j", "5%"),))
    assert [row.status for row in judge_experiment(cycles, (), compare, baseline).rows] == ["pass"]
    with pytest.raises(SettingsError, match="unknown metric 'twice'"):
        parse_fail_if("twice", "5%")


def test_a_budget_needs_the_uncertainty_of_its_sensor(site: Site, cycles: list[Outcome]) -> None:
    site.add("llem-twice", SOURCE, metrics="twice = llem_twice:BARE")
    row = budget(cycles)
    assert (row.status, "the package of this metric does not state" in row.reason) == ("inconclusive", True)
    known = {outcome.key: outcome for outcome in cycles}
    assert next(summarise(known, known.get)).metrics["twice"].uncertainty is None


@pytest.mark.parametrize(("name", "why"), [("RAISES", "AttributeError: .*'gone'"), ("INFINITE", "it is inf")])
def test_one_that_fails_costs_itself_alone(
    site: Site, cycles: list[Outcome], monkeypatch: pytest.MonkeyPatch, name: str, why: str
) -> None:
    """A run of hours must not end without a summary because somebody's function raised."""
    monkeypatch.setattr(metrics, "_TOLD", set())
    site.add("llem-twice", SOURCE, metrics=f"twice = llem_twice:{name}")
    known = {outcome.key: outcome for outcome in cycles}
    with pytest.warns(LlemWarning) as told:
        row = next(summarise(known, known.get))
    first = r"first in run run-\d+, study, batch_size:1, cycle 1"
    (said,) = (str(each.message) for each in told)
    assert re.fullmatch(rf"the metric 'twice' of llem-twice 1.0 is left out: .*{why}.* \({first}\)", said)
    assert "twice" not in row.metrics
    assert "energy_j" in row.metrics
    judged = budget(cycles)
    assert judged.status == "inconclusive"
    assert "it raised" in judged.reason or "it is inf" in judged.reason


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ("twice = llem_twice:GONE", "'twice' of llem-twice 1.0 cannot be used: AttributeError"),
        ("twice = llem_thrice:TWICE", "'twice' of llem-twice 1.0 cannot be used: ModuleNotFoundError"),
        ("twice = llem_twice:NUMBER", "it is a int, not a pytest_llem.Metric"),
        ("twice = llem_twice:NO_UNIT", "its unit is 'J per s'"),
        ("twice = llem_twice:RENAMED", "its name is 'thrice'"),
        ("energy_j = llem_twice:TWICE", "llem-twice 1.0 registers the metric 'energy_j', which pytest-llem itself has"),
        ("model = llem_twice:TWICE", "registers the metric 'model'"),
    ],
)
def test_a_broken_one_is_refused_by_name(site: Site, point: str, message: str) -> None:
    site.add("llem-twice", SOURCE, metrics=point)
    with pytest.raises(SettingsError, match=message) as caught:
        list(METRICS)
    assert "uninstall the package" in str(caught.value.fix)
    assert metric("energy_j").unit == "J"


def test_two_packages_cannot_share_a_name(added: Site) -> None:
    added.add("llem-two", SOURCE, metrics="twice = llem_two:TWICE")
    with pytest.raises(SettingsError, match=r"llem-two 1.0 registers .* which llem-twice 1.0 has|llem-twice 1.0 .*two"):
        list(METRICS)


def test_the_columns_that_it_may_not_be_called_are_those_of_the_table() -> None:
    assert {*COLUMNS} == {*reading.COLUMNS} - {*METRIC_NAMES} - {*reading.UNCERTAINTIES}


def test_an_export_format_is_found_by_its_name(added: Site, cycles: list[Outcome], tmp_path: Path) -> None:
    export(results(cycles), "lines", tmp_path / "deep" / "out.txt")
    assert (tmp_path / "deep" / "out.txt").read_text() == "batch_size:1\n" * 5
    with pytest.raises(SettingsError, match="unknown export format 'line'") as caught:
        export(results(cycles), "line", tmp_path / "out")
    assert "otel, lines" in str(caught.value.fix)


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ("lines = llem_twice:broken", "export format 'lines' of llem-twice 1.0 cannot be used: KeyError: 'colour'"),
        ("lines = llem_twice:NUMBER", "'lines' of llem-twice 1.0 cannot be used: TypeError"),
        ("csv = llem_twice:lines", "registers the export format 'csv', which pytest-llem itself has"),
    ],
)
def test_a_broken_export_format_is_no_traceback(
    site: Site, cycles: list[Outcome], tmp_path: Path, point: str, message: str
) -> None:
    site.add("llem-twice", SOURCE, exports=point)
    with pytest.raises(SettingsError, match=message):
        export(results(cycles), point.partition(" ")[0], tmp_path / "out")
