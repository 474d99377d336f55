"""Plans a search for the largest load under an SLO: which load to measure next, or what the answer is.

`session.searching` asks before each window, with those that were measured. It is pure, so that any process comes to the
same plan. How often its answers are right is in docs/load.md, from `tests/benchmarks/load_search.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Literal

from pytest_llem.results.proportion import binomial_interval, reaches
from pytest_llem.study.search import Search

Verdict = Literal["met", "not_met", "undecided", "unusable"]
Ending = Literal["found", "not_converged", "at_least", "none", "given_up"]

CELLS = 6
"""Steps of the answer's grid in a tolerance. Chosen: rounding is then far below the interval that ends a search."""
WIDTHS = tuple(0.004 * 2 ** (0.75 * index) for index in range(9))
"""How steep the share may fall: the change of log load in which the odds of a bad request grow e-fold. Chosen: from a
server that tips over within a percent of load to one that gets slower over a quarter of it."""
OUTSIDE = 0.1
"""Chosen: how likely it is, before any window, that the answer lies below the bracket, and that it lies above."""
UNLIKELY = 7.0
"""Chosen: evidence against (natural log) at which a prior or any one window stops: 1 in 1100 is disturbed unseen."""
TAIL = 0.025
"""Of the answer's interval on each side: 95 %."""
ENDS_AFTER = 2
"""Loads with one outcome after which an end of the bracket is tried. Chosen: one may be chance."""
SIGNIFICANT = 4
"""Digits of a load that is tried. Chosen: far finer than any tolerance."""


@dataclass(frozen=True)
class LoadWindow:
    """What one window tells. `load` is its setting, and `offered` the load that arrived, which chance makes differ.

    Of `requests` so many were `good`, which tell as much as `effective` independent ones.
    `overloaded` is one in which the backlog grew, or requests failed of load; `served_per_s` is what the server did
    then. `unusable` says why a window tells nothing.
    """

    load: float
    offered: float
    good: int = 0
    requests: int = 0
    effective: float = 0.0
    overloaded: bool = False
    served_per_s: float | None = None
    unusable: str | None = None

    @property
    def share(self) -> float | None:
        """The share of good requests."""
        return self.good / self.requests if self.requests else None

    def kept(self, at: float) -> bool:
        """Whether the share that was measured reaches `at`, which chance may have made."""
        return self.share is not None and self.share >= at and not self.overloaded and self.unusable is None


@dataclass(frozen=True)
class NextLoad:
    """The load of the next window, and why."""

    load: float
    reason: str


@dataclass(frozen=True)
class LargestLoad:
    """The largest load, with its 95 % interval; `None` where no window kept the SLO.

    `met` is the highest window that kept it, by its place, and `not_met` the lowest above that did not.
    """

    ending: Ending
    load: float | None
    low: float | None
    high: float | None
    met: int | None
    not_met: int | None
    reason: str


def plan(search: Search, at: float, windows: Sequence[LoadWindow]) -> NextLoad | LargestLoad:
    """What to do after these windows, in their order. `at` is the share of good requests that the SLO asks for.

    The share of bad requests is taken to rise with the logarithm of the load along a logistic curve through 1 - `at` at
    the answer. Answer and steepness are unknown; all windows together say how likely each pair is, and the next goes to
    the answer's median. Psychology finds thresholds so: Watson and Pelli, "QUEST: a Bayesian adaptive
    psychometric method" (Perception & Psychophysics 33, 1983); with the slope unknown as well, Kontsevich and Tyler
    (Vision Research 39, 1999). Requests that queue are late together, so a window counts as that many fewer.
    """
    return _plan(search, at, tuple(windows))


@lru_cache(256)  # each item of a search asks for all of its steps again
def _plan(search: Search, at: float, windows: tuple[LoadWindow, ...]) -> NextLoad | LargestLoad:
    if windows and windows[-1].unusable is not None:
        again, why = windows[-1].load, windows[-1].unusable
        if len(windows) > 1 and windows[-2].unusable is not None:
            return _answer(search, at, windows, "given_up", f"two windows in a row tell nothing: {why}")
        if len(windows) < search.max_windows:
            return NextLoad(again, f"repeated: the last window tells nothing ({why})")
    highest, lowest = verdict_at(search.high, at, windows), verdict_at(search.low, at, windows)
    if highest == "met":
        return _answer(search, at, windows, "at_least", f"{_shown(search.high, search)} still keeps the SLO")
    if lowest == "not_met":
        return _answer(search, at, windows, "none", f"{_shown(search.low, search)} does not keep the SLO")
    last = _last_in_flight(search, at, windows)
    if last is not None:
        return _answer(search, at, windows, "found", f"{last:g} was kept, and {last + 1:g} was not, twice", last)
    belief = _Belief(search, at, windows)
    narrow = _is_narrow(search, belief)
    near = any(w.kept(at) and w.offered >= belief.median / (1 + search.tolerance) for w in windows)
    refused = [window.load for window in windows if window.unusable is None and not window.kept(at)]
    if narrow and near and len(refused) != 1:
        return _answer(search, at, windows, "found", "the interval is within the tolerance")
    if len(windows) >= search.max_windows:
        why = f"the interval is wider than the tolerance of {search.tolerance:.3g}"
        if belief.high == math.inf or not belief.low:
            why = f"none tells {'an upper' if belief.low else 'a lower'} end"
        elif narrow:
            why = f"{refused[0]:.4g} alone did not keep the SLO, and only once" if near else "none near it kept the SLO"
        return _answer(search, at, windows, "not_converged", f"all {len(windows)} windows are used, and {why}")
    if narrow and near:  # all rests on one window, which a disturbance may have spoilt
        return NextLoad(refused[0], "repeated: of all loads it alone did not keep the SLO, and only once")
    return _next(search, at, windows, belief, narrow=narrow)


def verdict(window: LoadWindow, at: float) -> Verdict:
    """What one window says by itself."""
    return "unusable" if window.unusable is not None else verdict_at(window.load, at, [window])


def verdict_at(load: float, at: float, windows: Sequence[LoadWindow]) -> Verdict:
    """What the windows of one load say together; `undecided` where the interval of the share holds `at`."""
    here = [window for window in windows if window.load == load and window.unusable is None]
    if not here:
        return "undecided"
    if any(window.overloaded for window in here):
        return "not_met"
    reached = reaches(at, *share_interval(here))
    return "undecided" if reached is None else "met" if reached else "not_met"


def _last_in_flight(search: Search, at: float, windows: Sequence[LoadWindow]) -> int | None:
    """The number in flight that was kept, where more windows than one of the next number say that it is not."""
    if not search.whole:
        return None
    for load in sorted({int(window.load) for window in windows}, reverse=True):
        beyond = [window for window in windows if window.load == load + 1 and window.unusable is None]
        beyond_not = len(beyond) > 1 and all(verdict(window, at) == "not_met" for window in beyond)
        if beyond_not and verdict_at(load, at, windows) == "met":
            return load
    return None


def share_interval(windows: Sequence[LoadWindow]) -> tuple[float, float]:
    """The 95 % interval of the share of good requests in windows together, as many as those that are independent."""
    good, requests = sum(w.good for w in windows), sum(w.requests for w in windows)
    scatter = _scatter(windows)
    return binomial_interval(good / scatter, requests / scatter)


def _scatter(windows: Sequence[LoadWindow]) -> float:
    """How many requests of these windows tell as much as an independent one.

    By their bad requests: taken from each alone, windows that had few of them by chance would count for more. Where
    none was bad, repeats of the same requests count once.
    """
    told = [w for w in windows if w.effective]
    bad = [(w.requests - w.good, max(1.0, w.requests / w.effective)) for w in told]
    total = sum(count for count, _ in bad)
    if total:
        return sum(count * scatter for count, scatter in bad) / total
    return sum(w.requests for w in told) / sum(w.effective for w in told) if told else 1.0


def _tells_share(window: LoadWindow) -> bool:
    """Whether the share says how far the load is from the answer: above half, it depends on how long the window is."""
    return window.unusable is None and not window.overloaded and 2 * window.good >= window.requests > 0


class _Belief:
    """How likely each answer is; the grid's first and last cell stand for all below and above the bracket."""

    def __init__(self, search: Search, at: float, windows: Sequence[LoadWindow]) -> None:
        span = math.log(search.high / search.low)
        cells = max(2, math.ceil(span / math.log1p(search.tolerance) * CELLS))
        self._step = span / cells
        start = math.log(search.low)
        self._grid = [start + (index - 0.5) * self._step for index in range(cells + 2)]
        self._bounds = (search.low, search.high)
        prior = [OUTSIDE, *([(1 - 2 * OUTSIDE) / cells] * cells), OUTSIDE]
        logs = [math.log(each) for each in prior]
        served = [w.served_per_s for w in windows if w.overloaded and w.served_per_s and not search.whole]
        if served:
            logs = [each + _by_served(theta, max(served)) for each, theta in zip(logs, self._grid, strict=True)]
        evidence = list(_evidence(windows))
        base = math.log(max(1 - at, 1e-4) / at)
        joint = [[log] * len(WIDTHS) for log in logs]
        for each in evidence:
            told = [[_log_likelihood(each, theta, width, base) for width in WIDTHS] for theta in self._grid]
            least = max(map(max, told)) - UNLIKELY
            joint = [[a + max(b, least) for a, b in zip(*rows, strict=True)] for rows in zip(joint, told, strict=True)]
        most = max(map(max, joint))
        weights = [sum(math.exp(each - most) for each in row) for row in joint]
        total = sum(weights)
        self._weights = [weight / total for weight in weights]
        self._sums = list(accumulate(self._weights))
        self.median = self.quantile(0.5)
        # An end of the interval that lies outside of the bracket is not known: the windows say nothing of loads there.
        self.low = self.quantile(TAIL) if self._weights[0] < TAIL else 0.0
        self.high = self.quantile(1 - TAIL) if self._weights[-1] < TAIL else math.inf

    @property
    def interval(self) -> str:
        """The answer's interval for people: `9.4 to 9.8`, `9.4 or more`."""
        return f"{self.low:.4g} or more" if self.high == math.inf else f"{self.low:.4g} to {self.high:.4g}"

    def quantile(self, share: float) -> float:
        """The load below which the answer lies with this probability, within the bracket."""
        index = next((index for index, below in enumerate(self._sums) if below >= share), len(self._sums) - 1)
        weight = self._weights[index]
        inside = (share - (self._sums[index] - weight)) / weight - 0.5 if weight else 0.0
        low, high = self._bounds
        return min(high, max(low, math.exp(self._grid[index] + inside * self._step)))


Evidence = tuple[float, float, float]
"""The log load of a window and its independent bad and good requests; no number of bad ones is only `too much`."""


def _evidence(windows: Sequence[LoadWindow]) -> Iterator[Evidence]:
    scatter = _scatter([window for window in windows if _tells_share(window)])
    for window in windows:
        if window.unusable is None:
            bad = (window.requests - window.good) / scatter if _tells_share(window) else math.inf
            yield math.log(window.offered), bad, window.good / scatter


def _log_likelihood(evidence: Evidence, answer: float, width: float, base: float) -> float:
    at, bad, good = evidence
    if bad == math.inf:
        return 0.0 if answer < at else -UNLIKELY
    logit = base + max(-40.0, min(40.0, (at - answer) / width))
    if logit > 0:
        log_bad = -math.log1p(math.exp(-logit))
        return bad * log_bad + good * (log_bad - logit)
    log_good = -math.log1p(math.exp(logit))
    return bad * (log_good + logit) + good * log_good


def _by_served(answer: float, served_per_s: float) -> float:
    """How unlikely an answer is beside what an overloaded server did: it is hardly more, and seldom below the half."""
    above, below = answer - math.log(1.05 * served_per_s), math.log(0.6 * served_per_s) - answer
    return max(-UNLIKELY, -max(0.0, above / 0.05) - max(0.0, below / 0.3))


def _is_narrow(search: Search, belief: _Belief) -> bool:
    if belief.low == 0 or belief.high == math.inf:
        return False
    return belief.high / belief.low <= 1 + search.tolerance or (
        search.whole and math.floor(belief.low) == math.floor(belief.high)
    )


def _next(search: Search, at: float, windows: Sequence[LoadWindow], belief: _Belief, *, narrow: bool) -> NextLoad:
    usable = [window for window in windows if window.unusable is None]
    tried = {window.load for window in usable}
    for end, kept, what in ((search.high, True, "every"), (search.low, False, "no")):
        if len(tried) >= ENDS_AFTER and end not in tried and all(window.kept(at) is kept for window in usable):
            return NextLoad(end, f"an end of the bracket: {what} load so far kept the SLO")
    # Where the answer is known, but no window near it kept the SLO, one that will is needed: a little below.
    wanted = belief.quantile(0.15) if narrow else belief.median
    where = f"{_shown(belief.median, search)} by the windows so far ({belief.interval})"
    near = sorted(tried, key=lambda load: abs(math.log(load / wanted)))
    if search.whole:
        wanted = max(search.low, min(search.high, round(wanted)))
        if verdict_at(wanted, at, windows) == "met" and wanted < search.high:
            wanted += 1
        elif verdict_at(wanted, at, windows) == "not_met" and verdict_at(wanted - 1, at, windows) != "met":
            wanted = max(search.low, wanted - 1)
        near = [load for load in near if load == wanted]
    else:
        wanted = min(search.high, max(search.low, float(f"{wanted:.{SIGNIFICANT}g}")))
    for load in near[:1]:
        same = abs(math.log(load / wanted)) <= math.log1p(search.tolerance) / 4
        if same and verdict_at(load, at, windows) == "undecided":
            return NextLoad(load, f"repeated: the share of good requests there is not told from {at:.4g}; {where}")
    if not windows:
        return NextLoad(wanted, "the geometric middle of the bracket")
    return NextLoad(wanted, where)


def _answer(
    search: Search,
    at: float,
    windows: Sequence[LoadWindow],
    ending: Ending,
    reason: str,
    in_flight: int | None = None,
) -> LargestLoad:
    kept = [index for index, window in enumerate(windows) if window.kept(at)]
    if ending in ("none", "given_up") or not kept:
        ending = "none" if ending == "found" else ending
        return LargestLoad(ending, None, None, None, None, _lowest_above(windows, at, 0.0), reason)
    highest = max(kept, key=lambda index: windows[index].offered)
    if ending == "at_least":
        return LargestLoad(ending, search.high, search.high, None, highest, None, reason)
    if in_flight is not None:
        met = next(index for index in kept if windows[index].load == in_flight)
        beyond = _lowest_above(windows, at, in_flight)
        return LargestLoad(ending, in_flight, in_flight, in_flight, met, beyond, reason)
    belief = _Belief(search, at, windows)
    load, low, high = belief.median, belief.low, belief.high
    if high == math.inf:  # its lower bound is all that is known
        least = max(math.floor(low), search.low) if search.whole and low else low
        if not least:
            return LargestLoad(ending, None, None, None, None, _lowest_above(windows, at, 0.0), reason)
        return LargestLoad("at_least", least, least, None, highest, None, reason)
    if search.whole:
        load, low, high = (float(math.floor(each)) for each in (max(load, search.low), low, high))
    below = [index for index in kept if windows[index].offered <= belief.high] or kept
    met = max(below, key=lambda index: windows[index].offered)
    return LargestLoad(ending, load, low, high, met, _lowest_above(windows, at, windows[met].offered), reason)


def _lowest_above(windows: Sequence[LoadWindow], at: float, load: float) -> int | None:
    """The window of the lowest load above this one that did not keep the SLO."""
    above = [i for i, w in enumerate(windows) if w.unusable is None and not w.kept(at) and w.offered > load]
    return min(above, key=lambda index: windows[index].offered, default=None)


def _shown(load: float, search: Search) -> str:
    return f"{load:.4g} {search.unit}"
