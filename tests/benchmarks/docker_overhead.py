"""What a container costs per cycle: seconds outside the worker's own cycle, for the local runner and both lifecycles.

    python tests/benchmarks/docker_overhead.py IMAGE [CYCLES]

IMAGE has the transformers engine. Cycles of the three kinds take turns, so that a busy machine is busy for all; the
figures to trust are the differences within one run.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

from pytest_llem.containers.runner import DockerRunner
from pytest_llem.job.config import Decoding, ExperimentConfig, IdleSettings, MeasurementSettings, WorkloadSettings
from pytest_llem.job.job import Deadlines, DeviceSet, Job, JobDir, MeterSettings
from pytest_llem.job.measurement import read_measurement
from pytest_llem.job.report import RunnerSpec
from pytest_llem.runners.local import LocalRunner
from pytest_llem.runners.protocol import Runner
from pytest_llem.study.runner_settings import DockerSettings


def main(image: str, cycles: int) -> None:
    """Run the cycles and print medians; the first round is left out, since it starts the servers."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        docker_spec = RunnerSpec("docker", "command line", image=image)
        runners: dict[str, Runner] = {
            "local": LocalRunner(RunnerSpec("local", "command line"), directory),
            "ephemeral": DockerRunner(docker_spec),
            "session": DockerRunner(docker_spec, DockerSettings(lifecycle="session")),
        }
        outside: dict[str, list[float]] = {kind: [] for kind in runners}
        total: dict[str, list[float]] = {kind: [] for kind in runners}
        try:
            for cycle in range(cycles + 1):
                for kind, runner in runners.items():
                    wall_s, cycle_s = run(runner, JobDir(directory / f"{kind}-{cycle}"), cycle)
                    if cycle:
                        outside[kind].append(wall_s - cycle_s)
                        total[kind].append(wall_s)
        finally:
            for runner in runners.values():
                runner.close()
    base = statistics.median(total["local"])
    for kind in runners:
        wall_s = statistics.median(total[kind])
        print(
            f"{kind:10} whole cycle {wall_s:6.2f} s ({wall_s - base:+.2f} s against local),"
            f" outside the worker's cycle {statistics.median(outside[kind]):5.2f} s"
        )


def run(runner: Runner, job_dir: JobDir, cycle: int) -> tuple[float, float]:
    """Wall time of one cycle, and the worker's own part of it, in seconds."""
    config = ExperimentConfig(
        model="builtin:tiny-llama",
        engine="transformers",
        dtype="float32",
        weights="real",
        workload=WorkloadSettings("synthetic", prompts=2, input_tokens=16, output_tokens=8, seed=0),
        decoding=Decoding(),
        measurement=MeasurementSettings(min_duration_s=0.1, idle=IdleSettings(duration_s=0.0)),
        settings={},
    )
    job = Job(
        run_id="benchmark",
        study="docker-overhead",
        experiment_id="tiny",
        config_hash="0" * 16,
        config=config,
        cycle=cycle,
        attempt=1,
        devices=DeviceSet("cpu"),
        meter=MeterSettings("none"),
        deadlines=Deadlines(timeout_s=300.0),
    )
    job_dir.write_job(job)
    begun = time.monotonic()
    runner.run(job, job_dir, lambda event: None)
    wall_s = time.monotonic() - begun
    if not job_dir.measurement.exists():
        raise SystemExit(job_dir.error.read_text(encoding="utf-8"))
    cycle_s = read_measurement(job_dir.measurement).timing["cycle_s"]
    assert cycle_s is not None
    return wall_s, cycle_s


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 5)
