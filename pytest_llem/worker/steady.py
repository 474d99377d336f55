"""Finds the steady state of a serving load, when the engine is as full as it gets, between ramp and tail.

The cycle records it as windows, and `results` derives energy per token from them, as the ML.ENERGY benchmark does
(arXiv 2505.06371, section 3): ramp and tail depend on the number of requests, not on the engine. The rules must stay
those of docs/protocol.md, and `STEADY_STATE` is stored in measurements.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from pytest_llem.engines.protocol import Completion
from pytest_llem.errors import JsonValue
from pytest_llem.job.config import Arrival, SteadyRule
from pytest_llem.job.measurement import Window

STEADY_STATE = "steady_state"


def concurrency_limit(arrival: Arrival | None, effective: Mapping[str, JsonValue]) -> int | None:
    """How many requests can run at once: the engine's `max_num_seqs` or, if lower, the client's concurrency."""
    limits = (effective.get("max_num_seqs"), effective.get("concurrency"))
    known = [count for count in limits if isinstance(count, int)]
    if arrival is not None and arrival.concurrency is not None:
        known.append(arrival.concurrency)
    return min(known, default=None)


def steady_span(
    completions: Sequence[Completion],
    limit: int | None,
    arrival: Arrival | None = None,
    later_turns: Collection[int] = (),
) -> tuple[int, int] | None:
    """Start and end (ns) of one repeat's steady state, or `None` if it has none.

    A request runs from its first token to its last. The span opens when `limit` requests run, and closes when that is
    the case for the last time: from then on the tail drains. Requests that arrive at a rate need not fill the engine:
    then the ramp ends with the first answer, and the tail begins with the last arrival. Of sessions only the beginnings
    arrive: `later_turns`, by their index, follow from answers, also in the tail.
    """
    running = [c for c in completions if c.error is None and c.token_times_ns]
    full = _full_span(running, limit)
    if arrival is None or arrival.process == "concurrency" or not running:
        return full
    opens = min(c.end_ns for c in running)
    closes = max((c.start_ns for c in running if c.index not in later_turns), default=opens)
    if full is not None:
        opens, closes = min(opens, full[0]), max(closes, full[1])
    return (opens, closes) if opens < closes else None


def ml_energy_span(completions: Sequence[Completion], limit: int | None) -> tuple[int, int] | None:
    """The same as the ML.ENERGY benchmark has it (its mlenergy/llm/benchmark.py), for `limit` places and N requests.

    From the first token of the `limit`-th request to have one, until N - `limit` - 1 have ended, whatever runs at once.
    """
    answered = [c for c in completions if c.error is None and c.token_times_ns]
    before_tail = len(answered) - (limit or 0) - 1
    if not limit or before_tail < 1:
        return None
    opens = sorted(c.token_times_ns[0] for c in answered if c.token_times_ns)[limit - 1]
    closes = sorted(c.end_ns for c in answered)[before_tail - 1]
    return (opens, closes) if opens < closes else None


def steady_windows(
    repeats: Sequence[Sequence[Completion]],
    limit: int | None,
    arrival: Arrival | None,
    rule: SteadyRule,
    later_turns: Collection[int] = (),
) -> tuple[Window, ...]:
    """The steady state of each repeat that has one, with the repeat's index. Such windows have no padding."""
    windows = []
    for index, completions in enumerate(repeats):
        if rule == "full":
            span = steady_span(completions, limit, arrival, later_turns)
        else:
            span = ml_energy_span(completions, limit)
        if span is not None:
            windows.append(Window(STEADY_STATE, *span, index=index))
    return tuple(windows)


def _full_span(running: Sequence[Completion], limit: int | None) -> tuple[int, int] | None:
    # With no more requests than can run at once, the tail begins with the first answer.
    if limit is None or len(running) <= limit:
        return None
    starts = [(c.token_times_ns[0], 1) for c in running if c.token_times_ns]
    edges = sorted(starts + [(c.end_ns, -1) for c in running])
    count = 0
    opened: int | None = None
    closed: int | None = None
    for time_ns, step in edges:
        if step < 0 and count >= limit:
            closed = time_ns
        count += step
        if count >= limit and opened is None:
            opened = time_ns
    return (opened, closed) if opened is not None and closed is not None and opened < closed else None
