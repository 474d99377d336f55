"""`execution.order: balanced`: what follows what is counted: a design that is wrong looks like one that is right."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from pytest_llem.study import Study
from pytest_llem.study.balanced import balance, follows, rows, rows_of_design
from tests.unit.study.conftest import Load

TEXT = "model: m\nexecution: {{order: balanced, cycles: {cycles}}}\nsweep: {{seed: {{range: [1, {count}]}}}}\n"


def rounds(study: Study, **options: object) -> list[list[str]]:
    found: dict[int, list[str]] = {}
    for experiment, cycle in study.schedule(**options):  # type: ignore[arg-type]
        found.setdefault(cycle, []).append(experiment.id)
    return [*found.values()]


def followed(orders: list[list[str]]) -> Counter[tuple[str, str]]:
    return Counter(pair for order in orders for pair in pairwise(order))


@pytest.mark.parametrize("count", range(2, 10))
def test_each_experiment_follows_each_other_one_equally_often_over_a_whole_design(load: Load, count: int) -> None:
    """An odd number cannot be balanced by one square: a single one would favour half of the pairs."""
    whole = rows_of_design(count)
    assert whole == (count if count % 2 == 0 else 2 * count)
    for repetitions in (1, 2):
        orders = rounds(load(TEXT.format(cycles=repetitions * whole, count=count)))
        often = followed(orders)
        assert len(often) == count * (count - 1)
        assert set(often.values()) == {repetitions * (1 if count % 2 == 0 else 2)}
        for place in range(count):  # and stands equally often at each place
            assert len(set(Counter(order[place] for order in orders).values())) == 1


@pytest.mark.parametrize("count", range(2, 8))
def test_fewer_cycles_balance_what_they_can_and_what_is_said_of_it_is_so(count: int) -> None:
    for cycles in range(1, 5 * count):
        often = Counter(pair for _, row in rows(count, cycles) for pair in pairwise(row))
        counts = [often[one, other] for one in range(count) for other in range(count) if one != other]
        assert follows(count, cycles) == (min(counts), max(counts))
        if cycles < count:
            assert max(counts) == 1
            assert f"{sum(counts) / len(counts):.0%}".replace("%", " %") in balance(count, cycles)


@pytest.mark.parametrize(("count", "cycles"), [(4, 2), (5, 2), (6, 4), (7, 6)])
def test_two_cycles_are_mirror_images_so_that_a_drift_falls_on_all_alike(count: int, cycles: int) -> None:
    orders = [row for _, row in rows(count, cycles)]
    for experiment in range(count):
        assert sum(order.index(experiment) for order in orders) == cycles * (count - 1) / 2


def test_what_was_balanced_is_said() -> None:
    assert balance(6, 6) == "within the cycles each experiment follows each other one once"
    assert balance(6, 3) == (
        "cycles: 3 is no multiple of the design's 6 rows: 50 % of the ordered pairs of experiments follow once, the "
        "others never; cycles: 6 balances all"
    )
    assert balance(3, 4).endswith(
        "within the cycles an experiment follows another one 1 to 2 times; cycles: 6 balances all"
    )
    assert balance(1, 3) == ""


def test_the_order_is_the_same_anywhere_and_its_letters_are_drawn_from_the_study(load: Load) -> None:
    """A run that is resumed, and every worker, must see the same order; another study draws others."""
    study, renamed = load(TEXT.format(cycles=4, count=4)), load(TEXT.format(cycles=4, count=4), name="b.yaml")
    assert rounds(study) == rounds(renamed)
    assert rounds(study, cycles=2) == rounds(study)[:2]
    assert rounds(study, cycles=8)[4] != rounds(study)[0]
    assert rounds(study)[0] == [f"seed:{seed}" for seed in (2, 3, 1, 4)]


def test_a_part_of_the_experiments_is_balanced_by_itself(load: Load) -> None:
    """A shard runs a part: the whole study's design without the others would balance nothing."""
    study = load(TEXT.format(cycles=4, count=9))
    part = {f"seed:{seed}" for seed in (2, 3, 5, 8)}
    orders = [[id for id in order if id in part] for order in rounds(study, among=part)]
    assert set(followed(orders).values()) == {1}
    assert len(followed(orders)) == 12
    assert {id for order in rounds(study, among=part) for id in order} == {each.id for each in study.experiments}
