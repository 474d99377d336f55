"""Whether a setting that is called best with some probability is so as often: simulated studies.

`python -m tests.benchmarks.ranking [--studies N] [--write-docs]` prints a Markdown table, which docs/uncertainty.md
holds. Levels are normal, with a spread in standard deviations of a cycle. `--uneven 10` lets the first setting scatter
tenfold, which the model does not know.
"""

from __future__ import annotations

import argparse
import math
import random
from pathlib import Path
from statistics import fmean

from pytest_llem.results.ranking import chances
from tests.figures import write_figures

NOISE = 0.01
SURE = 0.8
PAGE = Path(__file__).parents[2] / "docs" / "uncertainty.md"


def simulated(rng: random.Random, settings: int, cycles: int, spread: float, uneven: float = 1.0) -> tuple[float, bool]:
    """The probability that is stated of the most probable setting, and whether it is the best."""
    levels = [rng.gauss(0, spread * NOISE) for _ in range(settings)]
    scatter = [NOISE * uneven, *[NOISE] * (settings - 1)]
    values = [[math.exp(rng.gauss(*each)) for _ in range(cycles)] for each in zip(levels, scatter, strict=True)]
    found = chances(values, [0.0] * settings, higher=False, draws=400)
    assert found is not None
    likely = max(range(settings), key=found.__getitem__)
    return found[likely], levels[likely] == min(levels)


def table(studies: int, uneven: float = 1.0) -> list[str]:
    """The lines of the table."""
    lines = [
        "| settings | cycles | spread | stated | so | stated above 80 % | so |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for settings, cycles in ((2, 3), (3, 3), (6, 3), (6, 5), (12, 5)):
        for spread in (0.3, 1.0, 3.0):
            rng = random.Random(20261130)
            found = [simulated(rng, settings, cycles, spread, uneven) for _ in range(studies)]
            sure = [right for stated, right in found if stated > SURE]
            right = f"{fmean(sure):.0%}" if len(sure) >= studies / 50 else "too few"
            stated, so = fmean(share for share, _ in found), fmean(right for _, right in found)
            cells = [f"{spread:g}", f"{stated:.0%}", f"{so:.0%}", f"{len(sure) / studies:.0%}", right]
            lines.append(f"| {settings} | {cycles} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Print the table, or write it into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--uneven", type=float, default=1.0)
    parser.add_argument("--write-docs", action="store_true")
    options = parser.parse_args()
    lines = table(options.studies, options.uneven)
    print(*lines, sep="\n")
    if options.write_docs and options.uneven == 1:
        write_figures("ranking", "\n".join(lines), PAGE)


if __name__ == "__main__":
    main()
