"""`llem history show` and `llem history check`: what a history says, for people, and as an exit code for a nightly job.

`cli` calls both by name. Keys of the JSON stay; the tables are for people and may change.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from shlex import quote

from pytest_llem.errors import SettingsError, StoreError
from pytest_llem.job.metric_names import require_listed
from pytest_llem.job.wire import encode
from pytest_llem.results.history import commits
from pytest_llem.results.history.files import History, read_history
from pytest_llem.results.history.overview import Change, RunNamed, SegmentShown, SeriesShown, overview
from pytest_llem.results.history.record import HistoryEntry
from pytest_llem.results.history.sparkline import sparkline
from pytest_llem.results.metrics import metric
from pytest_llem.results.terminal import as_markdown, fitted_table, markdown_table, show, with_ends
from pytest_llem.results.verdict_text import percent

NAMED = 3
"""Chosen: experiments that a note names."""
WIDTH = 24
"""Characters of a sparkline. Chosen: with it a row fits 100 columns."""


def show_history(options: argparse.Namespace) -> int:
    """`llem history show`: print every series that was asked for."""
    history = _opened(options)
    shown = overview(_chosen(history, options), options.metric)
    if options.format == "json":
        show(json.dumps({"source": history.source, "series": encode(shown)}, indent=2, allow_nan=False))
    else:
        show("\n".join(_lines(shown, markdown=options.format == "markdown")))
    for problem in history.problems:
        sys.stderr.write(f"llem: {problem}\n")
    return 0


def check_history(options: argparse.Namespace) -> int:
    """`llem history check`: 1 where a file is broken, or a newest run completes a change for the worse."""
    history = _opened(options)
    shown = overview(history.entries, ())
    changes = [change for each in shown for change in each.changes]
    new = [change for change in changes if change.newest]
    notes = [*commits.problems(history, options.repository), *(note for each in shown for note in _not_judged(each))]
    if options.format == "json":
        facts = {"source": history.source, "problems": history.problems, "notes": notes, "changes": changes}
        show(json.dumps(encode(facts), indent=2, allow_nan=False))
    else:
        runs = len({(entry.run.study, entry.run.run_id) for entry in history.entries})
        counts = (
            f"{number} {what}{'s' * (number != 1)}" for number, what in ((runs, "run"), (len(changes), "change point"))
        )
        show(f"{history.source}: {f', {len(shown)} series, '.join(counts)}, {len(new)} new")
        for line in (*(f"broken: {problem}" for problem in history.problems), *notes):
            show(line)
        for change in new:
            show(f"new: {change.experiment_id} {change.metric} {_said(change)}")
        for line in _searches(new, history.source):
            show(line)
        if len(changes) > len(new):
            show(f"the others: llem history show {history.source}")
    return int(bool(history.problems) or any(change.worse for change in new))


def _opened(options: argparse.Namespace) -> History:
    history = read_history(options.directory)
    if not history.entries and not history.problems:
        raise StoreError(f"{options.directory}: no run in this history", fix="add one: llem history add RUN --to DIR")
    return history


def _chosen(history: History, options: argparse.Namespace) -> Sequence[HistoryEntry]:
    """The entries of the studies, experiments and metrics that options name; `SettingsError` for an unknown name."""
    entries = history.entries
    if options.study is not None:
        require_listed("study", options.study, list(dict.fromkeys(entry.run.study for entry in entries)))
        entries = history.of_study(options.study)
    known = list(dict.fromkeys(entry.experiment_id for entry in entries))
    for name in options.experiment:
        require_listed("experiment", name, known)
    if options.experiment:
        entries = tuple(entry for entry in entries if entry.experiment_id in options.experiment)
    measured = list(dict.fromkeys(name for entry in entries for name in entry.metrics))
    for name in (metric(name).name for name in options.metric):
        if name not in measured:
            raise SettingsError(f"no run here measured {name!r}", fix=f"use one of: {', '.join(measured)}")
    return entries


def _lines(shown: Sequence[SeriesShown], *, markdown: bool) -> Iterator[str]:
    """A table per study and metric, then what changed and what began each segment."""
    head = ("experiment", "runs", "level now", "between runs", "trend")
    for number, ((study, name), group) in enumerate(groupby(shown, key=lambda each: (each.study, each.metric))):
        of_metric = list(group)
        first = of_metric[0]
        better = "higher" if first.higher_is_better else "lower"
        unit = "" if first.unit == "1" else f" in {first.unit}"
        if number:
            yield ""
        yield f"{'### ' if markdown else ''}{study}: {name}{unit}, {better} is better"
        if markdown:
            yield ""
        body = [_row(each, segment) for each in of_metric for segment in each.segments]
        yield from markdown_table(head, body) if markdown else fitted_table(head, body, right=1)
        notes = list(_notes(of_metric))
        if notes and markdown:
            yield ""
        yield from (f"- {as_markdown(note)}" if markdown else note for note in notes)


def _row(each: SeriesShown, segment: SegmentShown) -> tuple[str, ...]:
    several = len(each.segments) > 1
    return (
        f"{each.experiment_id} [{segment.number}]" if several else each.experiment_id,
        str(len(segment.values)),
        with_ends(segment.level, segment.low, segment.high),
        "-" if segment.spread is None else f"{100 * segment.spread:.1f} %",
        sparkline(segment.values, WIDTH),
    )


def _notes(of_metric: Sequence[SeriesShown]) -> Iterator[str]:
    """Changes, then what began segments: once for all experiments that it did."""
    begun: dict[str, list[str]] = {}
    for each in of_metric:
        for change in each.changes:
            yield f"{each.experiment_id} {_said(change)}"
        for segment in each.segments:
            if segment.begun_by:
                text = f"[{segment.number}] from {_day(segment.first)}: {'; '.join(segment.begun_by)}"
                begun.setdefault(text, []).append(each.experiment_id)
        yield from _not_judged(each)
    for text, names in begun.items():
        some = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
        yield text if len(names) == len(of_metric) else f"{text} ({some})"


def _searches(new: Sequence[Change], source: str) -> Iterator[str]:
    """What to do next: for the commits that got worse, the search of the experiment that shows most."""
    largest: dict[tuple[str, str | None, str | None], Change] = {}
    for change in sorted(new, key=lambda change: abs(math.log(change.ratio)), reverse=True):
        if change.worse:
            largest.setdefault((change.study, change.before_earliest.commit, change.latest.commit), change)
    for (study, good, bad), change in largest.items():
        if good is None or bad is None:
            continue
        if good == bad:
            yield f"which commit ({study}): none, the runs around it are all of {good[:10]}"
            continue
        names = f"--metric {change.metric} --experiment {quote(change.experiment_id)} --history {quote(source)}"
        yield f"which commit ({study}): llem bisect {good[:10]}..{bad[:10]} --study FILE {names}"


def _not_judged(each: SeriesShown) -> Iterator[str]:
    count = sum(segment.zeros for segment in each.segments)
    if count:
        yield f"{each.experiment_id} {each.metric}: {count} runs with a value of 0 have no ratio and were not judged"


def _said(change: Change) -> str:
    """`worse +8.1 % (+7.0 % to +9.2 %): last before 1a2b3c4d5e of 2026-11-02, first after ..., found 2026-11-05`."""
    what = "worse" if change.worse else "better"
    size = f"{percent(change.ratio)} ({percent(change.low)} to {percent(change.high)})"
    text = f"{what} {size}: last before {_named(change.before)}, first after {_named(change.first)}"
    if change.earliest != change.first or change.latest != change.first:
        text += f" (may be {_named(change.earliest)} to {_named(change.latest)})"
    return f"{text}, found {_day(change.found)}"


def _named(run: RunNamed) -> str:
    commit = f"{run.commit[:10]}{' (dirty)' * bool(run.dirty)}" if run.commit else run.run_id
    return f"{commit} of {_day(run)}"


def _day(run: RunNamed) -> str:
    return run.at[:10]
