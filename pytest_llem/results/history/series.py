"""A history in the order of time: one experiment's metric, in segments of runs that may be compared.

Commands, gates and the page ask it. Which conditions part two segments is decided by `comparability` alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby

from pytest_llem.job.metric_names import MetricName
from pytest_llem.results.comparability import (
    NOT_ALWAYS_APART,
    differences,
    settings_differences,
    settled_by_settings,
    without_effect,
)
from pytest_llem.results.history.changes import ChangePoint, find_changes
from pytest_llem.results.history.record import HistoryEntry
from pytest_llem.results.metrics import metric

NEAREST = 20
"""Newest segments among which the one is sought that a new one is most like. Chosen: more than machines take turns."""


@dataclass(frozen=True)
class Segment:
    """Runs of one experiment that may be compared in a metric, each with each, in order of time.

    Numbers count from 1 in the order in which segments first appear; runs of two machines in turn are two segments.
    `begun_by` is what differs from the segment before that is most like it, a sentence each; none for the first.
    `changes` are found in the whole segment; `ChangePoint.first` counts its entries from 0.
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
    """One metric of one experiment, which has the id of its newest run."""

    study: str
    experiment_id: str
    metric: str
    segments: tuple[Segment, ...]

    @property
    def entries(self) -> tuple[HistoryEntry, ...]:
        """Those of all segments, one segment after the other."""
        return tuple(entry for segment in self.segments for entry in segment.entries)


def series(entries: Iterable[HistoryEntry], metric_name: str) -> list[Series]:
    """The series of a metric, with their change points, one for each experiment that has it; see `experiments`."""
    return [_with_changes(each) for each in in_segments(entries, metric_name)]


def in_segments(entries: Iterable[HistoryEntry], metric_name: str) -> Iterator[Series]:
    """The same without change points, which take longer to find."""
    for every in experiments(entries):
        having = [entry for entry in every if metric_name in entry.metrics]
        if having:
            newest = every[-1]
            segments = tuple(_segments(having, metric(metric_name)))
            yield Series(newest.run.study, newest.experiment_id, metric_name, segments)


def _with_changes(found: Series) -> Series:
    def changed(segment: Segment) -> Segment:
        runs = [entry.metrics[found.metric].cycles for entry in segment.entries]
        return replace(segment, changes=tuple(find_changes(runs)))

    return replace(found, segments=tuple(map(changed, found.segments)))


def experiments(entries: Iterable[HistoryEntry]) -> list[list[HistoryEntry]]:
    """The runs of each experiment, in order of time and of first appearance.

    An experiment that is measured as before under another id goes on, and so does one whose study was changed under
    the same id: within a run, equal configurations are found first, then equal ids.
    """
    found: list[list[HistoryEntry]] = []
    by_hash: dict[tuple[str, str], int] = {}
    by_id: dict[tuple[str, str], int] = {}
    for _, run in groupby(entries, key=lambda entry: (entry.run.study, entry.run.run_id)):
        rest, taken = [], set()
        for entry in run:
            number = by_hash.get((entry.run.study, entry.config_hash))
            if number is None or number in taken:
                rest.append(entry)
            else:
                taken.add(number)
                found[number].append(entry)
                by_id[entry.run.study, entry.experiment_id] = number
        for entry in rest:
            number = by_id.get((entry.run.study, entry.experiment_id))
            if number is None or number in taken:
                number = len(found)
                found.append([])
            taken.add(number)
            found[number].append(entry)
            by_hash[entry.run.study, entry.config_hash] = by_id[entry.run.study, entry.experiment_id] = number
    return found


def _segments(entries: Sequence[HistoryEntry], measure: MetricName) -> list[Segment]:
    """Each run in the newest segment with whose every run it may be compared.

    Only one run of each kind is compared, and only with those of which nothing differs that always forbids it: a
    history may have runs on a thousand boards.
    """
    free = frozenset(without_effect(measure))
    members: list[list[HistoryEntry]] = []
    begun_by: list[list[str]] = []
    segment_of: dict[tuple[str, str], int] = {}
    kinds: dict[tuple[str, str], dict[int, list[HistoryEntry]]] = {}
    newest: dict[int, None] = {}  # segments in the order of their last runs
    for entry in entries:
        kind = (entry.config_hash, _of_these(entry.conditions_text, free))
        number = segment_of.get(kind)
        if number is None:
            alike = kinds.setdefault((entry.config_hash, _of_these(kind[1], NOT_ALWAYS_APART)), {})
            fitting = (
                number for number in reversed(newest) if number in alike and _fits(entry, alike[number], measure)
            )
            number = next(fitting, len(members))
            if number == len(members):
                nearest = [why_apart(members[each][-1], entry, measure) for each in [*reversed(newest)][:NEAREST]]
                begun_by.append(min(nearest, key=len, default=[]))
                members.append([])
            segment_of[kind] = number
            alike.setdefault(number, []).append(entry)
        members[number].append(entry)
        newest.pop(number, None)
        newest[number] = None
    return [
        Segment(number, tuple(why), tuple(runs))
        for number, (why, runs) in enumerate(zip(begun_by, members, strict=True), 1)
    ]


def _fits(entry: HistoryEntry, kinds: Iterable[HistoryEntry], measure: MetricName) -> bool:
    return not any(why_apart(earlier, entry, measure) for earlier in kinds)


@cache
def _of_these(conditions: str, free: frozenset[str]) -> str:
    """The text of the conditions without those in `free`."""
    return json.dumps({name: value for name, value in json.loads(conditions).items() if name not in free})


def why_apart(before: HistoryEntry, now: HistoryEntry, measure: MetricName) -> list[str]:
    """Why two runs of an experiment may not be compared in a metric, a sentence each: settings, then conditions."""
    gains = before.gain_uncertainty_rel, now.gain_uncertainty_rel
    changed = settings_differences(before.settings, now.settings) if before.config_hash != now.config_hash else []
    follow = settled_by_settings(before.settings, now.settings) if changed else ()
    return [*changed, *differences(before.conditions, now.conditions, measure, 0.0, gains, follow)]
