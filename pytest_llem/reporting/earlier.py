"""How long a study will take, from what its experiments took before."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pytest_llem.results.durations import cycle_seconds
from pytest_llem.results.layout import HASH_LENGTH, RESULT, run_directories
from pytest_llem.study import Study
from pytest_llem.study.canonical import getter

MAX_RUNS = 20
MAX_READ = 200
"""Results that are read at most: the estimate of a large study rests on a part of it, and says so."""


@dataclass(frozen=True)
class TimeEstimate:
    """`seconds` for all cycles, experiments that are not `covered` by an earlier result counted as the others' mean.

    Without any earlier result, `seconds` is `None`. `at_least_s` is what the windows alone take.
    """

    seconds: float | None
    covered: int
    experiments: int
    at_least_s: float


def estimate_time(study: Study, out: Path) -> TimeEstimate:
    """The estimate from the newest results below `out` of the same experiments, by their `config_hash`."""
    cycles = study.execution.cycles
    durations = list(_durations(study, out))
    mean = sum(durations) / len(durations) if durations else None
    count = len(study.experiments)
    return TimeEstimate(
        None if mean is None else mean * count * cycles, len(durations), count, _windows_s(study) * cycles
    )


def _durations(study: Study, out: Path) -> Iterable[float]:
    runs = run_directories(out)[:MAX_RUNS]
    if not runs:
        return
    wanted = {experiment.config_hash for experiment in study.experiments}
    shortened = {full[:HASH_LENGTH] for full in wanted}
    read = 0
    for run in runs:
        for directory in run.glob("*/*"):
            if read >= MAX_READ or not wanted:
                return
            if directory.name[-HASH_LENGTH:] not in shortened:
                continue
            read += 1
            found = _newest(directory)
            if found is not None and found[0] in wanted:
                wanted.discard(found[0])
                yield found[1]


def _newest(directory: Path) -> tuple[str, float] | None:
    """Hash and seconds of one cycle of an experiment: the last, which no longer pays for a first start."""
    for path in sorted(directory.glob(f"c*/{RESULT}"), reverse=True):
        found = cycle_seconds(path)
        if found is not None:
            return found
    return None


def _windows_s(study: Study) -> float:
    """Seconds of the idle and measure windows of one cycle of every experiment."""
    total = 0.0
    for experiment in study.experiments:
        get = getter(experiment.leaves)
        for path in ("measurement.min_duration_s", "measurement.idle.duration_s"):
            value = get(path)
            total += value if isinstance(value, (int, float)) else 0.0
    return total


def duration_text(seconds: float) -> str:
    """Seconds as people say them: `40 s`, `12 min`, `3.5 h`, `2.1 days`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"
