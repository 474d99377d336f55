"""What the client of a server costs: its throughput at 256 requests in flight, against a bare loop on the same server.

    python tests/benchmarks/client_overhead.py [--rounds 7] [--requests 1024] [--concurrency 256] [--tokens 64]
        [--pace-ms 20]

The server is a process of its own that answers without thinking: prepared bytes, an event per token, no delays, so
that the client is the bottleneck and reads many events at once; with `--pace-ms` each event after the one before, as
models generate them. The bare loop is the least that a measurement could do with aiohttp: post, read what
comes, note the time, look for the end. Both run in turn, in this process. Printed are ratios of their CPU time and of
their wall time, as medians over the rounds with their quartiles.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

SERVER = "--serve"


class Dummy(asyncio.Protocol):
    """Answers a POST with the same stream of events; everything else with an empty object."""

    stream = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._data = b""

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            head = self._data[:end].lower()
            length = head.partition(b"content-length:")[2].partition(b"\r\n")[0].strip()
            whole = end + 4 + int(length or 0)
            if len(self._data) < whole:
                return
            self._data = self._data[whole:]
            if head.startswith(b"post /v1/"):
                self._send(self.chunks)
            else:
                self._transport.write(b"HTTP/1.1 404 X\r\nContent-Length: 2\r\n\r\n{}")

    def _send(self, chunks: tuple[bytes, ...]) -> None:
        if self.pace_s and chunks:
            self._transport.write(chunks[0])
            asyncio.get_running_loop().call_later(self.pace_s, self._send, chunks[1:])
        for chunk in () if self.pace_s else chunks:
            self._transport.write(chunk)

    chunks: tuple[bytes, ...] = ()
    pace_s = 0.0


def chunks(tokens: int) -> tuple[bytes, ...]:
    """An answer of one event per token, as servers send it: each event a chunk of its own."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    common = {"id": "cmpl-0123456789abcdef", "object": "text_completion", "created": 1, "model": "dummy"}
    events = [{**common, "choices": [{"index": 0, "text": " word", "finish_reason": None}]} for _ in range(tokens)]
    end = {**common, "choices": [{"index": 0, "text": "", "finish_reason": "length"}]}
    usage = {"prompt_tokens": 8, "completion_tokens": tokens, "total_tokens": 8 + tokens}
    texts = [json.dumps(event) for event in (*events, {**end, "usage": usage})] + ["[DONE]"]
    parts = [f"data: {text}\n\n".encode() for text in texts]
    return (head, *(f"{len(part):x}\r\n".encode() + part + b"\r\n" for part in parts), b"0\r\n\r\n")


async def serve(tokens: int, pace_s: float) -> None:
    Dummy.chunks, Dummy.pace_s = chunks(tokens), pace_s
    server = await asyncio.get_running_loop().create_server(Dummy, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def dummy_server(tokens: int, pace_s: float = 0.0) -> Any:
    command = [sys.executable, __file__, SERVER, str(tokens), str(pace_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


class BareLoop:
    """The least that a client must do, on one pool of connections as well."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/v1/completions"
        self._loop = asyncio.new_event_loop()
        self._session: Any = None

    def run(self, bodies: list[bytes], concurrency: int) -> int:
        return self._loop.run_until_complete(self._run(bodies, concurrency))

    async def _run(self, bodies: list[bytes], concurrency: int) -> int:
        import aiohttp

        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        gate = asyncio.Semaphore(concurrency)

        async def one(body: bytes) -> int:
            times = []
            async with gate, self._session.post(self._url, data=body) as response:
                async for data in response.content.iter_any():
                    times.append(time.monotonic_ns())
                    ended = data.endswith(b"[DONE]\n\n")
            return int(ended)

        return sum(await asyncio.gather(*(one(body) for body in bodies)))

    def close(self) -> None:
        self._loop.run_until_complete(self._session.close())
        self._loop.close()


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """CPU and wall seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def quartiles(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=1024)
    parser.add_argument("--concurrency", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--pace-ms", type=float, default=0.0)
    options = parser.parse_args()
    from pytest_llem.engines.openai.client import Client, SentRequest
    from pytest_llem.engines.openai.settings import ClientSettings
    from pytest_llem.engines.protocol import Completion, Request
    from pytest_llem.workload.arrivals import Schedule

    prompt = {"model": "dummy", "prompt": list(range(8)), "max_tokens": options.tokens, "stream": True}
    body = json.dumps(prompt).encode()
    going = [SentRequest(Request(index, (), options.tokens), body, 8, timed=False) for index in range(options.requests)]
    plan = Schedule([0.0] * options.requests, options.concurrency)
    with dummy_server(options.tokens, options.pace_ms / 1e3) as url:
        client, bare = Client(ClientSettings(f"{url}/v1")), BareLoop(url)

        answered: list[list[Completion]] = []

        def ours() -> None:
            client.backlog.clear()
            answered.append(client.serve(going, f"{url}/v1/completions", plan, lambda _done, _total: None))

        def theirs() -> None:
            assert bare.run([body] * options.requests, options.concurrency) == options.requests

        rounds = []
        for index in range(options.rounds + 1):
            pair = (timed(ours), timed(theirs)) if index % 2 else (timed(theirs), timed(ours))[::-1]
            rounds.append(pair)
            whole = client.backlog.read(answered.pop())
            assert all(c.token_times_ns and c.generated == options.tokens and c.text for c in whole)
        client.close()
        bare.close()
    measured = rounds[1:]
    print(f"{options.requests} requests of {options.tokens} tokens, {options.concurrency} in flight, client/bare loop:")
    print(f"  CPU  {quartiles([own[0] / other[0] for own, other in measured])}")
    print(f"  wall {quartiles([own[1] / other[1] for own, other in measured])}")
    tokens = options.requests * options.tokens
    print(f"  client: {statistics.median(own[0] for own, _ in measured) / tokens * 1e6:.1f} us of CPU per token")


if __name__ == "__main__":
    if sys.argv[1:2] == [SERVER]:
        asyncio.run(serve(int(sys.argv[2]), float(sys.argv[3])))
    else:
        main()
