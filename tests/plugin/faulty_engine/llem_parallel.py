"""An engine that says which devices it sees, takes as long as it is told, and can be where a process dies.

Its section: `seconds` of a repeat, `tensor_parallel_size`, and `number` to tell experiments apart. The model is what
happens while it loads: `none`, `crash` (the pytest process that measures dies, and the engine goes on loading).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from pytest_llem.engines.protocol import Completion, Progress, Request
from pytest_llem.errors import JsonValue
from pytest_llem.job.config import ExperimentConfig
from pytest_llem.job.job import DeviceSet
from tests.plugin.faulty_engine.llem_faulty import FaultyEngine


def pytest_pid() -> int:
    """The process that measures: the parent of the worker's fork server."""
    return psutil.Process(os.getppid()).ppid()


class ParallelEngine(FaultyEngine):
    """Sleeps instead of generating."""

    name = "parallel"

    def prepare(self, config: ExperimentConfig, devices: DeviceSet) -> str:
        """Remember what is asked for."""
        seconds = config.settings.get("seconds", 0.0)
        self.seconds = float(seconds) if isinstance(seconds, (int, float)) else 0.0
        return super().prepare(config, devices)

    def load(self) -> None:
        """Compute on the AMD GPUs that HIP would show. If asked, kill the pytest that started it, and stay."""
        for gpu in os.environ.get("HIP_VISIBLE_DEVICES", "").split(",") if "LLEM_AMD_PROCESSES" in os.environ else ():
            Path(os.environ["LLEM_AMD_PROCESSES"], f"{gpu}-{os.getpid()}").write_text("1000000000")
        if self.fault == "crash":
            os.kill(pytest_pid(), signal.SIGKILL)
            time.sleep(3600)

    def generate(self, requests: Sequence[Request], progress: Progress) -> list[Completion]:
        """All tokens at the end of the time."""
        start = time.monotonic_ns()
        time.sleep(self.seconds)
        end = time.monotonic_ns()
        return [
            Completion(
                request.index,
                len(request.token_ids),
                (65,) * request.max_new_tokens,
                start,
                end,
                "length",
                (end,) * request.max_new_tokens,
            )
            for request in requests
        ]

    def effective(self) -> Mapping[str, JsonValue]:
        """The devices that the process was shown."""
        shown = {"visible": "CUDA_VISIBLE_DEVICES", "hip_visible": "HIP_VISIBLE_DEVICES"}
        variables = {name: os.environ.get(variable) for name, variable in shown.items()}
        return {**super().effective(), **variables, "pytest": pytest_pid()}
