"""What an axis does, against values that are known: a wrong ratio or too narrow an interval would be believed."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import product
from statistics import stdev

import pytest

from pytest_llem.errors import JsonValue, SettingsError
from pytest_llem.results.axes import StudyAxes
from pytest_llem.results.distributions import student_quantile
from pytest_llem.results.effects import Effect, LogRatio, effects, interval
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.reading import Results
from pytest_llem.results.schema import Result
from pytest_llem.results.statistics import log_ratio
from pytest_llem.study.model import SweptAxis
from tests.unit.results.conftest import Bench

DTYPE = SweptAxis("dtype", "dtype", ("float32", "float16", "int8"), ("float32", "float16", "int8"))
BATCH = SweptAxis("transformers.batch_size", "batch_size", ("1", "8", "32"), (1, 8, 32))
AXES = StudyAxes((DTYPE, BATCH), {f"{d}-{b}": (d, b) for d, b in product(DTYPE.values, BATCH.values)})
THROUGHPUT = "output_tokens_per_s"
Make = Callable[..., Results]


@pytest.fixture
def study(bench: Bench) -> Make:
    """The results of one run by (dtype, batch size), each with the throughputs of its cycles."""
    template = bench.result()

    def make(points: dict[tuple[str, int], Sequence[float]], run: str = "run-1", **facts: object) -> Results:
        def results() -> Iterable[Result]:
            for (dtype, batch), rates in points.items():
                name = f"{dtype}-{batch}"
                for cycle, rate in enumerate(rates, 1):
                    key = CycleKey("study", name, name, cycle)
                    of = replace(template.experiment, id=key.experiment_id, config_hash=key.config_hash)
                    throughput = replace(template.throughput, output_tokens_per_s=rate)
                    changes = {"run_id": run, "experiment": of, "cycle": cycle, "throughput": throughput, **facts}
                    yield template.model_copy(update=changes)

        return Results(tuple(results()))

    return make


def of(results: Results, axis: SweptAxis = DTYPE, metric: str = THROUGHPUT, **options: JsonValue) -> list[Effect]:
    return effects(results, AXES, axis, metric, **options)


def test_equal_values_are_exactly_1(study: Make) -> None:
    """Even a last bit off 1 would be printed as a difference."""
    (effect, _) = of(study({(d, b): [0.1, 0.1, 0.1] for d, b in product(("float32", "float16"), (1, 8))}))
    assert (effect.ratio, effect.ci_low, effect.ci_high) == (1.0, 1.0, 1.0)
    assert (effect.pairs, effect.status) == (2, "not told apart")


def test_one_pair_has_the_textbook_interval_of_its_cycles(study: Make) -> None:
    """Two samples of logarithms with equal counts: pooled variance and 4 degrees of freedom, t = 2.776."""
    slow, fast = [100.0, 102.0, 98.0], [203.0, 199.0, 201.0]
    (effect, nothing) = of(study({("float32", 1): slow, ("float16", 1): fast}))
    logs = [[math.log(value) for value in side] for side in (slow, fast)]
    means = [sum(side) / 3 for side in logs]
    squares = sum((value - mean) ** 2 for side, mean in zip(logs, means, strict=True) for value in side)
    half = 2.776445 * math.sqrt(squares / 4 * 2 / 3)
    assert effect.ratio == pytest.approx(math.exp(means[1] - means[0]))
    assert effect.ci_low == pytest.approx(math.exp(means[1] - means[0] - half), rel=1e-6)
    assert effect.ci_high == pytest.approx(math.exp(means[1] - means[0] + half), rel=1e-6)
    assert effect.status == "higher"
    assert (nothing.value, nothing.ratio, nothing.pairs, nothing.unpaired) == ("int8", None, 0, 1)


def test_joules_of_another_meter_are_no_partner(study: Make) -> None:
    """CPU time times watts, of one process, was "lower" than a board's sensor, 3,400 times, with an interval."""
    energy = study({("float32", 1): [1.0]})[0].energy
    board = replace(energy, meter="nvml", scope="gpu_board", measured=True)
    guess = replace(energy, meter="estimate", scope="process_estimate", measured=False)
    sides = [
        *study({("float32", b): [1.0, 1.01] for b in (1, 8)}, energy=guess),
        *study({("float16", 1): [1.0, 1.01]}, energy=board),
        *study({("float16", 8): [1.0, 1.01]}, energy=guess),
    ]
    joules = of(Results(tuple(sides)), metric="joules_per_output_token")[0]
    assert (joules.pairs, joules.apart, joules.unpaired) == (1, 1, 0)
    assert [pair.others for pair in joules.each] == [{BATCH.name: 8}]
    assert of(Results(tuple(sides)))[0].pairs == 2  # speed has no meter


def test_what_the_other_axes_do_cancels_in_the_pairs(study: Make) -> None:
    """Batch 32 is thirty times as fast as batch 1: unpaired, that spread would hide 2 % at all sizes."""
    noise = [1.0, 1.001, 0.999]
    points = {("float32", b): [b * n for n in noise] for b in (1, 8, 32)}
    points |= {("float16", b): [1.02 * b * n for n in reversed(noise)] for b in (1, 8, 32)}
    effect = of(study(points))[0]
    assert effect.ratio == pytest.approx(1.02)
    assert (effect.status, effect.pairs, effect.unpaired) == ("higher", 3, 0)
    assert [pair.others for pair in effect.each] == [{BATCH.name: 1}, {BATCH.name: 8}, {BATCH.name: 32}]


def test_an_effect_that_depends_on_another_axis_has_a_wider_interval(study: Make) -> None:
    """x1.1 at one batch size and x1.9 at another: the mean with the interval of quiet cycles alone would mislead."""
    noise = [1.0, 1.001, 0.999]

    def effect_at(*ratios: float) -> Effect:
        points = {("float32", b): noise for b in (1, 8, 32)}
        points |= {("float16", b): [ratio * n for n in noise] for b, ratio in zip((1, 8, 32), ratios, strict=True)}
        return of(study(points))[0]

    alike, differing = effect_at(1.5, 1.5, 1.5), effect_at(1.1, 1.5, 1.9)
    assert width(differing) > 20 * width(alike)
    assert differing.status == "higher"


def test_pairs_that_agree_by_luck_are_no_surer_than_their_cycles(study: Make) -> None:
    """Three equal ratios have no spread at all, though each is known to a percent only: t of 12 degrees."""
    noise = [1.0, 1.01, 0.99]
    points = {("float32", b): noise for b in (1, 8, 32)} | {
        ("float16", b): [1.5 * n for n in noise] for b in (1, 8, 32)
    }
    half = 2.178813 * stdev(map(math.log, noise)) * math.sqrt(2 / 3 / 3)
    assert width(of(study(points))[0]) == pytest.approx(2 * half, rel=1e-6)


def test_two_pairs_reach_no_further_than_each_pair_by_itself(study: Make) -> None:
    """Student's t with one degree of freedom made 0.7 and 0.8 an interval of 0.3 to 1.8, "not told apart"."""
    noise = [1.0, 1.01, 0.99]
    points = {("float32", b): noise for b in (1, 8)}
    points |= {("float16", b): [r * n for n in noise] for b, r in ((1, 0.7), (8, 0.8))}
    effect = of(study(points))[0]
    assert effect.status == "lower"
    assert effect.ci_low == min(pair.ci_low for pair in effect.each if pair.ci_low is not None)
    assert effect.ci_high == max(pair.ci_high for pair in effect.each if pair.ci_high is not None)


def test_single_cycles_are_told_by_the_spread_of_pairs_and_one_pair_of_them_by_nothing(study: Make) -> None:
    """A single cycle a side says nothing about noise: a bound would be made up."""
    (one, _) = of(study({("float32", 1): [100.0], ("float16", 1): [200.0]}))
    assert one.ratio == pytest.approx(2.0)
    assert (one.ci_low, one.ci_high, one.status) == (None, None, "not told apart")
    rates = dict(zip((1, 8, 32), (2.0, 2.02, 1.98), strict=True))
    points = {("float32", b): [1.0] for b in rates} | {("float16", b): [rate] for b, rate in rates.items()}
    three = of(study(points))[0]
    assert three.status == "higher"
    assert width(three) == pytest.approx(2 * student_quantile(0.975, 2) * 0.01 / math.sqrt(3), rel=1e-3)


def test_invalid_cycles_and_points_without_a_partner_do_not_count(study: Make) -> None:
    """A cycle that was disturbed by a factor of ten must not move the ratio, and what is left out is said."""
    results = study(
        {("float32", 1): [1.0, 1.0], ("float16", 1): [2.0, 2.0, 20.0], ("float16", 8): [3.0], ("int8", 32): [4.0]}
    )
    broken = tuple(r.model_copy(update={"validity": replace(r.validity, valid=r.cycle != 3)}) for r in results)
    half, eighth = of(Results(broken))
    assert half.ratio == pytest.approx(2.0)
    assert (half.pairs, half.unpaired) == (1, 1)
    assert (eighth.ratio, eighth.pairs, eighth.unpaired) == (None, 0, 2)


def test_pairs_are_of_one_run(study: Make) -> None:
    """A point of one run beside one of another would count what the runs differ by as the axis' effect."""
    results = (*study({("float32", 1): [1.0] * 3}, "a"), *study({("float16", 1): [2.0] * 3}, "b"))
    effect = of(Results(results))[0]
    assert (effect.pairs, effect.unpaired) == (0, 2)


def test_a_resumed_run_knows_that_its_pairs_come_from_two_runs(study: Make) -> None:
    """What one run shares does not cancel against another: 1 % is assumed, as in gates."""
    reused = study({("float32", 1): [1.0, 1.0]}, source_run="earlier")
    effect = of(Results((*reused, *study({("float16", 1): [1.01, 1.01]}))))[0]
    assert effect.status == "not told apart"
    assert effect.ci_high == pytest.approx(1.01 * 1.02)


def test_what_the_sensor_may_err_by_is_in_the_interval_of_energy(study: Make, bench: Bench) -> None:
    """Cycles that agree to a tenth of a percent do not make a sensor of 1.5 % exact; its error need not cancel."""
    results = study({("float32", 1): [1.0, 1.0], ("float16", 1): [1.0, 1.0]})
    sensor_rel = 0.3 / 20
    effect = of(results, metric="joules_per_output_token")[0]
    assert effect.ratio == 1.0
    assert effect.ci_high == pytest.approx(1 + math.hypot(sensor_rel, sensor_rel))


def test_an_estimate_has_the_interval_of_its_scatter(study: Make, bench: Bench) -> None:
    """Its bound of 120 % is one factor for the machine: with it in the ratio, nothing could be told on a laptop."""
    energy = replace(bench.result().energy, measured=False, meter="estimate", uncertainty_j=24.0)
    results = study({("float32", 1): [1.0, 1.0], ("float16", 1): [1.0, 1.0]}, energy=energy)
    assert of(results, metric="joules_per_output_token")[0].ci_high == 1.0


def test_another_board_adds_its_gain_error(study: Make) -> None:
    """Experiments that ran on two GPUs side by side: a gain of 5 % a board is no effect of the dtype."""
    runner = study({("float32", 1): [1.0]})[0].runner
    boards = [replace(runner, device_ids=(board,)) for board in ("GPU-1", "GPU-2")]
    results = (
        *study({("float32", 1): [1.0, 1.0]}, runner=boards[0]),
        *study({("float16", 1): [1.0, 1.0]}, runner=boards[1]),
    )
    energy = of(Results(results), metric="energy_j")[0]
    assert energy.ci_high is not None
    assert energy.ci_high > 1 + math.hypot(0.05, 0.05)
    assert of(Results(results))[0].ci_high == 1.0


def test_another_reference_inverts_the_ratio(study: Make) -> None:
    """The first value as written is the reference; it may have failed, or another one be the usual one."""
    results = study({("float32", 1): [1.0, 1.1], ("float16", 1): [2.0, 2.1]})
    forward = of(results)[0]
    (backward, _) = of(results, reference="float16")
    assert (backward.value, backward.reference) == ("float32", "float16")
    assert backward.ratio == pytest.approx(1 / (forward.ratio or 0))
    assert backward.ci_low == pytest.approx(1 / (forward.ci_high or 0))


def test_a_point_of_several_experiments_is_left_out(study: Make) -> None:
    """Two experiments that no axis tells apart are two things, and their cycles no sample of one."""
    twice = {**AXES.points, "twin": ("float32", 1)}
    results = study({("float32", 1): [1.0, 1.0], ("float16", 1): [2.0, 2.0]})
    twin = tuple(
        r.model_copy(update={"experiment": replace(r.experiment, id="twin")})
        for r in results
        if r.experiment.id == "float32-1"
    )
    (effect, _) = effects(Results((*results, *twin)), StudyAxes(AXES.axes, twice), DTYPE, THROUGHPUT)
    assert (effect.pairs, effect.unpaired) == (0, 1)


def test_an_unknown_metric_is_refused(study: Make) -> None:
    """A misspelt metric is no column of dashes."""
    with pytest.raises(SettingsError, match="joules_per_output_token"):
        of(study({("float32", 1): [1.0]}), metric="joules_per_outputtoken")


@pytest.mark.parametrize("effect", [(0.0,), (0.0, 0.0), (-0.3, 0.3), (0.0, 0.1, 0.2, -0.3)])
@pytest.mark.parametrize("cycles", [2, 3, 5])
def test_the_interval_holds_the_true_mean_in_95_percent(effect: tuple[float, ...], cycles: int) -> None:
    """Too narrow an interval is a false claim; of 300 studies, 273 is four standard errors below 95 %."""
    rng = random.Random(f"{effect} {cycles}")
    true = sum(effect) / len(effect)
    held = 0
    for _ in range(300):
        pairs = [drawn(rng, each, cycles) for each in effect]
        low, high = interval(pairs)
        assert low is not None
        assert high is not None
        held += math.log(low) <= true <= math.log(high)
    assert held >= 273
    assert len(effect) > 1 or held < 300


def drawn(rng: random.Random, effect: float, cycles: int) -> LogRatio:
    before = [rng.lognormvariate(0, 0.02) for _ in range(cycles)]
    return LogRatio(*log_ratio(before, [rng.lognormvariate(effect, 0.02) for _ in range(cycles)]))


def width(effect: Effect) -> float:
    assert effect.ci_low is not None
    assert effect.ci_high is not None
    return math.log(effect.ci_high / effect.ci_low)
