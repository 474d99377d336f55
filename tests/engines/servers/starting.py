"""Servers in processes of their own, for tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pytest_llem.servers.server import free_port
from tests.engines.servers.gguf_model import write_gguf

ROOT = Path(__file__).resolve().parents[3]
DEADLINE_S = 420.0


@dataclass(frozen=True)
class RealServer:
    """A server that answers at `url`; `pid` is its process, `log` what it printed."""

    url: str
    pid: int
    log: Path


@contextmanager
def llama_cpp(directory: Path, *options: str) -> Iterator[RealServer]:
    """A server of llama.cpp on the built-in model; `options` as in `tests.engines.servers.llama_cpp`."""
    model = directory / "tiny.gguf"
    if not model.exists():
        write_gguf(model)
    port = free_port()
    with running(["-m", "tests.engines.servers.llama_cpp", str(model), str(port), *options], port, directory) as server:
        yield server


@contextmanager
def transformers_serve(directory: Path, model: Path) -> Iterator[RealServer]:
    """`transformers serve` on a local model."""
    port = free_port()
    run = "import sys; from transformers.cli.transformers import main; sys.argv[0] = 'transformers'; main()"
    arguments = ["-c", run, "serve", str(model), "--port", str(port), "--device", "cpu"]
    with running(arguments, port, directory) as server:
        yield server


@contextmanager
def vllm_server(directory: Path, model: Path, *options: str) -> Iterator[RealServer]:
    """vLLM's server in development mode, in which its prefix cache can be emptied."""
    port = free_port()
    arguments = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--port", str(port)]
    arguments += ["--dtype", "float32", "--enforce-eager", "--enable-prompt-tokens-details"]
    arguments += ["--gpu-memory-utilization", "0.2", *options]
    environment = {
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # Its loop looks at its timers first: one that had no processor for seconds would close a connection unread.
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "600",
    }
    with running(arguments, port, directory, environment) as server:
        yield server


@contextmanager
def running(
    arguments: Sequence[str],
    port: int,
    directory: Path,
    environment: Mapping[str, str] | None = None,
    python: str = sys.executable,
) -> Iterator[RealServer]:
    """A Python process that answers `/health` at a port; it is ended, with its children, when the body is done."""
    url = f"http://127.0.0.1:{port}"
    log = directory / f"server-{port}.log"
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [python, *arguments],
            stdin=subprocess.PIPE,
            stdout=stream,
            stderr=stream,
            env={**variables, **(environment or {})},
            cwd=ROOT,
            start_new_session=True,
        )
        try:
            _await_health(url, process, log)
            yield RealServer(url, process.pid, log)
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _await_health(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise AssertionError(f"the server did not start:\n{log.read_text(errors='replace')[-3000:]}")
