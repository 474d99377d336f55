"""How often the test for carry-over is wrong, and what it finds: simulated studies through the function that judges.

`python -m tests.benchmarks.carry_over [--studies N] [--write-docs]` prints a Markdown table, which docs/uncertainty.md
holds. Each study has levels that differ by tenths, scatter of 1 %, a drift over the run, and one experiment after which
the next one costs more; in some a few experiments, drawn for each study, scatter tenfold.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from pytest_llem.results.carry_over import Follower, effects_of_predecessors
from pytest_llem.study.balanced import rows
from tests.figures import write_figures

NOISE = 0.01
TIMES = 10  # what a noisy experiment scatters over the others
EFFECTS = (0.0, 0.01, 0.02, 0.03)
DESIGNS = (
    ("balanced", 3, 5),
    ("balanced", 4, 4),
    ("balanced", 6, 3),
    ("balanced", 6, 6),
    ("balanced", 7, 14),
    ("balanced", 12, 5),
)
OTHERS = (("shuffled", 6, 3), ("shuffled", 6, 6), ("shuffled", 12, 5))
SIX = (("balanced", 6, 6), ("shuffled", 6, 6))
UNEVEN = (("balanced", 3, 5), *SIX, ("balanced", 12, 5), ("shuffled", 12, 5))
PAGE = Path(__file__).parents[2] / "docs" / "uncertainty.md"
Draw = Callable[[random.Random], float]


def normal(rng: random.Random) -> float:
    """Scatter of the usual shape."""
    return rng.gauss(0, 1)


def skewed(rng: random.Random) -> float:
    """Exponential above a floor."""
    return rng.expovariate(1) - 1


def simulated(
    rng: random.Random,
    order: str,
    experiments: int,
    cycles: int,
    *,
    effect: float = 0.0,
    drift: float = 0.0,
    following: float = 0.0,
    shape: Draw = normal,
    noisy: Collection[int] = (),
) -> list[Follower]:
    """The cycles of one study; `drift` is over the whole run, `following` the correlation of successive cycles."""
    sequence: list[tuple[int, int]] = []
    for cycle, (_, row) in enumerate(rows(experiments, cycles), 1):
        drawn = row if order == "balanced" else rng.sample(range(experiments), experiments)
        sequence += [(experiment, cycle) for experiment in drawn]
    found, error = [], shape(rng)
    for place, ((experiment, cycle), (before, _)) in enumerate(zip(sequence[1:], sequence, strict=False)):
        error = following * error + math.sqrt(1 - following**2) * shape(rng)
        scatter = NOISE * (TIMES if experiment in noisy else 1) * error
        level = 0.1 * experiment + drift * place / len(sequence) + effect * (before == 0) + scatter
        found.append(Follower(str(experiment), cycle, ("gpu",), str(before), math.exp(level)))
    return found


def shares(studies: int, design: tuple[str, int, int], *, noisy: int = 0, **what: object) -> tuple[float, float]:
    """The share of studies that tell something, and of these the share that finds carry-over."""
    rng = random.Random(20261130)
    found = [
        effects_of_predecessors(simulated(rng, *design, noisy=rng.sample(range(design[1]), noisy), **what))  # type: ignore[arg-type]
        for _ in range(studies)
    ]
    told = [each for each in found if not isinstance(each, str)]
    return len(told) / studies, sum(any(after.found for after in each) for each, _ in told) / (len(told) or 1)


def table(studies: int) -> list[str]:
    """The lines of the table."""
    heads = ["order", "experiments", "cycles", "tells", *(f"{effect:.0%}" if effect else "none" for effect in EFFECTS)]
    lines = [f"| {' | '.join(heads)} |", f"|:---|{'---:|' * (len(heads) - 1)}"]
    kinds: Sequence[tuple[str, Sequence[tuple[str, int, int]], dict[str, Any]]] = (
        ("", (*DESIGNS, *OTHERS), {"drift": 0.02}),
        (", one scatters tenfold", UNEVEN, {"drift": 0.02, "noisy": 1}),
        (", two scatter tenfold", UNEVEN, {"drift": 0.02, "noisy": 2}),
        (", skewed scatter", SIX, {"drift": 0.02, "shape": skewed}),
        (", cycles follow one another (0.3)", SIX, {"following": 0.3}),
    )
    for words, designs, what in kinds:
        for design in designs:
            each = [shares(studies, design, effect=effect, **what) for effect in EFFECTS]
            cells = [design[0] + words, str(design[1]), str(design[2]), f"{each[0][0]:.0%}"]
            lines.append(f"| {' | '.join([*cells, *(f'{found:.1%}' for _, found in each)])} |")
    return lines


def main() -> None:
    """Print the table, or write it into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=4000)
    parser.add_argument("--write-docs", action="store_true")
    options = parser.parse_args()
    lines = table(options.studies)
    print(*lines, sep="\n")
    if options.write_docs:
        write_figures("carry-over", "\n".join(lines), PAGE)


if __name__ == "__main__":
    main()
