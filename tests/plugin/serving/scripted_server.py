"""A server of the OpenAI API that answers at once, and misbehaves as it is told: standard library only.

`python scripted_server.py --port N --model NAME [--fault FAULT] [--child]`. Faults: `early` (ends before it listens,
with exit code 3), `never` (listens, and loads for ever), `mid` (ends with exit code 7 at the tenth completion),
`stubborn` (ignores SIGTERM). With `--child` a process of its own session works beside it. With `--service S` it is a
queue: one request at a time is served, for so many seconds, in the order in which they came.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fault = "none"
    model = "scripted"
    service_s = 0.0
    free_at = 0.0
    queue = threading.Lock()
    begun = time.monotonic()
    completions = 0

    def do_GET(self) -> None:
        if self.path == "/health":
            self._answer({}, 503 if self.fault == "never" or time.monotonic() - self.begun < 0.3 else 200)
        elif self.path == "/v1/models":
            self._answer({"object": "list", "data": [{"id": self.model, "object": "model"}]})
        else:
            self._answer({"error": {"message": "no such path"}}, 404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Handler.completions += 1
        if self.fault == "mid" and self.completions >= 10:
            print("RuntimeError: the model fell over", flush=True)
            os._exit(7)
        self._complete(body)

    def _wait_in_queue(self) -> None:
        with self.queue:
            Handler.free_at = max(time.monotonic(), Handler.free_at) + self.service_s
            turn = Handler.free_at
        time.sleep(max(0.0, turn - time.monotonic()))

    def _complete(self, body: dict[str, Any]) -> None:
        if self.service_s:
            self._wait_in_queue()
        prompt = body.get("prompt")
        count = int(body.get("max_tokens") or body.get("max_completion_tokens") or 1)
        asked = len(prompt) if isinstance(prompt, list) and isinstance(prompt[0], int) else len(str(prompt).split())
        usage = {"prompt_tokens": asked, "completion_tokens": count, "total_tokens": asked + count}
        made = {"id": "cmpl-1", "object": "text_completion", "created": 0, "model": self.model}
        if not body.get("stream"):
            text = "".join(f" w{number}" for number in range(count))
            choice = {"index": 0, "text": text, "finish_reason": "length", "logprobs": None}
            self._answer({**made, "choices": [choice], "usage": usage})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for number in range(count):
            reason = "length" if number == count - 1 else None
            self._event({**made, "choices": [{"index": 0, "text": f" w{number}", "finish_reason": reason}]})
        self._event({**made, "choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def _event(self, data: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(data)}\n\n".encode())
        self.wfile.flush()

    def _answer(self, data: dict[str, Any], status: int = 200) -> None:
        payload = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not logged."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--fault", default="none")
    parser.add_argument("--child", action="store_true")
    parser.add_argument("--service", type=float, default=0.0)
    options = parser.parse_args()
    print(f"serving {options.model} as {options.dtype} to {os.environ.get('CUDA_VISIBLE_DEVICES')!r}", flush=True)
    if options.fault == "early":
        print("ValueError: this model cannot be served", flush=True)
        sys.exit(3)
    if options.fault == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if options.child:
        child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"], start_new_session=True)
        print(f"child {child.pid}", flush=True)
    Handler.fault, Handler.model, Handler.service_s = options.fault, options.model, options.service
    server = ThreadingHTTPServer((options.host, options.port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    threading.Event().wait()


if __name__ == "__main__":
    main()
