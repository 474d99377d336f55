"""An engine that takes memory of a simulated GPU, and gives it back as its model says.

`tidy`: when it shuts down; `slow`: a second later; `leak`: never; `leave`: never, and a process stays behind.
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
GIVE_BACK_LATER = "import time, llem_occupying; time.sleep(1.0); llem_occupying.change(-llem_occupying.BYTES)"


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
        if self.fault in ("slow", "leave"):
            code = GIVE_BACK_LATER if self.fault == "slow" else "import time; time.sleep(60)"
            left = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
            if self.fault == "leave":
                change(0, left.pid)


def change(size: int, *pids: int) -> None:
    """Change what is in use on the first simulated GPU, and say who computes there."""
    with Path(os.environ[PATH_VARIABLE]).open("r+b") as stream, mmap.mmap(stream.fileno(), 0) as memory:
        machine = Machine.from_buffer(memory)
        gpu: Gpu = machine.gpu[0]
        gpu.memory_used += size
        gpu.set_pids(*pids)
        del gpu, machine
