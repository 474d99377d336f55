"""The order of a repeat's requests where they are turns of sessions: each waits for the answer to the one before.

`engines.sending` and the engine `vllm` send by it. Sessions never wait for each other, unless only so many may be open
at a time.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import pairwise

from pytest_llem.job.request import Request
from pytest_llem.workload.arrivals import Schedule


class Replay:
    """Tells a loop which requests are to be sent, by their places and when they were due (ns).

    `None` is for those that no schedule puts off. Of sessions at most `in_flight` of the plan are open at a time.
    """

    def __init__(self, requests: Sequence[Request], plan: Schedule, started_ns: int) -> None:
        self._requests = requests
        self._earliest_ns = [started_ns + round(time_s * 1e9) for time_s in plan.times_s]
        self._scheduled = any(plan.times_s)
        sessions = _in_sessions(requests, plan.times_s)
        self._following = {place: later for places in sessions for place, later in pairwise(places)}
        self._to_begin = deque(places[0] for places in sessions)
        self._free = plan.in_flight or len(sessions)
        self._later: list[tuple[int, int]] = []

    def due(self, now_ns: int) -> Iterator[tuple[int, int | None]]:
        """What is to be sent now, each once."""
        while self._may_begin() and self._earliest_ns[self._to_begin[0]] <= now_ns:
            place = self._to_begin.popleft()
            self._free -= 1
            yield place, self._earliest_ns[place] if self._scheduled else None
        while self._later and self._later[0][0] <= now_ns:
            due_ns, place = heapq.heappop(self._later)
            yield place, due_ns

    def ended(self, place: int, now_ns: int) -> None:
        """The answer to a request has ended: the next turn of its session is to come, or another one may begin."""
        later = self._following.get(place)
        if later is None:
            self._free += 1
        else:
            # Its think time after the answer before it has ended, and not before it was recorded.
            due_ns = max(now_ns + round(self._requests[later].think_s * 1e9), self._earliest_ns[later])
            heapq.heappush(self._later, (due_ns, later))

    def next_ns(self) -> int | None:
        """When a request is due next, if none of those that are open ends before; `None` if all wait for such."""
        begins = [self._earliest_ns[self._to_begin[0]]] if self._may_begin() else []
        return min([*begins, *(due_ns for due_ns, _ in self._later[:1])], default=None)

    def _may_begin(self) -> bool:
        return bool(self._to_begin) and self._free > 0


def _in_sessions(requests: Sequence[Request], times_s: Sequence[float]) -> list[list[int]]:
    """The requests by their places: turns of a session together and in order, sessions by when they begin.

    A request without a session is one by itself.
    """
    sessions: dict[str | int, list[int]] = {}
    for place, request in enumerate(requests):
        sessions.setdefault(place if request.session is None else request.session, []).append(place)
    for places in sessions.values():
        places.sort(key=lambda place: requests[place].turn or 0)
    return sorted(sessions.values(), key=lambda places: times_s[places[0]])
