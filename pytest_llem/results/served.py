"""What an SLO says of an experiment over its cycles: the share of good requests, and whether it is reached.

The summary, the report and the terminal ask `served`. Its states are words that users see; fields of `Served` stand in
`summary.json` and stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from pytest_llem.results.proportion import reaches
from pytest_llem.results.saturation import SATURATED
from pytest_llem.results.schema import Result
from pytest_llem.results.sections.slo import share_interval

State = Literal["reached", "not reached", "undecided", "saturated"]
STATES: tuple[State, ...] = get_args(State)
REACHED = {"reached": "yes", "not reached": "no", "undecided": "undecided", "saturated": "saturated"}
"""What a table says of a state, below the head "SLO reached"."""


@dataclass(frozen=True)
class Served:
    """How an experiment served its load: `limits` by name, and `good` of `requests` over its valid cycles.

    `share` has a two-sided 95 % binomial interval. `state` is `None` where nothing tells; `saturated` is one without a
    valid cycle, and needs no SLO: then there are no `limits`, and `at` is `None`.
    """

    limits: Mapping[str, float]
    at: float | None
    requests: int
    good: int | None
    share: float | None
    share_low: float | None
    share_high: float | None
    state: State | None

    @property
    def cell(self) -> str:
        """Whether the SLO is reached as a table's cell: `yes, 99.2 %`, `saturated`; empty where nothing tells."""
        share = "" if self.share is None else percent(self.share)
        return ", ".join(filter(None, (REACHED.get(self.state, "") if self.state else "", share)))

    @property
    def share_text(self) -> str:
        """The share with its interval, `98.5 % (96.9 to 99.4 %) of 640`; empty where it is not known."""
        if self.share is None or self.share_low is None or self.share_high is None:
            return ""
        return share_text(self.share, self.share_low, self.share_high, self.requests)

    @property
    def limits_text(self) -> str:
        """The SLO in words: `ttft <= 0.3 s and e2el <= 10 s for at least 99 % of requests`; empty without one."""
        if self.at is None:
            return ""
        kept = " and ".join(f"{name.removesuffix('_s')} ≤ {limit:g} s" for name, limit in self.limits.items())
        return f"{kept} for at least {percent(self.at)} of requests"


def served(results: Iterable[Result]) -> Served | None:
    """What one experiment's cycles say; `None` where they have no SLO and none was saturated.

    Requests of all valid cycles count together. A cycle that was saturated leaves a share that is reached undecided.
    """
    cycles = list(results)
    valid = [result for result in cycles if result.validity.valid]
    saturated = any(reason.code == SATURATED for result in cycles for reason in result.validity.reasons)
    section = next((result.slo for result in (*valid, *cycles) if result.slo is not None), None)
    if section is None and not saturated:
        return None
    judged = [result.slo for result in valid if result.slo is not None and result.slo.good is not None]
    requests, good = sum(each.requests for each in judged), sum(each.good or 0 for each in judged)
    low, high = share_interval(valid)
    at = section.at if section else None
    return Served(
        limits=section.limits if section else {},
        at=at,
        requests=requests,
        good=good if requests else None,
        share=good / requests if requests else None,
        share_low=low,
        share_high=high,
        state=_state(at, low, high, saturated=saturated) if valid else "saturated" if saturated else None,
    )


def _state(at: float | None, low: float | None, high: float | None, *, saturated: bool) -> State | None:
    if at is None or low is None or high is None:
        return None
    reached = reaches(at, low, high)
    if reached is False:
        return "not reached"
    return "reached" if reached and not saturated else "undecided"


def share_text(share: float, low: float, high: float, requests: int) -> str:
    """A share with its interval, `98.5 % (96.9 to 99.4 %) of 640`."""
    return f"{percent(share)} ({percent(low).removesuffix(' %')} to {percent(high)}) of {requests:,}"


def percent(share: float) -> str:
    """A share that is rounded neither to all nor to none: `42.1 %`, `99.95 %`, `100 %`."""
    left = min(share, 1 - share)
    decimals = 1 if left >= 0.001 or not left else 2 if left >= 0.0001 else 3
    return f"{share * 100:.{decimals}f}".rstrip("0").rstrip(".") + " %" if left else f"{share * 100:.0f} %"
