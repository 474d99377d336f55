"""What a search leaves: what its windows are evidence of, and the one result that everything else reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llem.errors import LlemError
from pytest_llem.job.report import Note
from pytest_llem.results.attempts import get_or_measure
from pytest_llem.results.baselines import baseline_of
from pytest_llem.results.comparability import compared_settings, settings_differences
from pytest_llem.results.judging import judge_experiment
from pytest_llem.results.layout import CycleKey, WindowKey
from pytest_llem.results.metrics import metric
from pytest_llem.results.performance_schema import SearchSection, SloSection
from pytest_llem.results.reading import Results
from pytest_llem.results.schema import Result
from pytest_llem.results.search import LargestLoad, NextLoad, plan
from pytest_llem.results.search_record import read_searches
from pytest_llem.results.searched import MeasuredWindow, conclude, tells_of_load, window_of, write_search
from pytest_llem.results.state import Outcome
from pytest_llem.results.store import RunStore
from pytest_llem.results.uncertainty import budget_of_experiment
from pytest_llem.study.limits import Budget, Comparison, FailIf
from pytest_llem.study.search import RATE, Search

if TYPE_CHECKING:
    from tests.unit.results.conftest import Bench, Worker

SEARCH = Search(RATE, 1.0, 64.0, tolerance=0.5, max_windows=6)
AT = 0.9
KEY = CycleKey("study", "rate_per_s:search", "0123456789abcdef", 1)


def slo(load: float, share: float, requests: int = 400) -> SloSection:
    good = round(share * requests)
    nothing: dict[str, Any] = dict.fromkeys(SloSection.__dataclass_fields__)
    stated = {"ttft_s": 0.5, "at": AT, "requests": requests, "good": good, "met": {"ttft_s": share}, "share": share}
    return SloSection(**{**nothing, **stated, "effective_requests": float(requests), "offered_per_s": load})


@pytest.fixture
def measured(bench: Bench, tmp_path: Path) -> Callable[..., Outcome]:
    """An outcome whose requests were good to this share, invalid for these reasons."""

    def outcome(load: float, share: float, *codes: str, failures: dict[str, int] | None = None) -> Outcome:
        result: Result = bench.result()
        reasons = tuple(Note(code, f"because of {code}") for code in codes)
        changed = {
            "slo": slo(load, share),
            "status": "invalid" if reasons else "valid",
            "validity": replace(result.validity, valid=not reasons, reasons=reasons),
            "workload": replace(result.workload, failures=failures or {}),
        }
        whole = result.model_copy(update=changed)
        return Outcome(whole.status, KEY, tmp_path, whole, None, 1, ())

    return outcome


def test_a_window_with_too_much_load_is_evidence_and_other_invalid_ones_are_not(
    measured: Callable[..., Outcome],
) -> None:
    """A foreign process in one window must not say that the server is slow."""
    served = window_of(SEARCH, 8.0, measured(7.9, 1.0))
    saturated = window_of(SEARCH, 8.0, measured(7.9, 0.2, "saturated", "foreign_process"))
    shed = window_of(SEARCH, 8.0, measured(7.9, 0.2, "failed_requests", failures={"http_429": 9, "timeout": 2}))
    wrong = window_of(SEARCH, 8.0, measured(7.9, 0.2, "failed_requests", failures={"http_4xx": 9}))
    disturbed = window_of(SEARCH, 8.0, measured(7.9, 0.2, "foreign_process"))

    assert (served.offered, served.good, served.requests, served.overloaded) == (7.9, 400, 400, False)
    assert saturated.overloaded
    assert saturated.served_per_s is not None
    assert shed.overloaded
    assert wrong.unusable == "failed_requests: because of failed_requests"
    assert disturbed.unusable == "foreign_process: because of foreign_process"
    assert tells_of_load(SEARCH, measured(7.9, 0.2, "saturated"))
    assert not tells_of_load(SEARCH, measured(7.9, 0.2, "foreign_process"))


Sides = tuple[Outcome, list[MeasuredWindow], dict[str, Any]]


def run_search(tmp_path: Path, bench: Bench, share_at: Callable[[float], float | LlemError]) -> Sides:
    """A whole search over windows of these shares, in a store."""
    from tests.unit.results.conftest import Worker

    store = RunStore.create(tmp_path, "run-1", environment={"hostname": "here"})
    windows: list[MeasuredWindow] = []
    while isinstance(step := plan(SEARCH, AT, [each.window for each in windows]), NextLoad):
        key = WindowKey(**vars(KEY), step=len(windows) + 1)
        share = share_at(step.load)
        worker: Worker = Worker(bench, key, share if isinstance(share, LlemError) else bench.measurement())
        outcome = get_or_measure(store, key, worker)
        if outcome.result is not None and isinstance(share, float):
            judged = outcome.result.model_copy(update={"slo": slo(step.load, share)})
            outcome = replace(outcome, result=judged)
        windows.append(MeasuredWindow(step.reason, outcome, window_of(SEARCH, step.load, outcome)))
        write_search(store, KEY, SEARCH, AT, windows, step)
    assert isinstance(step, LargestLoad)
    concluded = conclude(store, KEY, SEARCH, step, windows)
    write_search(store, KEY, SEARCH, AT, windows, step)
    assert conclude(store, KEY, SEARCH, step, windows).state == concluded.state, "the first one is final"
    return concluded, windows, json.loads((concluded.directory.parent / "search.json").read_text())


def test_the_cycle_s_result_is_that_of_the_highest_window_that_kept_the_slo(tmp_path: Path, bench: Bench) -> None:
    outcome, windows, found = run_search(tmp_path, bench, lambda load: 1.0 if load <= 20 else 0.3)

    assert outcome.valid
    assert outcome.result is not None
    search = outcome.result.search
    assert search is not None
    assert (search.ending, search.windows) == ("found", len(windows))
    assert metric("max_rate_under_slo").of(outcome.result) == search.answer == pytest.approx(20, rel=0.4)
    assert search.met is not None
    assert search.not_met is not None
    assert search.met <= 20 < search.not_met
    assert outcome.result.experiment.id == "rate_per_s:search"
    answering = windows[(search.step or 0) - 1].outcome
    assert (outcome.directory / "measurement.json").samefile(answering.directory / "measurement.json")
    assert found["answer"] == {"load": search.answer, "low": search.answer_low, "high": search.answer_high, "cycles": 1}
    assert [each["step"] for each in found["cycles"]["1"]["windows"]] == [*range(1, len(windows) + 1)]
    assert {each["verdict"] for each in found["cycles"]["1"]["windows"]} == {"met", "not_met"}


def test_a_bracket_that_is_too_high_leaves_no_number(tmp_path: Path, bench: Bench) -> None:
    """An answer of the lower end would be a load that failed."""
    outcome, _, found = run_search(tmp_path, bench, lambda load: 0.1)

    assert outcome.state == "invalid"
    assert outcome.result is not None
    assert metric("max_rate_under_slo").of(outcome.result) is None
    assert outcome.reasons()[0].startswith("no_load_under_slo: no load from 1 to 64 requests/s was seen")
    assert found["answer"]["load"] is None


def test_cycles_that_found_no_upper_end_have_none_together(tmp_path: Path, bench: Bench) -> None:
    """Three cycles that all kept the upper end agreed to the digit: `200 (200 .. 200)`, as if it had been found."""
    store = RunStore.create(tmp_path, "run-1", environment={})
    for cycle, high in ((1, None), (2, 66.0), (3, None)):
        ending = "found" if high else "at_least"
        step = LargestLoad(ending, 64.0, 62.0, high, None, None, "because")  # type: ignore[arg-type]
        write_search(store, replace(KEY, cycle=cycle), SEARCH, AT, [], step)

    [record] = read_searches(store.run_dir)

    assert record.answer.load == pytest.approx(64.0)
    assert record.answer.high is None
    assert record.line.startswith("at least 64.0 requests/s, mean of 3 cycles")


def open_ended(bench: Bench, run_id: str, *rates: float) -> list[Outcome]:
    """Cycles of a search whose upper end of 200 requests/s was kept where that is their rate."""
    outcomes = []
    for cycle, rate in enumerate(rates, start=1):
        more = rate == 200
        section = SearchSection(
            setting=RATE,
            low=1.0,
            high=200.0,
            tolerance=0.05,
            ending="at_least" if more else "found",
            reason="because",
            answer=rate,
            answer_low=rate,
            answer_high=None if more else rate,
            met=rate,
            not_met=None,
            step=1,
            windows=3,
            max_rate_per_s=rate,
        )
        key = replace(KEY, cycle=cycle)
        result = bench.result(key=key).model_copy(update={"search": section, "run_id": run_id})
        outcomes.append(Outcome("valid", key, Path(), result, None, 1, ()))
    return outcomes


@pytest.mark.parametrize(
    ("op", "limit", "status"),
    [(">=", 150.0, "pass"), (">=", 300.0, "inconclusive"), ("<=", 150.0, "fail"), ("<=", 300.0, "inconclusive")],
)
def test_a_budget_takes_an_answer_without_upper_end_for_a_lower_bound(
    bench: Bench, op: Any, limit: float, status: str
) -> None:
    """A server that does 400/s failed a budget of 300/s, because its search ended at 200/s."""
    cycles = open_ended(bench, "now", 200.0, 200.0, 200.0)

    (row,) = judge_experiment(cycles, [Budget("max_rate_under_slo", op, limit)]).rows

    assert row.status == status
    assert ("raise its high" in row.reason) is (status == "inconclusive")


def test_a_budget_does_not_pass_on_the_cycles_alone_that_found_a_load(bench: Bench) -> None:
    """Cycles in which the lower end was too much are invalid, and the others had a mean above the budget."""
    found = open_ended(bench, "now", 100.0, 101.0, 99.0, 100.0)
    result = found[-1].result
    assert result is not None
    assert result.search is not None
    nothing = replace(result.search, ending="none", answer=None, max_rate_per_s=None)
    lost = replace(found[-1], state="invalid", result=result.model_copy(update={"search": nothing}))

    (row,) = judge_experiment([*found[:-1], lost], [Budget("max_rate_under_slo", ">=", 50.0)]).rows

    assert row.status == "inconclusive"
    assert row.reason.startswith("no load kept the SLO in c4")


def test_a_comparison_does_not_take_a_lower_bound_for_a_rate(bench: Bench) -> None:
    """A fall from 1000/s to 210/s passed where both searches ended at 200/s."""

    def compared(before: float, now: float) -> str:
        earlier = open_ended(bench, "before", before, before, before)
        baseline = baseline_of("before", Results(tuple(o.result for o in earlier if o.result is not None)))
        limits = Comparison((FailIf("max_rate_under_slo", -0.05),))
        (row,) = judge_experiment(open_ended(bench, "now", now, now, now), (), limits, baseline).rows
        return row.status

    assert compared(100.0, 99.0) == "pass"
    assert compared(100.0, 80.0) == "fail"
    assert compared(100.0, 200.0) == "pass", "it is at least so much"
    assert compared(250.0, 200.0) == "inconclusive", "it may be more"
    assert compared(200.0, 199.0) == "not_comparable", "the baseline's may have been more"
    assert compared(200.0, 200.0) == "not_comparable"


def test_the_load_that_a_search_chose_is_no_changed_setting(bench: Bench) -> None:
    """A study with another dtype was said to have another rate and another seed as well."""

    def of_load(load: float, dtype: str) -> Result:
        (outcome,) = open_ended(bench, "now", 100.0)
        assert outcome.result is not None
        arrival = {"process": "poisson", "rate_per_s": load, "seed": int(load)}
        config: dict[str, Any] = {**outcome.result.experiment.config, "dtype": dtype, "workload": {"arrival": arrival}}
        return outcome.result.model_copy(update={"experiment": replace(outcome.result.experiment, config=config)})

    before, now = compared_settings(of_load(9.2, "float32")), compared_settings(of_load(11.6, "float16"))

    assert settings_differences(before, now) == ["dtype float32 -> float16"]


def test_an_answer_without_upper_end_has_no_uncertainty(bench: Bench) -> None:
    results = [outcome.result for outcome in open_ended(bench, "now", 200.0, 200.0) if outcome.result is not None]

    budget = budget_of_experiment(metric("max_rate_under_slo"), results)

    assert budget is not None
    assert (budget.value, budget.uncertainty) == (200.0, None)


def test_windows_that_all_fail_fail_the_search_with_their_error(tmp_path: Path, bench: Bench) -> None:
    outcome, windows, found = run_search(tmp_path, bench, lambda load: LlemError("nothing answers"))

    assert (outcome.state, len(windows)) == ("failed", 2)
    assert outcome.error is not None
    assert outcome.error.message == "nothing answers"
    assert found["cycles"]["1"]["ending"] == "given_up"


def test_a_process_that_is_behind_does_not_take_windows_back(
    tmp_path: Path, bench: Bench, worker: Callable[..., Worker]
) -> None:
    """Workers of xdist write after each window; the slower one wrote what it knew over what was known."""
    store = RunStore.create(tmp_path, "run-1", environment={})
    outcome = get_or_measure(store, KEY, worker(KEY))
    known = replace(outcome, directory=store.directory(KEY))
    one = MeasuredWindow("first", known, window_of(SEARCH, 8.0, known))
    further = plan(SEARCH, AT, [])

    write_search(store, KEY, SEARCH, AT, [one, one], further)
    write_search(store, KEY, SEARCH, AT, [one], further)

    found = json.loads((store.directory(KEY).parent / "search.json").read_text())
    assert len(found["cycles"]["1"]["windows"]) == 2
