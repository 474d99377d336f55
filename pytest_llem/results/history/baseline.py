"""A history as a baseline: `history:DIR`, wherever a baseline can be named.

`baselines` opens it and `judging` asks it for the level that a new run is held against, metric by metric: a change
point in one is none in another. Levels are those of `series`, and what differs between equal runs is in them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from pytest_llem.errors import LlemWarning, StoreError
from pytest_llem.results.baselines import Baseline, BaselineExperiment, BaselineFile, BaselineLevel, BaselineRun
from pytest_llem.results.history.files import read_history
from pytest_llem.results.history.record import HistoryEntry
from pytest_llem.results.history.replayed import BEFORE, REPLAYED
from pytest_llem.results.history.series import Segment, series

_Entries = dict[tuple[str, str], list[HistoryEntry]]
NEWEST_RUNS = 20
"""Of a level, the newest runs that are a baseline. Chosen: more sharpen no bound (Student's t of 23 degrees of freedom
is 1 % above that of 33), and what drifts too slowly for a change point is not averaged over months."""

ASKED = BEFORE + REPLAYED + 1
"""Of a level, the newest runs that can be judged again or held against; one of them may be the new run itself."""


@dataclass(frozen=True)
class HistoryExperiment(BaselineExperiment):
    """One experiment of a history under one configuration; `runs` are its newest ones, whatever their conditions."""

    entries: tuple[HistoryEntry, ...] = ()

    def levels(self, metric: str) -> Sequence[BaselineLevel]:
        """The current level of each segment of comparable runs, that of the newest run first."""
        segments = [segment for each in series(self.entries, metric) for segment in each.segments]
        segments.sort(key=lambda segment: segment.entries[-1].run.at, reverse=True)
        return [_level(segment, metric) for segment in segments] or super().levels(metric)


def _level(segment: Segment, metric: str) -> BaselineLevel:
    """Without the runs that failed against this level: a regression must not become its own yardstick.

    Those that led to the change point failed against the level before, which says nothing against them. Nor does a
    budget: without the runs beyond it the level would be too good, and the noise too small.
    """
    judged_before = segment.changes[-1].found - segment.changes[-1].first if segment.changes else -1
    level = segment.level
    kept = [entry for number, entry in enumerate(level) if number <= judged_before or metric not in entry.regressed]
    return BaselineLevel(_as_baseline(kept[-NEWEST_RUNS:]), _as_baseline(level[-ASKED:]))


def _as_baseline(entries: Sequence[HistoryEntry]) -> tuple[BaselineRun, ...]:
    return tuple(entry.as_baseline for entry in entries)


@dataclass(frozen=True)
class HistoryBaseline(Baseline):
    """All studies of a history; `studies` lists the experiments of each study's newest run."""

    entries: tuple[HistoryEntry, ...] = ()
    grows = True

    def find(
        self, study: str, experiment_id: str, config_hash: str, *, by_id: bool = False
    ) -> HistoryExperiment | None:
        """The experiment of this configuration, else the newest of this id; `by_id`, the id goes first.

        What a history does not know, it will: a study that it lacks is no error.
        """
        same = self._by_hash.get((study, config_hash), [])
        named = self._by_id.get((study, experiment_id), [])
        chosen = (named or same) if by_id else (same or named)
        return _experiment(chosen) if chosen else None

    @cached_property
    def _by_hash(self) -> _Entries:
        return _grouped(self.entries, lambda entry: (entry.run.study, entry.config_hash))

    @cached_property
    def _by_id(self) -> _Entries:
        return _grouped(self.entries, lambda entry: (entry.run.study, entry.experiment_id))


def _grouped(entries: Sequence[HistoryEntry], key: Callable[[HistoryEntry], tuple[str, str]]) -> _Entries:
    found: _Entries = {}
    for entry in entries:
        found.setdefault(key(entry), []).append(entry)
    return found


def _experiment(entries: Sequence[HistoryEntry]) -> HistoryExperiment:
    newest = entries[-1]
    of_configuration = tuple(entry for entry in entries if entry.config_hash == newest.config_hash)
    runs: tuple[BaselineRun, ...] = tuple(entry.as_baseline for entry in of_configuration[-NEWEST_RUNS:])
    return HistoryExperiment(newest.config_hash, runs, newest.settings, of_configuration)


def open_history(reference: str, directory: Path) -> HistoryBaseline:
    """The history in `directory`, which `reference` names in messages; what cannot be read of it is skipped, and said.

    Raises `StoreError` where there is no such folder.
    """
    if not directory.is_dir():
        begin = f"begin a history: llem history add RUN --to {directory}"
        file = directory.exists()
        raise StoreError(
            f"{reference}: {f'{directory} is a file' if file else f'no folder {directory}'}",
            fix="name the folder that the histories of all studies lie in" if file else begin,
        )
    history = read_history(directory)
    if history.problems:
        more = f" (and {len(history.problems) - 1} more)" if len(history.problems) > 1 else ""
        warnings.warn(f"{reference}: {history.problems[0]}{more}", LlemWarning, stacklevel=2)
    baseline = HistoryBaseline(reference, {}, {}, history.entries)
    newest = {entry.run.study: entry.run.run_id for entry in history.entries}
    listed: dict[str, dict[str, BaselineExperiment]] = {study: {} for study in newest}
    for (study, name), entries in baseline._by_id.items():
        if entries[-1].run.run_id == newest[study]:
            listed[study][name] = _experiment(entries)
    return replace(baseline, studies={study: BaselineFile(study, found) for study, found in listed.items()})
