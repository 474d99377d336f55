"""Parses budgets and limits of comparisons as a study writes them: `"<= 0.5"`, `5%`, `0.05 s`, `-1 point`.

`parts`, the command line and `llem compare` parse with it; `results.judging` and `compare` judge by its limits. Studies
hold what is parsed here: forms may be added, and none may change its meaning.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from pytest_llem.errors import SettingsError
from pytest_llem.job.metric_names import ACCURACY, SLO_MET_SHARE, UNIT, metric_name
from pytest_llem.job.setting import of_percent

Operator = Literal["<=", "<", ">=", ">"]
Match = Literal["config", "id"]
_BUDGET = re.compile(r"\s*(<=|>=|<|>)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(%?)\s*\Z")
SHARES = {SLO_MET_SHARE: "requests", ACCURACY: "answers"}
"""Metrics from 0 to 1 that count something, and so may change by points: hundredths of all."""
PARTS = {**SHARES, "cached_input_share": "prompt tokens"}
"""Metrics from 0 to 1, each with what it is a part of."""
POINTS = ("point", "points")
_CHANGE = re.compile(rf"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(%|{UNIT})\s*\Z")


@dataclass(frozen=True)
class Budget:
    """A bound on a metric, without a baseline: `metric op limit`, the limit in the metric's unit."""

    metric: str
    op: Operator
    limit: float

    def __str__(self) -> str:
        return f"{self.metric} {self.op} {self.limit:g}"


@dataclass(frozen=True)
class FailIf:
    """A change against the baseline that fails, as a fraction: 0.05 is +5 %, -0.05 is -5 %.

    Where `absolute`, the change is in the metric's unit instead. For a metric where higher is better the change that
    fails is negative. `resolution` is the smallest change that matters, written as `limit` is and positive; it is
    stated where the limit is 0 or points the harmless way.
    """

    metric: str
    limit: float
    resolution: float | None = None
    absolute: bool = False

    def __str__(self) -> str:
        return f"{self.metric}: {change_text(self.metric, self.limit, absolute=self.absolute)}"

    def relative_to(self, baseline: float) -> FailIf:
        """The same limit as a fraction of a positive baseline value."""
        if not self.absolute:
            return self
        smallest = None if self.resolution is None else self.resolution / baseline
        return FailIf(self.metric, self.limit / baseline, smallest)


@dataclass(frozen=True)
class Comparison:
    """How an experiment is compared with a baseline: every limit, the error rate of each, and what may differ.

    `allow` names conditions (`job.condition_names.CONDITIONS`) that need not be equal. `match` says what makes an
    experiment of the baseline the same: its configuration, or its id, where settings may have changed.
    """

    fail_if: tuple[FailIf, ...] = ()
    alpha: float = 0.05
    allow: tuple[str, ...] = ()
    match: Match = "config"


def parse_budget(metric: str, text: object) -> Budget:
    """`"<= 0.5"` as a budget, or `">= 99%"` of a share. Raises `SettingsError`."""
    is_share = metric_name(metric).unit == "1"
    match = _BUDGET.match(text) if isinstance(text, str) else None
    if match is None or (match.group(3) and not is_share):
        example = ">= 99%" if metric in SHARES else f"<= {_n(text)}"
        fix = f'write an operator and a number: "{example}"'
        raise SettingsError(f"{metric}: {text!r} is not a budget", fix=fix)
    op: Operator = match.group(1)  # type: ignore[assignment]
    limit = of_percent(match.group(2)) if match.group(3) else float(match.group(2))
    if metric in PARTS and (not 0 <= limit <= 1 or (metric in SHARES and limit == 0)):
        percent = limit if 1 < limit <= 100 else 99
        fix = f'write percent: "{op} {percent:g}%"'
        raise SettingsError(f"{metric}: {text!r} is no share of {PARTS[metric]}", fix=fix)
    return Budget(metric, op, limit)


def _n(text: object) -> str:
    return f"{text:g}" if isinstance(text, (int, float)) and not isinstance(text, bool) else "0.5"


def change_text(metric: str, change: float, *, absolute: bool) -> str:
    """A change as it is written: `+5 %`, `+0.05 s`, `-20/s`, `-1 point`."""
    if not absolute:
        return f"{change * 100:+.4g} %"
    if metric in SHARES:
        points = f"{change * 100:+.4g}"
        return f"{points} point{'s' * (points not in ('+1', '-1'))}"
    unit = _unit(metric)
    return f"{change:+.4g}{unit if unit.startswith('/') else ' ' + unit}"


def parse_change(metric: str, text: object) -> tuple[float, bool]:
    """`5%` as 0.05, or `0.05 s` as 0.05 and true (absolute). Raises `SettingsError`, also for a bare number.

    A share may change by points of its own: `-1 point` as -0.01 and true. That of right answers changes by these alone:
    a percent of it would be another number, and is hardly ever meant.
    """
    match = _CHANGE.match(text) if isinstance(text, str) else None
    unit = _unit(metric)
    if match is not None and metric in SHARES and match.group(2) in POINTS and abs(float(match.group(1))) < 100:
        return of_percent(match.group(1)), True
    if metric == ACCURACY:
        number = match.group(1) if match is not None and abs(float(match.group(1))) < 100 else "-1"
        percent = match is not None and match.group(2) == "%"
        what = "may be percent of the answers, or of the accuracy" if percent else "is not a change in points"
        points = "point" if abs(float(number)) == 1 else "points"
        raise SettingsError(f"{metric}: {text!r} {what}", fix=f"write {metric}: {number} {points}")
    if match is not None and match.group(2) == "%" and -1 < float(match.group(1)) / 100 < 1000:
        return float(match.group(1)) / 100, False
    if match is not None and unit and match.group(2).removeprefix("1") == unit:
        return float(match.group(1)), True
    number = (_n(text) if not isinstance(text, str) else match.group(1) if match else text).strip().rstrip("%")
    if not (usable := _CHANGE.match(f"{number}%")) or not -100 < float(usable.group(1)) < 100_000:
        number = "5"
    absolute = f", or the change in its unit: {metric}: {number} {unit}" if unit else ""
    raise SettingsError(f"{metric}: {text!r} is not a change", fix=f"write percent: {metric}: {number}%{absolute}")


def _unit(metric: str) -> str:
    """A metric's unit without a leading 1: `s`, `J`, `/s`; empty where it has none."""
    return metric_name(metric).unit.removeprefix("1")


def parse_fail_if(metric: str, text: object, resolution: object = None) -> FailIf:
    """One limit of `compare.fail_if` or `--llem-fail-if`. Raises `SettingsError`."""
    metric_name(metric)
    limit, absolute = parse_change(metric, text)
    smallest = None if resolution is None else _resolution(metric, resolution, absolute)
    higher_is_better = metric_name(metric).higher_is_better
    if smallest is None and not (limit < 0 if higher_is_better else limit > 0):
        example = "1%" if not absolute else "1 point" if metric in SHARES else f"0.01 {_unit(metric)}"
        resolved = f"resolution: {{{metric}: {example}}}"
        turned = f" ({metric}: {'-' * higher_is_better}{str(text).lstrip('+-')})" if limit else ""
        raise SettingsError(
            f"{metric}: {text} allows no worsening at all ({'higher' if higher_is_better else 'lower'} is better)",
            fix=f"turn the sign{turned}, or state the smallest change that matters: {resolved}",
        )
    return FailIf(metric, limit, smallest, absolute)


def usual_limit(metric: str) -> str:
    """What a change is held against where nobody states a limit."""
    return "-1 point" if metric == ACCURACY else "-5%" if metric_name(metric).higher_is_better else "5%"


def parse_limit(text: str) -> FailIf:
    """`METRIC:LIMIT` or `METRIC:LIMIT:RESOLUTION`, as `llem compare` takes it. Raises `SettingsError`."""
    name, _, rest = text.partition(":")
    limit, _, resolution = rest.partition(":")
    if not rest:
        raise SettingsError(f"{text!r} is no limit", fix="write METRIC:LIMIT, e.g. joules_per_output_token:5%")
    return parse_fail_if(name, limit, resolution or None)


def overriding(before: FailIf | None, metric: str, text: object) -> FailIf:
    """A limit of the command line over a study's, whose resolution it keeps where both are of one kind."""
    if before is not None and before.resolution is not None and parse_change(metric, text)[1] == before.absolute:
        kept = change_text(metric, before.resolution, absolute=before.absolute)
        return replace(parse_fail_if(metric, text, kept), resolution=before.resolution)
    return parse_fail_if(metric, text)


def _resolution(metric: str, text: object, absolute: bool) -> float:
    try:
        smallest, is_absolute = parse_change(metric, text)
    except SettingsError as error:
        raise SettingsError(f"resolution of {error.message}", fix=error.fix) from None
    if smallest <= 0:
        example = "1 point" if metric == ACCURACY else "1%"
        raise SettingsError(f"resolution of {metric}: {text!r} is not positive", fix=f"write for example {example}")
    if is_absolute != absolute:
        raise SettingsError(
            f"resolution of {metric}: {text!r} is not of the limit's kind",
            fix="write both in percent, or both in the metric's unit",
        )
    return smallest
