"""An engine outside the package, registered by entry point, that breaks a worker in every way a real one can.

The model names the fault: none, exception, kill, segfault, memory, hang, exit, missing, lies; `busy` is none, and
computes; `tired` is slow while there is a file `tired.now`.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from pytest_llem.engines.protocol import (
    CacheState,
    Capabilities,
    Completion,
    DeviceMemory,
    ModelShape,
    Progress,
    Quiesced,
    Request,
)
from pytest_llem.errors import JsonValue, ModelNotFoundError
from pytest_llem.job.config import ExperimentConfig
from pytest_llem.job.job import DeviceSet


class Letters:
    """A tokenizer whose tokens are the letters of a text."""

    bos_id = None

    def encode(self, text: str) -> list[int]:
        """One token per letter."""
        return [ord(letter) % 256 for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        """The letters again."""
        return "".join(map(chr, ids))

    def chat(self, text: str) -> list[int]:
        """The text itself."""
        return self.encode(text)


def compute(seconds: float) -> None:
    """Use the CPU for so long."""
    end_s = time.thread_time() + seconds
    while time.thread_time() < end_s:
        pass


class FaultyEngine:
    """Generates at a fixed speed, until its fault strikes while it loads."""

    name = "faulty"
    capabilities = Capabilities(token_times=True)
    without_reload = ("workload", "decoding")

    def prepare(self, config: ExperimentConfig, devices: DeviceSet) -> str:
        """Remember the fault."""
        self.fault = config.model
        self.dtype = config.dtype
        return "1.0"

    def load(self) -> None:
        """Break as asked."""
        sys.stderr.write(f"about to do: {self.fault}\n")
        sys.stderr.flush()
        if self.fault == "exception":
            raise RuntimeError("the faulty engine raised this")
        if self.fault == "missing":
            raise ModelNotFoundError("no such model: missing", fix="choose another")
        if self.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "segfault":
            ctypes.string_at(0)
        if self.fault == "memory":
            resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
            bytearray(8 << 30)
        if self.fault == "exit":
            os._exit(0)
        if self.fault == "hang":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(3600)

    def tokenizer(self) -> Letters:
        """Letters."""
        return Letters()

    def generate(self, requests: Sequence[Request], progress: Progress) -> list[Completion]:
        """A millisecond per token, or twenty when `tired`; of CPU time where it is `busy`."""
        spend = compute if self.fault == "busy" else time.sleep
        token_s = 0.02 if self.fault == "tired" and Path("tired.now").exists() else 0.001
        completions = []
        for request in requests:
            start = time.monotonic_ns()
            times = []
            for _ in range(request.max_new_tokens):
                spend(token_s)
                times.append(time.monotonic_ns())
            ids = tuple(65 + number % 26 for number in range(request.max_new_tokens))
            completions.append(
                Completion(request.index, len(request.token_ids), ids, start, times[-1], "length", tuple(times))
            )
        return completions

    def reset(self) -> CacheState:
        """There is no cache."""
        return "none"

    def quiesce(self) -> Quiesced:
        """Nothing runs in the background."""
        return "synchronized"

    def effective(self) -> Mapping[str, JsonValue]:
        """The dtype that was asked for, or a lie."""
        return {"dtype": "float64" if self.fault == "lies" else self.dtype}

    def shape(self) -> ModelShape | None:
        """No model."""
        return None

    def reset_peak_memory(self) -> None:
        """Nothing is counted."""

    def memory(self) -> tuple[DeviceMemory, ...]:
        """Nothing is known."""
        return ()

    def shutdown(self) -> None:
        """Nothing is held."""
