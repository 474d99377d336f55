"""Sends the requests of a repeat from an event loop, each when `Replay` says that it is due.

The client of servers sends by it, and so do engines with processes of their own; `vllm`, which has a loop of steps
instead, asks `Replay` itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from pytest_llem.job.request import Request
from pytest_llem.workload.arrivals import Schedule
from pytest_llem.workload.sessions import Replay


async def send_all(
    requests: Sequence[Request], plan: Schedule, send: Callable[[int, int | None], Awaitable[None]]
) -> None:
    """Call `send` with the place of each request and when it was due (ns), and wait for all; the first error ends it.

    `send` returns when the answer has ended. What is open after an error is left to whoever runs the loop.
    """
    loop, woken = asyncio.get_running_loop(), asyncio.Event()
    replay = Replay(requests, plan, time.monotonic_ns())
    tasks: list[asyncio.Task[None]] = []
    failures: list[Exception] = []
    answered = 0

    async def one(place: int, due_ns: int | None) -> None:
        nonlocal answered
        try:
            await send(place, due_ns)
        except Exception as problem:  # noqa: BLE001  it is raised again below
            failures.append(problem)
        answered += 1
        replay.ended(place, time.monotonic_ns())
        woken.set()

    while answered < len(requests) and not failures:
        woken.clear()
        for place, due_ns in replay.due(time.monotonic_ns()):
            tasks.append(loop.create_task(one(place, due_ns)))
            if due_ns is not None:
                # Of many that are due at once each goes out by itself, so that answers between them are timed.
                await asyncio.sleep(0)
        next_ns = replay.next_ns()
        timer = None if next_ns is None else loop.call_later((next_ns - time.monotonic_ns()) / 1e9, woken.set)
        await woken.wait()
        if timer is not None:
            timer.cancel()
    if failures:
        raise failures[0]
