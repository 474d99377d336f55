"""The uncertainty of a figure: its components over an experiment's valid cycles, and their combination (JCGM 100:2008).

`summary` and `budget` call it. It is pure, and its intervals must hold the true value in 95 % of studies:
docs/uncertainty.md has the rates, and why components are combined as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal

from pytest_llem.job.metric_names import ACCURACY, JOULES_PER_CORRECT, SLO_MET_SHARE
from pytest_llem.results.comparability import CORRELATED, UNKNOWN_GAIN
from pytest_llem.results.distributions import student_quantile
from pytest_llem.results.metrics import Metric, is_at_least, is_beyond_numbers, is_energy, shipped
from pytest_llem.results.questions import accuracy_interval, cost_interval
from pytest_llem.results.schema import Result
from pytest_llem.results.sections.quality import asked_questions
from pytest_llem.results.sections.slo import share_interval
from pytest_llem.results.statistics import BETWEEN_RUNS, COVERAGE, K, RunSpread, variance_of_mean

ONE_RUN = BETWEEN_RUNS / math.sqrt(2)
"""One run's share of what two runs differ by, as in the gates."""
SENSOR, THERMAL, QUESTIONS = "sensor", "thermal state", "choice of questions"
STATED_APART = {"energy_above_idle_j": "energy_above_idle_uncertainty_j", "idle_power_w": "idle_power_uncertainty_w"}
"""Metrics that are no multiple of `energy_j`, with the field of their uncertainty."""


@dataclass(frozen=True)
class Component:
    """One cause of uncertainty: a standard uncertainty `value` in `unit`, which times `sensitivity` contributes.

    `value` is `None` where the cause is not known, and `degrees` of freedom where it is stated, and so taken as exact.
    `share` is that of the combined variance. `below` and `above` are how far the figure may be on either side (95.45 %,
    in its unit) by an interval that is not even: `value` is then half of the longer one.
    """

    name: str
    type: Literal["A", "B"]
    distribution: str
    value: float | None
    unit: str
    sensitivity: float = 1.0
    degrees: float | None = None
    share: float | None = None
    below: float | None = None
    above: float | None = None

    @property
    def contribution(self) -> float:
        """The standard uncertainty of the figure that it causes, in the metric's unit; 0 where it is not known."""
        return (self.value or 0.0) * self.sensitivity

    @property
    def expanded(self) -> float:
        """The same at 95.45 %."""
        return (K if self.degrees is None else student_quantile((1 + COVERAGE) / 2, self.degrees)) * self.contribution


@dataclass(frozen=True)
class UncertaintyBudget:
    """A figure, its expanded uncertainty at 95.45 % in the metric's unit, and the components of that.

    `low` and `high` are the interval. `uncertainty` is its longer side, `None` like them where a component is missing
    that cannot be left out, which `unknown` names. `degrees` are the effective ones of Welch and Satterthwaite, `None`
    where infinite. The board's gain error is in none of it.
    """

    metric: str
    unit: str
    value: float
    n: int
    uncertainty: float | None
    coverage_factor: float | None
    degrees: float | None
    gain_uncertainty_rel: float | None
    unknown: str | None
    components: tuple[Component, ...]
    low: float | None
    high: float | None


def budget_of_result(measure: Metric, result: Result) -> UncertaintyBudget | None:
    """One cycle's figure, with its sensor, and requests or questions, as causes; `None` where it was not measured."""
    components = [_sensor(measure, [result])] if is_energy(measure.name) else []
    return _budget(measure, [result], [*components, *_of_sample(measure, [result])])


def budget_of_experiment(
    measure: Metric, results: Sequence[Result], spread: RunSpread | None = None
) -> UncertaintyBudget | None:
    """The mean over the valid cycles of one experiment in a run; `None` where none of them measured it.

    Neither has a figure a mean that in some cycles is beyond any number. `spread` is what equal runs were measured to
    differ by, in place of what is assumed.
    """
    measured = [result for result in results if measure.of(result) is not None]
    values = _values(measure, measured)
    if not values or any(is_beyond_numbers(measure, result) for result in results):
        return None
    if measure.name in (SLO_MET_SHARE, ACCURACY):
        return _budget(measure, measured, _of_sample(measure, measured))
    components = [scatter(values, measure.unit, correlated=measured[0].runner.isolation in CORRELATED)]
    if any(is_at_least(measure, result) for result in measured):
        components.append(Component("an upper end of the search", "B", "normal", None, measure.unit))
    if is_energy(measure.name):
        components.append(_sensor(measure, measured))
    if measure.unit != "B":  # memory depends on neither temperature nor clocks
        components.append(between_runs(fmean(values), spread))
    if is_energy(measure.name) and measure.name != "idle_power_w":
        moved = [result.energy.energy_j or 0.0 for result in measured] if measure.name in STATED_APART else values
        components.append(thermal([result.thermal.uncertainty_rel for result in measured], fmean(moved)))
    return _budget(measure, measured, [*components, *_of_sample(measure, measured)])


def systematic_rel(measure: Metric, results: Sequence[Result], *, one_board: bool = False) -> float | None:
    """The relative bound, k=2, of what no number of cycles averages out: sensor, thermal state, questions and gain.

    `one_board` leaves out the board's gain, which cancels in a ratio, and the choice of questions, which both sides
    share. 0 for what no meter measures, and `None` where the part of sensor or questions is not known.
    """
    budget = budget_of_experiment(measure, results) if is_energy(measure.name) else None
    if budget is None or not budget.value:
        return 0.0
    shared = (SENSOR, THERMAL) if one_board else (SENSOR, THERMAL, QUESTIONS)
    parts = [part for part in budget.components if part.name in shared]
    if any(part.value is None for part in parts if part.name != THERMAL):
        return None
    gain = UNKNOWN_GAIN if budget.gain_uncertainty_rel is None else budget.gain_uncertainty_rel
    return math.hypot(0.0 if one_board else gain, expanded(parts) / abs(budget.value))


def scatter(values: Sequence[float], unit: str = "1", *, correlated: bool = False) -> Component:
    """Type A: of the mean over independent cycles. `correlated` ones, which shared a loaded engine, count as one."""
    if len(values) == 1:
        return Component("scatter over cycles", "A", "Student's t", None, unit)
    variance, degrees = variance_of_mean(values, correlated=correlated)
    return Component("scatter over cycles", "A", "Student's t", math.sqrt(variance), unit, degrees=degrees)


def sensor(stated: Sequence[float | None], sensitivities: Sequence[float], unit: str = "1") -> Component:
    """Type B, of each cycle's k=2: it may err alike in all cycles of a run, so that their number does not reduce it."""
    known = [uncertainty / K for uncertainty in stated if uncertainty is not None]
    if not known or len(known) < len(stated):
        return Component(SENSOR, "B", "normal", None, unit)
    value = fmean(known)
    effect = fmean([one * factor for one, factor in zip(known, sensitivities, strict=True)])
    return Component(SENSOR, "B", "normal", value, unit, effect / value if value else fmean(sensitivities))


def between_runs(mean: float, spread: RunSpread | None = None) -> Component:
    """How far a run's temperature, clocks and machine state move all its cycles: type A if measured, else assumed."""
    if spread is not None:
        value = math.sqrt(spread.variance)
        return Component("between runs, measured", "A", "Student's t", value, "1", abs(mean), spread.degrees)
    return Component("between runs, assumed", "B", "normal", ONE_RUN, "1", abs(mean))


def thermal(stated_rel: Sequence[float | None], moved: float) -> Component:
    """Type B, of each cycle's k=2: how far all of them may lie from a settled die, as a share of what heat `moved`.

    Where no cycle knows, the value is `None`: it is left out of the sum, and said to be.
    """
    known = [uncertainty / K for uncertainty in stated_rel if uncertainty is not None]
    return Component(THERMAL, "B", "normal", fmean(known) if known else None, "1", abs(moved))


def expanded(components: Sequence[Component]) -> float:
    """The expanded uncertainty: that of each component by itself, at 95.45 %, in quadrature.

    For normal components it covers at least 95.45 %, because the chi-squared distribution of one degree of freedom is
    concave (Banerjee, Sankhya 22, 1960, 357-358). The usual factor, Student's t with the effective degrees, falls below
    where the scatter of three cycles meets others of its size; where one component dominates, both agree.
    """
    return math.hypot(*(part.expanded for part in components))


def _budget(measure: Metric, results: Sequence[Result], components: Sequence[Component]) -> UncertaintyBudget | None:
    values = _values(measure, results)
    if not values:
        return None
    variance = sum(part.contribution**2 for part in components)
    missing = [part.name for part in components if part.value is None and part.name != THERMAL]
    unknown = ", ".join(missing if components else ["scatter"])
    whole = None if unknown else expanded(components)
    below = math.hypot(*(part.expanded if part.below is None else part.below for part in components))
    above = math.hypot(*(part.expanded if part.above is None else part.above for part in components))
    value = fmean(values)
    fourth = sum(part.contribution**4 / part.degrees for part in components if part.degrees)
    gains = [gain for result in results if (gain := result.energy.gain_uncertainty_rel) is not None]
    return UncertaintyBudget(
        metric=measure.name,
        unit=measure.unit,
        value=value,
        n=len(values),
        uncertainty=whole,
        low=None if whole is None else value - below,
        high=None if whole is None else value + above,
        coverage_factor=whole / math.sqrt(variance) if whole else None,
        degrees=variance**2 / fourth if fourth and not unknown else None,
        gain_uncertainty_rel=max(gains, default=None) if is_energy(measure.name) else None,
        unknown=unknown or None,
        components=tuple(
            replace(part, share=part.contribution**2 / variance if variance and not unknown else None)
            for part in components
        ),
    )


def _values(measure: Metric, results: Sequence[Result]) -> list[float]:
    return [value for result in results if (value := measure.of(result)) is not None]


def _of_sample(measure: Metric, results: Sequence[Result]) -> list[Component]:
    """Type A, of what was asked as a sample of what might be: requests of a load, questions; none for most metrics."""
    value = fmean(_values(measure, results))
    if measure.name == SLO_MET_SHARE:
        return [_uneven("requests", "binomial", value, share_interval(results, COVERAGE))]
    if measure.name not in (ACCURACY, JOULES_PER_CORRECT):
        return []
    asked = asked_questions(results)
    if measure.name == ACCURACY:
        bounds = accuracy_interval(value, len(asked.scores)) if asked else (None, None)
        return [_uneven(QUESTIONS, "binomial", value, bounds)]
    factors = cost_interval(asked) if asked else None
    low, high = factors or (None, None)
    part = _uneven(QUESTIONS, "binomial and Student's t", 1.0, (low, high))
    if part.below is None or part.above is None:
        return [part]
    return [replace(part, sensitivity=abs(value), below=part.below * value, above=part.above * value)]


def _uneven(name: str, distribution: str, value: float, bounds: tuple[float | None, float | None]) -> Component:
    """Half of the longer side as standard uncertainty, so that it covers both, and 0 and 100 % have some too."""
    low, high = bounds
    if low is None or high is None:
        return Component(name, "A", distribution, None, "1")
    below, above = max(0.0, value - low), max(0.0, high - value)
    return Component(name, "A", distribution, max(below, above) / K, "1", below=below, above=above)


def _sensor(measure: Metric, results: Sequence[Result]) -> Component:
    """The sensor's component: of the metric itself where that is stated, else through `energy_j`."""
    if shipped(measure.name) is None:  # how another package's figure follows from the energy, only that can say
        of = measure.uncertainty
        return sensor([of and of(result) for result in results], [1.0] * len(results), measure.unit)
    field = STATED_APART.get(measure.name, "uncertainty_j")
    stated: list[float | None] = [getattr(result.energy, field) for result in results]
    if measure.name in STATED_APART:
        return sensor(stated, [1.0] * len(stated), measure.unit)
    sensitivities = [abs((measure.of(result) or 0.0) / (result.energy.energy_j or 1.0)) for result in results]
    return sensor(stated, sensitivities, "J")
