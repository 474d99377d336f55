"""How much equal runs of a study differ on one machine: variance components, kept beside the baselines.

`aa` estimates and writes them; gates and budgets of uncertainty take them in place of what is otherwise assumed.
`llem-baselines/<study>.aa.json` is a published format: fields may be added, never renamed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, harmonic_mean

from pytest_llem.errors import JsonValue, SettingsError
from pytest_llem.job.wire import read_versioned
from pytest_llem.results.comparability import MACHINE, POWER_LIMIT, Conditions, common_conditions
from pytest_llem.results.gates import MIN_CYCLES
from pytest_llem.results.layout import repeatability_file
from pytest_llem.results.schema import Result
from pytest_llem.results.statistics import RunSpread, within_runs

REPEATABILITY_VERSION = 1
"""Raised when a field is renamed, removed or changes its meaning."""
MIN_RUNS = 3
"""Chosen: two runs have one degree of freedom, which says next to nothing about a standard deviation."""
BASELINES = Path("llem-baselines")
"""The session's default directory of baselines, seen from where a command is called."""

Runs = Mapping[str, Sequence[float]]
"""The values of one metric by run, of one experiment."""


@dataclass(frozen=True)
class Spread:
    """By how much values of equal work differ, as relative standard deviations.

    `within_run` is that between cycles; `common` that of what a whole run shares; `between_runs` what a run adds to
    each experiment by itself. With one experiment the last two cannot be told apart: `common` is then `null`.
    """

    within_run: float
    common: float | None
    between_runs: float
    degrees: int

    @property
    def of_runs(self) -> RunSpread:
        """The part that gates know only from here."""
        return RunSpread(self.common or 0.0, self.between_runs, self.degrees)


@dataclass(frozen=True)
class Repeatability:
    """`<study>.aa.json`: what equal runs of a study differ by, on the machine that `conditions` describe."""

    study: str
    made_at: str
    runs: tuple[str, ...]
    conditions: Mapping[str, JsonValue]
    metrics: Mapping[str, Spread]
    schema_version: int = REPEATABILITY_VERSION

    def of(self, metric: str, conditions: Conditions) -> RunSpread | None:
        """By how much runs differ under these conditions; `None` where that was not measured."""
        spread = self.metrics.get(metric)
        return spread.of_runs if spread is not None and self.covers(conditions) else None

    def covers(self, conditions: Conditions) -> bool:
        """Whether it was measured on the machine of these conditions; over a sweep's power limits it is of each."""
        now = machine(conditions)
        limit, limits = now[POWER_LIMIT], self.conditions.get(POWER_LIMIT)
        swept = isinstance(limit, (list, tuple)) and isinstance(limits, (list, tuple)) and {*limit} <= {*limits}
        return {**now, POWER_LIMIT: limits if swept else limit} == self.conditions


def machine(conditions: Conditions) -> dict[str, JsonValue]:
    """The conditions that a machine's repeatability belongs to."""
    return {name: conditions.get(name) for name in (*MACHINE, "runner", "isolation")}


def read_repeatability(study: str, directory: Path) -> Repeatability | None:
    """What was measured for a study; `None` if nothing was. `StoreError` when the file is broken or newer."""
    path = repeatability_file(study, directory)
    return read_versioned(Repeatability, path, REPEATABILITY_VERSION, "repeatability") if path.exists() else None


def spreads(results: Sequence[Result], directory: Path | None) -> Callable[[str], RunSpread | None]:
    """By metric, what equal runs of one experiment's study differ by here; `None` where `directory` does not say."""
    found = read_repeatability(results[0].study, directory) if results and directory is not None else None
    conditions = common_conditions(results) if found is not None else {}
    return lambda name: None if found is None else found.of(name, conditions)


def estimate(experiments: Sequence[Runs]) -> Spread:
    """The variances within runs, common to a run, and between runs, by the method of moments on the logarithms.

    Two-way analysis of variance without replication of the run means, experiments by runs, less what the cycles
    explain (Searle, Casella and McCulloch, "Variance Components", 1992, chapter 4); estimates below zero are zero. Only
    runs that all experiments have count. Raises `SettingsError` with fewer than three of them.
    """
    names = sorted(set.intersection(*(set(runs) for runs in experiments))) if experiments else []
    if len(names) < MIN_RUNS:
        raise SettingsError(
            f"{len(names)} runs have {MIN_CYCLES} valid cycles of every experiment, and {MIN_RUNS} are needed",
            fix="measure more: --runs 5, or look into why cycles are invalid",
        )
    logs = [[[math.log(value) for value in runs[name]] for name in names] for runs in experiments]
    each = [(within_runs(runs), sum(len(run) - 1 for run in runs)) for runs in logs]
    within = sum(variance * weight for (variance, _), weight in each) / sum(weight for _, weight in each)
    explained = within / harmonic_mean([len(run) for runs in logs for run in runs])

    means = [[fmean(run) for run in runs] for runs in logs]
    levels = [[mean - fmean(row) for mean in row] for row in means]
    shared = [fmean(column) for column in zip(*levels, strict=True)]
    degrees, count = len(names) - 1, len(levels)
    of_runs = sum(level**2 for level in shared) / degrees
    if count == 1:
        return Spread(math.sqrt(within), None, math.sqrt(max(0.0, of_runs - explained)), degrees)
    own = sum((level - both) ** 2 for row in levels for level, both in zip(row, shared, strict=True))
    of_each = own / (degrees * (count - 1))
    common = math.sqrt(max(0.0, of_runs - of_each / count))
    return Spread(math.sqrt(within), common, math.sqrt(max(0.0, of_each - explained)), degrees)
