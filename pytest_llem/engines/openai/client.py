"""The HTTP client of a measurement: one event loop, one pool of connections, one clock.

`OpenAIEngine` and its helpers send with it. Between sending and reading nothing may be parsed that can wait.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import ssl
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakSet

from pytest_llem.engines.openai.answers import Answer, Backlog, of_status
from pytest_llem.engines.openai.events import BOM, LONGEST_BYTES, RequestFailedError
from pytest_llem.engines.openai.settings import ClientSettings, tls_context
from pytest_llem.engines.protocol import Completion, Progress, Request
from pytest_llem.engines.sending import send_all
from pytest_llem.job.files import parse_json
from pytest_llem.workload.arrivals import Schedule

if TYPE_CHECKING:
    import aiohttp

T = TypeVar("T")

KEEPALIVE_S = 3.0
"""Servers close idle connections after 5 s and more: one that is closed just as it is used fails a request."""

TICK_S = 1.0
"""Chosen: far below the limit on a silent worker, and rare enough to cost nothing."""

ASIDE_TIMEOUT_S = 10.0
"""For questions beside the measurement: metrics, version."""

SESSION_HEADER = "X-Session-ID"
"""The same in all turns of a session, so that a router which is told its name sends them to one replica."""

JsonBody = Mapping[str, Any] | bytes | None


@dataclass(frozen=True)
class Reply:
    """An answer to a question beside the measurement; `data` is its JSON, where it is some."""

    status: int
    text: str
    headers: Mapping[str, str]
    data: Any = None


@dataclass(frozen=True)
class SentRequest:
    """One request of the workload as it goes out, and how its answer is read."""

    request: Request
    body: bytes
    sent_tokens: int | None
    timed: bool

    @property
    def headers(self) -> Mapping[str, str] | None:
        """The key of its session for routers. A hash: names of a data set may be anything, and tell of people."""
        name = self.request.session
        return None if name is None else {SESSION_HEADER: hashlib.sha256(name.encode()).hexdigest()[:32]}


@dataclass
class Sending:
    """When a request was sent, when it was due by a schedule (ns), and how often it was sent again."""

    sent_ns: int
    due_ns: int | None = None
    retries: int = 0

    @property
    def start_ns(self) -> int:
        """Where its latency begins: the wait of one that is due for a busy client is part of it."""
        return self.sent_ns if self.due_ns is None else min(self.due_ns, self.sent_ns)


class Client:
    """Sends requests and reads answers, all in the calling thread; an interruption cancels what is open."""

    def __init__(self, settings: ClientSettings) -> None:
        self._settings = settings
        self._tls = tls_context(settings)
        self._loop = asyncio.new_event_loop()
        self._headers = {"Content-Type": "application/json"}
        if settings.api_key is not None:
            self._headers["Authorization"] = f"Bearer {settings.api_key}"
        self._session: aiohttp.ClientSession | None = None
        self.latest_timings: list[Mapping[str, Any]] = []
        self.lateness_s = 0.0
        self.resent = 0
        self.backlog = Backlog(settings.without_key)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end; when this is interrupted, nothing of it goes on."""
        task = self._loop.create_task(coroutine)
        try:
            return self._loop.run_until_complete(task)
        except BaseException:
            self._cancel_all()
            raise

    def ask(self, url: str, body: JsonBody = None, *, timeout_s: float = ASIDE_TIMEOUT_S, post: bool = False) -> Reply:
        """One question beside the measurement: GET, or POST with a body. `RequestFailedError` without answer."""
        return self.run(self._ask(url, body, timeout_s, post or body is not None))

    def one(self, sent: SentRequest, url: str) -> Completion:
        """One request of the workload, alone. Raises `RequestFailedError` when it fails."""
        return self.run(self._answer(sent, url, Sending(time.monotonic_ns())))

    def serve(self, requests: Sequence[SentRequest], url: str, plan: Schedule, progress: Progress) -> list[Completion]:
        """All requests, sent as planned; a failed one is a completion with an `error`."""
        with quiet_collector():
            return self.run(self._serve(requests, url, plan, progress))

    def close(self) -> None:
        """Cancel what is open and close every connection."""
        if self._loop.is_closed():
            return
        self._cancel_all()
        if self._session is not None:
            self._loop.run_until_complete(self._session.close())
            # Transports close in the loop's next turns.
            self._loop.run_until_complete(asyncio.sleep(0.01))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def _cancel_all(self) -> None:
        open_tasks = asyncio.all_tasks(self._loop)
        for task in open_tasks:
            task.cancel()
        if open_tasks:
            self._loop.run_until_complete(asyncio.gather(*open_tasks, return_exceptions=True))

    async def _connected(self) -> aiohttp.ClientSession:
        if self._session is None:
            import aiohttp

            self._session = aiohttp.ClientSession(
                connector=connector(self._tls),
                timeout=aiohttp.ClientTimeout(total=self._settings.request_timeout_s),
                headers=self._headers,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        # A turn of the loop, so that connections which were closed meanwhile are known to be.
        await asyncio.sleep(0)
        return self._session

    async def _ask(self, url: str, body: JsonBody, timeout_s: float, post: bool) -> Reply:
        session = await self._connected()
        data = json.dumps(body).encode() if isinstance(body, Mapping) else body

        async def exchange(way: RequestTrace) -> Reply:
            method = "POST" if post else "GET"
            REQUEST.set(way)
            async with session.request(method, url, data=data, allow_redirects=False) as response:
                way.answered = True
                text = (await rest_of(response)).decode("utf-8", "replace")
                try:
                    parsed = parse_json(text, url, finite=False)
                except ValueError:
                    parsed = None
                return Reply(response.status, self._settings.without_key(text), response.headers, parsed)

        while True:
            way = RequestTrace()
            try:
                return await asyncio.wait_for(exchange(way), timeout_s)
            except network_errors() as problem:
                if not way.was_stale(problem):
                    raise self._failure(problem, timeout_s, began=False) from None

    async def _serve(
        self, requests: Sequence[SentRequest], url: str, plan: Schedule, progress: Progress
    ) -> list[Completion]:
        await self._connected()
        total = len(requests)
        found: list[Completion] = []
        self.latest_timings = []
        self.lateness_s = 0.0
        self.resent = 0

        async def send(place: int, due_ns: int | None) -> None:
            sent, sending = requests[place], Sending(time.monotonic_ns(), due_ns)
            if due_ns is not None:
                self.lateness_s = max(self.lateness_s, (sending.sent_ns - due_ns) / 1e9)
            try:
                found.append(await self._answer(sent, url, sending))
            except RequestFailedError as failure:
                found.append(_failed(sent.request, sending, failure))
            progress(len(found), total)

        async def tick() -> None:
            while True:
                await asyncio.sleep(TICK_S)
                progress(len(found), total)

        ticker = asyncio.ensure_future(tick())
        try:
            await send_all([sent.request for sent in requests], plan, send)
        finally:
            ticker.cancel()
        return sorted(found, key=lambda completion: completion.index)

    async def _answer(self, sent: SentRequest, url: str, sending: Sending) -> Completion:
        session = self._session or await self._connected()

        async def attempt(way: RequestTrace, answer: Answer) -> Completion:
            REQUEST.set(way)
            async with session.post(url, data=sent.body, headers=sent.headers, allow_redirects=False) as response:
                way.answered = True
                await take_in(response, answer)
            if answer.timings is not None:
                self.latest_timings.append(answer.timings)
            completion = answer.completion(
                sent.request,
                sending.start_ns,
                sent_tokens=sent.sent_tokens,
                due_ns=sending.due_ns,
                sent_ns=sending.sent_ns,
                retries=sending.retries,
            )
            return self.backlog.add(completion, answer)

        while True:
            way, answer = RequestTrace(), Answer(self._settings.api, timed=sent.timed)
            try:
                return await attempt(way, answer)
            except network_errors() as problem:
                if not way.was_stale(problem):
                    raise self._failure(problem, self._settings.request_timeout_s, began=answer.begun) from None
            # Other idle connections may have been closed too; a new one is never stale.
            sending.retries += 1
            self.resent += 1

    def _failure(self, problem: Exception, timeout_s: float, *, began: bool) -> RequestFailedError:
        failure = classify(problem, timeout_s, began=began)
        return RequestFailedError(failure.kind, self._settings.without_key(str(failure)))


def _failed(request: Request, sending: Sending, failure: RequestFailedError) -> Completion:
    return Completion(
        index=request.index,
        input_tokens=len(request.token_ids),
        output_ids=(),
        start_ns=sending.start_ns,
        end_ns=time.monotonic_ns(),
        finish_reason="error",
        error=f"{failure.kind}: {failure}",
        output_tokens=0,
        failure=failure.kind,
        due_ns=sending.due_ns,
        sent_ns=sending.sent_ns,
        retries=sending.retries,
    )


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


REQUEST: ContextVar[RequestTrace] = ContextVar("request")
"""The request that the running task is sending. aiohttp's own traces cost as much as reading ten events."""


def connector(tls: ssl.SSLContext | bool) -> aiohttp.TCPConnector:
    """Connections without a limit to their number, none of which holds an answer that nobody had asked for yet."""
    import aiohttp
    from aiohttp.tracing import Trace

    used: WeakSet[aiohttp.client_proto.ResponseHandler] = WeakSet()

    class Connector(aiohttp.TCPConnector):
        async def connect(
            self, req: aiohttp.ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
        ) -> aiohttp.connector.Connection:
            # aiohttp looks at this when a connection is given back only: what came since would answer this request.
            while True:
                connection = await super().connect(req, traces, timeout)
                protocol = connection.protocol
                if protocol is None or not protocol.should_close:
                    if protocol in used:
                        REQUEST.get().reused_ns = time.monotonic_ns()
                    elif protocol is not None:
                        used.add(protocol)
                    return connection
                connection.close()
                if protocol not in used:
                    raise RequestFailedError("malformed", "an answer came before it was asked for")

    return Connector(limit=0, keepalive_timeout=KEEPALIVE_S, ssl=tls)


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
