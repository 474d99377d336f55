"""How often printed intervals hold the true value: of an experiment, value ± expanded uncertainty, and of an effect.

`python -m tests.benchmarks.uncertainty_coverage [--studies N] [--write-docs]` prints two Markdown tables, which
docs/uncertainty.md holds. For the first, each simulated study draws every component from its distribution: scatter anew
in each cycle; the sensor's error, the thermal state's and the run's own level once for all its cycles. Both go through
the functions that make the printed interval.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

from pytest_llem.results.distributions import student_quantile
from pytest_llem.results.effects import LogRatio, interval
from pytest_llem.results.sections.performance import percentile
from pytest_llem.results.statistics import COVERAGE, K, log_ratio
from pytest_llem.results.uncertainty import (
    ONE_RUN,
    Component,
    between_runs,
    expanded,
    scatter,
    sensor,
    thermal,
)
from tests.figures import write_figures

SENSOR_REL, THERMAL_REL = 0.005, 0.005
"""Expanded relative uncertainties (k=2) of the simulated sensor and thermal state."""
NOISES = (0.002, 0.005, 0.01, 0.02, 0.05)
CYCLES = (3, 5, 10)
PAGE = Path(__file__).parents[2] / "docs" / "uncertainty.md"
PAIRS = (1, 2, 3, 6, 10)
EFFECT_NOISE, DEPENDENCE = 0.01, 0.1
"""Standard deviations of the cycles' logarithms, and of the effect between pairs."""

Draw = Callable[[random.Random], float]
LOG_SHAPE = 0.5
"""Of the lognormal scatter: its skewness is then 1.75."""
LOG_MEAN = math.exp(LOG_SHAPE**2 / 2)
LOG_DEVIATION = LOG_MEAN * math.sqrt(math.exp(LOG_SHAPE**2) - 1)

SHAPES: dict[str, Draw] = {
    "normal": lambda rng: rng.gauss(0, 1),
    "lognormal": lambda rng: (rng.lognormvariate(0, LOG_SHAPE) - LOG_MEAN) / LOG_DEVIATION,
    "skewed": lambda rng: rng.expovariate(1) - 1,
}
"""Scatter with mean 0 and standard deviation 1; *skewed* is exponential above a floor."""


def by_effective_degrees(parts: Sequence[Component]) -> float:
    """The expanded uncertainty of JCGM 100:2008, G.6.4, for comparison: Student's t with the effective degrees."""
    variance = sum(part.contribution**2 for part in parts)
    degrees = variance**2 / sum(part.contribution**4 / part.degrees for part in parts if part.degrees)
    return student_quantile((1 + COVERAGE) / 2, float(f"{min(degrees, 1000):.2g}")) * math.sqrt(variance)


def coverage(
    shape: str,
    cycles: int,
    noise: float,
    *,
    studies: int,
    seed: int = 0,
    combine: Callable[[Sequence[Component]], float] = expanded,
) -> float:
    """The share of studies whose interval holds the true value, 1; `noise` is the scatter's standard deviation."""
    rng = random.Random(f"{seed} {shape} {cycles} {noise}")
    draw = SHAPES[shape]
    held = 0
    for _ in range(studies):
        common = rng.gauss(0, SENSOR_REL / K) + rng.gauss(0, THERMAL_REL / K) + rng.gauss(0, ONE_RUN)
        values = [1 + common + noise * draw(rng) for _ in range(cycles)]
        mean = fmean(values)
        stated = [SENSOR_REL * value for value in values]
        parts = [
            scatter(values),
            sensor(stated, [1.0] * cycles),
            between_runs(mean),
            thermal([THERMAL_REL] * cycles, mean),
        ]
        held += abs(mean - 1) <= combine(parts)
    return held / studies


def half_iqr_coverage(shape: str, cycles: int, *, studies: int, seed: int = 0) -> float:
    """The same of the median ± half an interquartile range, against scatter alone, whose true value is its median."""
    rng = random.Random(f"{seed} {shape} {cycles}")
    true = {"normal": 0.0, "lognormal": (1 - LOG_MEAN) / LOG_DEVIATION, "skewed": math.log(2) - 1}[shape]
    held = 0
    for _ in range(studies):
        values = sorted(SHAPES[shape](rng) for _ in range(cycles))
        half = (percentile(values, 0.75) - percentile(values, 0.25)) / 2
        held += abs(percentile(values, 0.5) - true) <= half
    return held / studies


def markdown(studies: int) -> str:
    """The table: a row per shape and noise, a column per number of cycles."""
    lines = ["| scatter | its size | " + " | ".join(f"{count} cycles" for count in CYCLES) + " |"]
    lines.append("|:---|---:|" + "---:|" * len(CYCLES))
    for shape in SHAPES:
        for noise in NOISES:
            cells = [f"{coverage(shape, count, noise, studies=studies):.1%}" for count in CYCLES]
            lines.append(f"| {shape} | {noise:.1%} | " + " | ".join(cells) + " |")
    for noise in NOISES:
        cells = [
            f"{coverage('normal', count, noise, studies=studies, combine=by_effective_degrees):.1%}" for count in CYCLES
        ]
        lines.append(f"| normal, factor by effective degrees | {noise:.1%} | " + " | ".join(cells) + " |")
    for shape in SHAPES:
        cells = [f"{half_iqr_coverage(shape, count, studies=studies):.1%}" for count in CYCLES]
        lines.append(f"| {shape}: median ± half an interquartile range | any | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def effect_coverage(pairs: int, cycles: int, depends: float, *, studies: int, seed: int = 0) -> tuple[float, float]:
    """The shares of studies whose interval of an effect holds its mean over the pairs, and that over all settings."""
    rng = random.Random(f"{seed} {pairs} {cycles} {depends}")
    here = everywhere = 0
    for _ in range(studies):
        true = [rng.gauss(0, depends) for _ in range(pairs)]
        sides = [[[rng.lognormvariate(level, EFFECT_NOISE) for _ in range(cycles)] for level in (0, t)] for t in true]
        low, high = interval([LogRatio(*log_ratio(before, now)) for before, now in sides])
        assert low is not None
        assert high is not None
        here += math.log(low) <= fmean(true) <= math.log(high)
        everywhere += low <= 1 <= high
    return here / studies, everywhere / studies


def effects_markdown(studies: int) -> str:
    """The table of effects: a row per number of pairs."""
    head = [*(f"{cycles} cycles" for cycles in (2, 3, 5)), "depends, 3 cycles", "for settings that were not measured"]
    lines = ["| pairs | " + " | ".join(head) + " |", "|---:|" + "---:|" * len(head)]
    for pairs in PAIRS:
        alike = [effect_coverage(pairs, cycles, 0.0, studies=studies)[0] for cycles in (2, 3, 5)]
        depends = effect_coverage(pairs, 3, DEPENDENCE, studies=studies)
        lines.append(f"| {pairs} | " + " | ".join(f"{share:.1%}" for share in (*alike, *depends)) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=20000)
    parser.add_argument("--write-docs", action="store_true", help=f"put the table into {PAGE.name}")
    options = parser.parse_args(arguments)
    for name, table in (("coverage", markdown(options.studies)), ("effects", effects_markdown(options.studies))):
        print(table)
        if options.write_docs:
            write_figures(name, table, PAGE)


if __name__ == "__main__":
    main()
