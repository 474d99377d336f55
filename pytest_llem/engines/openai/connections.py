"""The connections to a server: which of them may be used again, reading an answer to its end, and how requests fail.

`client` sends over them. The classes of failure are part of the results and must stay; docs/errors.md lists them.
"""

from __future__ import annotations

import asyncio
import select
import ssl
import time
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakSet

from pytest_llem.engines.openai.answers import Answer, of_status
from pytest_llem.engines.openai.events import BOM, LONGEST_BYTES, RequestFailedError

if TYPE_CHECKING:
    import aiohttp
    from aiohttp.tracing import Trace

KEEPALIVE_S = 3.0
"""Servers close idle connections after 5 s and more: one that is closed just as it is used fails a request."""

CLOSED = getattr(select, "POLLRDHUP", select.POLLIN)
"""What the kernel says of a connection that the server closed; elsewhere than on Linux, that something waits in it."""
STALE_S = 0.05
"""A server that closed an idle connection lets a request know at once: a loss after this had been worked on."""
LINGER_S = 1.0
"""How long a server may keep a stream open that it has said to be done."""


def classify(problem: Exception, timeout_s: float, *, began: bool) -> RequestFailedError:
    """The class of whatever went wrong with a request; `began` is whether a part of its answer had come.

    `refused`: no connection. `tls`: no safe one. `timeout`: no answer in time. `stalled`: the answer began and was not
    whole in time. `dropped`: the connection was closed before the end. `malformed`: not what the API prescribes.
    `wrong_usage`: token counts that contradict the answer. `no_usage`: none. `server_error`: an error in the answer.
    `http_429`, `http_4xx`, `http_5xx`: the status.
    """
    import aiohttp

    if isinstance(problem, RequestFailedError):
        return problem
    if isinstance(problem, (asyncio.TimeoutError, TimeoutError)):
        if began:
            return RequestFailedError("stalled", f"the answer began, and was not whole after {timeout_s:g} s")
        return RequestFailedError("timeout", f"no answer within {timeout_s:g} s")
    text = " ".join(str(problem).split())[:300] or type(problem).__name__
    if isinstance(problem, (aiohttp.ClientSSLError, ssl.SSLError)):
        return RequestFailedError("tls", text)
    if isinstance(problem, (aiohttp.ClientConnectorError, aiohttp.InvalidURL)):
        return RequestFailedError("refused", text)
    if isinstance(problem, (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError, ConnectionError)):
        return RequestFailedError("dropped", f"the connection was closed before the end: {text}")
    if isinstance(problem, aiohttp.ClientResponseError):
        return RequestFailedError("malformed", f"no HTTP answer: {text}")
    if isinstance(problem, aiohttp.ClientConnectionError):
        return RequestFailedError("dropped", text)
    return RequestFailedError("malformed", text)


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


REQUEST: ContextVar[RequestTrace] = ContextVar("request")
"""The request that the running task is sending. aiohttp's own traces cost as much as reading ten events."""


def connector(tls: ssl.SSLContext | bool) -> aiohttp.TCPConnector:
    """Connections without a limit to their number: none is closed, or holds an answer that nobody had asked for."""
    import aiohttp

    used: WeakSet[aiohttp.client_proto.ResponseHandler] = WeakSet()

    class Connector(aiohttp.TCPConnector):
        async def connect(
            self, req: aiohttp.ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
        ) -> aiohttp.connector.Connection:
            # aiohttp looks at this when a connection is given back only: what came since would answer this request, and
            # on a busy machine the loop has not yet seen that a server closed it.
            while True:
                connection = await super().connect(req, traces, timeout)
                protocol = connection.protocol
                if protocol is None or not (protocol.should_close or (protocol in used and _closed(protocol))):
                    if protocol in used:
                        REQUEST.get().reused_ns = time.monotonic_ns()
                    elif protocol is not None:
                        used.add(protocol)
                    return connection
                connection.close()
                if protocol not in used:
                    raise RequestFailedError("malformed", "an answer came before it was asked for")

    return Connector(limit=0, keepalive_timeout=KEEPALIVE_S, ssl=tls)


def _closed(protocol: asyncio.BaseProtocol) -> bool:
    """Whether the server has closed an idle connection."""
    transport = getattr(protocol, "transport", None)
    if transport is None or (sock := transport.get_extra_info("socket")) is None:
        return True
    poll = select.poll()
    poll.register(sock.fileno(), CLOSED)
    return bool(poll.poll(0))


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
    if data.removeprefix(BOM).lstrip()[:1] == b"{":
        body = data + await rest_of(response)
        answer.whole(body, clock())
        return
    while data:
        feed(data, clock())
        if answer.done:
            if not response.content.at_eof():
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
