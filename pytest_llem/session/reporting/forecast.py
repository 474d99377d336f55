"""How long a study takes: a plan's estimate from earlier results, and what is left of a run that goes on.

`plan` prints the first, `live` shows the second. Estimates are for people and may get better; they must cost little
beside a measurement, and never take a reused result for a measured one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

from pytest_llem.results.layout import HASH_LENGTH, RESULT, run_directories
from pytest_llem.results.manifest import StudyPlan
from pytest_llem.results.terminal import duration_text
from pytest_llem.session.sharding import cycle_estimates
from pytest_llem.study import Study
from pytest_llem.study.canonical import getter

MAX_RUNS = 20
"""Runs that are looked through at most. Chosen: the newest say most about the present machine and settings."""

MAX_READ = 200
"""Results that are read at most. Chosen: that takes about a second, and the estimate says what it covers."""


@dataclass(frozen=True)
class TimeEstimate:
    """`seconds` for all cycles, experiments that are not `covered` by an earlier result counted as the others' mean.

    Without any earlier result, `seconds` is `None`. `at_least_s` is what the windows alone take. Of a race it is what
    all cycles would take, for nobody knows yet which are needed.
    """

    seconds: float | None
    covered: int
    at_least_s: float


def estimate_time(study: Study, out: Path) -> TimeEstimate:
    """The estimate from the newest results below `out` of the same experiments, by their `config_hash`."""
    cycles = study.execution.cycles if study.optimize is None else study.last_cycle
    durations = list(earlier_seconds(study, out).values())
    mean = sum(durations) / len(durations) if durations else None
    seconds = None if mean is None else mean * len(study.experiments) * cycles
    return TimeEstimate(seconds, len(durations), _windows_s(study) * cycles)


def earlier_seconds(study: Study, out: Path) -> dict[str, float]:
    """Seconds of a cycle in the newest results below `out`, by the `config_hash` of experiments that have any."""
    wanted = {experiment.config_hash for experiment in study.experiments}
    shortened = {full[:HASH_LENGTH] for full in wanted}
    found: dict[str, float] = {}
    read = 0
    for run in run_directories(out)[:MAX_RUNS]:
        for directory in run.glob("*/*"):
            if read >= MAX_READ or len(found) == len(wanted):
                return found
            if directory.name[-HASH_LENGTH:] not in shortened:
                continue
            read += 1
            newest = _newest(directory)
            if newest is not None and newest[0] in wanted:
                found.setdefault(*newest)
    return found


def _newest(directory: Path) -> tuple[str, float] | None:
    """Config hash and seconds of an experiment's last cycle, which does not include a first start."""
    from pytest_llem.results.reading import cycle_seconds

    newest_first = sorted(directory.glob(f"c*/{RESULT}"), reverse=True)
    return next((seconds for path in newest_first if (seconds := cycle_seconds(path)) is not None), None)


def _windows_s(study: Study) -> float:
    """Seconds of the idle and measure windows of one cycle of every experiment."""
    total = 0.0
    for experiment in study.experiments:
        get = getter(experiment.flat_settings)
        for path in ("measurement.min_duration_s", "measurement.idle.duration_s"):
            value = get(path)
            total += value if isinstance(value, (int, float)) else 0.0
    return total


TELLING = 2
"""Cycles that tell more than earlier results do. Chosen: the first one also waits for what starts once in a run."""


class Planned(NamedTuple):
    """A cycle of the plan: the `config_hash` of its experiment, and the seconds that it may take."""

    config_hash: str
    seconds: float


def planned_cycles(
    plans: Iterable[StudyPlan], studies: Iterable[Study], run_dir: Path
) -> tuple[dict[Path, Planned], bool]:
    """The cycles of a run by directory, and whether any earlier result says how long they really take.

    Of a race these are all that it may come to.
    """
    by_name = {study.name: study for study in studies}
    cycles: dict[Path, Planned] = {}
    known = False
    for plan in plans:
        study = by_name.get(plan.name)
        recorded = earlier_seconds(study, run_dir.parent) if study is not None else {}
        estimates = cycle_estimates(study.experiments, recorded) if study is not None else {}
        known = known or bool(recorded)
        most = 0 if study is None or study.optimize is None else study.last_cycle
        for key in plan.cycle_keys():
            for each in [replace(key, cycle=number) for number in range(1, most + 1)] or [key]:
                cycles[run_dir / each.directory] = Planned(key.config_hash, estimates.get(key.experiment_id, 1.0))
    return cycles, known


class Forecast:
    """Follows a run's cycles by their directories, and says which it is at and about how long the rest takes.

    What is measured now tells more than any estimate: an experiment that was seen counts as its cycles did, others in
    proportion, and the time since the first began, which knows how many run side by side, gives the pace. Where these
    are the cycles `at_most`, as with a race, nobody knows what is left.
    """

    def __init__(self, cycles: Mapping[Path, Planned], *, known: bool, at_most: bool = False) -> None:
        self._cycles = cycles
        self._known = known
        self._at_most = at_most
        self._began: dict[Path, float] = {}
        self._running: set[Path] = set()
        self._seen: dict[Path, float] = {}
        self._done: set[Path] = set()
        self._first: float | None = None
        self._last: float | None = None
        self._rest: float | None = None

    def began(self, directory: Path, at: float) -> None:
        """A cycle is measured, or once more after an attempt that was not valid."""
        if directory in self._cycles and directory not in self._running:
            self._done.discard(directory)
            self._running.add(directory)
            self._began.setdefault(directory, at)
            self._first = at if self._first is None else min(self._first, at)
            self._rest = None

    def ended(self, directory: Path, at: float) -> None:
        """A cycle has ended; one that never began was reused, and says nothing of how long others take."""
        if directory not in self._cycles or directory in self._done:
            return
        self._done.add(directory)
        self._rest = None
        if directory in self._running:
            self._running.discard(directory)
            self._seen[directory] = at - self._began[directory]
            self._last = at

    def text(self, now: float) -> str:
        """`[5/24, about 12 min left]`, or `[5 of at most 24]`: the cycle that is measured, of all that are planned."""
        count = len(self._cycles)
        if self._at_most:
            return f"[{len(self._done) + len(self._running)} of at most {count}]"
        seconds = self._left(now)
        left = "" if seconds is None or seconds < 1 else f", about {duration_text(seconds)} left"
        return f"[{min(len(self._done) + len(self._running), count)}/{count}{left}]"

    def _left(self, now: float) -> float | None:
        if self._first is None or (self._last is None and not self._known):
            return None
        if self._rest is None:  # sums over the whole plan: not at every look
            weights = self._weights()
            rest = sum(weight for directory, weight in weights.items() if directory not in self._done)
            if self._last is None or (self._known and len(self._seen) < TELLING):
                self._rest = rest / max(1, len(self._running))
            else:
                spent = self._last - self._first - self._first_start()
                self._rest = rest * spent / max(sum(weights[directory] for directory in self._seen), 1e-9)
        return self._rest - (now - (self._last or self._first))

    def _first_start(self) -> float:
        """Seconds by which the cycle that ended first took longer than others: it waited for what starts once."""
        first, *others = self._seen
        pace = median([self._seen[each] / self._cycles[each].seconds for each in others]) if others else math.inf
        return max(0.0, self._seen[first] - pace * self._cycles[first].seconds)

    def _weights(self) -> dict[Path, float]:
        """Seconds of each cycle alone: as its experiment was seen to take, else in the proportion of the estimates."""
        if self._known and len(self._seen) < TELLING:
            return {directory: planned.seconds for directory, planned in self._cycles.items()}
        seen: dict[str, list[float]] = {}
        start = self._first_start() if self._seen else 0.0
        for number, (directory, seconds) in enumerate(self._seen.items()):
            taken = seconds - start if number == 0 else seconds
            seen.setdefault(self._cycles[directory].config_hash, []).append(taken)
        means = {config_hash: sum(times) / len(times) for config_hash, times in seen.items()}
        estimated = sum(self._cycles[directory].seconds for directory in self._seen)
        scale = sum(map(sum, seen.values())) / estimated if estimated else 1.0
        return {
            directory: means.get(planned.config_hash, planned.seconds * scale)
            for directory, planned in self._cycles.items()
        }
