"""A study on a Ray cluster against the ideal: wall time, and work divided by slots.

    python tests/benchmarks/ray_cluster.py [EXPERIMENTS] [SECONDS]

Starts four nodes with five simulated GPUs on this machine and runs a study of so many experiments (default 200), whose
cycles measure for about so many seconds each (default 0: as little as a cycle can). The work is what each cycle took on
its node, from its lease to its files; of that, its process from its first event to its last is shown besides. Checks
that nothing was lost and nothing measured twice.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.ray.clusters import ENVIRONMENT, Machines, run_command
from tests.simulated_nvml.simulation import build_library

NODES = (("n1", 1, "H100"), ("n2", 1, "H100"), ("n3", 2, "H100"), ("n4", 1, "A100"))
SLOTS = sum(gpus for _, gpus, _ in NODES)
STUDY = """\
name: cluster
engine: faulty
model: none
workload: {{prompts: 1, input_tokens: 8, output_tokens: {tokens}}}
measurement: {{min_duration_s: {seconds}, idle: {{duration_s: 0}}, warmup: {{max_repeats: 1}}}}
sweep: {{seed: {{range: [1, {experiments}, 1]}}}}
execution: {{cycles: 1, order: sequential, retries: 0, cooldown: 0}}
"""


def main(experiments: int, seconds: float) -> None:
    """Run the study, check it, and print the figures."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        machines = Machines(directory, build_library(directory))
        try:
            machines.start()
            for node in NODES:
                machines.add(*node)
            machines.wait()
            wall_s, run_dir = run(directory, machines, experiments, seconds)
            report(run_dir, experiments, wall_s)
        finally:
            machines.stop()


def run(directory: Path, machines: Machines, experiments: int, seconds: float) -> tuple[float, Path]:
    """The study's wall time, and where its artifacts are."""
    text = STUDY.format(experiments=experiments, seconds=max(seconds, 0.05), tokens=100 if seconds else 4)
    (directory / "cluster.yaml").write_text(text)
    options = ["--llem-study=cluster.yaml", f"--llem-runner=ray:{machines.address}", "--llem-meter=none", "-q"]
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        run_command(options),
        cwd=directory,
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        check=False,
    )
    wall_s = time.monotonic() - started
    if done.returncode:
        raise SystemExit(done.stdout)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    driver_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"the driver: {driver_s:.1f} s of CPU time, {after.ru_maxrss / 2**10:.0f} MiB at most")
    return wall_s, next(directory.glob("llem-results/*/run.json")).parent


def report(run_dir: Path, experiments: int, wall_s: float) -> None:
    """Print what was lost, the spread over the nodes, and how near the ideal it came."""
    states = [json.loads(path.read_text()) for path in run_dir.glob("*/*/c*/state.json")]
    found = [json.loads(path.read_text()) for path in run_dir.glob("*/*/c*/result.json")]
    spans = [span(path) for path in run_dir.glob("*/*/c*/events.jsonl")]
    work_s = sum(result["runner"]["facts"]["node_s"] for result in found)
    measured_s = sum(end - start for start, end in spans)
    longest_s = max(result["runner"]["facts"]["node_s"] for result in found)
    busy_s = max(end for _, end in spans) - min(start for start, _ in spans)
    nodes = Counter(result["runner"]["device_ids"][0] for result in found)
    print(f"cycles: {len(found)} of {experiments}, attempts: {Counter(len(state['attempts']) for state in states)}")
    print(f"per GPU: {dict(sorted(nodes.items()))}")
    count = len(found)
    print(
        f"work: {work_s:.1f} s; a cycle: {work_s / count:.2f} s on its node, {measured_s / count:.2f} s in its process"
    )
    print(f"ideal on {SLOTS} slots: {work_s / SLOTS:.1f} s (the longest cycle took {longest_s:.1f} s)")
    print(f"first process's start to the last's end: {busy_s:.1f} s, the ideal is {work_s / SLOTS / busy_s:.2f} of it")
    print(f"the whole pytest run: {wall_s:.1f} s, the ideal is {work_s / SLOTS / wall_s:.2f} of it")


def span(events: Path) -> tuple[float, float]:
    """When a worker wrote its first and its last event, in seconds of the machine's one clock."""
    times = [json.loads(line)["t_ns"] / 1e9 for line in events.read_text().splitlines()]
    return times[0], times[-1]


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200, float(sys.argv[2]) if len(sys.argv) > 2 else 0.0)
