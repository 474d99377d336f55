"""Whether a sweep of a GPU's clock or limit finds the energy optimum, and whether what did not hold is refused.

    .venv/bin/python -m tests.benchmarks.device_optimum [--boards 100]

Simulated boards, each with its own leakage, voltage curve and share of work that waits for memory, on a virtual clock.
A setting is made through NVML, the load's power follows V^2 f, the real sampler, estimator and verification make
results, and the report's own choice names the best. Prints the tables of docs/device.md.
"""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.simulated_nvml.simulation import Gpu, Simulation, build_library, preload
from tests.simulated_nvml.sweeps import Sweep, draw_board, steps_apart

CLOCKS = Sweep("sm_clock_mhz", tuple(range(510, 1981, 105)))
LIMITS = Sweep("power_limit_w", tuple(range(200, 701, 50)))
Fault = Callable[[Gpu], None]


def table(sweep: Sweep, scatters: Sequence[float], boards: int, simulation: Simulation, path: Path) -> Iterator[str]:
    """A row per scatter: how near the best that is named is to the truly best of the grid, and what is said of it."""
    yield f"| {sweep.name}, scatter of cycles | best within one step | truly best is named | settings named | saving |"
    yield "|---|---|---|---|---|"
    for scatter in scatters:
        rng = random.Random(11)
        near = named = covered = count = invalid = 0
        for _ in range(boards):
            gpu = simulation.gpus[0]
            draw_board(gpu, rng)
            swept = replace(sweep, scatter_rel=scatter)
            costs = swept.true_costs(gpu)
            results = swept.run(simulation, path, rng)
            invalid += sum(result.status == "invalid" for result in results)
            found = swept.optimum(results)
            (best,) = found.best
            true = min(costs, key=lambda value: costs[value])
            near += steps_apart(swept.values, int(str(best)), true) <= 1
            candidates = [int(str(value)) for (value,) in (found.best, *found.others)]
            named += any(costs[value] == costs[true] for value in candidates)
            count += len(candidates)
            saving = costs[int(str(best))] / costs[swept.values[-1]]
            energy = found.energy
            low, high = (energy.ci_low, energy.ci_high) if energy is not None else (1.0, 1.0)
            covered += low is not None and high is not None and low - 1e-12 <= saving <= high + 1e-12
        assert not invalid, f"{invalid} cycles were refused that held"
        shares = " | ".join(f"{hits / boards:.1%}" for hits in (near, named))
        yield f"| {scatter:.1%} | {shares} | {count / boards:.1f} | {covered / boards:.1%} |".replace("%", " %")


def refused(sweep: Sweep, fault: Fault, cycles: int, simulation: Simulation, path: Path) -> tuple[int, set[str]]:
    """How many cycles of a setting that did not hold are refused, and by which codes."""
    rng, found, codes = random.Random(5), 0, set[str]()
    for _ in range(cycles):
        gpu = simulation.gpus[0]
        draw_board(gpu, rng)
        fault(gpu)
        value = rng.choice(sweep.values[2:-4])
        (result,) = replace(sweep, values=(value,), cycles=1).run(simulation, path, rng)
        found += not result.validity.valid
        codes |= {reason.code for reason in result.validity.reasons}
        gpu.limit_ignored = gpu.limit_unheld = gpu.slowed_to_mhz = gpu.outer_limit_mw = 0
    return found, codes


def ignored(gpu: Gpu) -> None:
    gpu.limit_ignored = 1


def unheld(gpu: Gpu) -> None:
    gpu.limit_unheld = 1


def outer(gpu: Gpu) -> None:
    gpu.outer_limit_mw = 230_000


def slowed(gpu: Gpu) -> None:
    gpu.slowed_to_mhz = 615


def capped(gpu: Gpu) -> None:
    gpu.outer_limit_mw = 170_000


FAULTS: tuple[tuple[str, Sweep, Fault], ...] = (
    ("the driver acknowledges a limit and keeps its own", LIMITS, ignored),
    ("a limit reads back and the load exceeds it", LIMITS, unheld),
    ("something else allows 230 W", LIMITS, outer),
    ("heat holds the clock at 615 MHz", CLOCKS, slowed),
    ("the power limit holds the clock down", CLOCKS, capped),
)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--boards", type=int, default=100)
    boards = parser.parse_args().boards
    with TemporaryDirectory() as name:
        path = Path(name)
        library = build_library(path)
        preload(library)
        simulation = Simulation(path / "gpus", library, 1)
        os.environ.update(simulation.environment())
        for sweep in (CLOCKS, LIMITS):
            for line in table(sweep, (0.002, 0.005, 0.01, 0.02), boards, simulation, path):
                print(line, flush=True)
            print()
        for title, sweep, fault in FAULTS:
            found, codes = refused(sweep, fault, boards, simulation, path)
            print(f"| {title} | {found} of {boards} | {', '.join(f'`{code}`' for code in sorted(codes))} |", flush=True)


if __name__ == "__main__":
    main()
