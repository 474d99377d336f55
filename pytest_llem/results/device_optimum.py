"""Which setting of a GPU costs the fewest joules, which others may, and what it costs in speed.

The summary and the report's charts call it. It is pure. Settings are compared where all else is equal: within a run, at
one point of the other axes. The axes that set a GPU are one choice together: each combination that was measured is one.

Method
    The best is the setting with the best mean. Another may be as good unless it is told apart from the best: unless the
    one-sided bound of their ratio (`effects.log_of_pair`: scatter of the cycles, sensor and thermal state; what a run
    and a board share cancels) lies beyond 1. That is Gupta's choice of a subset that holds the best (Technometrics 7,
    1965, 225-245), with Student's t of each pair and Bonferroni's share of 5 % for each other setting: in 95 % of
    studies or more, the truly best of the measured settings is among those that are named.

    The best is picked after looking, so that what it seems to save is on average too much. Its ratios to the usual
    setting have intervals that hold for all settings at once, at 95 % for the energy and 95 % for the speed: with k
    settings each bound has the level 2.5 % / (k - 1). They are wider than those of one effect.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist, fmean

from pytest_llem.errors import JsonValue
from pytest_llem.job.metric_names import HEADLINE, known_metric, metric_name
from pytest_llem.job.wire import encode
from pytest_llem.results.axes import StudyAxes, numbers, written
from pytest_llem.results.device_axes import POWER_LIMIT, device_axes, in_words, usual
from pytest_llem.results.effects import LogRatio, log_of_pair, points
from pytest_llem.results.metrics import Metric, metric
from pytest_llem.results.reading import Results
from pytest_llem.results.schema import Result
from pytest_llem.results.statistics import K, half_width
from pytest_llem.study.model import SweptAxis

SPEED = "output_tokens_per_s"
LEVEL = 0.05
"""Chosen: the field's convention, as of every interval here."""
NOT_PER_WORK = frozenset({"energy_j", "energy_above_idle_j", "avg_power_w", "idle_power_w"})
"""Metrics of energy that are least where least is done."""
Values = tuple[JsonValue, ...]


@dataclass(frozen=True)
class Against:
    """A metric at the best setting over that at the usual one, with its interval; `None` where nothing tells it."""

    metric: str
    ratio: float
    ci_low: float | None
    ci_high: float | None

    def text(self, more: str, fewer: str) -> str:
        """`12.1 % less (10.4 to 13.8 %)`; an end below zero is a change the other way."""
        word, sign = (more, 1) if self.ratio >= 1 else (fewer, -1)
        said = f"{abs(self.ratio - 1):.1%} {word}".replace("%", " %")
        if self.ci_low is None or self.ci_high is None:
            return said
        ends = sorted(100 * sign * (end - 1) for end in (self.ci_low, self.ci_high))
        return f"{said} ({ends[0] + 0.0:.1f} to {ends[1] + 0.0:.1f} %)"


@dataclass(frozen=True)
class Optimum:
    """The best of the measured settings at one point of a study's other axes; values are those of `axes`, by name.

    `others` may be as good; `told` is false where single cycles leave that open for all of them. `energy` and `speed`
    are against `reference`, both `None` where that is the best itself or was not measured. `ends` says where the best,
    or one that may be as good, is the last that was measured. `sentence` has it all.
    """

    study: str
    run: str
    point: Mapping[str, JsonValue]
    metric: str
    axes: tuple[str, ...]
    best: Values
    others: tuple[Values, ...]
    reference: Values
    told: bool
    energy: Against | None
    speed: Against | None
    ends: tuple[str, ...]
    sentence: str = ""


def optima(results: Results, axes: StudyAxes, headline: str | None = None) -> list[Optimum]:
    """The optimum at each point of one study's other axes where two settings of a GPU were measured.

    It is one in what `judged_by` makes of the study's headline.
    """
    chosen = device_axes(axes.axes)
    if not chosen or not results:
        return []
    measure = metric(judged_by(headline))
    names = [axis.name for axis in chosen]
    found: dict[tuple[str, str], dict[Values, list[Result]]] = {}
    for at in points(results.valid, axes, names, measure).values():
        for place, group in at.items():
            point = axes.point(group[0].experiment.id)
            found.setdefault(place, {})[tuple(point.get(name) for name in names)] = group
    return [made for (run, _), settings in found.items() for made in _optima(run, settings, axes, names, measure)]


def judged_by(headline: str | None) -> str:
    """The metric of the optimum: the study's headline if that is energy per work, else joules per output token."""
    known = known_metric(headline) if headline else None
    return known.name if known is not None and known.energy and known.name not in NOT_PER_WORK else HEADLINE


def published(found: Optimum) -> dict[str, JsonValue]:
    """An optimum as `summary.json` has it: each setting by the name of its axis."""

    def named(values: Values) -> JsonValue:
        return dict(zip(found.axes, values, strict=True))

    content: dict[str, JsonValue] = {name: encode(value) for name, value in vars(found).items()}
    content["best"], content["reference"] = named(found.best), named(found.reference)
    content["others"] = [named(values) for values in found.others]
    return content


def sentences(found: Sequence[Optimum]) -> list[str]:
    """A sentence for each, behind the values on the other axes that tell it from the others."""
    varied = [name for name in dict.fromkeys(name for each in found for name in each.point) if _differ(found, name)]
    several_runs = len({each.run for each in found}) > 1
    named = [
        [*([each.run] if several_runs else []), *(f"{_tail(name)} {written(each.point.get(name))}" for name in varied)]
        for each in found
    ]
    return [
        ": ".join(filter(None, (", ".join(names), each.sentence))) for names, each in zip(named, found, strict=True)
    ]


def _differ(found: Sequence[Optimum], name: str) -> bool:
    return len({repr(each.point.get(name)) for each in found}) > 1


def _tail(name: str) -> str:
    return name.rpartition(".")[2]


def _optima(
    run: str, settings: Mapping[Values, Sequence[Result]], axes: StudyAxes, names: Sequence[str], measure: Metric
) -> Iterator[Optimum]:
    if len(settings) < 2:
        return
    sign = -1 if measure.higher_is_better else 1

    def level(group: Sequence[Result]) -> float:
        return sign * fmean(math.log(value) for each in group if (value := measure.of(each)))

    ordered = sorted(settings, key=lambda values: axes.place(dict(zip(names, values, strict=True))))
    settings = {values: settings[values] for values in ordered}
    best = min(settings, key=lambda values: level(settings[values]))
    apart = {
        values: log_of_pair(measure, settings[best], group) for values, group in settings.items() if values != best
    }
    share = LEVEL / len(apart)
    possible = tuple(values for values, ratio in apart.items() if sign * ratio.centre <= _half(ratio, share))
    reference = tuple(usual([values[at] for values in settings]) for at in range(len(names)))
    energy = speed = None
    if reference in settings and reference != best:
        energy = _change(measure, settings[reference], settings[best], share / 2)
        fast = metric(SPEED)
        if all((fast.of(each) or 0) > 0 for group in (settings[reference], settings[best]) for each in group):
            speed = _change(fast, settings[reference], settings[best], share / 2)
    experiment = settings[best][0].experiment.id
    ends = (*_ends(device_axes(axes.axes), settings, [best, *possible], reference), *_unreached(names, settings))
    told = all(ratio.variance is not None for ratio in apart.values())
    point = {name: value for name, value in axes.point(experiment).items() if name not in names}
    study = settings[best][0].study
    found = Optimum(study, run, point, measure.name, tuple(names), best, possible, reference, told, energy, speed, ends)
    yield replace(found, sentence=_sentence(device_axes(axes.axes), measure, found))


def _half(ratio: LogRatio, alpha: float) -> float:
    """The distance of a one-sided bound; what no cycles average out is stated at k=2, and widened for a lower level."""
    if ratio.variance is None:
        return math.inf
    wider = max(1.0, NormalDist().inv_cdf(1 - alpha) / K)
    return math.hypot(half_width([(ratio.variance, ratio.degrees)], alpha), wider * ratio.systematic)


def _change(measure: Metric, before: Sequence[Result], now: Sequence[Result], alpha: float) -> Against:
    ratio = log_of_pair(measure, before, now)
    half = _half(ratio, alpha)
    if math.isinf(half):
        return Against(measure.name, math.exp(ratio.centre), None, None)
    low, high = math.exp(ratio.centre - half), math.exp(ratio.centre + half)
    return Against(measure.name, math.exp(ratio.centre), low, high)


def _ends(
    axes: Sequence[SweptAxis], settings: Iterable[Values], good: Sequence[Values], reference: Values
) -> Iterator[str]:
    """Where one of the best is the last that was measured, that nothing beyond was; upwards a default is the end."""
    for at, axis in enumerate(axes):
        known = numbers({values[at] for values in settings})
        at_ends = [known[0], *([known[-1]] if reference[at] == known[-1] else [])] if len(known) > 1 else []
        for end, where in zip(at_ends, ("below", "above"), strict=False):
            if any(values[at] == end for values in good):
                yield f"nothing {where} {in_words([axis], [end], alone=len(axes) == 1)} was measured"


def _unreached(names: Sequence[str], settings: Mapping[Values, Sequence[Result]]) -> Iterator[str]:
    """That the load came to none of the power limits, which then changed nothing."""
    at = next((place for place, name in enumerate(names) if name.endswith(POWER_LIMIT)), None)
    limited = [] if at is None else [r for values, group in settings.items() if numbers([values[at]]) for r in group]
    reached = {
        each.reached for r in limited for gpu in r.device.gpus for each in gpu.settings if each.name == POWER_LIMIT
    }
    if reached == {False}:
        yield "the load reached none of the limits"


def _sentence(axes: Sequence[SweptAxis], measure: Metric, found: Optimum) -> str:
    least, more, fewer = ("most", "more", "fewer") if measure.higher_is_better else ("least", "more", "less")
    words = metric_name(measure.name).description
    said = f"{least} {words[0].lower()}{words[1:]} at {in_words(axes, found.best)}"
    if found.energy is not None:
        changes = [found.energy.text(more, fewer), *([found.speed.text("faster", "slower")] if found.speed else [])]
        said += f": {', '.join(changes)} than at {in_words(axes, found.reference)}"
    if not found.told:
        return f"{said}; single cycles do not tell settings apart: measure more"
    others = [in_words(axes, values) for values in found.others]
    said += f"; as good within the uncertainty: {', '.join(others)}" if others else ""
    return "; ".join([said, *found.ends])
