"""Overhead of an isolated experiment: wall time of a cycle beyond its measured work, by start method.

    python tests/benchmarks/isolation.py [--cycles 5]

Overhead is what a cycle costs beyond its idle, warm-up and measure windows: starting the process, imports, loading the
tiny model, tokenising, writing, and ending. Peers, measured on such a machine with a process per experiment:
LLenergyMeasure 0.8 14-15 s, optimum-benchmark 0.7 14 s.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from pytest_llem.job import (
    Deadlines,
    Decoding,
    DeviceSet,
    ExperimentConfig,
    IdleSettings,
    Job,
    JobDir,
    MeasurementSettings,
    MeterSettings,
    WarmupSettings,
    WorkloadSettings,
)
from pytest_llem.measurement import read_measurement
from pytest_llem.runners import local
from pytest_llem.runners.protocol import RunnerSpec

CONFIG = ExperimentConfig(
    model="builtin:tiny-llama",
    engine="transformers",
    dtype="float32",
    weights="real",
    workload=WorkloadSettings("synthetic", 4, 32, 16, 0),
    decoding=Decoding(),
    measurement=MeasurementSettings(0.2, WarmupSettings(max_repeats=1), IdleSettings(0.1)),
    settings={"batch_size": 4},
)


def cycle(runner: local.LocalRunner, directory: Path, number: int) -> tuple[str | None, float]:
    """Start method and overhead in seconds of one cycle."""
    job = Job(
        "bench", "bench", "tiny", "0" * 64, CONFIG, number, 1, DeviceSet("cpu"), MeterSettings(), Deadlines(120.0)
    )
    job_dir = JobDir(directory / f"c{number}")
    job_dir.write_job(job)
    started = time.monotonic()
    report = runner.run(job, job_dir, lambda event: None)
    wall = time.monotonic() - started
    windows = [window for window in read_measurement(job_dir.measurement).windows if window.name != "load"]
    return report.start_method, wall - sum(window.duration_s for window in windows)


def main() -> None:
    """Print the overhead of the first and of later cycles, forked and spawned."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=5)
    options = parser.parse_args()
    spec = RunnerSpec("local", "default")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        forked = local.LocalRunner(spec, directory)
        first = cycle(forked, directory, 0)
        later, spawned = [], []
        for number in range(1, options.cycles + 1):
            later.append(cycle(forked, directory, number)[1])
            local.PRELOADS, kept = {}, local.PRELOADS
            spawned.append(cycle(local.LocalRunner(spec, directory), directory, 1000 + number)[1])
            local.PRELOADS = kept
        forked.close()
    print(f"{first[0]}: first cycle {first[1]:.2f} s, later cycles {statistics.median(later):.2f} s (median)")
    print(f"spawn: every cycle {statistics.median(spawned):.2f} s (median)")
    ratio = statistics.median(slow / fast for slow, fast in zip(spawned, later, strict=True))
    print(f"spawn / later forked cycle: {ratio:.1f}")


if __name__ == "__main__":
    main()
