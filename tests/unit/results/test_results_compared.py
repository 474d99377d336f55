"""`llem compare --fail-if` and a study's gates are one judgement: the same verdicts, numbers and words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_llem.job.files import write_json
from pytest_llem.job.measurement import Measurement
from pytest_llem.job.wire import encode
from pytest_llem.results.baselines import baseline_of, with_repeatability
from pytest_llem.results.comparability import common_conditions
from pytest_llem.results.compare import ComparedMetric, compare, failed, lines
from pytest_llem.results.compared_sides import side_of
from pytest_llem.results.judging import judge_comparison
from pytest_llem.results.layout import CycleKey, repeatability_file
from pytest_llem.results.measured_cycles import cycles_of
from pytest_llem.results.reading import Results
from pytest_llem.results.repeatability import Repeatability, Spread, machine
from pytest_llem.study.limits import Comparison, FailIf
from tests.unit.results.conftest import Bench

NOISE = (1.00, 1.02, 0.98, 1.01, 0.99, 1.03, 0.97)
LIMITS = (FailIf("joules_per_output_token", 0.05), FailIf("output_tokens_per_s", -0.05))
Runs = Callable[..., Results]


@pytest.fixture
def run(bench: Bench, key: CycleKey) -> Runs:
    """A run's results by name, watts and number of cycles; `change` alters each measurement."""

    def make(
        name: str,
        watts: float = 10.0,
        cycles: int = 5,
        isolation: str = "process",
        change: Callable[[Measurement], Measurement] = lambda measurement: measurement,
    ) -> Results:
        results = []
        for cycle, noise in enumerate(NOISE[:cycles], 1):
            result = bench.result(change(bench.measurement(watts * noise)), replace(key, cycle=cycle))
            runner = replace(result.runner, isolation=isolation)
            results.append(result.model_copy(update={"run_id": name, "runner": runner}))
        return Results(tuple(results))

    return make


def both(before: Results, now: Results, **options: object) -> list[ComparedMetric]:
    """The command's rows, after checking that they are the gates'."""
    rows = compare(side_of("before", before), [side_of("now", now)], limits=LIMITS, **options)  # type: ignore[arg-type]
    first = now[0]
    of = (first.study, first.experiment.id, first.experiment.config_hash)
    lost = [f"c{result.cycle} invalid" for result in now if not result.validity.valid]
    comparison = Comparison(LIMITS, **options)  # type: ignore[arg-type]
    gates = judge_comparison(baseline_of("before", before), of, cycles_of(now.valid.items), lost, comparison)
    rows = [row for row in rows if row.experiment_id == first.experiment.id]
    judged = {row.metric: row for row in rows}
    for gate in gates:
        row = judged[gate.metric]
        assert (row.verdict, row.reason, row.limit_text) == (gate.status, gate.reason, gate.limit)
        if gate.ratio is not None:
            assert (row.ratio, row.ci_low, row.ci_high) == (gate.ratio, gate.ci_low, gate.ci_high)
    return [row for row in rows if row.limit_text is not None]


def verdicts(rows: list[ComparedMetric]) -> list[str | None]:
    return [row.verdict for row in rows]


def test_what_is_worse_fails_in_both(run: Runs) -> None:
    rows = both(run("before"), run("now", 12.0))
    assert verdicts(rows) == ["fail", "pass"]
    assert failed(rows)


def test_runs_of_a_baseline_keep_apart(run: Runs) -> None:
    """Three runs that differ by 4 % were one sample of 15 cycles to the command, and three runs to the gate."""
    before = Results((*run("a", 9.6).items, *run("b").items, *run("c", 10.4).items))
    rows = both(before, run("now", 11.0))
    assert rows[0].verdict == "inconclusive"


def test_cycles_that_shared_a_loaded_engine_count_as_one_in_both(run: Runs) -> None:
    rows = both(run("before", isolation="load"), run("now", 10.8, isolation="load"))
    assert rows[0].verdict == "inconclusive"


def test_a_run_compared_with_its_own_resume_is_not_comparable(run: Runs) -> None:
    before = run("before")
    resumed = Results(tuple(result.model_copy(update={"run_id": "now", "source_run": "before"}) for result in before))
    rows = both(before, resumed)
    assert verdicts(rows) == ["not_comparable"] * 2
    assert "the same measurements on both sides" in rows[0].reason
    assert failed(rows, strict=True)


def test_other_conditions_and_settings_are_named_in_both(run: Runs, bench: Bench) -> None:
    other = run("now", change=lambda measurement: replace(measurement, prompts_hash="q"))
    rows = both(run("before"), other)
    assert "prompts_hash: p -> q" in rows[0].reason
    assert any("prompts_hash: p -> q" in line for line in lines(rows))
    assert verdicts(both(run("before"), other, allow=("prompts_hash",))) == ["pass", "pass"]


def test_an_experiment_that_the_baseline_lacks_is_not_comparable_in_both(run: Runs) -> None:
    now = run("now")
    elsewhere = tuple(
        result.model_copy(update={"experiment": replace(result.experiment, id="other", config_hash="f" * 16)})
        for result in now
    )
    rows = both(run("before"), Results(elsewhere))
    assert verdicts(rows) == ["not_comparable"] * 2
    assert "has no valid cycle of this experiment" in rows[0].reason


def test_what_equal_runs_differ_by_here_is_in_the_commands_bounds_too(run: Runs, tmp_path: Path) -> None:
    """Runs that were measured to differ by 4 % (`llem aa`): +15 % is no regression beyond 5 %, in gates and command."""
    before, now = run("before"), run("now", 11.5)
    assert statuses(compare(side_of("before", before), [side_of("now", now)], limits=LIMITS[:1])) == ["fail"]
    measured = Spread(within_run=0.02, common=0.04, between_runs=0.0, degrees=9)
    metrics = dict.fromkeys(("joules_per_output_token", "output_tokens_per_s"), measured)
    kept = Repeatability("study", "", (), machine(common_conditions(now)), metrics)
    write_json(repeatability_file("study", tmp_path), encode(kept))
    rows = compare(side_of("before", before), [side_of("now", now)], limits=LIMITS[:1], baseline_dir=tmp_path)
    assert statuses(rows) == ["inconclusive"]
    of = (now[0].study, now[0].experiment.id, now[0].experiment.config_hash)
    baseline = with_repeatability(baseline_of("before", before), tmp_path)
    (gate,) = judge_comparison(baseline, of, cycles_of(now.items), (), Comparison(LIMITS[:1]))
    (row,) = (row for row in rows if row.limit_text is not None)
    assert (row.verdict, row.ci_low, row.ci_high, row.reason) == (gate.status, gate.ci_low, gate.ci_high, gate.reason)
    free = {row.metric: row for row in compare(side_of("before", before), [side_of("now", now)], baseline_dir=tmp_path)}
    assert free["joules_per_output_token"].ci_low == pytest.approx(gate.ci_low, rel=1e-5)


def statuses(rows: list[ComparedMetric]) -> list[str | None]:
    return [row.verdict for row in rows if row.limit_text is not None]


def test_without_a_valid_cycle_no_setting_is_said_to_differ(run: Runs) -> None:
    """All settings were named as unset, and what was wrong, that no cycle is valid, was not said."""
    before = run("before")
    of = (before[0].study, before[0].experiment.id, "f" * 16)
    (row,) = judge_comparison(baseline_of("before", before), of, None, ["c1 invalid"], Comparison(LIMITS[:1]))
    assert (row.status, row.reason) == ("inconclusive", "no cycle is valid (not used: c1 invalid)")


def test_estimated_energy_is_marked_where_no_limit_judges_it(run: Runs) -> None:
    """A gate refuses estimates; the same figures stood in the table as if they had been measured."""

    def estimate(measurement: Measurement) -> Measurement:
        assert measurement.energy is not None
        return replace(measurement, energy=replace(measurement.energy, meter="estimate", measured=False))

    rows = compare(side_of("before", run("before", change=estimate)), [side_of("now", run("now", change=estimate))])
    differs = {row.metric: row.differs for row in rows}
    assert differs["joules_per_output_token"] == ("energy is estimated, not measured, by estimate",)
    assert differs["output_tokens_per_s"] == ()
    assert "* energy is estimated, not measured, by estimate" in lines(rows)


def test_an_experiment_that_the_run_lost_is_absent_and_not_unsaid(run: Runs) -> None:
    """All its cycles crashed, so that it has no result: it was left out, and a strict comparison exited with 0."""
    kept = run("before")
    other = [r.model_copy(update={"experiment": replace(r.experiment, id="b", config_hash="b" * 16)}) for r in kept]
    rows = compare(side_of("before", Results((*kept, *other))), [side_of("now", run("now"))], limits=LIMITS[:1])
    lost = [row for row in rows if row.experiment_id == "b"]
    assert {row.verdict for row in lost} == {"absent"}
    assert [row.limit_text for row in lost if row.metric == "joules_per_output_token"] == ["+5 %"]
    assert failed(rows, strict=True)
    assert not failed(rows)
    assert "b: joules_per_output_token: this run has no result of it" in lines(rows)
