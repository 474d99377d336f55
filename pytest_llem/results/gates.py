"""Gates as pure functions: does a change exceed its limit beyond noise, and does a value keep its budget?

`judging`, `gate_power` and users call them; `compare` and the report show their verdicts. What `pytest_llem` exports
keeps its signature. `statistics` names the method and its sources, docs/gates.md has the error rates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pytest_llem.errors import SettingsError
from pytest_llem.results.proportion import binomial_interval, pooled
from pytest_llem.results.statistics import (
    BETWEEN_RUNS,
    RUNS_FOR_ESTIMATE,
    UNKNOWN,
    LogInterval,
    RunSpread,
    beyond_unknown,
    mean_interval,
    paired_interval,
    ratio_interval,
)

Status = Literal["pass", "fail", "inconclusive", "not_comparable"]
MIN_CYCLES = 3
"""Usable cycles that each side needs. Chosen: the bounds of two are too wide to decide anything."""


@dataclass(frozen=True)
class Verdict:
    """A gate's answer.

    `ratio` is current over baseline (for a budget: value over limit) with its one-sided bounds, each at level alpha;
    all three are `None` where the values allow no estimate, and `reason` says why. `note` is what `reason` ends with
    where the bounds are those of cycles that follow one another. `more_runs` is how many more baseline runs decide it,
    where only noise between runs that nobody knows stands between it and a failure.
    """

    status: Status
    ratio: float | None
    ci_low: float | None
    ci_high: float | None
    reason: str
    note: str = ""
    more_runs: int = 0


def judge_ratio(
    baseline: Sequence[float],
    current: Sequence[float],
    limit: float,
    *,
    alpha: float = 0.05,
    resolution: float | None = None,
    between_runs: float = BETWEEN_RUNS,
) -> Verdict:
    """Whether `current` is worse than `baseline` by more than `limit`; per-cycle values, higher is worse.

    `limit=0.05` means +5 %. *fail*: the lower bound of the ratio is above `1 + limit`. *pass*: it is not, and the upper
    bound is below `1 + limit + resolution`, where `resolution` defaults to `limit`. Otherwise *inconclusive*, as with
    fewer than three cycles a side. `between_runs` is the relative standard error of the ratio that is assumed for what
    a whole run shares. Raises `SettingsError` for a limit <= 0 without a resolution.
    """
    return judge_runs([baseline], current, limit, alpha=alpha, resolution=resolution, between_runs=between_runs)


def judge_runs(
    baselines: Sequence[Sequence[float]],
    current: Sequence[float],
    limit: float,
    *,
    alpha: float = 0.05,
    resolution: float | None = None,
    correlated: bool = False,
    spread: RunSpread | None = None,
    questions_rel: float = 0.0,
    between_runs: float = BETWEEN_RUNS,
    doubt: bool = False,
) -> Verdict:
    """`judge_ratio` against several baseline runs; with three or more, the spread between them is estimated.

    `correlated` says that the cycles of a run shared one loaded engine; `spread` is what equal runs differ by, where
    that was measured. `questions_rel` is the standard error of the ratio by the questions that all cycles asked.
    `doubt`, as gates of a study have it: while neither tells how much runs differ, what noise of 2 % between them might
    do is no failure, but *inconclusive*, with `more_runs`. A pass is not doubted: it is never red.
    """
    margin = limit if resolution is None else resolution
    _check(limit, margin, alpha)
    runs = [run for run in baselines if len(run) >= MIN_CYCLES]
    problem = (
        _too_few("the baseline", max(map(len, baselines), default=0))
        or _too_few("this run", len(current))
        or _unusable([*(value for run in runs for value in run), *current])
    )
    if problem:
        return unjudged(problem)
    interval = ratio_interval(runs, current, alpha, correlated=correlated, spread=spread, between_runs=between_runs)
    verdict = _judged(interval.widened(questions_rel, alpha), limit, margin)
    if not doubt or verdict.status != "fail" or spread is not None or len(runs) >= RUNS_FOR_ESTIMATE:
        return verdict
    if beyond_unknown(runs, current, limit, alpha, correlated=correlated, questions_rel=questions_rel):
        return verdict
    more = RUNS_FOR_ESTIMATE - len(runs)
    told = f"{verdict.reason.removesuffix(verdict.note)}: {undecided(more)}{verdict.note}"
    return replace(verdict, status="inconclusive", reason=told, more_runs=more)


def undecided(more_runs: int) -> str:
    """Why a change that exceeds the limit is no failure yet, and what decides it."""
    runs = f"{more_runs} more baseline run{'s decide' if more_runs > 1 else ' decides'} it"
    noise = f"noise of {100 * UNKNOWN.between:g} % between runs could do that, and how much runs differ is not known"
    return f"{noise}; {runs}, or llem aa"


def judge_pairs(
    baseline: Sequence[float],
    current: Sequence[float],
    limit: float,
    *,
    alpha: float = 0.05,
    resolution: float | None = None,
    questions_rel: float = 0.0,
) -> Verdict:
    """`judge_ratio` for cycles measured in turn: the first of one side beside the first of the other, and so on.

    What both of a pair share (temperature, clocks, the state of the machine) cancels, and nothing is assumed for it.
    `questions_rel` is as in `judge_runs`.
    """
    margin = limit if resolution is None else resolution
    _check(limit, margin, alpha)
    if len(baseline) != len(current):
        raise SettingsError(f"{len(baseline)} cycles cannot be paired with {len(current)}", fix="pass whole pairs")
    problem = _unusable([*baseline, *current])
    if len(current) < MIN_CYCLES:
        problem = f"there are {len(current)} pairs of valid cycles, a verdict needs {MIN_CYCLES}"
    if problem:
        return unjudged(problem)
    return _judged(paired_interval(baseline, current, alpha).widened(questions_rel, alpha), limit, margin)


def judge_budget(
    values: Sequence[float],
    limit: float,
    *,
    upper: bool = True,
    alpha: float = 0.05,
    systematic: float = 0.0,
    correlated: bool = False,
) -> Verdict:
    """Whether the values keep a budget: at most `limit` (`upper`), or at least.

    *fail*: the nearer one-sided bound is beyond the limit. *pass*: the other one is within it. Else *inconclusive*.
    `systematic` is the relative bound of errors that all cycles share, by which each bound moves out.
    """
    if not (limit > 0 and math.isfinite(limit)):
        raise SettingsError(f"a budget of {limit:g} cannot be judged", fix="state a positive limit")
    problem = _too_few("this run", len(values)) or _unusable(values)
    if problem:
        return unjudged(problem)
    interval = mean_interval(values, alpha, correlated=correlated, systematic=systematic)
    if upper:
        beyond, within = interval.low > limit, interval.high <= limit
    else:
        beyond, within = interval.high < limit, interval.low >= limit
    shown = f"between {interval.low:.4g} and {interval.high:.4g}"
    side = "at most" if upper else "at least"
    if beyond:
        return _verdict("fail", interval, limit, f"{shown}, the budget is {side} {limit:.4g}")
    if within:
        return _verdict("pass", interval, limit, f"{shown}, the budget is {side} {limit:.4g}")
    return _verdict("inconclusive", interval, limit, f"{shown} straddles the budget of {limit:.4g}")


def judge_share(
    shares: Sequence[float],
    counts: Sequence[float],
    limit: float,
    *,
    upper: bool = False,
    alpha: float = 0.05,
    correlated: bool = False,
    least: int = MIN_CYCLES,
) -> Verdict:
    """`judge_budget` for a share, whose exact bounds are those of the effective `counts` of requests behind each cycle.

    A ratio of logarithms has no room at 100 %, where all are alike and its scatter is none. `least` is how many cycles
    it takes: one is enough of questions, which are the same in every cycle.
    """
    if not 0 < limit <= 1:
        raise SettingsError(f"a share of {limit:g} cannot be judged", fix="state one above 0 and up to 1")
    problem = _too_few("this run", len(shares), least)
    if problem:
        return unjudged(problem)
    share, count = pooled(shares, counts, correlated=correlated)
    low, high = binomial_interval(share * count, count, 1 - 2 * alpha)
    beyond, within = (low > limit, high <= limit) if upper else (high < limit, low >= limit)
    status: Status = "fail" if beyond else "pass" if within else "inconclusive"
    side = "at most" if upper else "at least"
    reason = f"between {low:.4g} and {high:.4g}, the budget is {side} {limit:.4g}"
    return Verdict(status, share / limit, low / limit, high / limit, reason)


def unjudged(reason: str, status: Status = "inconclusive") -> Verdict:
    """A verdict without an estimate."""
    return Verdict(status, None, None, None, reason)


def inverted(limit: float) -> float:
    """The limit of a metric where higher is better, for its inverse: -5 % becomes 1/0.95 - 1."""
    return 1 / (1 + limit) - 1


def _judged(interval: LogInterval, limit: float, margin: float) -> Verdict:
    least, most, stated, excluded = (
        f"{ratio - 1:+.1%}" for ratio in (interval.low, interval.high, 1 + limit, 1 + limit + margin)
    )
    if interval.low > 1 + limit:
        return _verdict("fail", interval, 1.0, f"worse by at least {least}, the limit is {stated}")
    if interval.high < 1 + limit + margin:
        beyond = f": {excluded} is excluded" if interval.high > 1 + limit else ""
        return _verdict("pass", interval, 1.0, f"worse by at most {most}, the limit is {stated}{beyond}")
    return _verdict(
        "inconclusive",
        interval,
        1.0,
        f"a change between {least} and {most} is too wide to tell: to pass, {excluded} must be excluded; "
        "measure more cycles",
    )


def _verdict(status: Status, interval: LogInterval, scale: float, reason: str) -> Verdict:
    note = ""
    if interval.autocorrelation is not None:
        note = f"; cycles follow one another (correlation {interval.autocorrelation:.1f}), the bounds are wider for it"
    low, high = interval.low / scale, interval.high / scale
    return Verdict(status, interval.value / scale, low, high, reason + note, note)


def _check(limit: float, margin: float, alpha: float) -> None:
    if not limit > -1 or not math.isfinite(limit):
        raise SettingsError(f"a limit of {limit:g} cannot be judged", fix="state a change above -100 %")
    if not margin > 0:
        raise SettingsError(
            f"a limit of {limit:+.1%} needs a resolution: the smallest change that matters",
            fix="state it, for example 1 %",
        )
    if not 0 < alpha < 0.5:
        raise SettingsError(f"alpha is {alpha:g}", fix="choose an error rate between 0 and 0.5, for example 0.05")


def _too_few(side: str, count: int, least: int = MIN_CYCLES) -> str:
    return "" if count >= least else f"{side} has {count} usable cycles, a verdict needs {least}"


def _unusable(values: Sequence[float]) -> str:
    bad = [value for value in values if not (value > 0 and math.isfinite(value))]
    return f"a ratio needs positive values, and there is {bad[0]:g}" if bad else ""
