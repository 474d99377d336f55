"""What `nvidia-smi` does of settings, on the simulated GPUs: `-i` with `-pl`, `-lgc`, `-rgc`, `-lmc` and `-rmc`."""

from __future__ import annotations

import argparse
import sys

import pynvml


def main() -> int:
    """Set what the options say, and exit as the real command does: 0, or the code of NVML's error."""
    parser = argparse.ArgumentParser(prog="nvidia-smi")
    parser.add_argument("-i", "--id", required=True)
    parser.add_argument("-pl", "--power-limit", type=float)
    parser.add_argument("-lgc", "--lock-gpu-clocks", type=_pair)
    parser.add_argument("-rgc", "--reset-gpu-clocks", action="store_true")
    parser.add_argument("-lmc", "--lock-memory-clocks", type=_pair)
    parser.add_argument("-rmc", "--reset-memory-clocks", action="store_true")
    asked = parser.parse_args()
    pynvml.nvmlInit()
    try:
        by_index = asked.id.isdecimal()
        handle = (pynvml.nvmlDeviceGetHandleByIndex if by_index else pynvml.nvmlDeviceGetHandleByUUID)(
            int(asked.id) if by_index else asked.id
        )
        if asked.power_limit is not None:
            pynvml.nvmlDeviceSetPowerManagementLimit(handle, round(asked.power_limit * 1e3))
        if asked.lock_gpu_clocks:
            pynvml.nvmlDeviceSetGpuLockedClocks(handle, *asked.lock_gpu_clocks)
        if asked.reset_gpu_clocks:
            pynvml.nvmlDeviceResetGpuLockedClocks(handle)
        if asked.lock_memory_clocks:
            pynvml.nvmlDeviceSetMemoryLockedClocks(handle, *asked.lock_memory_clocks)
        if asked.reset_memory_clocks:
            pynvml.nvmlDeviceResetMemoryLockedClocks(handle)
    except pynvml.NVMLError as problem:
        print(problem, file=sys.stderr)
        return int(problem.value)
    print("All done.")
    return 0


def _pair(text: str) -> tuple[int, int]:
    low, _, high = text.partition(",")
    return int(low), int(high or low)


if __name__ == "__main__":
    sys.exit(main())
