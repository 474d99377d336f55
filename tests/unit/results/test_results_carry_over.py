"""Carry-over: a test that cries wolf costs trust, and one that counts wrong neighbours finds what is not there."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from pytest_llem.results.carry_over import CarryOver, CycleMark, Follower, carry_overs, effects_of_predecessors, mark
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.manifest import Manifest, ManifestItem, StudyPlan
from pytest_llem.results.report.asked import ORDERS
from pytest_llem.results.state import CycleState, write_state
from pytest_llem.session.reporting.summary import of_carried
from tests.benchmarks.carry_over import simulated
from tests.unit.results.conftest import Bench

BEGAN = datetime(2026, 11, 30, 12, tzinfo=timezone.utc)
MANIFEST = Manifest("run-1", "", {}, (StudyPlan("s", None, order="balanced"),))


def marks(order: Sequence[tuple[str, int, float | None]], device: str = "gpu-0", study: str = "s") -> list[CycleMark]:
    """Cycles one after another, ten seconds each with a pause of two."""
    return [
        CycleMark(study, name, cycle, 1, (device,), at, at + timedelta(seconds=10), value)
        for place, (name, cycle, value) in enumerate(order)
        for at in (BEGAN + timedelta(seconds=12 * place),)
    ]


def cycles(*rounds: str, hot: str = "", by: float = 0.05, noise: float = 0.004) -> list[tuple[str, int, float | None]]:
    """Rounds of experiments of a letter each; what follows the `hot` one costs more."""
    draw, found, before = random.Random(7), [], ""
    for number, order in enumerate(rounds, 1):
        for name in order:
            value = (1 + ord(name) % 5) * (1 + (by if before and before == hot else 0)) * (1 + draw.gauss(0, noise))
            found.append((name, number, value))
            before = name
    return found  # type: ignore[return-value]


WILLIAMS = ("abdc", "cdba", "bcad", "dacb")


def judged(tmp_path: Path, of: Sequence[CycleMark | None], manifest: Manifest = MANIFEST) -> CarryOver:
    (found,) = carry_overs(tmp_path, manifest, of)
    return found


def test_the_experiment_that_leaves_heat_behind_is_named_with_an_interval(tmp_path: Path) -> None:
    found = judged(tmp_path, marks(cycles(*WILLIAMS, hot="a")))
    assert (found.state, found.cycles, found.metric) == ("found", 15, "joules_per_output_token")
    first = found.each[0]
    assert first.experiment_id == "a"
    assert first.low < 1.05 ** (3 / 4) < first.high  # against the average of four, of which it is one
    assert "after a it is +" in found.sentence


def test_none_is_claimed_where_there_is_none_and_how_much_it_may_be_is_said(tmp_path: Path) -> None:
    found = judged(tmp_path, marks(cycles(*WILLIAMS)))
    assert found.state == "not found"
    assert found.sentence.startswith(
        "no carry-over found in joules_per_output_token: what ran before changes it by less"
    )


@pytest.mark.parametrize("rounds", [("abcd",) * 6, ("aaaa", "bbbb", "cccc", "dddd"), ("ab", "ba", "ab", "ba", "ab")])
def test_an_order_that_cannot_tell_it_says_so(tmp_path: Path, rounds: tuple[str, ...]) -> None:
    """Interleaved, each experiment follows the same one throughout: what that leaves behind looks like its level."""
    order = cycles(*rounds, hot="a")
    if rounds[0] == "aaaa":
        order = [(name, place % 4 + 1, value) for place, (name, _, value) in enumerate(order)]
    found = judged(tmp_path, marks(order))
    assert (found.state, found.each) == ("unknown", ())
    assert "in this order do not tell it" in found.sentence
    assert of_carried([found], MANIFEST.studies[0]) == [found.sentence]
    assert of_carried([found], StudyPlan("s", None, order="interleaved")) == []


def test_each_device_has_neighbours_of_its_own(tmp_path: Path) -> None:
    """Two boards at a time: the cycle before on the other board leaves no heat on this one."""
    order = cycles(*WILLIAMS, hot="a")
    both = [*marks(order, "gpu-0"), *marks([(name, cycle, 1.0) for name, cycle, _ in order], "gpu-1")]
    (alone,) = carry_overs(tmp_path, MANIFEST, marks(order, "gpu-0"))
    (found,) = carry_overs(tmp_path, MANIFEST, both)
    assert found.cycles == 2 * alone.cycles


def test_neighbours_that_are_not_known_are_left_out(tmp_path: Path) -> None:
    """Between two cycles one failed, or another study's ran: what was left behind is not that of the one before."""
    of = marks(cycles(*WILLIAMS))
    key = CycleKey("s", "x", "0" * 16, 1)
    ended = (of[3].ended + timedelta(seconds=1)).isoformat(timespec="seconds")
    write_state(
        tmp_path / key.directory, CycleState(**vars(key), state="failed", attempts=("failed",), changed_at=ended)
    )
    failed = ManifestItem(**vars(key), state="failed", attempts=("failed",), directory=key.directory.as_posix())
    manifest = Manifest("run-1", "", {}, MANIFEST.studies, (failed,))
    assert judged(tmp_path, of, manifest).cycles == 14
    other = [*of[:5], *marks([("x", 1, 1.0)], study="t"), *of[5:]]
    other[5] = CycleMark("t", "x", 1, 1, ("gpu-0",), of[4].ended, of[4].ended + timedelta(seconds=1), 1.0)
    assert judged(tmp_path, other).cycles == 14


def test_a_cycle_that_may_not_be_used_is_a_predecessor_all_the_same(tmp_path: Path) -> None:
    order = cycles(*WILLIAMS, hot="a")
    invalid = [(name, cycle, None if place == 5 else value) for place, (name, cycle, value) in enumerate(order)]
    assert judged(tmp_path, marks(invalid)).cycles == 14


def test_a_result_says_when_and_where_it_was_measured(bench: Bench) -> None:
    result = bench.result()
    found = mark(result, MANIFEST)
    assert found is not None
    assert found.began < found.ended
    assert (found.devices, found.value) == (("cpu",), result.energy.joules_per_output_token)
    assert mark(result.model_copy(update={"source_run": "earlier"}), MANIFEST) is None
    assert "balanced" in ORDERS


@pytest.mark.parametrize(
    ("order", "experiments", "rounds"), [("balanced", 4, 4), ("balanced", 5, 5), ("shuffled", 6, 6)]
)
def test_false_alarms_keep_to_their_rate_and_effects_are_found(order: str, experiments: int, rounds: int) -> None:
    """300 studies each; 5 % and three standard errors. Drift over the run is no carry-over."""
    rng = random.Random(20261130)

    def share(effect: float) -> float:
        each = [
            effects_of_predecessors(simulated(rng, order, experiments, rounds, effect=effect, drift=0.02))
            for _ in range(300)
        ]
        told = [found for found in each if not isinstance(found, str)]
        assert len(told) > 250
        return sum(any(after.found for after in found[0]) for found in told) / len(told)

    assert share(0.0) <= 0.05 + 3 * (0.05 * 0.95 / 300) ** 0.5
    assert share(0.05) > 0.8


@pytest.mark.parametrize(("order", "experiments"), [("balanced", 3), ("shuffled", 12)])
def test_an_experiment_that_scatters_tenfold_raises_no_more_alarms(order: str, experiments: int) -> None:
    """By one variance for all, 12 to 15 % of such studies alarm. The first of three is the worst place."""
    rng = random.Random(20261130)
    each = [effects_of_predecessors(simulated(rng, order, experiments, 5, drift=0.02, noisy=(0,))) for _ in range(500)]
    told = [found for found in each if not isinstance(found, str)]
    assert len(told) > 450
    assert sum(any(after.found for after in found[0]) for found in told) / len(told) <= 0.05 + 3 * 0.0097


def test_the_scatter_of_an_experiment_of_one_cycle_is_taken_as_the_others(tmp_path: Path) -> None:
    """It tells nothing of an effect, and its degrees are none."""
    order = cycles(*WILLIAMS, hot="a")
    (found,) = carry_overs(tmp_path, MANIFEST, marks([*order, ("e", 4, 1.0)]))
    (same,) = carry_overs(tmp_path, MANIFEST, marks(order))
    assert [after.high for after in found.each] == pytest.approx([after.high for after in same.each])


def test_any_scatter_gives_an_interval_that_is_a_number() -> None:
    """Degrees of freedom fall to one, and quantiles of so few are in the hundreds."""
    rng = random.Random(1)
    each = [
        (one, math.exp(rng.gauss(0, 200)) if one.experiment == "2" else 1.0) for one in simulated(rng, "balanced", 6, 3)
    ]
    found = effects_of_predecessors([replace(one, value=value) for one, value in each])
    assert not isinstance(found, str)
    assert all(0 < after.low < after.high < math.inf for after in found[0])


def test_two_cycles_are_too_few() -> None:
    few = [Follower("b", 1, ("g",), "a", 1.0), Follower("a", 2, ("g",), "b", 1.1), Follower("b", 2, ("g",), "a", 1.2)]
    assert isinstance(effects_of_predecessors(few), str)
