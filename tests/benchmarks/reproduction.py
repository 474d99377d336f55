"""How often `llem reproduce` decides rightly: two simulated laboratories with boards, leakage and noise of their own.

`python -m tests.benchmarks.reproduction [--pairs N] [--write-docs]` prints the table that docs/reproduce.md holds. Each
pair of laboratories measures four settings. A laboratory has a board gain (5 %, k=2), leakage (its share of a setting's
energy differs), a level of each run, and scatter of each cycle; the second's last setting may truly cost more.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from pytest_llem.results.metrics import metric
from pytest_llem.results.reading import Results
from pytest_llem.results.reproduction import ReproductionStatus, judge_reproduction
from pytest_llem.results.schema import Result
from tests.figures import write_figures
from tests.unit.results.conftest import Bench

PAGE = Path(__file__).parents[2] / "docs" / "reproduce.md"
SETTINGS = {"a": (1.0, 0.20), "b": (0.6, 0.22), "c": (0.4, 0.26), "d": (0.3, 0.30)}
"""Joules per token of each setting, and the share of it that leaks."""
GAIN_REL = 0.025
"""Standard deviation of a board's gain: 5 % at k=2 (arXiv 2312.02741)."""
SENSOR_REL = 0.002
"""Standard deviation of what the sensor errs by in a cycle, stated as twice that."""


@dataclass(frozen=True)
class Noise:
    """Standard deviations: of a cycle, of a run's level, and how far the leakage of a board is from another's."""

    cycle: float = 0.01
    run: float = 0.01
    leakage: float = 0.1


CASES: dict[str, tuple[float, Noise, int]] = {
    "equal": (0.0, Noise(), 5),
    "equal, three cycles": (0.0, Noise(), 3),
    "equal, leakage of a board 20 % from another's": (0.0, Noise(leakage=0.2), 5),
    "equal, cycles scatter by 2 %": (0.0, Noise(cycle=0.02), 5),
    "equal, cycles scatter by 3 %": (0.0, Noise(cycle=0.03), 5),
    "one setting costs 5 % more, the margin": (0.05, Noise(leakage=0.0), 5),
    "one setting costs 10 % more": (0.10, Noise(), 5),
    "one setting costs 10 % more, cycles scatter by 3 %": (0.10, Noise(cycle=0.03), 5),
    "one setting costs 15 % more": (0.15, Noise(), 5),
}


@cache
def template() -> Result:
    return Bench().result()


def laboratory(rng: random.Random, name: str, noise: Noise, cycles: int, more: float = 0.0) -> Results:
    """The run of one laboratory, whose last setting truly costs `more`, as a share."""
    of = template()
    gain, leakage = rng.gauss(1, GAIN_REL), rng.gauss(1, noise.leakage)
    level = rng.gauss(1, noise.run)
    results: list[Result] = []
    for setting, (joules, leaking) in SETTINGS.items():
        costs = joules * (1 + leaking * (leakage - 1)) * (1 + more * (setting == "d")) * gain * level
        for cycle in range(1, cycles + 1):
            value = costs * rng.gauss(1, noise.cycle) * rng.gauss(1, SENSOR_REL)
            energy = replace(
                of.energy,
                joules_per_output_token=value,
                energy_j=1000 * value,
                uncertainty_j=2 * SENSOR_REL * 1000 * value,
                gain_uncertainty_rel=2 * GAIN_REL,
            )
            experiment = replace(of.experiment, id=setting, config_hash=setting)
            changes = {"run_id": name, "experiment": experiment, "cycle": cycle, "energy": energy}
            results.append(of.model_copy(update=changes))
    return Results(tuple(results))


def verdicts(pairs: int, more: float, noise: Noise, cycles: int, seed: int = 0) -> Counter[ReproductionStatus]:
    """How often each verdict falls, over so many pairs of laboratories."""
    rng = random.Random(seed)
    measure = metric("joules_per_output_token")
    return Counter(
        judge_reproduction(
            laboratory(rng, "there", noise, cycles), laboratory(rng, "here", noise, cycles, more), measure
        ).status
        for _ in range(pairs)
    )


def rates(pairs: int) -> str:
    """The table as Markdown."""
    lines = ["| laboratories | equivalent | different | inconclusive |", "|:---|---:|---:|---:|"]
    for name, (more, noise, cycles) in CASES.items():
        found = verdicts(pairs, more, noise, cycles)
        shares = [f"{found[status] / pairs:.1%}" for status in ("equivalent", "different", "inconclusive")]
        lines.append(f"| {name} | {' | '.join(share.replace('%', ' %') for share in shares)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--write-docs", action="store_true")
    options = parser.parse_args(arguments)
    text = rates(options.pairs)
    print(text)
    if options.write_docs:
        write_figures("reproductions", text, PAGE)


if __name__ == "__main__":
    main()
