"""Thermal state on simulated dies with two time constants: the tables of docs/energy.md.

    python -m tests.benchmarks.thermal_settling

prints them: how long dies take to settle by the warm-up's own watch and how far off the settled figure is, and whether
the bound of an unsettled one holds. It takes about a minute of one core.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory

from tests.simulated_nvml.die import Die, Load

SLOW_S = (40.0, 90.0, 150.0, 200.0, 300.0)
FAST_S = (3.0, 10.0, 25.0)
LEAKAGE_REL_PER_C = (0.001, 0.002, 0.004)
LOADS = ((400.0, 0.04, 0.05), (700.0, 0.05, 0.02), (200.0, 0.03, 0.05))
"""Watts, and degrees a watt of the fast and of the slow mass: rises of 16 to 60 degrees."""

REPEATS_S = (1.0, 3.0, 20.0)
WARM_UPS_S = (3.0, 12.0, 30.0, 60.0, 120.0)


def dies(slow_s: float) -> Iterator[Die]:
    """Every combination with this slow time constant."""
    for fast_s, leakage, (load_w, fast_c, slow_c) in product(FAST_S, LEAKAGE_REL_PER_C, LOADS):
        yield Die(fast_s, slow_s, leakage, load_w=load_w, fast_c_per_w=fast_c, slow_c_per_w=slow_c, burst=0.3)


def settled_row(slow_s: float, directory: Path) -> str:
    """One row of the table of settled cycles."""
    seconds, errors, settled, held = [], [], 0, 0
    for load in (Load(die, repeat_s) for repeat_s in REPEATS_S for die in dies(slow_s)):
        seconds.append(load.settle(directory / "samples.jsonl"))
        reading = load.measure()
        settled += reading.state == "settled"
        errors.append(abs(load.error_rel))
        held += reading.uncertainty_rel is not None and errors[-1] <= reading.uncertainty_rel
    count = len(errors)
    return (
        f"| {slow_s:.0f} s | {settled} of {count} | {fmean(seconds):.0f} s | {max(seconds):.0f} s "
        f"| {max(errors):.2%} | {held} of {count} |"
    )


def unsettled_row(warm_up_s: float) -> str:
    """One row of the table of cycles that did not wait."""
    bounds, errors, held = [], [], 0
    for die in (die for slow_s in SLOW_S[:-1] for die in dies(slow_s)):
        load = Load(die)
        load.warm_up(warm_up_s)
        bound = load.measure().uncertainty_rel
        assert bound is not None
        bounds.append(bound)
        errors.append(abs(load.error_rel))
        held += errors[-1] <= bound
    return (
        f"| {warm_up_s:.0f} s | {median(errors):.1%} | {max(errors):.1%} | {median(bounds):.1%} "
        f"| {held} of {len(errors)} |"
    )


def main() -> None:
    """Print both tables."""
    print(
        "| slow time constant | settled | mean wait | longest | worst error | bound holds |\n|---|---|---|---|---|---|"
    )
    with TemporaryDirectory() as directory:
        for slow_s in SLOW_S:
            print(settled_row(slow_s, Path(directory)), flush=True)
    print("\n| warm-up | median error | worst | median bound | bound holds |\n|---|---|---|---|---|")
    for warm_up_s in WARM_UPS_S:
        print(unsettled_row(warm_up_s), flush=True)


if __name__ == "__main__":
    main()
