"""A server that behaves, and misbehaves, as a test says: requests of a thread of its own, on this machine."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

STANDARD = {
    "model", "prompt", "messages", "max_tokens", "max_completion_tokens", "stream", "stream_options",
    "temperature", "top_p", "seed",
}  # fmt: skip


Connected = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Script:
    """How the server behaves. `answers` names what happens to the measured requests, in turn and over again.

    `ok`, `drop` (closes mid-stream), `drop_at_once`, `drop_later` (after 0.4 s of work), `stall` (begins and goes on
    never), `hang` (never begins), `429`, `500`, `malformed`, `error_event`, `wrong_usage`, `no_usage`, `no_end`,
    `paired` (two tokens a piece), `torn` (a byte at a time), `short` (ends after two tokens), `whole` (not streamed),
    `not_http`, `three_first` (three tokens in the first piece, each with its id),
    `twice` (not streamed, and once more after 0.1 s), `late` (begins after 0.3 s), `closed_idle` (closes 20 ms after
    its answer).
    """

    answers: tuple[str, ...] = ("ok",)
    refuses: str | None = None
    """`named` or `unnamed`: fields beyond the API are HTTP 422, with their names or without."""
    prompts: str = "any"
    """`text`: arrays of token ids are HTTP 400."""
    most_stops: int | None = None
    """More stop strings are HTTP 422, as Text Generation Inference says it."""
    reason: str = "length"
    """Why answers end, in the server's word."""
    cached: int | None = None
    prompt_tokens: int | None = None
    key: str | None = None
    root: str = "/v1"
    """Where the API is."""
    limits: tuple[str, ...] = ("max_tokens", "max_completion_tokens")
    """The names that it knows for the longest answer's tokens."""
    refuses_limits: bool = True
    """Whether it refuses another name (HTTP 400), or ignores it and answers with five tokens."""
    busy: int = 0
    """So many of the first requests are HTTP 503, to be sent again after `retry_after`."""
    retry_after: str | None = "1"
    models_status: int = 200
    raw_models: str | None = None
    tls: ssl.SSLContext | None = None
    models: Any = field(default_factory=lambda: {"data": [{"id": "scripted", "owned_by": "nobody"}]})
    health: tuple[int, ...] = (200,)
    metrics: str | None = None
    aside: dict[str, Any] = field(default_factory=dict)
    """What it answers at paths of its own."""
    resets: tuple[int, ...] = ()
    """What a request to empty the prefix cache is answered with, in turn; the last goes on."""
    timings: Any = None
    """What it says of its own times, with the usage."""
    piece_s: float = 0.0
    usage_s: float = 0.0
    """How long after the last token the usage comes."""


class ScriptedServer:
    """The running server: what it was sent, how many requests were open at once, and how many the client gave up."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.bodies: list[dict[str, Any]] = []
        self.measured: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.seen: list[tuple[str, str]] = []
        """`begin` and `end` of each request with a session, by the session's key."""
        self.connections = 0
        self.open = self.most_open = self.abandoned = 0
        self.url = ""
        self._healths = self.resets = 0
        self._paths: dict[str, Callable[[], tuple[int, str]]] = {
            "/health": self._health,
            script.root + "/models": self._models,
            "/reset_prefix_cache": self._reset,
            "/flush_cache": self._reset,
            "/metrics": lambda: (200, script.metrics) if script.metrics is not None else (404, "{}"),
            **{path: partial(_said, answer) for path, answer in script.aside.items()},
        }

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection for as long as the client keeps it."""
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                method, path, headers = _parsed(head)
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                self.headers.append(headers)
                if method == "POST" and path.removeprefix(self.script.root) in ("/completions", "/chat/completions"):
                    self.open += 1
                    self.most_open = max(self.most_open, self.open)
                    session = headers.get("x-session-id")
                    self.seen += [("begin", session)] if session else []
                    try:
                        await self._answer(path, json.loads(body), headers, reader, writer)
                    finally:
                        self.seen += [("end", session)] if session else []
                        self.open -= 1
                else:
                    status, text = self._paths.get(path, lambda: (404, '{"detail": "Not Found"}'))()
                    await _send(writer, status, text)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _models(self) -> tuple[int, str]:
        script = self.script
        if script.raw_models is not None:
            return 200, script.raw_models
        return (script.models_status, json.dumps(script.models)) if script.models is not None else (500, "no")

    def _health(self) -> tuple[int, str]:
        status = self.script.health[min(self._healths, len(self.script.health) - 1)]
        self._healths += 1
        return status, "{}"

    def _reset(self) -> tuple[int, str]:
        statuses = self.script.resets or (404,)
        self.resets += 1
        return statuses[min(self.resets, len(statuses)) - 1], ""

    async def _answer(
        self,
        path: str,
        body: dict[str, Any],
        headers: dict[str, str],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        script = self.script
        self.bodies.append(body)
        if script.key is not None and headers.get("authorization") != f"Bearer {script.key}":
            await _send(writer, 401, json.dumps({"error": f"wrong key: {headers.get('authorization')}"}))
            return
        if len(self.bodies) <= script.busy:
            after = f"Retry-After: {script.retry_after}\r\n" if script.retry_after is not None else ""
            await _send(writer, 503, '{"error": "loading"}', after)
            return
        wrong = sorted(body.keys() & {"max_tokens", "max_completion_tokens"} - set(script.limits))
        if wrong and script.refuses_limits:
            text = f"Unsupported parameter: '{wrong[0]}'. Use '{script.limits[0]}' instead."
            await _send(writer, 400, json.dumps({"error": {"message": text}}))
            return
        beyond = sorted(set(body) - STANDARD)
        if script.refuses is not None and beyond:
            named = f"Unexpected fields in the request: {beyond}" if script.refuses == "named" else "invalid request"
            await _send(writer, 422, json.dumps({"detail": named}))
            return
        if script.most_stops is not None and len(body.get("stop", ())) > script.most_stops:
            await _send(writer, 422, json.dumps({"error": f"`stop` supports up to {script.most_stops} stop sequences"}))
            return
        if script.prompts == "text" and not isinstance(body.get("prompt", ""), str):
            await _send(writer, 400, '{"detail": "prompt must be a string."}')
            return
        kind = "ok"
        count = next((body[name] for name in script.limits if name in body), 5)
        if count > 1 and not wrong:
            kind = script.answers[len(self.measured) % len(script.answers)]
            self.measured.append(body)
        await _Answer(self, path, {**body, "count": count}, headers, reader, writer).give(kind)


class _Answer:
    def __init__(
        self,
        server: ScriptedServer,
        path: str,
        body: dict[str, Any],
        headers: dict[str, str],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._server, self._reader = server, reader
        self._script, self._body, self._headers, self._writer = server.script, body, headers, writer
        self._chat = path.endswith("/chat/completions")

    async def give(self, kind: str) -> None:
        """Do what the script says."""
        count = self._body["count"]
        if kind in ("429", "500"):
            text = f"no; you sent {self._headers.get('authorization')}"
            await _send(self._writer, int(kind), json.dumps({"error": text}))
        elif kind == "hang":
            await self._until_given_up()
        elif kind in ("drop_at_once", "drop_later"):
            await asyncio.sleep(0.4 if kind == "drop_later" else 0)
            self._writer.close()
        elif kind == "not_http":
            self._writer.write(b"\x00\x01\x02 this is no answer\r\n\r\n")
            self._writer.close()
        elif kind == "twice":
            for _ in range(2):
                whole = self._event("w" * count, reason=self._script.reason, usage=count)
                await _send(self._writer, 200, json.dumps(whole))
                await asyncio.sleep(0.1)
        elif kind == "late":
            await asyncio.sleep(0.3)
            await self._stream("ok", count)
        elif kind == "whole" or not self._body.get("stream"):
            whole = self._event("w" * count, reason=self._script.reason, usage=None if kind == "no_usage" else count)
            await _send(self._writer, 200, json.dumps(whole))
        else:
            await self._stream(kind, 2 if kind == "short" else count)
        if kind == "closed_idle":
            await asyncio.sleep(0.02)
            self._writer.close()

    async def _until_given_up(self) -> None:
        while not self._reader.at_eof():
            await asyncio.sleep(0.01)
        self._server.abandoned += 1
        raise ConnectionAbortedError

    async def _stream(self, kind: str, count: int) -> None:
        head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        self._writer.write(head.encode())
        width = 2 if kind == "paired" else 1
        sizes = [width] * (count // width) + [count % width] * (count % width > 0)
        if kind == "three_first":
            sizes = [min(3, count)] + [1] * max(0, count - 3)
        for size in sizes:
            piece = self._event("w" * size)
            if kind == "three_first":
                piece["choices"][0]["token_ids"] = [7] * size
            await self._event_out(piece, torn=kind == "torn")
            await asyncio.sleep(self._script.piece_s)
            if kind == "drop":
                self._writer.close()
                return
            if kind == "stall":
                await self._until_given_up()
            if kind == "malformed":
                await self._chunk(b'data: {"choices": [{"text": \n\n')
            if kind == "error_event":
                await self._chunk(b'data: {"error": {"message": "out of memory", "code": 500}}\n\n')
        if kind != "no_end":
            await asyncio.sleep(self._script.usage_s)
            usage = {"no_usage": None, "wrong_usage": max(0, count - 2)}.get(kind, count)
            await self._event_out(self._event("", reason=self._script.reason, usage=usage), torn=kind == "torn")
            await self._chunk(b": a comment\r\n\r\ndata: [DONE]\r\n\r\n")
        await self._chunk(b"")

    def _event(self, text: str, reason: str | None = None, usage: int | None = None) -> dict[str, Any]:
        key = "delta" if self._body.get("stream") else "message"
        part = {key: {"content": text}} if self._chat else {"text": text}
        event: dict[str, Any] = {"choices": [{"index": 0, "finish_reason": reason, **part}]}
        if usage is not None:
            prompt = self._body.get("prompt", "")
            given = len(prompt) if isinstance(prompt, list) else len(str(prompt).split())
            event["usage"] = {"completion_tokens": usage, "prompt_tokens": self._script.prompt_tokens or given}
            event["timings"] = self._script.timings
            if self._script.cached is not None:
                event["usage"]["prompt_tokens_details"] = {"cached_tokens": self._script.cached}
        return event

    async def _event_out(self, event: dict[str, Any], *, torn: bool) -> None:
        data = f"data: {json.dumps(event)}\n\n".encode()
        for part in [data[i : i + 1] for i in range(len(data))] if torn else [data]:
            await self._chunk(part)

    async def _chunk(self, data: bytes) -> None:
        self._writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        await self._writer.drain()


@contextmanager
def scripted(script: Script | None = None) -> Iterator[ScriptedServer]:
    """A server for the body of a `with`; its thread ends with it."""
    server = ScriptedServer(script or Script())
    with listening(server.connected, server.script.tls) as server.url:
        yield server


@contextmanager
def listening(connected: Connected, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """The URL at which a thread of this process answers connections, for the body of a `with`."""
    ready, loop, urls = threading.Event(), asyncio.new_event_loop(), list[str]()

    async def serve() -> None:
        server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls)
        urls.append(f"{'http' if tls is None else 'https'}://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        ready.set()

    def run() -> None:
        asyncio.set_event_loop(loop)
        serving = loop.create_task(serve())
        loop.run_forever()
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(serving, *tasks, return_exceptions=True))
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    ready.wait(120)
    try:
        yield urls[0]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(120)


def _said(answer: Any) -> tuple[int, str]:
    return 200, json.dumps(answer)


def _parsed(head: bytes) -> tuple[str, str, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ", 2)
    return method, path, {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in lines) if k}


async def _send(writer: asyncio.StreamWriter, status: int, text: str, headers: str = "") -> None:
    body = text.encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    writer.write(head.encode() + body)
    await writer.drain()
