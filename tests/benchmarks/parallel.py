"""How well several GPUs are used: measured work divided by slots and wall time, on simulated GPUs.

    python tests/benchmarks/parallel.py [--gpus 4] [--seconds 5] [--cycles 24]

An engine sleeps for each cycle's time, so that what is lost is this project's and xdist's: starting processes, leases,
results, and the end of the run, when some devices have nothing left. `measuring` counts from the first cycle's start to
the last one's end, `whole run` from pytest's start to its end.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.simulated_nvml.simulation import Simulation, build_library

ROOT = Path(__file__).parents[2]
STUDY = """\
name: parallel
engine: parallel
model: none
workload: {{prompts: 1, input_tokens: 4, output_tokens: 2}}
measurement: {{min_duration_s: {seconds}, idle: {{duration_s: 0}}, warmup: {{max_repeats: 0}}}}
parallel: {{seconds: {seconds}}}
sweep: {{parallel.number: {{range: [1, {cycles}, 1]}}}}
execution: {{cycles: 1, retries: 0, order: sequential, cooldown: 0}}
"""


def run(directory: Path, gpus: int, seconds: float, cycles: int) -> tuple[float, float]:
    """The two ratios of one run."""
    simulation = Simulation(directory / "gpus", build_library(directory), gpus)
    engine = ROOT / "tests" / "plugin" / "faulty_engine"
    environment = {
        **os.environ,
        **simulation.environment(),
        "PYTHONPATH": f"{engine}{os.pathsep}{ROOT}",
        "LLEM_LEASE_DIR": str(directory / "leases"),
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    (directory / "study.yaml").write_text(STUDY.format(seconds=seconds, cycles=cycles))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "auto", "study.yaml"]
    started = time.monotonic()
    subprocess.run([*command, "--llem-meter=none"], cwd=directory, env=environment, check=True)
    wall_s = time.monotonic() - started
    windows = [
        (window["start_ns"], window["end_ns"])
        for path in directory.glob("llem-results/*/parallel/*/c1/measurement.json")
        for window in json.loads(path.read_text())["windows"]
        if window["name"] == "measure"
    ]
    work_s = sum(end - start for start, end in windows) / 1e9
    measuring_s = (max(end for _, end in windows) - min(start for start, _ in windows)) / 1e9
    return work_s / gpus / measuring_s, work_s / gpus / wall_s


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--cycles", type=int, default=24)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        measuring, whole = run(Path(name), options.gpus, options.seconds, options.cycles)
    print(f"{options.cycles} cycles of {options.seconds:g} s on {options.gpus} GPUs: work / slots / wall")
    print(f"measuring: {measuring:.2f}\nwhole run: {whole:.2f}")


if __name__ == "__main__":
    main()
