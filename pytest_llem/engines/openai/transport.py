"""Reads answers from a connection, and tells a connection that the server closed from a request that failed.

`client` calls it for each request. Only a request of which nothing was answered may be sent again.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING

from pytest_llem.engines.openai.answers import LONGEST_BYTES, Answer
from pytest_llem.engines.openai.failures import RequestFailedError, of_status

if TYPE_CHECKING:
    import aiohttp

STALE_S = 0.05
"""A server that closed an idle connection lets a request know at once: a loss after this had been worked on."""
LINGER_S = 1.0
"""How long a server may keep a stream open that it has said to be done."""


@dataclass
class RequestTrace:
    """How a request fares: when it was sent (ns) if its connection had been used before, and if anything came back."""

    reused_ns: int | None = None
    answered: bool = False

    def was_stale(self, problem: Exception) -> bool:
        """Whether the server had closed the idle connection just as it was used again, and saw nothing of this."""
        import aiohttp

        lost = isinstance(problem, (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError))
        if not lost or self.answered or self.reused_ns is None:
            return False
        return time.monotonic_ns() - self.reused_ns < STALE_S * 1e9


def noting_reuse() -> aiohttp.TraceConfig:
    """Tells the `RequestTrace` of a request that it is sent over a connection which had been used before."""
    import aiohttp

    async def reused(_session: aiohttp.ClientSession, context: SimpleNamespace, _: object) -> None:
        if isinstance(context.trace_request_ctx, RequestTrace):
            context.trace_request_ctx.reused_ns = time.monotonic_ns()

    config = aiohttp.TraceConfig()
    config.on_connection_reuseconn.append(reused)
    return config


def network_errors() -> tuple[type[Exception], ...]:
    """Everything that a request can fail with."""
    import aiohttp

    return (OSError, asyncio.TimeoutError, aiohttp.ClientError, RequestFailedError)


async def take_in(response: aiohttp.ClientResponse, answer: Answer) -> None:
    """Read an answer to the very end, without which the connection cannot be used again."""
    if response.status != 200:
        raise of_status(response.status, (await rest_of(response)).decode("utf-8", "replace"))
    feed, readany, clock = answer.feed, response.content.readany, time.monotonic_ns
    data = await readany()
    if data.lstrip()[:1] == b"{":
        body = data + await rest_of(response)
        answer.whole(body, clock())
        return
    while data:
        feed(data, clock())
        if answer.done:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(rest_of(response), LINGER_S)
            break
        data = await readany()
    answer.close(clock())


async def rest_of(response: aiohttp.ClientResponse) -> bytes:
    """What is still to come of a body. Raises `RequestFailedError` when it does not end."""
    parts: list[bytes] = []
    size = 0
    while data := await response.content.readany():
        parts.append(data)
        size += len(data)
        if size > LONGEST_BYTES:
            raise RequestFailedError("malformed", f"an answer of more than {LONGEST_BYTES} bytes")
    return b"".join(parts)


@contextmanager
def quiet_collector() -> Iterator[None]:
    """No garbage collection while answers come in: a full one over all that is alive would delay every time stamp."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
