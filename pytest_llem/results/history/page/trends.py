"""What the trend page shows: the metrics chosen for it, and a panel for each experiment that has one of them.

`page` gathers it, `panels` draws it and `data` packs it for the script. Numbers of runs count from 0 within a study.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property

from pytest_llem.errors import StoreError
from pytest_llem.job.metric_names import HEADLINE, METRIC_NAMES, MetricName, known_metric, metric_name
from pytest_llem.results.history.changes import ChangePoint
from pytest_llem.results.history.files import History
from pytest_llem.results.history.page.drawing import ValueScale
from pytest_llem.results.history.record import HistoryEntry, HistoryRun
from pytest_llem.results.history.series import Segment, Series, series
from pytest_llem.results.report.charts.scales import Unit, unit_of

STANDARD = (HEADLINE, "output_tokens_per_s", "ttft_p50_s", "avg_power_w", "accuracy")
METRICS = 5
"""Without `--metric`, where fewer have a limit. Chosen: 20 experiments and 1,000 runs stay below 2 MB."""
Key = tuple[str, str]


@dataclass(frozen=True)
class Step:
    """A change point with the segment that it lies in."""

    segment: Segment
    change: ChangePoint

    @property
    def before(self) -> HistoryEntry:
        """The last run of the old level."""
        return self.segment.entries[self.change.first - 1]

    @property
    def after(self) -> HistoryEntry:
        """The first run of the new level."""
        return self.segment.entries[self.change.first]

    @property
    def widest(self) -> tuple[HistoryEntry, HistoryEntry]:
        """The same two, as far apart as the change point may lie (95 %)."""
        last = len(self.segment.entries) - 1
        start, end = self.change.first - self.change.earlier - 1, self.change.first + self.change.later
        return self.segment.entries[max(0, start)], self.segment.entries[min(last, end)]

    @property
    def old_level(self) -> tuple[HistoryEntry, ...]:
        """The runs of the old level."""
        begun = [change.first for change in self.segment.changes if change.first < self.change.first]
        return self.segment.entries[max(begun, default=0) : self.change.first]


@dataclass(frozen=True)
class SeriesLevel:
    """Runs of a segment between two change points; `step` is the one that it began with."""

    segment: Segment
    entries: tuple[HistoryEntry, ...]
    step: Step | None


@dataclass(frozen=True)
class Panel:
    """One metric of one experiment, in a unit and on a scale."""

    id: str
    measure: MetricName
    unit: Unit
    series: Series
    scale: ValueScale

    @cached_property
    def steps(self) -> list[Step]:
        """Its change points, newest first."""
        found = [Step(segment, change) for segment in self.series.segments for change in segment.changes]
        return sorted(found, key=lambda step: step.after.run.at, reverse=True)

    @cached_property
    def levels(self) -> list[SeriesLevel]:
        """Newest first."""
        return sorted(map_levels(self.series.segments), key=lambda level: level.entries[-1].run.at, reverse=True)

    def worse(self, change: ChangePoint) -> bool:
        """Whether a change is to the worse."""
        return (change.ratio < 1) == self.measure.higher_is_better


@dataclass(frozen=True)
class Trends:
    """The page's content; `runs` are those of all studies in order of time, `panels` by metric, ended ones last."""

    history: History
    runs: Mapping[Key, HistoryRun]
    panels: tuple[Panel, ...]

    @cached_property
    def of_study(self) -> Mapping[str, list[HistoryRun]]:
        """The runs by study."""
        found: dict[str, list[HistoryRun]] = {}
        for run in self.runs.values():
            found.setdefault(run.study, []).append(run)
        return found

    @cached_property
    def numbers(self) -> Mapping[Key, int]:
        """The number of each run within its study."""
        return {(run.study, run.run_id): number for runs in self.of_study.values() for number, run in enumerate(runs)}

    @cached_property
    def metrics(self) -> list[str]:
        """The metrics that there are panels of; the first is shown first."""
        return list(dict.fromkeys(panel.measure.name for panel in self.panels))

    def number(self, entry: HistoryEntry) -> int:
        """The number of an entry's run."""
        return self.numbers[entry.run.study, entry.run.run_id]

    def since(self, panel: Panel) -> int:
        """How many runs of its study came after the panel's last."""
        last = panel.levels[0].entries[-1]
        return len(self.of_study[panel.series.study]) - 1 - self.number(last)


def map_levels(segments: Sequence[Segment]) -> Iterator[SeriesLevel]:
    """Each segment's runs, parted at its change points."""
    for segment in segments:
        steps = [None, *(Step(segment, change) for change in segment.changes)]
        edges = [0, *(change.first for change in segment.changes), len(segment.entries)]
        for step, start, end in zip(steps, edges, edges[1:], strict=False):
            yield SeriesLevel(segment, segment.entries[start:end], step)


def gather_trends(history: History, named: Sequence[str] = ()) -> Trends:
    """The panels of a history. Raises `SettingsError` for a metric that none is, `StoreError` for one without a run."""
    runs: dict[Key, HistoryRun] = {}
    for entry in history.entries:
        runs.setdefault((entry.run.study, entry.run.run_id), entry.run)
    trends = Trends(history, runs, ())
    panels: list[Panel] = []
    for name in chosen_metrics(history.entries, named):
        found = series(history.entries, name)
        unit = unit_of(name, [entry.metrics[name].value for each in found for entry in each.entries])
        first = len(panels)
        for each in found:
            scale = ValueScale.of([entry.metrics[name] for entry in each.entries])
            panels.append(Panel(f"p{len(panels)}", metric_name(name), unit, each, scale))
        panels[first:] = sorted(panels[first:], key=lambda panel: trends.since(panel) >= ENDED)
    return Trends(history, runs, tuple(panels))


ENDED = 10
"""Runs of its study without an experiment, from which on it counts as ended. Chosen: more than a shard leaves out."""


def chosen_metrics(entries: Sequence[HistoryEntry], named: Sequence[str]) -> list[str]:
    """Those that are named; else those that gates judged, and the usual ones up to `METRICS`."""
    present = dict.fromkeys(name for entry in entries for name in entry.metrics)
    for name in named:
        if metric_name(name).name not in present and entries:
            raise StoreError(f"no run of the history has {name}", fix=f"name one of: {', '.join(sorted(present))}")
    if named:
        return [name for name in dict.fromkeys(named) if name in present]
    judged = {name for entry in entries for name in entry.verdicts}
    limited = sorted((n for n in judged if n in present and known_metric(n)), key=_order)
    usual = [name for name in STANDARD if name in present and name not in limited]
    return [*limited, *usual[: max(0, METRICS - len(limited))]] or [n for n in present if known_metric(n)][:1]


def moment(run: HistoryRun) -> datetime | None:
    """When a run was, in UTC; `None` where its time cannot be read."""
    try:
        at = datetime.fromisoformat(run.at.replace("Z", "+00:00"))
    except ValueError:
        return None
    return at.astimezone(timezone.utc) if at.tzinfo else at.replace(tzinfo=timezone.utc)


def _order(name: str) -> int:
    names = [*METRIC_NAMES]
    return names.index(name) if name in names else len(names)
