"""Declared structures over the landscapes of `tests/benchmarks/optimize_structure`, with few seeds."""

from __future__ import annotations

import random
from dataclasses import replace
from statistics import fmean

import pytest

from tests.benchmarks.optimize_structure import CYCLES, NOT_ADDITIVE, PARTS, PLACES, raced


@pytest.mark.parametrize("assume", ["additive", "monotone"])
def test_the_best_is_in_the_set_for_a_tenth_of_the_cycles(assume: str) -> None:
    """What a declaration buys, and that it buys nothing with a wrong answer."""
    kind, landscapes = PARTS[assume]
    few = {name: drawn for name, drawn in landscapes.items() if name != "latency limit, noise 3 %"}
    outcomes = [raced(drawn(random.Random(f"{name} 7")), 7, kind) for name, drawn in few.items()]
    assert all(outcome.held and not outcome.wrong for outcome in outcomes)
    assert fmean(outcome.cycles for outcome in outcomes) <= CYCLES * len(PLACES) / 10


def test_effects_that_do_not_add_up_are_noticed() -> None:
    """An interaction that holds the best setting; the race goes on without the declaration, and is right."""
    drawn = NOT_ADDITIVE["interaction of two axes at the best"]
    outcomes = [raced(drawn(random.Random(str(seed))), seed, "additive") for seed in range(3)]
    assert all(outcome.noticed and outcome.held for outcome in outcomes)


@pytest.mark.parametrize("assume", ["additive", "monotone"])
def test_a_meter_of_unknown_uncertainty_proves_nothing(assume: str) -> None:
    """Infinite is how an unknown uncertainty is told; it must neither certify nor end in an error."""
    kind, landscapes = PARTS[assume]
    landscape = replace(landscapes["latency limit"](random.Random(1)), meter=float("inf"))
    outcome = raced(landscape, 1, kind)
    assert (outcome.status, outcome.held) == ("undecided", True)
