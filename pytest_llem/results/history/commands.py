"""`llem history add` puts runs into a history's folder, and `llem history list` says what is there.

`cli` calls them by name. Keys of the JSON stay. Other subverbs lie beside what they show.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pytest_llem.errors import StoreError, visible
from pytest_llem.job.metric_names import HEADLINE
from pytest_llem.job.wire import encode
from pytest_llem.results.history.adding import Added, add_whole_run, whole_runs_at
from pytest_llem.results.history.files import read_history
from pytest_llem.results.history.record import HistoryEntry
from pytest_llem.results.history.series import Series, experiments, in_segments
from pytest_llem.results.terminal import counted, show, table


def add_runs(options: argparse.Namespace) -> int:
    """Add each run, and say what became of it; a run without a valid cycle does not keep the others out.

    Raises `StoreError` where no run could be added.
    """
    runs = [run for path in options.runs for run in whole_runs_at(path)]
    added: list[Added] = []
    problems: list[StoreError] = []
    for run in counted(runs, "adding"):
        try:
            added += add_whole_run(run, options.to)
        except StoreError as error:
            problems.append(error)
    if not added:
        raise StoreError("\n".join(each.message for each in problems), fix=problems[0].fix)
    for each in added:
        many = f"{each.experiments} experiment{'s' * (each.experiments != 1)}"
        why = " (it holds measurements that this run lacks)" if each.outcome == "kept" else ""
        show(f"{each.path}: {each.outcome}, {many}{why}")
    for problem in problems:
        sys.stderr.write(visible(f"llem: not added: {problem.message}\n"))
    return 0


@dataclass(frozen=True)
class ListedSegment:
    """Runs that may be compared, and what began them; `since` and `until` are when the first and the last stand."""

    number: int
    since: str
    until: str
    runs: int
    begun_by: tuple[str, ...]


@dataclass(frozen=True)
class ListedStudy:
    """One study of a history. `commit` is that of the newest run.

    `segments` are those of `metric` and of the experiment that has most of them.
    """

    study: str
    experiments: int
    runs: int
    since: str
    until: str
    commit: str | None
    dirty: bool | None
    hosts: tuple[str, ...]
    metric: str
    segments: tuple[ListedSegment, ...]


def list_history(options: argparse.Namespace) -> int:
    """`llem history list`: a line per study, and what began each segment.

    Raises `StoreError` where there is no run; what was skipped is said on standard error.
    """
    history = read_history(options.directory)
    studies = [listed(history.of_study(study)) for study in dict.fromkeys(entry.run.study for entry in history.entries)]
    for problem in history.problems:
        sys.stderr.write(visible(f"llem: {problem}\n"))
    if not studies:
        raise StoreError(f"{options.directory}: no runs here", fix="add one: llem history add RUN --to DIR")
    show(json.dumps(encode(studies), indent=2) if options.format == "json" else "\n".join(lines(studies)))
    return 0


def listed(entries: Sequence[HistoryEntry]) -> ListedStudy:
    """What a history says of one study, whose entries are in order of time."""
    newest = entries[-1].run
    names = dict.fromkeys(name for entry in entries for name in entry.metrics)
    metric = HEADLINE if HEADLINE in names else next(iter(names), HEADLINE)
    most = max(in_segments(entries, metric), key=lambda series: len(series.segments), default=None)
    return ListedStudy(
        study=newest.study,
        experiments=len(experiments(entries)),
        runs=len({entry.run.run_id for entry in entries}),
        since=entries[0].run.at,
        until=newest.at,
        commit=newest.commit,
        dirty=newest.dirty,
        hosts=tuple(sorted({entry.run.hostname for entry in entries if entry.run.hostname})),
        metric=metric,
        segments=tuple(_segments(most)) if most else (),
    )


def _segments(series: Series) -> Iterator[ListedSegment]:
    for segment in series.segments:
        runs = [entry.run for entry in segment.entries]
        yield ListedSegment(segment.number, runs[0].at, runs[-1].at, len(runs), segment.begun_by)


def lines(studies: Sequence[ListedStudy]) -> Iterator[str]:
    """The studies as a table, then the beginnings of their segments; days are those of UTC."""
    head = ("study", "experiments", "runs", "since", "until", "commit", "segments")
    body = [
        (
            each.study,
            str(each.experiments),
            str(each.runs),
            each.since[:10],
            each.until[:10],
            f"{each.commit[:7]}{' (dirty)' * bool(each.dirty)}" if each.commit else "-",
            str(len(each.segments)),
        )
        for each in studies
    ]
    yield from table(head, body)
    for each in studies:
        for segment in each.segments[1:]:
            many = f"{segment.runs} run{'s' * (segment.runs > 1)}"
            since = f"{each.study}: segment {segment.number} since {segment.since[:10]} ({many})"
            yield f"{since}: {'; '.join(segment.begun_by)}"
