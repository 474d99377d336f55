"""Percentiles that a study chooses: what a result states of them, and who reads them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_llem.job.metric_names import metric_name
from pytest_llem.job.percentiles import least_values
from pytest_llem.job.report import RunReport
from pytest_llem.results.baseline_reference import open_baseline
from pytest_llem.results.baselines import Baseline, save_baseline
from pytest_llem.results.derive import derive_result
from pytest_llem.results.exports.mlperf import summary
from pytest_llem.results.exports.otel import metrics_data
from pytest_llem.results.exports.vllm_bench import bench_result
from pytest_llem.results.judging import judge_experiment
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.metrics import metric, why_absent
from pytest_llem.results.reading import Results
from pytest_llem.results.schema import Result
from pytest_llem.results.sections.performance import distribution
from pytest_llem.results.state import Outcome
from pytest_llem.results.summary import summarise, summary_csv
from pytest_llem.study.limits import Budget, Comparison, FailIf

if TYPE_CHECKING:
    from tests.unit.results.conftest import Bench

CHOSEN = (50.0, 75.0, 90.0, 95.0, 99.0, 99.9)
Make = Callable[..., Result]


@pytest.fixture
def make(bench: Bench, key: CycleKey) -> Make:
    """A result of the bench, six requests, whose study chose these percentiles."""

    def make(percentiles: tuple[float, ...] = CHOSEN, cycle: int = 1, power_w: float = 10.0) -> Result:
        job = replace(bench.job(replace(key, cycle=cycle)), percentiles=percentiles)
        report = RunReport("local", "default", "process")
        return derive_result(job, bench.measurement(power_w), report, study=key.study, environment={})

    return make


@pytest.mark.parametrize(
    ("percentile", "least"),
    [(50.0, 1), (75.0, 4), (90.0, 10), (95.0, 20), (99.0, 100), (99.9, 1000), (99.999, 100_000), (5.0, 20), (60.0, 3)],
)
def test_a_percentile_takes_as_many_values_as_leave_one_beyond_it(percentile: float, least: int) -> None:
    """As a floating-point number 1/(1 - 0.999) is above 1000, and would take 1,001."""
    assert least_values(percentile) == least
    few, enough = (distribution([float(v) for v in range(n)], [percentile]) for n in (max(1, least - 1), least))
    assert few is not None
    assert enough is not None
    name = f"p{percentile:g}"
    assert enough.statistics[name] == pytest.approx((least - 1) * percentile / 100)
    assert (few.statistics[name] is None) == (least > 1)


def test_a_result_states_the_chosen_ones_beside_the_standard_ones(make: Make) -> None:
    ttft = make().latency.ttft_s
    assert ttft is not None
    assert ttft.percentiles == {"75": pytest.approx(0.1), "95": None, "99.9": None}
    assert ttft.p50 == pytest.approx(0.1)
    assert (ttft.p90, ttft.p99) == (None, None)
    plain = make((50.0,)).latency.ttft_s
    assert plain == replace(ttft, percentiles={})


def test_a_chosen_percentile_is_a_metric_by_its_name(make: Make) -> None:
    result = make()
    assert metric("ttft_p75_s").of(result) == pytest.approx(0.1)
    assert metric("ttft_p99_9_s").of(result) is None
    entry = metric_name("ttft_p99_9_s")
    assert (entry.unit, entry.description) == ("s", "Time to first token, 99.9th percentile")
    assert "fewer than 1,000 values" in str(entry.absent)
    assert "`p99.9_ttft_ms`" in str(entry.source)


def test_why_a_percentile_is_absent_is_that_nobody_chose_it_or_that_it_had_too_few(make: Make) -> None:
    assert why_absent("e2el_p95_s", make()).startswith("e2el_p95_s takes at least 20 values, and there were 6")
    assert why_absent("e2el_p95_s", make((50.0,))) == "the study that measured it has no 95 among its percentiles"


def test_tables_and_summaries_have_columns_of_the_chosen_ones(make: Make, key: CycleKey, tmp_path: Path) -> None:
    result = make()
    table = Results((result,)).to_table()
    assert table.column("ttft_p75_s").to_pylist() == [pytest.approx(0.1)]
    assert table.column("tpot_p99_9_s").to_pylist() == [None]
    assert table.schema.field("ttft_p75_s").metadata == {b"unit": b"s"}
    outcome = Outcome("valid", key, tmp_path, result, None, 1, ())
    rows = list(summarise([key], lambda _: outcome))
    (row,) = csv.DictReader(io.StringIO(summary_csv(rows)))
    assert float(row["ttft_p75_s"]) == pytest.approx(0.1)
    assert list(row).index("cycles_reused") < list(row).index("ttft_p75_s"), "columns from before keep their places"


def test_exports_have_the_chosen_ones_where_the_other_tools_have_them(make: Make) -> None:
    result = make()
    theirs = bench_result(result)
    assert theirs["p75_ttft_ms"] == pytest.approx(100.0)
    assert theirs["p99.9_e2el_ms"] is None
    assert "p50_ttft_ms" not in theirs
    assert summary(result)["75.00 percentile first token latency (ns)"] == 100_000_000
    assert summary(result)["99.90 percentile first token latency (ns)"] is None
    assert "99.999 percentile latency (ns)" in summary(make((99.999,))), "rounded, it was the 100.00 percentile"
    assert '"p75"' in json.dumps(metrics_data(result))


def judged(
    results: list[Result], key: CycleKey, path: Path, comparison: Comparison | None = None, **more: object
) -> str:
    outcomes = [Outcome("valid", replace(key, cycle=r.cycle), path, r, None, 1, ()) for r in results]
    budgets = [] if comparison else [Budget("ttft_p75_s", "<=", 0.2)]
    (row,) = judge_experiment(outcomes, budgets, comparison, **more).rows  # type: ignore[arg-type]
    return f"{row.status}: {row.reason}"


def earlier(percentiles: tuple[float, ...], make: Make, directory: Path) -> Baseline:
    """A baseline that was saved of a run of three cycles with these percentiles."""
    results = [make(percentiles, cycle).model_copy(update={"run_id": "before"}) for cycle in (1, 2, 3)]
    save_baseline("main", results, directory)
    return open_baseline("main", directory)


def test_gates_judge_a_chosen_percentile_also_against_a_baseline(make: Make, key: CycleKey, tmp_path: Path) -> None:
    now = [make(cycle=cycle) for cycle in (1, 2, 3)]
    assert judged(now, key, tmp_path).startswith("pass")
    baseline = earlier(CHOSEN, make, tmp_path)
    assert judged(now, key, tmp_path, Comparison((FailIf("ttft_p75_s", 0.05),)), baseline=baseline).startswith("pass")


def test_a_baseline_from_before_they_were_chosen_still_loads_and_says_what_it_lacks(
    make: Make, key: CycleKey, tmp_path: Path
) -> None:
    baseline = earlier((50.0, 90.0, 99.0), make, tmp_path)
    now = [make(cycle=cycle) for cycle in (1, 2, 3)]
    verdict = judged(now, key, tmp_path, Comparison((FailIf("ttft_p75_s", 0.05),)), baseline=baseline)
    assert verdict == "not_comparable: the baseline did not measure it"


def test_a_result_file_with_something_else_for_a_percentile_is_refused(make: Make) -> None:
    """It would be a name of a metric, and of a column."""
    text = make().model_dump_json()
    for wrong in ("last", "0", "99.90", "100"):
        with pytest.raises(ValueError, match="percentiles"):
            Result.model_validate_json(text.replace('"99.9":', f'"{wrong}":'))


def test_older_results_have_none(make: Make) -> None:
    data = json.loads(make().model_dump_json())
    for each in data["latency"].values():
        if each is not None:
            del each["percentiles"]
    assert Result.model_validate_json(json.dumps(data)).latency.percentiles == ()
