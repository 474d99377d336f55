"""What this process can tell about itself: its peak memory, its age, and the software it runs."""

from __future__ import annotations

import os
import platform
import sys
import time
from pathlib import Path

from pytest_llem import __version__
from pytest_llem.errors import JsonValue

RECORDED_VARIABLES = (
    "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "HF_HUB_OFFLINE", "KMP_AFFINITY", "MALLOC_ARENA_MAX",
    "MKL_NUM_THREADS", "OMP_NUM_THREADS", "OMP_PROC_BIND", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF",
    "TOKENIZERS_PARALLELISM",
)  # fmt: skip
"""Variables that change how an engine runs; none of them can hold a secret."""


def reset_peak_rss() -> bool:
    """Start a new period for `peak_rss_bytes`; false where the kernel does not allow it.

    Writing 5 to `clear_refs` resets the peak resident set size (proc(5), since Linux 4.0).
    """
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def peak_rss_bytes() -> int | None:
    """Peak resident set size of this process in bytes since `reset_peak_rss` (`VmHWM`)."""
    try:
        text = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def process_age_s() -> float | None:
    """Seconds since the kernel started this process, to 10 ms; `None` where /proc does not say."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        started_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started_s
    except (OSError, IndexError, ValueError, AttributeError):
        return None


def software_facts() -> dict[str, JsonValue]:
    """Python, kernel, CPU affinity, and the environment variables that change how an engine runs."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {
        "pytest_llem": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus_allowed": affinity,
        "variables": {name: os.environ[name] for name in RECORDED_VARIABLES if name in os.environ},
    }
