"""How far a run is, and about how long the rest takes."""

from __future__ import annotations

from pathlib import Path

from pytest_llem.session.experiment_cycle import ExperimentCycle
from pytest_llem.session.reporting.forecast import Forecast, Planned, planned_cycles
from pytest_llem.session.run_plan import study_plans
from pytest_llem.study.loader import load_study

QUICK, SLOW = [Path(f"quick/c{number}") for number in range(4)], [Path(f"slow/c{number}") for number in range(4)]
CYCLES = {**{path: Planned("quick", 10.0) for path in QUICK}, **{path: Planned("slow", 30.0) for path in SLOW}}


def test_before_anything_has_ended_only_earlier_results_tell_how_long_it_takes() -> None:
    """An estimate from settings alone, shown as minutes, was off by an order of magnitude."""
    unknown, known = Forecast(CYCLES, known=False), Forecast(CYCLES, known=True)
    for forecast in (unknown, known):
        forecast.began(QUICK[0], 100.0)
    assert unknown.text(105.0) == "[1/8]"
    assert known.text(105.0) == "[1/8, about 3 min left]"  # 4 x 10 + 4 x 30 - 5
    known.began(SLOW[0], 105.0)
    assert known.text(110.0) == "[2/8, about 70 s left]", "two at a time"


def test_what_was_seen_counts_and_others_in_proportion() -> None:
    """Cycles take twice as long as earlier ones here: the rest of both experiments will."""
    forecast = Forecast(CYCLES, known=True)
    for number, path in enumerate(QUICK):
        forecast.began(path, 20.0 * number)
        forecast.ended(path, 20.0 * number + 20)
    forecast.began(SLOW[0], 80.0)
    assert forecast.text(80.0) == "[5/8, about 4 min left]"  # 4 x 60
    assert forecast.text(200.0) == "[5/8, about 2 min left]"
    forecast.ended(SLOW[0], 110.0)
    assert forecast.text(111.0) == "[5/8, about 89 s left]", "3 x 30 s, as it was seen"


def test_the_pace_knows_how_many_run_side_by_side() -> None:
    forecast = Forecast(CYCLES, known=False)
    for path in QUICK:
        forecast.began(path, 0.0)
    for path in QUICK:
        forecast.ended(path, 10.0)
    assert forecast.text(10.0) == "[4/8, about 30 s left]"  # 4 x 30 s, four at a time


def test_a_reused_cycle_says_nothing_of_how_long_others_take() -> None:
    forecast = Forecast(CYCLES, known=False)
    for path in QUICK:
        forecast.ended(path, 0.1)
    forecast.began(SLOW[0], 0.2)
    assert forecast.text(5.0) == "[5/8]"
    forecast.ended(SLOW[0], 40.2)
    forecast.ended(SLOW[0], 50.0)
    assert forecast.text(40.2) == "[5/8, about 2 min left]"  # 3 x 40


def test_an_attempt_that_was_not_valid_does_not_end_a_cycle() -> None:
    forecast = Forecast(CYCLES, known=False)
    forecast.began(QUICK[0], 0.0)
    forecast.ended(QUICK[0], 10.0)
    forecast.began(QUICK[0], 11.0)
    assert forecast.text(11.0).startswith("[1/8")
    forecast.ended(QUICK[0], 21.0)
    forecast.began(QUICK[1], 21.0)
    assert forecast.text(21.0) == "[2/8, about 5 min left]"  # 21 s a cycle: 3 x 21 + 4 x 63


def test_a_cycle_beyond_the_plan_is_not_counted() -> None:
    """Those that `target_ci` adds: 9 of 8 would be measured."""
    forecast = Forecast(CYCLES, known=False)
    for path in (*QUICK, *SLOW):
        forecast.ended(path, 1.0)
    forecast.began(Path("quick/c5"), 2.0)
    assert forecast.text(3.0) == "[8/8]"


def test_what_starts_once_in_a_run_does_not_count_for_every_cycle() -> None:
    """After a first cycle of 14 s, of which 11 were the engine's first import, 15 cycles of 3 s took `4 min`."""
    for known in (False, True):
        forecast = Forecast({path: Planned("a", 3.0) for path in (*QUICK, *SLOW)}, known=known)
        forecast.began(QUICK[0], 0.0)
        forecast.ended(QUICK[0], 14.0)
        forecast.began(QUICK[1], 14.0)
        assert forecast.text(14.0) == ("[2/8, about 21 s left]" if known else "[2/8, about 2 min left]")
        forecast.ended(QUICK[1], 17.0)
        assert forecast.text(17.0) == "[2/8, about 18 s left]"


def test_a_race_is_counted_by_what_it_may_come_to(tmp_path: Path) -> None:
    """Its later rounds were in no plan: the line stood at [2/2] from the end of the first one on."""
    study_file = tmp_path / "race.yaml"
    study_file.write_text("model: m\nengine: transformers\nsweep: {seed: [1, 2]}\noptimize: {minimize: energy_j}\n")
    study = load_study(study_file)
    plans = study_plans(ExperimentCycle(study, each, 1) for each in study.experiments)
    cycles, known = planned_cycles(plans, [study], tmp_path)
    assert len(cycles) == 2 * 10
    forecast = Forecast(cycles, known=known, at_most=True)
    for number, path in enumerate(sorted(cycles)[:3]):
        forecast.began(path, 20.0 * number)
        forecast.ended(path, 20.0 * number + 20)
    forecast.began(max(cycles), 60.0)
    assert forecast.text(61.0) == "[4 of at most 20]"
