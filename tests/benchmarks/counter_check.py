"""How often the comparison of counter and power readings blames a right counter, and misses one that states too little.

`python -m tests.benchmarks.counter_check [--cycles N]` prints a Markdown table: per load and power readings
(`instant`: 25 ms of each 100 ms, `average`: the second before) the share of cycles with `counter_disagrees`, over
windows of 0.3, 1, 2, 3 and 10 s, for counters that state all, 85 % and 57 % of what the power readings do.
docs/energy.md holds what it found.
"""

from __future__ import annotations

import argparse
import os
import random
from pathlib import Path
from tempfile import TemporaryDirectory

from pytest_llem.energy.validity import Evidence, check
from pytest_llem.job.config import Thresholds
from tests.simulated_nvml.simulation import Simulation, build_library, preload
from tests.unit.energy.test_attribution import LOADS, Load, sampled

LENGTHS_S = (0.3, 1.0, 2.0, 3.0, 10.0)
GAINS = (1.0, 0.85, 0.57)
MORE = {
    "a third of the counter's period": Load(600.0, 0.0267, 300.0, 0.0066),
    "its fivefold": Load(600, 0.25, 150, 0.25),
}


def blamed(simulation: Simulation, load: Load, gain: float, cycles: int) -> float:
    """The share of cycles that are refused."""
    simulation.gpus[0].counter_gain = gain
    rng = random.Random(f"{load} {gain}")
    found = 0
    for number in range(cycles):
        device, idle, busy = sampled(simulation, load, LENGTHS_S[number % len(LENGTHS_S)], rng)
        notes = check(Evidence((idle, busy), (device,), (), "worker"), (), Thresholds())
        found += any(note.code == "counter_disagrees" for note in notes)
    return found / cycles


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=100, help="of each kind")
    cycles = parser.parse_args().cycles
    print("| load | power readings | right counter blamed | 85 % found | 57 % found |\n|---|---|---|---|---|")
    with TemporaryDirectory() as name:
        library = build_library(Path(name))
        simulation = Simulation(Path(name) / "gpus", library)
        os.environ.update(simulation.environment())
        preload(library)
        for title, load in {**LOADS, **MORE}.items():
            for instant in (1, 0):
                simulation.gpus[0].has_instant = instant
                shares = " | ".join(f"{blamed(simulation, load, gain, cycles):.0%}" for gain in GAINS)
                print(f"| {title} | {'instant' if instant else 'average'} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
