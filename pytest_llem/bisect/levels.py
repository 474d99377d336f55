"""What a run says of a commit: one level over its experiments, or why it may not be held against the others.

`command` calls it, for runs of its own and for those of a history. Which conditions must be equal is decided by
`results.comparability` alone.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median

from pytest_llem.bisect.search import RunNoise
from pytest_llem.errors import SettingsError, StoreError
from pytest_llem.results.baselines import BaselineExperiment, required_cycles
from pytest_llem.results.comparability import CALIBRATION, DEVICE_IDS, MACHINE, differences, settings_differences
from pytest_llem.results.gate_rows import why_not_estimates
from pytest_llem.results.history.record import HistoryEntry
from pytest_llem.results.judging import SIDES
from pytest_llem.results.measured_cycles import MeasuredCycles, cycles_of, saved_cycles
from pytest_llem.results.metrics import Metric
from pytest_llem.results.reading import load
from pytest_llem.results.repeatability import read_repeatability
from pytest_llem.results.statistics import within_runs

OF_THE_METER = (CALIBRATION, "meter", "scope", "energy_measured", "metered_devices")
OF_THE_MACHINE = (*MACHINE, DEVICE_IDS, "isolation", *OF_THE_METER)
"""Conditions that no commit changes: where they differ, all runs from here on would."""
MIN_HISTORY = 6
"""Runs of a history that say how much runs differ. Chosen: fewer say less than what is assumed."""
MAX_DEGREES = 12.0
"""Chosen: a history of a hundred runs is of other days, and the search's own runs must be able to say otherwise."""
LEAST_NOISE = 1e-4
"""Chosen: below what any machine repeats; without any noise, no level has a probability."""
OF_CHI_SQUARED = 0.4549
"""Median of the chi-squared distribution with one degree of freedom."""

Cycles = Mapping[str, MeasuredCycles]
"""The valid cycles of a run by experiment."""


def cycles_at(folder: Path, study: str) -> Cycles:
    """The valid cycles of the run in a folder; none where it has none."""
    try:
        results = required_cycles(folder, load(folder)).valid.of_study(study)
    except StoreError:
        return {}
    grouped = ((experiment, cycles_of(group.items)) for (_, experiment), group in results.by_experiment().items())
    return {experiment: cycles for experiment, cycles in grouped if cycles is not None}


def cycles_of_history(entries: Sequence[HistoryEntry]) -> Cycles:
    """The same of the entries of one run in a history."""
    return {
        entry.experiment_id: saved_cycles(
            entry.run.study,
            BaselineExperiment(entry.config_hash, (entry.as_baseline,), entry.settings),
            entry.as_baseline,
        )
        for entry in entries
    }


@dataclass(frozen=True)
class Reference:
    """The first run of the search: every other one must have its experiments, under its conditions."""

    cycles: Cycles
    measure: Metric
    allow: Collection[str]

    def level(self, cycles: Cycles) -> tuple[float | None, str]:
        """The mean logarithm over experiments of a run's geometric means, and why there is none.

        Raises `SettingsError` where the machine or its meter is another by now, which no commit accounts for.
        """
        levels = []
        for experiment, first in self.cycles.items():
            now = cycles.get(experiment)
            if now is None:
                return None, f"{experiment} has no valid cycle"
            values = now.values(self.measure)
            if not values or min(values) <= 0:
                return None, f"{experiment}: {f'{self.measure.name} is 0' if values else now.why(self.measure)}"
            if problem := self._differs(first, now):
                return None, f"{experiment}: {problem}"
            levels.append(fmean(map(math.log, values)))
        return fmean(levels), ""

    def _differs(self, first: MeasuredCycles, now: MeasuredCycles) -> str:
        if mixed := now.mixed(self.allow):
            return "; ".join(mixed)
        if first.config_hash != now.config_hash:
            changed = "; ".join(settings_differences(first.settings, now.settings))
            raise SettingsError(
                f"the study is another than when the search began: {changed}",
                fix="restore it, or begin anew with another --out",
            )
        gains = first.gain_uncertainty_rel, now.gain_uncertainty_rel
        problems = differences(first.conditions, now.conditions, self.measure, 0.0, gains, {*SIDES, *self.allow})
        for problem in problems:
            if problem.partition(":")[0] in OF_THE_MACHINE:
                raise SettingsError(
                    f"not the machine on which the search began: {problem}",
                    fix="keep it for all runs (CUDA_VISIBLE_DEVICES, a locked power limit), or --allow its name",
                )
        return "; ".join(problems)

    def noise(self, history: Sequence[float], study: str, baselines: Path) -> tuple[RunNoise, str]:
        """By how much one run's level varies, and whence that is known; `history` are levels in order of time."""
        runs = [[math.log(value) for value in each.values(self.measure)] for each in self.cycles.values()]
        many = [run for run in runs if len(run) > 1]
        within = within_runs(many)[0] / fmean(map(len, many)) / len(runs) if many else 0.0
        measured = read_repeatability(study, baselines)
        spreads = [measured and measured.of(self.measure.name, each.conditions) for each in self.cycles.values()]
        if spread := next((each for each in spreads if each is not None), None):
            variance = spread.common**2 + spread.between**2 / len(runs) + within
            return _noise(variance, spread.degrees), "as llem aa measured"
        if len(history) >= MIN_HISTORY:
            # Successive differences, and their median: a few changes among the runs do not count.
            squares = median((now - before) ** 2 for before, now in pairwise(history)) / 2 / OF_CHI_SQUARED
            return _noise(squares, min(MAX_DEGREES, len(history) / 3)), "as the history shows"
        return RunNoise(math.sqrt(RunNoise().spread ** 2 + within)), "assumed"


def _noise(variance: float, degrees: float) -> RunNoise:
    return RunNoise(max(math.sqrt(variance), LEAST_NOISE), max(RunNoise().degrees, degrees))


def reference(
    cycles: Cycles, measure: Metric, allow: Collection[str], experiments: Sequence[str]
) -> tuple[Reference | None, str]:
    """That of a run of the good commit, by those experiments that it has in this metric; or why it is none.

    Raises `SettingsError` where it is energy that no sensor measured, unless that is allowed.
    """
    found = {name: each for name, each in cycles.items() if name in experiments}
    usable = {name: each for name, each in found.items() if (values := each.values(measure)) and min(values) > 0}
    if not usable:
        why = next((each.why(measure) for each in found.values()), "no cycle is valid")
        return None, why
    if refused := why_not_estimates(measure, [*usable.values()], allow):
        raise SettingsError(refused, fix="or --metric output_tokens_per_s, or --allow estimated_energy")
    return Reference(usable, measure, allow), ""
