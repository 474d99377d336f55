"""What a history says of each experiment and metric: its levels, the spread between its runs, and what changed.

`llem history show` and `check` print it, as JSON too, whose keys stay. It reads no files and decides nothing new:
segments and change points are those of `series`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from pytest_llem.job.metric_names import HEADLINE, known_metric
from pytest_llem.results.history.changes import ChangePoint
from pytest_llem.results.history.record import HistoryEntry
from pytest_llem.results.history.series import Segment, Series, series
from pytest_llem.results.statistics import BETWEEN_RUNS, PRIOR_RUNS, half_width

RUNS_FOR_SPREAD = 3
"""Chosen: a standard deviation of two says nothing."""
BOUND = 0.05
"""Level of each bound, as of a gate's."""


@dataclass(frozen=True)
class RunNamed:
    """A run and its commit; `at` orders runs, `None` is what is not known."""

    run_id: str
    at: str
    commit: str | None
    dirty: bool | None

    @classmethod
    def of(cls, entry: HistoryEntry) -> RunNamed:
        """The run of an entry."""
        return cls(entry.run.run_id, entry.run.at, entry.run.commit, entry.run.dirty)


@dataclass(frozen=True)
class Change:
    """A change point with the runs around it: the last `before`, the `first` of the new level, and that which `found`
    it. It happened between `earliest` and `latest`, first runs after it, with 95 %; `before_earliest` has none of it.

    `ratio` is new over old, `low` and `high` are bounds, each one-sided at 5 %. `newest`: the newest run completed it.
    """

    study: str
    experiment_id: str
    metric: str
    worse: bool
    ratio: float
    low: float
    high: float
    before: RunNamed
    first: RunNamed
    found: RunNamed
    before_earliest: RunNamed
    earliest: RunNamed
    latest: RunNamed
    newest: bool


@dataclass(frozen=True)
class SegmentShown:
    """Runs that may be compared. `level` is that since the last change, in the metric's unit, with one-sided bounds at
    5 %; `spread` the relative standard deviation between its runs, `None` below three.

    `values` are the runs' means. `zeros` of them have a cycle at 0, and so no ratio: no change point regards them.
    """

    number: int
    begun_by: tuple[str, ...]
    first: RunNamed
    last: RunNamed
    values: tuple[float, ...]
    zeros: int
    level: float
    low: float | None
    high: float | None
    spread: float | None
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class SeriesShown:
    """One metric of one experiment."""

    study: str
    experiment_id: str
    metric: str
    unit: str
    higher_is_better: bool
    segments: tuple[SegmentShown, ...]

    @property
    def changes(self) -> Iterator[Change]:
        """Those of all segments."""
        for segment in self.segments:
            yield from segment.changes


def overview(entries: Sequence[HistoryEntry], metrics: Sequence[str]) -> list[SeriesShown]:
    """Each series of these metrics, or of those that each study watches where none is named."""
    by_study: dict[str, list[HistoryEntry]] = {}
    for entry in entries:
        by_study.setdefault(entry.run.study, []).append(entry)
    return [
        _shown(each)
        for of_study in by_study.values()
        for name in metrics or watched(of_study)
        for each in series(of_study, name)
    ]


def watched(entries: Iterable[HistoryEntry]) -> list[str]:
    """The metrics that the study has gates on, else its joules per output token, else the first that it has."""
    measured: dict[str, None] = {}
    limited: dict[str, None] = {}
    for entry in entries:
        measured.update(dict.fromkeys(filter(known_metric, entry.metrics)))
        limited.update(dict.fromkeys(entry.verdicts))
    return [name for name in limited if name in measured] or [
        name for name in (HEADLINE, *measured) if name in measured
    ][:1]


def _shown(each: Series) -> SeriesShown:
    measure = known_metric(each.metric)
    assert measure is not None
    newest = max((segment.entries[-1] for segment in each.segments), key=lambda entry: entry.run.at)
    segments = tuple(_segment(each, segment, newest, measure.higher_is_better) for segment in each.segments)
    return SeriesShown(each.study, each.experiment_id, each.metric, measure.unit, measure.higher_is_better, segments)


def _segment(each: Series, segment: Segment, newest: HistoryEntry, higher_is_better: bool) -> SegmentShown:
    cycles = [entry.metrics[each.metric].cycles for entry in segment.entries]
    level, low, high, spread = level_of([entry.metrics[each.metric].cycles for entry in segment.level])
    return SegmentShown(
        number=segment.number,
        begun_by=segment.begun_by,
        first=RunNamed.of(segment.entries[0]),
        last=RunNamed.of(segment.entries[-1]),
        values=tuple(entry.metrics[each.metric].value for entry in segment.entries),
        zeros=sum(min(run) <= 0 for run in cycles),
        level=level,
        low=low,
        high=high,
        spread=spread,
        changes=tuple(_change(each, segment, change, newest, higher_is_better) for change in segment.changes),
    )


def _change(
    each: Series, segment: Segment, change: ChangePoint, newest: HistoryEntry, higher_is_better: bool
) -> Change:
    def run(number: int) -> RunNamed:
        return RunNamed.of(segment.entries[number])

    return Change(
        study=each.study,
        experiment_id=each.experiment_id,
        metric=each.metric,
        worse=(change.ratio < 1) == higher_is_better,
        ratio=change.ratio,
        low=change.low,
        high=change.high,
        before=run(change.first - 1),
        first=run(change.first),
        found=run(change.found),
        before_earliest=run(max(0, change.first - change.earlier - 1)),
        earliest=run(change.first - change.earlier),
        latest=run(change.first + change.later),
        newest=segment.entries[change.found] is newest,
    )


def level_of(runs: Sequence[Sequence[float]]) -> tuple[float, float | None, float | None, float | None]:
    """The geometric mean of runs, its bounds, and the relative standard deviation between the runs.

    The variance is shrunk towards the assumed one, as a gate's is. Where a run has a value of 0 it is the arithmetic
    mean alone.
    """
    if min(map(min, runs)) <= 0:
        return fmean(map(fmean, runs)), None, None, None
    logs = [fmean(map(math.log, run)) for run in runs]
    mean = fmean(logs)
    degrees = PRIOR_RUNS + len(logs) - 1
    squares = sum((each - mean) ** 2 for each in logs)
    reach = half_width([((PRIOR_RUNS * BETWEEN_RUNS**2 + squares) / degrees / len(logs), degrees)], BOUND)
    spread = math.expm1(stdev(logs)) if len(logs) >= RUNS_FOR_SPREAD else None
    return math.exp(mean), math.exp(mean - reach), math.exp(mean + reach), spread
