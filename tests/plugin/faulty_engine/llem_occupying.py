"""An engine that takes memory of a simulated GPU, and gives it back as its model says.

`tidy`: when it shuts down; `leak`: never; `leave`: it dies with a process that it leaves behind, which the simulation
has to notice; `other`: never, and a process has it that is not the engine's.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

from tests.plugin.faulty_engine.llem_faulty import FaultyEngine
from tests.simulated_nvml.simulation import PATH_VARIABLE, Gpu, Machine

BYTES = 2 * 10**9


class OccupyingEngine(FaultyEngine):
    """The faulty engine, on a GPU."""

    name = "occupying"

    def load(self) -> None:
        """Take memory."""
        change(BYTES, os.getpid())

    def shutdown(self) -> None:
        """Give it back, or not."""
        if self.fault == "tidy":
            change(-BYTES)
        if self.fault == "leave":
            code = "import time; time.sleep(60)"
            left = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
            change(0, left.pid)
        if self.fault == "other":
            change(0, os.getppid())


def change(size: int, *pids: int) -> None:
    """Change what is in use on the first simulated GPU, and say who computes there."""
    with Path(os.environ[PATH_VARIABLE]).open("r+b") as stream, mmap.mmap(stream.fileno(), 0) as memory:
        machine = Machine.from_buffer(memory)
        gpu: Gpu = machine.gpu[0]
        gpu.memory_used += size
        gpu.set_pids(*pids)
        del gpu, machine
