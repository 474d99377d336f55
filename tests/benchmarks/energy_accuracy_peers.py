"""Other energy meters as small servers, each in its own process: `begin`, then `end` answers with joules.

Runs under any interpreter that has the peer installed; imports nothing of this project.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Protocol


class Peer(Protocol):
    def begin(self) -> None: ...

    def end(self) -> float: ...


class Zeus:
    """`ZeusMonitor`: a counter read at each edge."""

    def __init__(self) -> None:
        from zeus.monitor import ZeusMonitor

        self._monitor = ZeusMonitor(gpu_indices=[0])

    def begin(self) -> None:
        self._monitor.begin_window("measure", sync_execution=False)

    def end(self) -> float:
        return float(self._monitor.end_window("measure", sync_execution=False).total_energy)


class CodeCarbon:
    """A task of `OfflineEmissionsTracker`: its GPU energy, in kWh, from counter reads."""

    def __init__(self) -> None:
        from codecarbon import OfflineEmissionsTracker

        self._tracker = OfflineEmissionsTracker(
            country_iso_code="FRA", save_to_file=False, log_level="critical", gpu_ids=[0], allow_multiple_runs=True
        )
        self._count = 0

    def begin(self) -> None:
        self._count += 1
        self._tracker.start_task(f"window-{self._count}")

    def end(self) -> float:
        return float(self._tracker.stop_task(f"window-{self._count}").gpu_energy) * 3.6e6


class PowerTrapezoid:
    """A thread that polls NVML power every 100 ms, integrated by trapezoids from begin to end."""

    def __init__(self) -> None:
        import pynvml

        pynvml.nvmlInit()
        self._nvml = pynvml
        self._handle = pynvml.nvmlDeviceGetHandleByIndex(0)

    def begin(self) -> None:
        self._samples: list[tuple[float, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll)
        self._thread.start()

    def end(self) -> float:
        self._stop.set()
        self._thread.join()
        pairs = zip(self._samples, self._samples[1:], strict=False)
        return sum((t1 - t0) * (p0 + p1) / 2 for (t0, p0), (t1, p1) in pairs)

    def _poll(self) -> None:
        while not self._stop.is_set():
            self._samples.append((time.monotonic(), self._nvml.nvmlDeviceGetPowerUsage(self._handle) / 1e3))
            self._stop.wait(0.1)


PEERS: dict[str, type[Peer]] = {"zeus": Zeus, "codecarbon": CodeCarbon, "power_100ms": PowerTrapezoid}


def main(name: str) -> int:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        peer: Peer = PEERS[name]()
    except ImportError as problem:
        print(json.dumps({"absent": f"{name} is not installed: {problem}"}), file=answers)
        return 0
    print(json.dumps({"ready": True}), file=answers)
    for line in sys.stdin:
        if line.strip() == "begin":
            peer.begin()
            print(json.dumps({}), file=answers)
        else:
            print(json.dumps({"energy_j": peer.end()}), file=answers)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
