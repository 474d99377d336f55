"""A history in the order of time: one experiment's metric, in segments of runs that may be compared.

Commands, gates and the page ask it. Which conditions part two segments is decided by `comparability` alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from pytest_llem.results.comparability import differences, settings_differences
from pytest_llem.results.history.changes import ChangePoint, find_changes
from pytest_llem.results.history.record import HistoryEntry
from pytest_llem.results.metrics import metric


@dataclass(frozen=True)
class Segment:
    """Runs of one experiment that may be compared in a metric, in order of time.

    Numbers count from 1 in the order in which segments first appear; runs of two machines in turn are two segments.
    `begun_by` is what differs from the newest segment before, a sentence each; none for the first. `changes` are
    found in the whole segment; `ChangePoint.first` counts its entries from 0.
    """

    number: int
    begun_by: tuple[str, ...]
    entries: tuple[HistoryEntry, ...]
    changes: tuple[ChangePoint, ...] = ()

    @property
    def level(self) -> tuple[HistoryEntry, ...]:
        """The entries since the last change point: what a new run is held against."""
        return self.entries[self.changes[-1].first if self.changes else 0 :]


@dataclass(frozen=True)
class Series:
    """One metric of one experiment."""

    study: str
    experiment_id: str
    metric: str
    segments: tuple[Segment, ...]


def series(entries: Iterable[HistoryEntry], metric_name: str) -> list[Series]:
    """The series of a metric, one per study and experiment that has it, in order of first appearance."""
    by_experiment: dict[tuple[str, str], list[HistoryEntry]] = {}
    for entry in entries:
        if metric_name in entry.metrics:
            by_experiment.setdefault((entry.run.study, entry.experiment_id), []).append(entry)
    return [
        Series(study, experiment_id, metric_name, tuple(_segments(found, metric_name)))
        for (study, experiment_id), found in by_experiment.items()
    ]


def _segments(entries: Sequence[HistoryEntry], metric_name: str) -> Iterable[Segment]:
    segments: list[Segment] = []
    for entry in entries:
        for index, segment in enumerate(segments):
            if not why_apart(segment.entries[-1], entry, metric_name):
                segments[index] = replace(segment, entries=(*segment.entries, entry))
                break
        else:
            newest = max(segments, key=lambda segment: segment.entries[-1].run.at, default=None)
            why = why_apart(newest.entries[-1], entry, metric_name) if newest is not None else []
            segments.append(Segment(len(segments) + 1, tuple(why), (entry,)))
    for segment in segments:
        runs = [entry.metrics[metric_name].cycles for entry in segment.entries]
        yield replace(segment, changes=tuple(find_changes(runs)))


def why_apart(before: HistoryEntry, now: HistoryEntry, metric_name: str) -> list[str]:
    """Why two runs of an experiment may not be compared in a metric, a sentence each: settings, then conditions."""
    gains = before.gain_uncertainty_rel, now.gain_uncertainty_rel
    changed = settings_differences(before.settings, now.settings) if before.config_hash != now.config_hash else []
    return [*changed, *differences(before.conditions, now.conditions, metric(metric_name), 0.0, gains)]
