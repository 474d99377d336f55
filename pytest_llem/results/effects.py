"""What an axis of a sweep does: the ratio of each of its values to a reference, paired over the other axes.

`llem compare --by` and the charts call it. It is pure. A pair is two experiments of one run that differ on the axis
alone. An interval must hold, in 95 % of studies or more, the geometric mean of the true ratios at the measured pairs.

Method
    Of each pair the logarithm of the ratio of geometric means is taken. What a whole run shares cancels in it, and so
    does the gain of one board; the scatter of cycles, sensor and thermal state do not. Of estimated energy the scatter
    alone is known to matter, so that its ratios are those of what the estimate is made of.

    One pair has the interval of its cycles: Student's t, with Welch and Satterthwaite's degrees of freedom, and the
    stated bounds of sensor and thermal state in quadrature (`uncertainty.expanded` says why not through the degrees).
    Accuracy and joules per correct answer have that of other questions like these beside it, each paired with itself.

    Several pairs have their mean, with the wider of two intervals: that of their cycles, where variances add; and that
    of paired differences, Student's t on the spread of the pairs (Snedecor and Cochran, "Statistical Methods", 4.3),
    which is larger where the effect depends on the other axes. For two or three pairs, whose spread is hardly known,
    the latter may reach far beyond every pair: it ends where the interval of the outermost pair ends. All three hold
    the mean over the measured pairs at their level; what the effect is at other settings, few pairs cannot tell.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Literal

from pytest_llem.errors import JsonValue
from pytest_llem.job.metric_names import ACCURACY
from pytest_llem.results.axes import StudyAxes
from pytest_llem.results.comparability import CORRELATED, UNKNOWN_GAIN
from pytest_llem.results.metrics import Metric, is_energy, metric
from pytest_llem.results.question_rows import sampling_rel, scores_of
from pytest_llem.results.reading import Results, measurement_id
from pytest_llem.results.schema import Result
from pytest_llem.results.statistics import BETWEEN_RUNS, COVERAGE, K, half_width, log_ratio
from pytest_llem.results.uncertainty import systematic_rel
from pytest_llem.study.model import SweptAxis

Direction = Literal["lower", "higher", "not told apart"]
LEVEL = 0.025
"""Of each of the two bounds of a 95 % interval."""


@dataclass(frozen=True)
class LogRatio:
    """The logarithm of one pair's ratio, and its variance from the scatter of cycles; `None` if no side has two.

    `systematic` is the bound, at 95 %, of what no number of cycles averages out.
    """

    centre: float
    variance: float | None
    degrees: float
    systematic: float = 0.0

    @property
    def half_width(self) -> float:
        """Half the interval of this pair alone; infinite where the scatter is not known."""
        if self.variance is None:
            return math.inf
        return math.hypot(half_width([(self.variance, self.degrees)], LEVEL), self.systematic)


@dataclass(frozen=True)
class Pair:
    """Two experiments of one run that differ on the axis alone; `others` are their values on the other axes by name.

    `ratio` and its 95 % interval are those of geometric means over valid cycles; bounds are `None` for single cycles.
    """

    run: str
    others: Mapping[str, JsonValue]
    ratio: float
    ci_low: float | None
    ci_high: float | None
    status: Direction


@dataclass(frozen=True)
class Effect:
    """One value of an axis against the reference value in one metric.

    `ratio` is the geometric mean over the `pairs`, `None` without any, with its 95 % interval, `None` where neither
    cycles nor pairs tell how far to trust it. `unpaired` counts the measured points of either value without a partner,
    `apart` those whose partner has joules of another meter, or of other parts of the machine: no ratio says anything.
    """

    axis: str
    value: JsonValue
    reference: JsonValue
    ratio: float | None
    ci_low: float | None
    ci_high: float | None
    pairs: int
    status: Direction
    metric: str
    study: str = ""
    unpaired: int = 0
    apart: int = 0
    each: tuple[Pair, ...] = ()


def effects(
    results: Results, axes: StudyAxes, axis: SweptAxis, metric_name: str, *, reference: JsonValue = None
) -> list[Effect]:
    """What each value of `axis` does to a metric of one study's results, in the order of the values as written.

    `reference` is one of the values, the first one if `None`. Raises `SettingsError` for an unknown metric.
    """
    measure = metric(metric_name)
    against = axis.values[0] if reference is None else reference
    measured = points(results.valid, axes, [axis.name], measure)
    base = measured.get(repr((against,)), {})
    order = {experiment_id: place for place, experiment_id in enumerate(axes.points)}
    found = []
    for value in axis.values:
        if repr(value) == repr(against):
            continue
        other = measured.get(repr((value,)), {})
        shared = [key for key in base if key in other]
        alike = [key for key in shared if len(meters(measure.name, [*base[key], *other[key]])) <= 1]
        both = sorted(alike, key=lambda key: (key[0], order[base[key][0].experiment.id]))
        ratios = [log_of_pair(measure, base[key], other[key]) for key in both]
        each = [
            _pair(base[key][0].run_id, axes.point(base[key][0].experiment.id), axis, ratio)
            for key, ratio in zip(both, ratios, strict=True)
        ]
        low, high = interval(ratios)
        found.append(
            Effect(
                axis=axis.name,
                value=value,
                reference=against,
                ratio=math.exp(fmean(ratio.centre for ratio in ratios)) if ratios else None,
                ci_low=low,
                ci_high=high,
                pairs=len(ratios),
                status=direction(low, high),
                metric=measure.name,
                study=results[0].study if results else "",
                unpaired=len({*base, *other}) - len(shared),
                apart=len(shared) - len(both),
                each=tuple(each),
            )
        )
    return found


def interval(pairs: Sequence[LogRatio]) -> tuple[float | None, float | None]:
    """The 95 % interval of the geometric mean of the pairs' ratios; `None` where too little is known."""
    if not pairs:
        return None, None
    count, centre = len(pairs), fmean(pair.centre for pair in pairs)
    parts = [(pair.variance / count**2, pair.degrees) for pair in pairs if pair.variance is not None]
    halves = [half_width(parts, LEVEL)] if len(parts) == count else []
    if count > 1:
        halves.append(half_width([(variance(pair.centre for pair in pairs) / count, count - 1)], LEVEL))
    if not halves:
        return None, None
    half = math.hypot(max(halves), fmean(pair.systematic for pair in pairs))
    low = max(centre - half, min(pair.centre - pair.half_width for pair in pairs))
    high = min(centre + half, max(pair.centre + pair.half_width for pair in pairs))
    return math.exp(low), math.exp(high)


def direction(low: float | None, high: float | None) -> Direction:
    """Which side of 1 a whole interval lies on."""
    if high is not None and high < 1:
        return "lower"
    return "higher" if low is not None and low > 1 else "not told apart"


def log_of_pair(measure: Metric, before: Sequence[Result], now: Sequence[Result]) -> LogRatio:
    """The pair of two experiments' valid cycles, all with a positive value of the metric."""
    old, new = _values(measure, before), _values(measure, now)
    # What an estimate may err by is mostly one factor for a whole machine, which cancels: callers say that it is one.
    sensed = [side for side in (before, now) if all(result.energy.measured for result in side)]
    systematic = [systematic_rel(measure, side, one_board=True) or 0.0 for side in sensed]
    if is_energy(measure.name) and _boards(before) != _boards(now):
        gains = (side[0].energy.gain_uncertainty_rel for side in (before, now))
        systematic += [UNKNOWN_GAIN if gain is None else gain for gain in gains]
    if {measurement_id(result).run for result in before} != {measurement_id(result).run for result in now}:
        systematic.append(K * BETWEEN_RUNS)  # a run that was resumed: what a run shares does not cancel
    # Of right answers, other questions like these: the same in all pairs of a study, however many.
    systematic.append(K * sampling_rel(measure, *(scores_of(side) for side in (before, now)), alpha=(1 - COVERAGE) / 2))
    bound = math.log1p(math.hypot(*systematic))
    if len(old) == len(new) == 1 and measure.name == ACCURACY:
        return LogRatio(math.log(new[0]) - math.log(old[0]), 0.0, 1, bound)
    if len(old) == len(new) == 1:
        return LogRatio(math.log(new[0]) - math.log(old[0]), None, 0, bound)
    shared = any(side[0].runner.isolation in CORRELATED for side in (before, now))
    return LogRatio(*log_ratio(old, new, correlated=shared), bound)


def meters(measure: str, results: Iterable[Result]) -> set[str]:
    """What a metric's joules are of, meter and scope; empty for metrics without energy."""
    return {f"{each.energy.meter} ({each.energy.scope})" for each in results} if is_energy(measure) else set()


def points(
    results: Results, axes: StudyAxes, names: Sequence[str], measure: Metric
) -> dict[str, dict[tuple[str, str], list[Result]]]:
    """The usable cycles by their values on the axes of these names, then by run and the values on the other axes.

    A point that several experiments of a run lie on is left out: nothing says which of them is meant.
    """
    found: dict[str, dict[tuple[str, str], list[Result]]] = {}
    for result in results:
        point = axes.point(result.experiment.id)
        values = tuple(point.pop(name, None) for name in names)
        if None not in values and (measure.of(result) or 0) > 0:
            found.setdefault(repr(values), {}).setdefault((result.run_id, repr(point)), []).append(result)
    return {
        value: {key: group for key, group in of_value.items() if len({each.experiment.id for each in group}) == 1}
        for value, of_value in found.items()
    }


def _pair(run: str, point: Mapping[str, JsonValue], axis: SweptAxis, ratio: LogRatio) -> Pair:
    low, high = interval([ratio])
    others = {name: value for name, value in point.items() if name != axis.name}
    return Pair(run, others, math.exp(ratio.centre), low, high, direction(low, high))


def _values(measure: Metric, results: Sequence[Result]) -> list[float]:
    return [value for result in results if (value := measure.of(result)) is not None]


def _boards(results: Sequence[Result]) -> set[str]:
    return {board for result in results for board in result.runner.device_ids}
