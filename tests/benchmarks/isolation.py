"""Overhead of a cycle: wall time beyond its measured work, by isolation level and start method.

    python tests/benchmarks/isolation.py [--cycles 5]

Overhead is what a cycle costs beyond its idle, warm-up and measure windows: starting the process, imports, loading the
tiny model, tokenising, writing, and ending. Peers, measured on such a machine with a process per experiment:
LLenergyMeasure 0.8 14-15 s, optimum-benchmark 0.7 14 s (2.5 s inline, without isolation).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from pytest_llem.engines import engine_info
from pytest_llem.job.config import (
    Decoding,
    ExperimentConfig,
    IdleSettings,
    MeasurementSettings,
    WarmupSettings,
    WorkloadSettings,
)
from pytest_llem.job.job import Deadlines, DeviceSet, Job, JobDir, MeterSettings
from pytest_llem.job.measurement import read_measurement
from pytest_llem.job.report import RunnerSpec
from pytest_llem.runners import process as worker_processes
from pytest_llem.runners.local import LocalRunner, ResidentRunner
from pytest_llem.runners.protocol import Runner

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


SPEC = RunnerSpec("local", "default")


def cycle(runner: Runner, directory: Path, number: int, *, output_tokens: int = 16) -> float:
    """Overhead in seconds of one cycle."""
    workload = replace(CONFIG.workload, output_tokens=output_tokens)
    config = replace(CONFIG, workload=workload)
    job = Job(
        "bench", "bench", "tiny", f"{output_tokens:064}", config, number, 1, DeviceSet("cpu"), MeterSettings(),
        Deadlines(120.0),
    )  # fmt: skip
    job_dir = JobDir(directory / f"c{number}")
    job_dir.path.mkdir()
    started = time.monotonic()
    if not runner.can_serve(job):
        runner.unload()
    runner.run(job, job_dir, lambda event: None)
    wall = time.monotonic() - started
    windows = [window for window in read_measurement(job_dir.measurement).windows if window.name != "load"]
    return wall - sum(window.duration_s for window in windows)


def spawned(directory: Path, number: int) -> float:
    """The same with a new interpreter, as where a fork is not safe."""
    names = vars(worker_processes)
    names["engine_info"] = lambda name: replace(engine_info(name), preload=())
    try:
        return cycle(LocalRunner(SPEC, directory), directory, number)
    finally:
        names["engine_info"] = engine_info


def main() -> None:
    """Print the overhead of the first and of later cycles at each level; levels take turns within one run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        process = LocalRunner(SPEC, directory)
        experiment = ResidentRunner(SPEC, directory, "experiment")
        load = ResidentRunner(SPEC, directory, "load")
        runners: tuple[Runner, ...] = (process, experiment, load)
        first = [cycle(runner, directory, number) for number, runner in enumerate(runners)]
        found: dict[str, list[float]] = {"spawn": [], "process": [], "experiment": [], "load": []}
        for number in range(options.cycles):
            found["process"].append(cycle(process, directory, 1000 + number))
            found["experiment"].append(cycle(experiment, directory, 2000 + number))
            # Another experiment each time: its workload differs, and the loaded engine serves it all the same.
            found["load"].append(cycle(load, directory, 3000 + number, output_tokens=17 + number))
            found["spawn"].append(spawned(directory, 4000 + number))
        for runner in runners:
            runner.close()
    for level, seconds in found.items():
        ratio = statistics.median(one / other for one, other in zip(seconds, found["process"], strict=True))
        print(f"{level}: {statistics.median(seconds):.2f} s per cycle (median), {ratio:.2f} of a forked process")
    print("first cycle, with the fork server's imports: " + ", ".join(f"{seconds:.2f} s" for seconds in first))


if __name__ == "__main__":
    main()
