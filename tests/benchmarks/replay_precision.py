"""How far after its time a request is sent, where hundreds of sessions are replayed at once.

    python -m tests.benchmarks.replay_precision [--sessions 200] [--turns 8] [--tokens 32] [--rounds 3]

The server is a process of its own that takes time to answer, a token every 10 ms, and writes down when each request
reached it, on the clock that the client uses as well. Sessions arrive at random within two seconds; think times are
exponential with a mean of half a second; every tenth answer is an error. Printed are percentiles of `sent - due` as the
client states it, and of `received - due` by the server's account, which has the way through both event loops in it.
Then the order: how many turns began before the one before them had ended, by the server's account.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, ClassVar
from urllib.request import urlopen

from tests.benchmarks.client_overhead import chunks

SERVER = "--serve"
TOKEN_S = 0.01
"""Chosen: a usual pace of decoding."""
THINK_S = 0.5
"""Chosen: short beside what people take, so that all sessions are busy all the time."""


class Paced(asyncio.Protocol):
    """Answers a token every `TOKEN_S`, every tenth request with an error; `/seen` tells when each came and ended."""

    seen: ClassVar[list[tuple[int, int, int]]] = []
    chunks: ClassVar[tuple[bytes, ...]] = ()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._data = b""

    def data_received(self, data: bytes) -> None:
        now_ns = time.monotonic_ns()
        self._data += data
        end = self._data.find(b"\r\n\r\n")
        head = self._data[:end].lower()
        length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
        if end < 0 or len(self._data) < end + 4 + length:
            return
        body, self._data = self._data[end + 4 :], b""
        if not head.startswith(b"post"):
            text = json.dumps(self.seen).encode()
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(text) + text)
            return
        index = json.loads(body)["prompt"]
        if index % 10 == 9:
            self.seen.append((index, now_ns, now_ns))
            self._transport.write(b"HTTP/1.1 500 X\r\nContent-Length: 2\r\n\r\n{}")
        else:
            self._send(index, now_ns, 0)

    def _send(self, index: int, begun_ns: int, position: int) -> None:
        if position == len(self.chunks) - 1:
            self.seen.append((index, begun_ns, time.monotonic_ns()))
            self._transport.write(self.chunks[position])
            return
        self._transport.write(self.chunks[position])
        asyncio.get_running_loop().call_later(TOKEN_S, self._send, index, begun_ns, position + 1)


async def serve(tokens: int) -> None:
    head, *events = chunks(tokens)
    Paced.chunks = (head + events[0], *events[1:-3], b"".join(events[-3:]))
    server = await asyncio.get_running_loop().create_server(Paced, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def paced_server(tokens: int) -> Iterator[str]:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.replay_precision", SERVER, str(tokens)],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def shown(values_ns: Sequence[int]) -> str:
    ordered = sorted(value / 1e6 for value in values_ns)
    at = {share: ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.9, 0.99)}
    return f"p50 {at[0.5]:.2f}, p90 {at[0.9]:.2f}, p99 {at[0.99]:.2f}, largest {ordered[-1]:.2f} ms"


def replay(sessions: int, turns: int, tokens: int, seed: int) -> None:
    from pytest_llem.engines.openai.client import Client, SentRequest
    from pytest_llem.engines.openai.settings import ClientSettings
    from pytest_llem.engines.protocol import Request
    from pytest_llem.workload.arrivals import Schedule

    drawn = random.Random(seed)
    begins = sorted(2 * drawn.random() for _ in range(sessions))
    requests = [
        Request(
            index,
            (),
            tokens,
            session=f"s{index // turns}",
            turn=index % turns + 1,
            think_s=drawn.expovariate(1 / THINK_S),
        )
        for index in range(sessions * turns)
    ]
    going = [
        SentRequest(r, json.dumps({"prompt": r.index, "max_tokens": tokens, "stream": True}).encode(), 8, timed=False)
        for r in requests
    ]
    plan = Schedule([begins[index // turns] for index in range(len(requests))])
    with paced_server(tokens) as url:
        client = Client(ClientSettings(f"{url}/v1"))
        started, cpu = time.perf_counter(), time.process_time()
        answers = client.serve(going, f"{url}/v1/completions", plan, lambda _done, _total: None)
        busy = (time.process_time() - cpu) / (time.perf_counter() - started)
        done: list[Any] = client.backlog.read(answers)
        client.close()
        with urlopen(f"{url}/seen") as answer:
            seen = {index: (begun, ended) for index, begun, ended in json.load(answer)}
    late: dict[str, list[int]] = {"first turns": [], "later turns": []}
    for request, completion in zip(requests, done, strict=True):
        late["first turns" if request.turn == 1 else "later turns"].append(completion.sent_ns - completion.due_ns)
    by_session: dict[str | None, list[int]] = defaultdict(list)
    for request in requests:
        by_session[request.session].append(request.index)
    broken = sum(
        seen[later][0] < seen[earlier][1] for places in by_session.values() for earlier, later in pairwise(places)
    )
    failed = sum(c.error is not None for c in done)
    print(f"{sessions} sessions, {len(requests)} requests, {failed} of them failed, {broken} out of order")
    print(f"  client's loop busy for {busy:.0%} of the time")
    for name, values in late.items():
        print(f"  sent - due, {name}:  {shown(values)}")
    print(f"  received - due, all:      {shown([seen[c.index][0] - c.due_ns for c in done])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("sessions", 200), ("turns", 8), ("tokens", 32), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    for seed in range(options.rounds):
        replay(options.sessions, options.turns, options.tokens, seed)


if __name__ == "__main__":
    if sys.argv[1:2] == [SERVER]:
        asyncio.run(serve(int(sys.argv[2])))
    else:
        main()
