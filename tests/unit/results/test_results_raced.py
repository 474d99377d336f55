"""A study's race over outcomes: what it sees of a cycle, when a round is over, and what it leaves on the disk."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from pytest_llem.results.optimize_record import path_of, read_record, write_record
from pytest_llem.results.raced import StudyRace, seen_of
from pytest_llem.results.schema import Result
from pytest_llem.results.state import Outcome
from pytest_llem.session.racing import race_of
from pytest_llem.study import Study, load_study
from pytest_llem.study.limits import parse_budget

STUDY = """\
name: raced
model: m
engine: transformers
sweep: {transformers.batch_size: [1, 2, 4, 8]}
optimize: {maximize: output_tokens_per_s, subject_to: {requests_per_s: ">= 2"}, max_cycles: 6}
"""
SPEEDS = {"1": 100.0, "2": 140.0, "4": 141.0, "8": 200.0}
OTHERS = {"runner": SimpleNamespace(isolation="process"), "quality": None, "slo": None}
NOISE = (0.3, -0.4, 0.2, -0.1, 0.4, -0.3)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    return load_study(path)


def outcome_of(id: str, cycle: int) -> Outcome:
    """Batch 8 is the fastest, and answers too few requests."""
    size = id.rpartition(":")[2]
    speed = SPEEDS[size] * (1 + 0.002 * NOISE[(cycle + int(size)) % 6])
    rate = 1.5 if size == "8" else 4.0
    return outcome(speed, rate * (1 + 0.01 * NOISE[cycle % 6]))


def outcome(
    speed: float | None, rate: float | None = 4.0, state: str = "valid", source_run: str | None = None
) -> Outcome:
    figures = SimpleNamespace(output_tokens_per_s=speed, requests_per_s=rate)
    reasons = SimpleNamespace(reasons=[SimpleNamespace(code="thermal", message="too hot")])
    result = cast("Result", SimpleNamespace(throughput=figures, validity=reasons, latency=None, **OTHERS))
    return Outcome(state, None, Path(), result, None, 1, (), source_run)  # type: ignore[arg-type]


def raced(study: Study, outcome_of: Callable[[str, int], Outcome | None] = outcome_of) -> StudyRace:
    race = race_of(study, dict.fromkeys(each.id for each in study.experiments))
    assert race is not None
    race.go_on(lambda each, cycle: outcome_of(each.id, cycle))
    return race


def test_a_race_asks_for_the_cycles_that_its_answer_takes_and_no_others(study: Study) -> None:
    asked: list[tuple[str, int]] = []

    def counted(id: str, cycle: int) -> Outcome:
        asked.append((id, cycle))
        return outcome_of(id, cycle)

    race = raced(study, counted)
    record = race.record()

    assert (record.status, record.recommended, len(set(asked))) == ("found", "batch_size:4", len(asked))
    assert record.measured == len(asked) < record.grid == 24
    assert {id for id, each in record.settings.items() if each.fate.state == "infeasible"} == {"batch_size:8"}
    for id, each in record.settings.items():
        assert sorted(cycle for other, cycle in asked if other == id) == list(range(1, each.fate.cycles + 1))
    assert race.not_needed("batch_size:1", 1) is None
    assert "cannot be the best" in (race.not_needed("batch_size:1", 6) or "")
    assert "requests_per_s >= 2" in (race.not_needed("batch_size:8", 6) or "")
    assert (race.not_needed("batch_size:4", 6) or "").startswith("not needed: ")


def test_the_record_says_how_many_settings_each_round_measured(tmp_path: Path) -> None:
    """With a declared structure settings join later: by their cycles alone, later rounds had measured hardly any."""
    path = tmp_path / "declared.yaml"
    path.write_text(STUDY.replace("max_cycles", "assume: monotone, max_cycles"))
    asked: list[int] = []

    def counted(id: str, cycle: int) -> Outcome:
        asked.append(cycle)
        return outcome_of(id, cycle)

    record = raced(load_study(path), counted).record()
    assert list(record.course) == [asked.count(number) for number in range(1, record.rounds + 1)]
    assert any(fate.cycles < record.rounds for fate in (each.fate for each in record.settings.values()))
    assert max(record.course) > record.course[0]
    assert record.measured == len(asked)


def test_a_round_counts_once_all_of_it_has_ended(study: Study) -> None:
    """Part of a round in the record would make its bytes depend on who wrote them when."""
    absent = study.experiments[-1].id
    race = raced(study, lambda id, cycle: None if (id, cycle) == (absent, 2) else outcome_of(id, cycle))

    assert (race.record().rounds, race.record().measured, race.record().status) == (1, 4, "running")
    assert race.record().sentence.endswith("; the race is not over, after 1 of at most 6 rounds")
    assert race.record().lines()[-1].endswith(" in 1 round")
    assert {cycle for _, cycle in race.round()} == {2}
    assert race.go_on(lambda each, cycle: outcome_of(each.id, cycle))
    assert race.record() == raced(study).record(), "whoever takes it up comes to the same"


def test_the_record_on_the_disk_is_that_of_the_latest_round(study: Study, tmp_path: Path) -> None:
    """A worker that is a round behind must not overwrite what another has found."""
    (tmp_path / ".locks").mkdir()
    early = raced(study, lambda id, cycle: outcome_of(id, cycle) if cycle < 2 else None).record()
    final = raced(study).record()
    write_record(tmp_path, early)
    write_record(tmp_path, final)
    write_record(tmp_path, early)

    assert read_record(path_of(tmp_path, "raced")) == final
    assert final.lines()[0].startswith(
        "best setting, maximize output_tokens_per_s subject to requests_per_s >= 2: batch"
    )
    assert any(line.startswith("infeasible: batch_size:8: ") for line in final.lines())


def test_what_was_not_selected_does_not_race_and_the_answer_says_so(study: Study) -> None:
    selected = {each.id: None for each in study.experiments[:2]} | {study.experiments[2].id: "needs a GPU"}
    race = race_of(study, selected)
    assert race is not None
    race.go_on(lambda each, cycle: outcome_of(each.id, cycle))

    assert race.record().left_out == {"batch_size:4": "needs a GPU", "batch_size:8": "not selected"}
    assert race.record().lines()[-1].endswith("among 2 of 4 settings")
    assert race_of(study, {study.experiments[0].id: None}) is None, "one setting has nothing to race with"


def test_a_cycle_without_a_value_says_why(study: Study) -> None:
    assert study.optimize is not None
    assert seen_of(outcome(None, state="invalid"), study.optimize).failed == "thermal: too hot"
    assert "output_tokens_per_s" in (seen_of(outcome(None), study.optimize).failed or "")
    assert "no requests_per_s" in (seen_of(outcome(5.0, None), study.optimize).failed or ""), "or all cycles are spent"
    seen = seen_of(outcome(5.0, 3.0), study.optimize)
    assert (seen.value, seen.limited, seen.own_error_rel, seen.failed) == (5.0, {"requests_per_s": 3.0}, 0.0, None)
    assert not math.isnan(seen.limit_errors_rel["requests_per_s"])


def test_an_answer_that_the_meter_leaves_open_says_so(study: Study) -> None:
    """Else users raise `max_cycles`, which never helps."""
    record = replace(raced(study).record(), status="undecided", meter_rel=0.1)
    assert any("may set two settings apart by 0.28" in line for line in record.lines())
    unknown = replace(record, meter_rel=None)
    assert any("by an unknown share" in line for line in unknown.lines())
    assert not any("the meter" in line for line in replace(record, meter_rel=0.001).lines())


@pytest.mark.parametrize(("rounds", "sure"), [(1, True), (2, False)])
def test_settings_of_another_run_differ_by_what_runs_do(study: Study, rounds: int, sure: bool) -> None:
    """A level that batch 4 had in another run passed for its own, in every cycle alike: it was certified as the best.

    One round that a killed run left half done scatters, and costs no certainty.
    """

    def elsewhere(id: str, cycle: int) -> Outcome:
        speed = {"1": 100.0, "2": 140.0, "4": 141.0, "8": 100.0}[id.rpartition(":")[2]]
        return outcome(speed, source_run="earlier" if id == "batch_size:4" and cycle <= rounds else None)

    race = raced(study, elsewhere)
    record = race.record()
    assert (record.meter_rel == 0) is sure
    assert set(record.best) >= {"batch_size:4"}
    assert sure or "batch_size:2" in record.best


def test_a_cycle_that_would_tell_a_part_of_the_truth_is_none(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cycles of one loaded engine count as one, and a share without its count would be limited by nothing."""
    goal = study.optimize
    assert goal is not None
    shared = outcome(5.0)
    monkeypatch.setattr(shared.result, "runner", SimpleNamespace(isolation="load"))
    assert "leave --llem-resume out" in (seen_of(shared, goal).failed or "")
    share = outcome(5.0)
    monkeypatch.setattr(share.result, "slo", SimpleNamespace(share=0.9, effective_requests=None, good=9))
    limited = replace(goal, subject_to=(parse_budget("slo_met_share", ">= 0.5"),))
    assert "slo_met_share has no count" in (seen_of(share, limited).failed or "")
    none_good = outcome(5.0)
    slo = SimpleNamespace(share=0.0, effective_requests=5.0, good=0, joules_per_good_request=None)
    monkeypatch.setattr(none_good.result, "slo", slo)
    monkeypatch.setattr(none_good.result, "energy", SimpleNamespace(energy_j=3.0), raising=False)
    seen = seen_of(none_good, replace(goal, metric="joules_per_good_request", subject_to=()))
    assert (seen.value, "beyond any number" in (seen.failed or "")) == (math.inf, True)


def test_settings_that_cannot_run_are_left_out_of_the_answer_by_name(tmp_path: Path) -> None:
    """`on_invalid: skip` dropped them before the race began, whose answer was then said to be that of the sweep."""
    path = tmp_path / "study.yaml"
    swept = "sweep: {transformers.cache_implementation: [null, static], transformers.use_cache: [true, false]}"
    path.write_text(f"model: m\non_invalid: skip\n{swept}\noptimize: {{maximize: output_tokens_per_s}}\n")
    study = load_study(path)
    race = race_of(study, {each.id: None for each in study.experiments[:2]})
    assert race is not None

    (point,) = study.invalid
    assert "cannot be combined" in point.reason
    assert race.record().left_out == {study.experiments[2].id: "not selected", point.id: f"cannot run: {point.reason}"}
    assert f"left out: {point.id}: cannot run: {point.reason}" in race.record().lines()
    assert race.record().lines()[-1].endswith("among 2 of 4 settings")


def test_of_many_reasons_for_leaving_out_a_few_are_shown(study: Study) -> None:
    race = race_of(study, {each.id: None for each in study.experiments})
    assert race is not None
    race.left_out = {f"seed:{number}": f"reason {number % 9}" for number in range(90)}
    told = race.record().lines()[-8:-1]
    assert told[0].startswith("left out: seed:0, seed:9, ")
    assert told[0].endswith(" and 4 more: reason 0")
    assert told[6] == "left out for 3 more reasons: summary.json has them"
