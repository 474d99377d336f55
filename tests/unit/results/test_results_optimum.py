"""Which setting of a GPU costs the least: a winner of luck would be believed, and so would a hidden price in speed."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from pytest_llem.results.axes import StudyAxes
from pytest_llem.results.device_optimum import Optimum, optima, published, sentences
from pytest_llem.results.reading import Results
from pytest_llem.study.model import SweptAxis
from tests.unit.results.conftest import Bench

LIMIT = SweptAxis("device.power_limit_w", "power_limit_w", ("default", "500", "400"), ("default", 500, 400))
CLOCK = SweptAxis("device.sm_clock_mhz", "sm_clock_mhz", ("default", "1410"), ("default", 1410))
BATCH = SweptAxis("transformers.batch_size", "batch_size", ("1", "8"), (1, 8))
QUIET = (0.999, 1.0, 1.001)
Points = Mapping[Any, tuple[Sequence[float], Sequence[float]]]


TEMPLATE = Bench().result()


def find(points: Points, *axes: SweptAxis, headline: str | None = None) -> list[Optimum]:
    """The optima of a study from joules per output token and tokens per second of each point's cycles."""
    results = []
    ids = {point: "-".join(map(str, point)) for point in points}
    for point, (joules, rates) in points.items():
        for cycle, (cost, rate) in enumerate(zip(joules, rates, strict=True), 1):
            energy = {"joules_per_output_token": cost, "tokens_per_joule": 1 / cost, "energy_j": 1.0}
            changed = {
                "cycle": cycle,
                "experiment": replace(TEMPLATE.experiment, id=ids[point], config_hash=ids[point]),
                "energy": replace(TEMPLATE.energy, uncertainty_j=0.0, **energy),  # type: ignore[arg-type]
                "throughput": replace(TEMPLATE.throughput, output_tokens_per_s=rate),
            }
            results.append(TEMPLATE.model_copy(update=changed))
    return optima(Results(tuple(results)), StudyAxes(axes, {ids[point]: point for point in points}), headline)


def cycles(joules: float, rate: float, noise: Sequence[float] = QUIET) -> tuple[list[float], list[float]]:
    return [joules * factor for factor in noise], [rate * factor for factor in noise]


def test_the_best_is_named_with_what_it_saves_and_costs_against_the_default() -> None:
    """Fewer joules alone is half of the answer: who caps a rack must see what it loses."""
    (found,) = find({("default",): cycles(2.0, 100), (500,): cycles(1.7, 95), (400,): cycles(1.6, 90)}, LIMIT)
    assert (found.best, found.others, found.reference) == ((400,), (), ("default",))
    assert found.energy is not None
    assert found.energy.ratio == pytest.approx(0.8)
    assert found.speed is not None
    assert found.speed.ratio == pytest.approx(0.9)
    assert found.energy.ci_low is not None
    assert found.energy.ci_high is not None
    assert found.energy.ci_low < 0.8 < found.energy.ci_high
    assert found.sentence.startswith("least energy per output token at 400 W: 20.0 % less (")
    assert "10.0 % slower (" in found.sentence
    assert found.sentence.endswith("than at default; nothing below 400 W was measured")


def test_what_is_not_told_apart_from_the_best_may_be_as_good() -> None:
    """400 W wins by a tenth of a percent in cycles that scatter by one: naming it alone would be luck."""
    noise = (0.99, 1.0, 1.01)
    points = {
        ("default",): cycles(2.0, 100, noise),
        (500,): cycles(1.602, 95, noise),
        (400,): cycles(1.6, 90, noise),
    }
    (found,) = find(points, LIMIT)
    assert (found.best, found.others) == ((400,), ((500,),))
    assert "as good within the uncertainty: 500 W" in found.sentence
    equal = {point: cycles(1.0, 100, noise) for point in ((400,), (500,), ("default",))}
    (found,) = find(equal, LIMIT)
    assert {found.best, *found.others} == {*equal}
    assert list(found.others) == [point for point in (("default",), (500,), (400,)) if point != found.best]


def test_single_cycles_name_no_winner() -> None:
    """One cycle a setting says nothing of noise: the lowest is lowest, and nothing follows from it."""
    (found,) = find({("default",): ([2.0], [100.0]), (400,): ([1.0], [90.0])}, LIMIT)
    assert not found.told
    assert found.others == (("default",),)
    assert found.energy is not None
    assert (found.energy.ci_low, found.energy.ci_high) == (None, None)
    assert "single cycles do not tell settings apart" in found.sentence


def test_the_default_may_win() -> None:
    """A small model that never reaches its limit gains nothing from a lower one, and must not be told that it does."""
    (found,) = find({("default",): cycles(1.0, 100), (500,): cycles(1.2, 90)}, LIMIT)
    assert (found.best, found.energy, found.speed) == (("default",), None, None)
    assert found.sentence == "least energy per output token at default"


def test_each_point_of_the_other_axes_has_an_optimum_of_its_own() -> None:
    """A cap that saves at batch 8 may cost at batch 1, where nothing reaches it."""
    points = {
        ("default", 1): cycles(1.0, 10),
        (400, 1): cycles(1.1, 9),
        ("default", 8): cycles(0.5, 80),
        (400, 8): cycles(0.3, 70),
    }
    found = find(points, LIMIT, BATCH)
    assert [(dict(each.point), each.best) for each in found] == [
        ({BATCH.name: 1}, ("default",)),
        ({BATCH.name: 8}, (400,)),
    ]
    assert [line.partition(": ")[0] for line in sentences(found)] == ["batch_size 1", "batch_size 8"]


def test_settings_of_the_gpu_are_one_choice_together() -> None:
    """The best limit at one clock and the best clock at one limit need not be the best of both."""
    cost = {("default", "default"): 2.0, ("default", 1410): 1.5, (400, "default"): 1.4, (400, 1410): 1.6}
    (found,) = find({point: cycles(joules, 100) for point, joules in cost.items()}, LIMIT, CLOCK)
    assert found.best == (400, "default")
    assert "at power limit 400 W, SM clock default: 30.0 % less" in found.sentence
    assert found.sentence.endswith("than at default")


def test_the_summary_has_each_setting_by_the_name_of_its_axis() -> None:
    """Two lists side by side, of names and of values, are read in the wrong order sooner or later."""
    cost = {("default", "default"): 2.0, (400, 1410): 1.4}
    (found,) = find({point: cycles(joules, 100) for point, joules in cost.items()}, LIMIT, CLOCK)
    told = json.loads(json.dumps(published(found)))
    assert told["best"] == {LIMIT.name: 400, CLOCK.name: 1410}
    assert told["reference"] == {LIMIT.name: "default", CLOCK.name: "default"}
    assert told["others"] == []
    assert told["energy"]["ratio"] == pytest.approx(0.7)
    assert told["sentence"] == found.sentence


def test_without_a_default_the_highest_is_what_others_are_judged_against() -> None:
    """A sweep of numbers alone still has to say what the best costs, and that nothing above was tried."""
    (found,) = find({(600,): cycles(1.0, 100), (500,): cycles(1.1, 95), (400,): cycles(1.2, 90)}, LIMIT)
    assert (found.best, found.reference, found.energy) == ((600,), (600,), None)
    assert found.sentence == "least energy per output token at 600 W; nothing above 600 W was measured"


def test_it_is_judged_by_the_headline_in_its_own_direction() -> None:
    """Tokens per joule turned round would recommend the worst setting; watts alone say nothing of work."""
    points = {("default",): cycles(2.0, 100), (400,): cycles(1.0, 90)}
    (found,) = find(points, LIMIT, headline="tokens_per_joule")
    assert (found.metric, found.best) == ("tokens_per_joule", (400,))
    assert found.sentence.startswith("most output tokens per joule at 400 W: 100.0 % more (")
    for headline in ("output_tokens_per_s", "avg_power_w", "of_a_package_that_is_gone"):
        assert find(points, LIMIT, headline=headline)[0].metric == "joules_per_output_token"


def test_other_axes_alone_have_no_optimum() -> None:
    """A sweep of batch sizes asks another question."""
    assert find({(1,): cycles(1.0, 100), (8,): cycles(0.5, 700)}, BATCH) == []


def test_the_truly_best_is_among_those_named_in_95_of_100_studies() -> None:
    """Bounds of 5 % for each of several rivals let luck throw out the best one in every fourth study."""
    seeded = random.Random(20)
    values = tuple(range(300, 800, 50))
    axis = SweptAxis(LIMIT.name, LIMIT.title, tuple(map(str, values)), values)
    thrown_out = studies = 0
    for _ in range(60):
        points = {(v,): cycles(1.0, 100, [math.exp(seeded.gauss(0, 0.01)) for _ in range(3)]) for v in values}
        (found,) = find(points, axis)
        kept = {found.best, *found.others}
        thrown_out += sum((value,) not in kept for value in values)
        studies += len(values)  # of equal settings each is the best
    assert thrown_out / studies < 0.05
