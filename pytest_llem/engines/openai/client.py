"""The HTTP client of a measurement: one event loop, one pool of connections, one clock.

`OpenAIEngine` and its helpers send with it. Between sending and reading nothing may be parsed that can wait.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pytest_llem.engines.openai.answers import Answer, Backlog
from pytest_llem.engines.openai.connections import (
    REQUEST,
    RequestTrace,
    classify,
    connector,
    network_errors,
    rest_of,
    take_in,
)
from pytest_llem.engines.openai.events import RequestFailedError
from pytest_llem.engines.openai.settings import ClientSettings, tls_context
from pytest_llem.engines.protocol import Completion, Progress, Request
from pytest_llem.engines.sending import send_all
from pytest_llem.job.files import parse_json
from pytest_llem.workload.arrivals import Schedule

if TYPE_CHECKING:
    import aiohttp

T = TypeVar("T")

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
