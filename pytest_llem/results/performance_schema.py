"""The sections of a result on speed, as `schema` publishes them: rates, latencies, the SLO, the search for a load.

`derive`, `sections` and `searched` build them. Fields may be added; what was not measured is `null`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from pydantic import AfterValidator, Field

from pytest_llem.job.percentiles import written
from pytest_llem.results.energy_schema import SENSOR_ALONE, Count, about


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Rates over the measure windows' time."""

    output_tokens_per_s: float | None
    total_tokens_per_s: float | None
    requests_per_s: float | None
    duration_s: float | None = field(
        default=None, metadata=about("The measure windows' time without resets of caches between repeats.")
    )


@dataclass(frozen=True, kw_only=True)
class SteadyState:
    """The time in which a serving engine was as full as it gets, between ramp and tail, over all repeats.

    With B the most requests that run at once and N those of a repeat, each repeat's window is [opens, closes), and
    joules_per_output_token = sum of the windows' energy / sum of the output tokens that arrived within them.
    """

    method: str = field(
        metadata=about(
            "concurrency_limit: opens when B requests run (first to last token), closes when that many do for the "
            "last time. first_answer_or_full_to_last_arrival: for requests that arrive at a rate: opens with the first "
            "answer or B running, closes with the last arrival or, if later, as before. ml_energy: opens with the B-th "
            "first token, closes when N - B - 1 requests have ended."
        )
    )
    valid: bool = field(metadata=about("Whether it lasted at least 30 s."))
    reason: str | None = field(metadata=about("Why it is not valid."))
    duration_s: float
    output_tokens: Count = field(metadata=about("Output tokens generated within."))
    output_tokens_per_s: float | None
    energy_j: float | None
    uncertainty_j: float | None = field(metadata=about("k=2, without the board's gain error."))
    avg_power_w: float | None
    avg_power_w_uncertainty: float | None = field(default=None, metadata=SENSOR_ALONE)
    joules_per_output_token: float | None
    joules_per_output_token_uncertainty: float | None = field(default=None, metadata=SENSOR_ALONE)


def _checked_percentile(text: str) -> str:
    if not 0 < float(text) < 100 or written(float(text)) != text:
        raise ValueError("not a percentile, such as 95 or 99.9")
    return text


Percentile = Annotated[str, Field(pattern=r"^\d{1,2}(\.\d{1,3})?$"), AfterValidator(_checked_percentile)]


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """Seconds over the successful requests; percentiles by linear interpolation between order statistics."""

    n: Count | None = field(default=None, metadata=about("How many values it is over; null in older results."))
    mean: float
    std: float | None = field(
        default=None, metadata=about("Standard deviation of these values (divided by n); null in older results.")
    )
    p50: float
    p90: float | None = field(metadata=about("Null below 10 values: none of them would be expected beyond it."))
    p99: float | None = field(metadata=about("Null below 100 values, for the same reason."))
    percentiles: dict[Percentile, float | None] = field(
        default_factory=dict,
        metadata=about("Others that the study chose, such as 95 and 99.9; null below 1/(1 - p) values, as above."),
    )

    @property
    def statistics(self) -> dict[str, float | None]:
        """The mean and every percentile by its name: `mean`, `p50`, `p99.9`."""
        chosen = {f"p{name}": value for name, value in self.percentiles.items()}
        return {"mean": self.mean, "p50": self.p50, "p90": self.p90, "p99": self.p99, **chosen}


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Request latencies; `null` where the engine does not report the times that a definition needs."""

    ttft_s: Distribution | None = field(metadata=about("Time to first token."))
    tpot_s: Distribution | None = field(metadata=about("Time per output token after the first, per request."))
    itl_s: Distribution | None = field(
        metadata=about("Times between successive tokens, over all requests; 0 between tokens that arrive together.")
    )
    itl_chunk_s: Distribution | None = field(
        default=None,
        metadata=about(
            "Times between successive arrivals, however many tokens each brought, over all requests: the itl of "
            "`vllm bench serve`, and so that of exports in its format."
        ),
    )
    e2el_s: Distribution | None = field(metadata=about("End-to-end latency of a request."))

    @property
    def percentiles(self) -> tuple[float, ...]:
        """Those that the study chose beside p50, p90 and p99, in rising order."""
        known = (self.ttft_s, self.tpot_s, self.itl_s, self.e2el_s)
        return tuple(sorted({float(name) for each in known if each is not None for name in each.percentiles}))


@dataclass(frozen=True, kw_only=True)
class SloSection:
    """The study's limits on latencies, how many requests kept them, and what serving those cost.

    A request is good when it succeeded, its answer is not empty, and it kept every limit; a failed one kept none.
    """

    ttft_s: float | None
    tpot_s: float | None
    itl_s: float | None = field(metadata=about("Of the longest gap between two arrivals of an answer."))
    e2el_s: float | None
    at: float = field(metadata=about("The share of the requests that must be good."))
    requests: Count = field(metadata=about("All that were due over all repeats, failed ones included."))
    good: Count | None = field(metadata=about("Null where the times that a limit needs are not known."))
    met: dict[str, float | None] = field(metadata=about("Share of the requests that kept a limit, by its name."))
    share: float | None = field(metadata=about("good / requests."))
    effective_requests: float | None = field(
        default=None,
        metadata=about("Independent requests that would tell the share as well: neighbours wait in one queue."),
    )
    share_low: float | None = field(metadata=about("Lower bound of its two-sided 95 % interval, of those."))
    share_high: float | None = field(metadata=about("Upper bound of the same."))
    reached: bool | None = field(metadata=about("Whether the share is at least `at`; null if the interval holds it."))
    offered_per_s: float | None = field(
        default=None,
        metadata=about("Requests, or sessions, due per second between the first and the last of a repeat."),
    )
    goodput_requests_per_s: float | None = field(metadata=about("good / throughput.duration_s."))
    goodput_output_tokens_per_s: float | None = field(metadata=about("Output tokens of good requests over the same."))
    joules_per_good_request: float | None = field(metadata=about("energy_j / good: all other requests cost as well."))
    joules_per_good_request_uncertainty: float | None = field(metadata=SENSOR_ALONE)
    good_requests_per_joule: float | None
    good_requests_per_joule_uncertainty: float | None = field(metadata=SENSOR_ALONE)
    reason: str | None = field(metadata=about("Why figures of this section are null."))

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set, by name."""
        return {name: getattr(self, name) for name in self.met}


@dataclass(frozen=True, kw_only=True)
class SearchSection:
    """The largest load under the SLO, found in windows of different loads, and what is known of it."""

    setting: str = field(metadata=about("The setting that was searched."))
    low: float
    high: float
    tolerance: float
    ending: str = field(
        metadata=about(
            "found, not_converged (the windows were used up), at_least (no upper end is known: that of the bracket "
            "still keeps the SLO), none (not even its lower end does) or given_up (two windows in a row told nothing)."
        )
    )
    reason: str
    answer: float | None = field(metadata=about("The largest load: where the share of good requests is `slo.at`."))
    answer_low: float | None = field(metadata=about("Lower bound of its 95 % interval; 0: perhaps below the bracket."))
    answer_high: float | None = field(metadata=about("Upper bound; null where it is not known how much more it is."))
    met: float | None = field(metadata=about("The highest load of a window that kept the SLO: that of this result."))
    not_met: float | None = field(metadata=about("The lowest load above it of a window that did not."))
    step: int | None = field(metadata=about("The window of this result."))
    windows: Count = field(metadata=about("How many were measured."))
    max_rate_per_s: float | None = field(
        metadata=about("The answer in requests per second; of a number in flight, what that window served.")
    )
