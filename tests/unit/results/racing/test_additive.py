"""A race that assumes that effects add up: what it measures, and what it says where they do not."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest

from pytest_llem.errors import JsonValue
from pytest_llem.results.racing.answer import Race, Seen, Setting
from pytest_llem.results.racing.fitting import Fit, chosen
from pytest_llem.results.racing.racing import race
from pytest_llem.study.limits import Budget
from pytest_llem.study.optimize import Optimize

COST, LATENCY = "joules_per_output_token", "ttft_p99_s"
GRID = {"batch": (1, 2, 4, 8, 16), "threads": (1, 2, 4, 8, 16), "dtype": ("a", "b", "c", "d"), "cache": (True, False)}
SMALLER = {**GRID, "batch": (1, 4, 16), "dtype": ("a", "b")}
Levels = Mapping[str, JsonValue]


def settings_of(grid: Mapping[str, tuple[JsonValue, ...]]) -> list[Setting]:
    """A setting for each point of a grid."""
    points = (dict(zip(grid, point, strict=True)) for point in itertools.product(*grid.values()))
    return [Setting("-".join(map(str, point.values())), point) for point in points]


@dataclass
class Measured:
    """A study whose true figures are known, whose cycles scatter, and whose costs drift from round to round."""

    cost: Callable[[Levels], float]
    latency: Callable[[Levels], float] | None = None
    seed: int = 0
    noise: float = 0.01
    fails: Callable[[Levels], bool] = lambda levels: False
    settings: list[Setting] = field(default_factory=lambda: settings_of(GRID))
    asked: list[tuple[str, int]] = field(default_factory=list)

    def race(self, goal: Optimize, rounds: int = 10) -> Race:
        """The race after so many rounds."""
        self.asked.clear()
        levels = {setting.id: setting.levels for setting in self.settings}

        def seen(name: str, cycle: int) -> Seen:
            self.asked.append((name, cycle))
            if self.fails(levels[name]):
                return Seen(None, failed="out of memory")
            drawn = random.Random(f"{self.seed} {name} {cycle}")
            scatter = [math.exp(drawn.gauss(0, self.noise)) for _ in range(2)]
            limited = {LATENCY: self.latency(levels[name]) * scatter[1]} if self.latency else {}
            return Seen(self.cost(levels[name]) * scatter[0] * math.exp(0.02 * cycle), limited)

        return race(self.settings, seen, goal, rounds=rounds)

    def best(self, limit: float = math.inf) -> str:
        """The setting that is truly best."""
        kept = [s for s in self.settings if self.latency is None or self.latency(s.levels) <= limit]
        return min(kept, key=lambda setting: self.cost(setting.levels)).id


def sums(seed: int) -> Callable[[Levels], float]:
    """A figure whose effects add up: of each level a random one, up to twice as much."""
    drawn = random.Random(seed)
    effects = {(axis, repr(level)): drawn.uniform(0, 0.7) for axis, levels in GRID.items() for level in levels}
    return lambda levels: math.exp(sum(effects[axis, repr(level)] for axis, level in levels.items()))


ADDITIVE = Optimize(COST, assume="additive")


def test_a_tenth_of_the_cycles_find_the_best_of_two_hundred() -> None:
    """The whole point of declaring it; and each answer has to say that it rests on the declaration."""
    found, cycles = 0, 0
    for seed in range(12):
        study = Measured(sums(seed), seed=seed)
        answer = study.race(ADDITIVE)
        found += study.best() in answer.best
        cycles = max(cycles, len(study.asked))
        assert answer.rests_on == "additive"
        assert answer.sentence.startswith("if effects add up, ")
        never = [fate for fate in answer.fates.values() if not fate.cycles and fate.state != "in"]
        assert never
        assert all((fate.reason or "").startswith("cannot be the best if effects add up: ") for fate in never)
    assert found >= 11
    assert cycles <= 200


def test_limits_are_predicted_as_well() -> None:
    """The best of all settings is no answer where it is too slow, and neither is one whose latency nobody measured."""

    def latency(levels: Levels) -> float:
        return 0.1 * math.sqrt(float(str(levels["batch"]))) / math.log2(1 + float(str(levels["threads"])))

    def cost(levels: Levels) -> float:
        return (1.3 if levels["dtype"] == "a" else 1.0) / math.sqrt(float(str(levels["batch"])))

    study = Measured(
        lambda levels: cost(levels) * (1.1 if levels["cache"] else 1.0), latency, settings=settings_of(SMALLER)
    )
    answer = study.race(Optimize(COST, (Budget(LATENCY, "<=", 0.15),), assume="additive"))
    assert study.best(0.15) in answer.best
    assert answer.recommended is not None
    assert answer.fates[answer.recommended].cycles
    slow = answer.fates["16-1-b-False"]
    assert slow.state == "infeasible"
    assert (slow.reason or "").startswith("beyond ttft_p99_s <= 0.15 if effects add up: ")
    assert len(study.asked) <= 200


def test_an_interaction_that_is_measured_is_refused() -> None:
    """Sums would name a wrong setting here, with a certificate: the race has to notice, and to do without."""
    usual = sums(3)
    study = Measured(lambda at: usual(at) * (0.3 if (at["batch"], at["dtype"]) == (4, "c") else 1.0))
    answer = study.race(ADDITIVE)
    assert answer.rests_on is None
    assert answer.sentence.startswith(f"effects do not add up in {COST}, so from round 3 on nothing is assumed: ")
    assert study.best() in answer.best
    assert not any("add up" in (fate.reason or "") for fate in answer.fates.values())


def test_what_is_zero_somewhere_is_no_sum_of_logarithms() -> None:
    """A zero was passed over, and its setting predicted by others: the only one within the limit was beyond it."""
    study = Measured(
        lambda at: 1.0 + float(str(at["batch"])),
        lambda at: 0.0 if (at["batch"], at["dtype"]) == (16, "a") else 0.3,
        settings=settings_of(SMALLER),
    )
    answer = study.race(Optimize(COST, (Budget(LATENCY, "<=", 0.05),), assume="additive"))
    assert answer.rests_on is None
    assert answer.sentence.startswith(f"effects do not add up in {LATENCY}, which is not positive in 16-")
    assert study.best(0.05) in answer.best


def test_the_share_of_a_cache_is_known_where_it_was_measured_alone() -> None:
    """It is zero in good cases: to predict it would end the declaration each time."""
    share = {True: 0.3, False: 0.0}
    study = Measured(sums(4), settings=settings_of(SMALLER))
    limited = Budget("cached_input_share", "<=", 0.05)

    def seen(name: str, cycle: int) -> Seen:
        levels = next(each.levels for each in study.settings if each.id == name)
        noise = random.Random(f"{name} {cycle}").gauss(0, 0.01)
        return Seen(study.cost(levels) * math.exp(noise), {limited.metric: share[bool(levels["cache"])]})

    answer = race(study.settings, seen, Optimize(COST, (limited,), assume="additive"), rounds=10)
    assert answer.rests_on == "additive"
    assert answer.recommended is not None
    assert answer.recommended.endswith("-False")
    kept = [each for each in study.settings if not each.levels["cache"]]
    assert min(kept, key=lambda setting: study.cost(setting.levels)).id in answer.best


def test_a_round_needs_what_the_race_then_asks_for() -> None:
    """Items are skipped by `needed`: a cycle that is asked for later and was skipped before could never be had."""
    study = Measured(sums(1), noise=0.03)
    study.race(ADDITIVE)
    asked = set(study.asked)
    for rounds in range(10):
        needed = study.race(ADDITIVE, rounds).needed
        assert {(name, rounds + 1) for name in needed} == {(name, at) for name, at in asked if at == rounds + 1}


def test_settings_that_fail_are_replaced_and_a_dormant_setting_is_a_level() -> None:
    """A level of which every setting fails must not keep the race from answering for the others."""
    grid = settings_of({"batch": (1, 2, 4), "dtype": ("a", "b", "c"), "cache": ("on",)})
    dormant = [Setting(s.id.replace("on", "off"), {k: v for k, v in s.levels.items() if k != "cache"}) for s in grid]
    study = Measured(
        lambda at: (2.0 if "cache" in at else 1.0) * {"a": 3, "b": 2, "c": 1}[str(at["dtype"])] / int(str(at["batch"])),
        fails=lambda at: at["batch"] == 4,
        settings=[*grid, *dormant],
    )
    answer = study.race(ADDITIVE)
    assert answer.recommended == "2-c-off"
    assert {fate.state for name, fate in answer.fates.items() if name.startswith("4-")} == {"failed"}


def test_what_rows_do_not_tell_has_no_estimate() -> None:
    """A level that was never measured once got the figure of the first."""
    fit = Fit([(0,), (0, 1), (0, 1), (0,)], [1.0, 2.0, 4.0, 1.0])
    assert fit.of({1: 1}) == pytest.approx((2.0, 1.0))
    assert fit.of({2: 1}) is None
    assert (fit.residual, fit.degrees) == pytest.approx((2.0, 2))
    tied = Fit([(0,), (0, 1, 2), (0, 1, 2)], [1.0, 2.0, 3.0])
    assert tied.of({1: 1}) is None
    assert tied.of({1: 1, 2: 1}) == pytest.approx((1.5, 1.5))


def test_chosen_rows_span_all_columns() -> None:
    """A level that no chosen setting has can be predicted for none."""
    rows = [(0, *((a,) if a else ()), *((2 + b,) if b else ())) for a in range(3) for b in range(3)]
    assert {column for place in chosen(rows, 5) for column in rows[place]} == {0, 1, 2, 3, 4}
