"""How often the truly best setting is among those that a sweep names, and the interval holds what the best saves.

    python -m tests.benchmarks.optimum_choice [--studies N] [--write-docs]

Simulated studies of six settings whose true costs are known: all equal, a shallow valley, a steep one. Each draws its
cycles anew with normal noise on the logarithm, and asks `results.device_optimum`. docs/device.md has the figures.
"""

from __future__ import annotations

import argparse
import math
import random
from pathlib import Path

from pytest_llem.results.device_optimum import Values
from pytest_llem.study.model import SweptAxis
from tests.figures import write_figures
from tests.unit.results.test_results_optimum import find

VALUES = (700, 600, 500, 400, 300, 200)
AXIS = SweptAxis("device.power_limit_w", "power_limit_w", tuple(map(str, VALUES)), VALUES)
CURVES = {
    "all equal": (1.0,) * 6,
    "shallow: neighbours 1 % apart": (1.03, 1.02, 1.01, 1.0, 1.01, 1.02),
    "steep: neighbours 5 % apart": (1.15, 1.10, 1.05, 1.0, 1.05, 1.10),
}
PAGE = Path(__file__).parents[2] / "docs" / "device.md"
NOISES, CYCLES = (0.005, 0.02), (3, 5)


def main() -> None:
    """Print a table row for each curve, noise and count of cycles."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--write-docs", action="store_true")
    options = parser.parse_args()
    lines = ["| costs | noise of a cycle | cycles | best is named | settings named | saving is in its interval |"]
    lines.append("|---|---|---|---|---|---|")
    for name, curve in CURVES.items():
        for noise in NOISES:
            for cycles in CYCLES:
                among, named, held = _measured(curve, noise, cycles, options.studies)
                lines.append(f"| {name} | {noise:.1%} | {cycles} | {among:.1%} | {named:.1f} of 6 | {held:.1%} |")
    print("\n".join(lines))
    if options.write_docs:
        write_figures("optimum", "\n".join(lines), PAGE)


def _measured(curve: tuple[float, ...], noise: float, cycles: int, studies: int) -> tuple[float, float, float]:
    seeded = random.Random(f"{curve} {noise} {cycles}")
    true: dict[Values, float] = {(value,): cost for value, cost in zip(VALUES, curve, strict=True)}
    best = {values for values, cost in true.items() if cost == min(curve)}
    named = among = held = 0.0
    for _ in range(studies):
        points = {
            values: ([cost * math.exp(seeded.gauss(0, noise)) for _ in range(cycles)], [100.0] * cycles)
            for values, cost in true.items()
        }
        (found,) = find(points, AXIS)
        kept = {found.best, *found.others}
        named += len(kept)
        among += sum(values in kept for values in best) / len(best)
        saving = true[found.best] / true[found.reference]
        change = found.energy
        if change is None or change.ci_low is None or change.ci_high is None:
            held += found.best == found.reference
        else:
            held += change.ci_low <= saving <= change.ci_high
    return among / studies, named / studies, held / studies


if __name__ == "__main__":
    main()
