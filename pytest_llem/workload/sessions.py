"""The order of a repeat's requests where they are turns of sessions: each waits for the answer to the one before.

The client of servers and the engine `vllm` send by it. Sessions never wait for each other, unless only so many may be
open at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

from pytest_llem.job.request import Request


def in_sessions(requests: Sequence[Request], times_s: Sequence[float]) -> list[list[int]]:
    """The requests by their places: turns of a session together and in order, sessions by when they begin.

    A request without a session is one by itself.
    """
    sessions: dict[str | int, list[int]] = {}
    for place, request in enumerate(requests):
        sessions.setdefault(place if request.session is None else request.session, []).append(place)
    for places in sessions.values():
        places.sort(key=lambda place: requests[place].turn or 0)
    return sorted(sessions.values(), key=lambda places: times_s[places[0]])


def next_due_ns(request: Request, ended_ns: int, earliest_ns: int) -> int:
    """When a later turn is due: its think time after the answer before it has ended, and not before it was recorded."""
    return max(ended_ns + round(request.think_s * 1e9), earliest_ns)
