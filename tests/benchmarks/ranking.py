"""Whether a setting that is called best with some probability is so as often: simulated studies.

`python -m tests.benchmarks.ranking [--studies N] [--write-docs]` prints a Markdown table, which docs/uncertainty.md
holds. Levels are normal, with a spread in standard deviations of a cycle, of which some settings' cycles have several.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

from pytest_llem.results.ranking import chances
from tests.figures import write_figures

NOISE = 0.01
SURE = 0.8
PAGE = Path(__file__).parents[2] / "docs" / "uncertainty.md"
SIZES = ((2, 3), (3, 3), (3, 5), (6, 3), (6, 5), (12, 3), (12, 5))
UNEVEN = ((1, 3.0), (1, 10.0), (1, 30.0), (2, 10.0))


def simulated(
    rng: random.Random, settings: int, cycles: int, spread: float, noisy: int = 0, times: float = 1.0
) -> tuple[float, bool]:
    """The probability that is stated of the most probable setting, and whether it is the best."""
    levels = [rng.gauss(0, spread * NOISE) for _ in range(settings)]
    scatter = [NOISE * times] * noisy + [NOISE] * (settings - noisy)
    values = [[math.exp(rng.gauss(*each)) for _ in range(cycles)] for each in zip(levels, scatter, strict=True)]
    found = chances(values, [0.0] * settings, higher=False, draws=400)
    assert found is not None
    likely = max(range(settings), key=found.__getitem__)
    return found[likely], levels[likely] == min(levels)


def table(studies: int) -> Iterator[str]:
    """The lines of the table."""
    yield "| settings | cycles | noisy ones | spread | stated | so | stated above 80 % | so |"
    yield "|---:|---:|:---|---:|---:|---:|---:|---:|"
    for settings, cycles in SIZES:
        cases = [(0, 1.0, spread) for spread in (0.3, 1.0, 3.0)]
        if settings > 2:
            cases += [(*noisy, spread) for noisy in UNEVEN for spread in (1.0, 3.0)]
        for noisy, times, spread in cases:
            rng = random.Random(20261130)
            found = [simulated(rng, settings, cycles, spread, noisy, times) for _ in range(studies)]
            sure = [right for stated, right in found if stated > SURE]
            right = f"{fmean(sure):.0%}" if len(sure) >= studies / 50 else "too few"
            stated, so = fmean(share for share, _ in found), fmean(right for _, right in found)
            cells = [f"{noisy} × {times:g}" if noisy else "-", f"{spread:g}", f"{stated:.0%}", f"{so:.0%}"]
            yield f"| {settings} | {cycles} | {' | '.join(cells)} | {len(sure) / studies:.0%} | {right} |"


def main() -> None:
    """Print the table, or write it into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--write-docs", action="store_true")
    options = parser.parse_args()
    lines = []
    for line in table(options.studies):
        print(line, flush=True)
        lines.append(line)
    if options.write_docs:
        write_figures("ranking", "\n".join(lines), PAGE)


if __name__ == "__main__":
    main()
