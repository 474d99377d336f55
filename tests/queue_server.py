"""An OpenAI-compatible server that is a queue: places that serve in order of arrival, each with the same known service.

In a process of its own, so that it keeps time beside a busy client: `python -m tests.queue_server` prints its address
and ends with its standard input. `running` starts one for the body of a `with`, and `GET /served` tells what became of
each request. A thread per connection sleeps until each token's time: asyncio's timers are a millisecond coarse.
"""

from __future__ import annotations

import argparse
import heapq
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass(frozen=True)
class Queue:
    """A request waits for one of `places`, gets its first token after `prefill_s` and the others `step_s` apart."""

    places: int = 1
    prefill_s: float = 0.005
    step_s: float = 0.002

    def service_s(self, tokens: int) -> float:
        """How long a place is taken."""
        return self.prefill_s + (tokens - 1) * self.step_s

    def waits_s(self, arrived_s: Sequence[float], tokens: int) -> list[float]:
        """How long each of these arrivals waits for its place."""
        free = [0.0] * self.places
        waits = []
        for time_s in arrived_s:
            begins = max(time_s, heapq.heappop(free))
            heapq.heappush(free, begins + self.service_s(tokens))
            waits.append(begins - time_s)
        return waits


@contextmanager
def running(queue: Queue) -> Iterator[str]:
    """The address of a queue, which is gone after the body."""
    command = [sys.executable, "-m", "tests.queue_server", str(queue.places), str(queue.prefill_s), str(queue.step_s)]
    root = Path(__file__).parents[1]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.stdin.close()


def between(planted: Sequence[float]) -> tuple[float, int]:
    """A limit in the widest gap of the upper half of latencies, and how many keep it: no jitter moves one across."""
    ordered = sorted(planted)
    _, place = max((ordered[i + 1] - ordered[i], i) for i in range(len(ordered) // 2, len(ordered) - 1))
    return (ordered[place] + ordered[place + 1]) / 2, place + 1


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512

    def __init__(self, queue: Queue) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.queue = queue
        self._free = [0.0] * queue.places
        self._taking = threading.Lock()
        self.served: dict[str, list[list[int]]] = {}
        """Of each request with a prompt, when its tokens were written (CLOCK_MONOTONIC, nanoseconds)."""

    def begins(self, tokens: int) -> float:
        """When a request that is here now gets its place, which is then taken."""
        now = time.monotonic()
        if tokens == 1:  # the client asks for one token before it measures anything
            return now
        with self._taking:
            begins = max(now, heapq.heappop(self._free))
            heapq.heappush(self._free, begins + self.queue.service_s(tokens))
        return begins


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: standard error is the test's."""

    def do_GET(self) -> None:
        """Health, and the models."""
        known = {"/health": {}, "/v1/models": {"data": [{"id": "queue"}]}, "/served": self.server.served}
        self._send(200 if self.path in known else 404, known.get(self.path, {}))

    def do_POST(self) -> None:
        """An answer, or an emptied cache."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or "{}")
        if self.path == "/v1/completions":
            self._stream(body["max_tokens"], body["prompt"])
        else:
            self._send(200 if self.path == "/reset_prefix_cache" else 404, {})

    def _send(self, status: int, answer: object) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, tokens: int, prompt: str | list[int]) -> None:
        due = self.server.begins(tokens) + self.server.queue.prefill_s
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        written: list[int] = []
        for place in range(tokens):
            time.sleep(max(0.0, due + place * self.server.queue.step_s - time.monotonic()))
            written.append(time.monotonic_ns())
            self._event({"choices": [{"index": 0, "text": "w", "token_ids": [7]}]})
        self.server.served.setdefault(str(prompt), []).append(written)
        usage = {"completion_tokens": tokens, "prompt_tokens": len(prompt)}
        self._event({"choices": [{"index": 0, "text": "", "finish_reason": "length"}], "usage": usage})
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _event(self, event: object) -> None:
        self._chunk(f"data: {json.dumps(event)}\n\n".encode())

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("places", type=int)
    parser.add_argument("prefill_s", type=float)
    parser.add_argument("step_s", type=float)
    options = parser.parse_args()
    server = _Server(Queue(options.places, options.prefill_s, options.step_s))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
