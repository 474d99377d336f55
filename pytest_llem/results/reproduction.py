"""Whether measurements of another laboratory were reproduced: ratios between settings first, then the levels.

`llem reproduce` calls it. It is pure. Equal laboratories must be called equivalent, and a difference of the margin must
not be, in more than 5 % of reproductions: `tests/benchmarks/reproduction.py` has the rates.

Method
    Two one-sided tests (Schuirmann, J. Pharmacokinet. Biopharm. 15, 1987, 657-680) of the logarithm of one laboratory's
    figure over the other's, against a margin that is stated before. *Equivalent*: its 90 % interval lies within the
    margin; *different*: its interval, at a level that all ratios share (Bonferroni), lies beyond it; else
    *inconclusive*. All ratios equivalent is again a test of 5 % (Berger, Technometrics 24, 1982, 295-300).

    A ratio is that of one experiment to the reference within each laboratory, so that the board's gain and what a
    whole run shares cancel; sensor and thermal state do not (`effects.log_of_pair`). A level is an experiment's figure
    itself: both boards' gain errors and the spread between runs enter its interval. Levels of another device model, CPU
    or power limit are shown and decide nothing.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from pytest_llem.results.comparability import DEVICE_IDS, common_conditions, differences
from pytest_llem.results.effects import LogRatio, log_of_pair
from pytest_llem.results.metrics import Metric, is_energy
from pytest_llem.results.reading import Results, measurement_id
from pytest_llem.results.schema import Result
from pytest_llem.results.statistics import BETWEEN_RUNS, K, half_width, variance_of_mean
from pytest_llem.results.uncertainty import systematic_rel

ReproductionStatus = Literal["equivalent", "different", "inconclusive", "not comparable"]
ALPHA = 0.05
"""Of each one-sided test: the convention of equivalence testing, a 90 % interval."""
MARGIN = 0.05
"""Chosen: what a gate calls a regression by default, and more than two calm machines' ratios differ by."""
MAY_DIFFER = frozenset(
    {
        "engine_version", "device_models", "power_limit_w", "driver_major", "cpu_model", "cpus", "meter",
        "calibration", "estimator", "runner", "isolation", "thermal_state", DEVICE_IDS,
    }
)  # fmt: skip
"""Conditions in which another laboratory may differ: they are said, and the work is the same."""
ANOTHER_MACHINE = ("device_models", "cpu_model", "cpus", "power_limit_w")
"""Of these, what makes another level no surprise."""


@dataclass(frozen=True)
class Figure:
    """One comparison of both laboratories: `here` over `there`, with the interval that decided.

    `kind` is `ratio` (to the reference experiment, within each laboratory) or `level`, whose values are in the
    metric's unit. `factor` is `here / there`; `None`, like the interval, where it is not comparable.
    """

    kind: Literal["ratio", "level"]
    experiment: str
    there: float | None
    here: float | None
    factor: float | None
    low: float | None
    high: float | None
    status: ReproductionStatus
    reason: str | None = None
    differs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reproduction:
    """The verdict on one metric of one study, and the figures that it rests on."""

    study: str
    metric: str
    margin: float
    reference: str | None
    status: ReproductionStatus
    figures: tuple[Figure, ...]
    notes: tuple[str, ...] = ()


def judge_reproduction(there: Results, here: Results, measure: Metric, margin: float = MARGIN) -> Reproduction:
    """Hold the valid cycles of one study, measured here, against another laboratory's.

    Experiments are matched by configuration, else by id. The reference is the first that both have valid cycles of.
    """
    theirs, ours = _experiments(there, measure), _experiments(here, measure)
    by_hash = {group[0].experiment.config_hash: name for name, group in ours.items()}
    matched = {
        name: ours[match]
        for name, group in theirs.items()
        if (match := by_hash.get(group[0].experiment.config_hash, name)) in ours
    }
    figures: list[Figure] = []
    comparable: list[str] = []
    for name, group in matched.items():
        problems = _forbidden(theirs[name], group, measure)
        if problems:
            figures.append(Figure("level", name, None, None, None, None, None, "not comparable", "; ".join(problems)))
        else:
            comparable.append(name)
    reference = comparable[0] if comparable else None
    others = comparable[1:]
    ratios = [
        _ratio(name, measure, (theirs[comparable[0]], theirs[name]), (matched[comparable[0]], matched[name]),
               margin, len(others))
        for name in others
    ]  # fmt: skip
    levels = [_level(name, measure, theirs[name], matched[name], margin, len(comparable)) for name in comparable]
    missing = [name for name in theirs if name not in matched]
    notes = [f"not measured here: {', '.join(missing)}"] if missing else []
    if is_energy(measure.name) and not all(result.energy.measured for result in (*there.valid, *here.valid)):
        notes.append("energy was estimated, not measured: equivalence is that of the estimates")
    like = [figure for figure in levels if not any(text.startswith(ANOTHER_MACHINE) for text in figure.differs)]
    return Reproduction(
        study=there[0].study if len(there) else "",
        metric=measure.name,
        margin=margin,
        reference=reference,
        status=_overall(ratios or like, like, complete=not missing and len(comparable) == len(matched)),
        figures=(*ratios, *levels, *figures),
        notes=tuple(notes),
    )


def _overall(deciding: Sequence[Figure], levels: Sequence[Figure], *, complete: bool) -> ReproductionStatus:
    if any(figure.status == "different" for figure in (*deciding, *levels)):
        return "different"
    whole = complete and bool(deciding) and all(figure.status == "equivalent" for figure in deciding)
    return "equivalent" if whole else "inconclusive"


def _experiments(results: Results, measure: Metric) -> dict[str, list[Result]]:
    """The valid cycles that have a positive value, by experiment, in the order of the results."""
    groups: dict[str, list[Result]] = {}
    for (_, experiment), group in results.valid.by_experiment().items():
        usable = [result for result in group if (measure.of(result) or 0.0) > 0]
        if usable:
            groups[experiment] = usable
    return groups


def _forbidden(there: Sequence[Result], here: Sequence[Result], measure: Metric) -> list[str]:
    """What is not the same work, or not the same kind of figure."""
    shared = {measurement_id(result) for result in there} & {measurement_id(result) for result in here}
    if shared:
        return ["the same measurements on both sides"]
    return _differences(there, here, measure, MAY_DIFFER)


def _differences(there: Sequence[Result], here: Sequence[Result], measure: Metric, allow: Collection[str]) -> list[str]:
    before, now = common_conditions(there), common_conditions(here)
    return differences(before, now, measure, math.inf, allow=allow)


def _said(there: Sequence[Result], here: Sequence[Result], measure: Metric) -> tuple[str, ...]:
    """Differences that do not forbid the comparison, boards' ids apart."""
    return tuple(_differences(there, here, measure, {DEVICE_IDS}))


def _ratio(
    name: str,
    measure: Metric,
    there: tuple[Sequence[Result], Sequence[Result]],
    here: tuple[Sequence[Result], Sequence[Result]],
    margin: float,
    count: int,
) -> Figure:
    old, new = log_of_pair(measure, *there), log_of_pair(measure, *here)
    said = _said(there[1], here[1], measure)
    return _figure("ratio", name, (old, new), (math.exp(old.centre), math.exp(new.centre)), margin, count, said)


def _level(
    name: str, measure: Metric, there: Sequence[Result], here: Sequence[Result], margin: float, count: int
) -> Figure:
    sides = tuple(_log_mean(measure, side) for side in (there, here))
    values = (math.exp(sides[0].centre), math.exp(sides[1].centre))
    return _figure("level", name, sides, values, margin, count, _said(there, here, measure))


def _log_mean(measure: Metric, results: Sequence[Result]) -> LogRatio:
    """The logarithm of a laboratory's geometric mean; what its run and its board share is systematic."""
    logs = [math.log(value) for result in results if (value := measure.of(result))]
    centre = math.fsum(logs) / len(logs)
    stated = systematic_rel(measure, results) if all(result.energy.measured for result in results) else 0.0
    one_run = K * BETWEEN_RUNS / math.sqrt(2)
    systematic = math.inf if stated is None else math.log1p(math.hypot(stated, one_run))
    if len(logs) < 2:
        return LogRatio(centre, None, 0, systematic)
    spread, degrees = variance_of_mean(logs)
    return LogRatio(centre, spread, degrees, systematic)


def _figure(
    kind: Literal["ratio", "level"],
    name: str,
    sides: Sequence[LogRatio],
    values: tuple[float, float],
    margin: float,
    count: int,
    said: tuple[str, ...],
) -> Figure:
    centre = sides[1].centre - sides[0].centre
    limit = math.log1p(margin)
    narrow, wide = _half(sides, ALPHA), _half(sides, ALPHA / 2 / max(count, 1))
    status: ReproductionStatus = "inconclusive"
    half, reason = narrow, None
    if abs(centre) + narrow < limit:
        status = "equivalent"
    elif abs(centre) - wide > limit:
        status, half = "different", wide
    elif math.isinf(narrow):
        reason = "a single cycle, or an unknown uncertainty: two cycles of each experiment are needed at least"
    low, high = (None, None) if math.isinf(half) else (math.exp(centre - half), math.exp(centre + half))
    return Figure(kind, name, values[0], values[1], math.exp(centre), low, high, status, reason, said)


def _half(sides: Sequence[LogRatio], alpha: float) -> float:
    """Distance of each one-sided bound; what is systematic is stated for k=2, and reaches further at a lower level."""
    parts = [(side.variance, side.degrees) for side in sides if side.variance is not None]
    if len(parts) < len(sides):
        return math.inf
    further = max(1.0, NormalDist().inv_cdf(1 - alpha) / K)
    return math.hypot(half_width(parts, alpha), *(further * side.systematic for side in sides))


def overall(found: Sequence[Reproduction]) -> ReproductionStatus:
    """The verdict over several metrics and studies: the worst of theirs."""
    order: Mapping[ReproductionStatus, int] = {"different": 0, "inconclusive": 1, "not comparable": 1, "equivalent": 2}
    return min((each.status for each in found), key=lambda status: order[status], default="inconclusive")
