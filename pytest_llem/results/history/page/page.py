"""`llem history page`: writes a history as a static page, for GitHub Pages or a folder.

`cli` calls it by name. The page is the report's document with another style and script added; it asks nobody for
anything, and without scripts it still shows the first metric.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from html import escape
from importlib.resources import files

from pytest_llem.errors import SettingsError, visible
from pytest_llem.job.files import write_text, writing
from pytest_llem.results.history.files import History, read_history
from pytest_llem.results.history.page.data import trend_data
from pytest_llem.results.history.page.panels import COLOURS, between, commit, day, interval, panel_of, step_text
from pytest_llem.results.history.page.trends import Key, Panel, Step, Trends, gather_trends
from pytest_llem.results.history.record import HistoryRun
from pytest_llem.results.report.charts.chart import PALETTE
from pytest_llem.results.report.document import document
from pytest_llem.results.report.markup import count, fold, said, table
from pytest_llem.results.terminal import show

NEWEST = 20
"""Rows of change points. Chosen: what a team looks at; each panel has its own."""
NAMED = 3
"""Experiments that a row names. Chosen: as many as stay a few lines."""
EMPTY = (
    "<p>The history has no run yet. Add one: <code>llem history add RUN --to DIR</code>, then write this page anew.</p>"
)
LEGEND = (
    "Thin: each run, with the interval of its mean (90 %) shaded. Thick: a level, the mean of its runs. A change over "
    "a broken line is a change point, between two levels. A number is where a segment begins, whose runs are not "
    "comparable with those before: it has a colour and levels of its own. A ring is a failed gate. Arrow keys, a "
    "pointer or a finger read a run."
)
UNKNOWN = "<p>No run has a metric that is known here.</p>"


def write_page(options: argparse.Namespace) -> int:
    """Write the page into the folder, and print its file."""
    history = read_history(options.history)
    page = page_of(gather_trends(history, options.metric), options.title)
    if options.out.is_file():
        raise SettingsError(f"-o {options.out}: is a file", fix="name the folder that index.html is to be written into")
    with writing(options.out):
        options.out.mkdir(parents=True, exist_ok=True)
    write_text(options.out / ".nojekyll", "")  # GitHub Pages: no site generator has to look at it
    write_text(options.out / "index.html", page)
    for problem in history.problems:
        show(f"skipped: {problem}")
    show(f"{options.out / 'index.html'}")
    return 0


def page_of(trends: Trends, title: str | None = None) -> str:
    """The page as one string."""
    title = title or (f"Trends of {', '.join(trends.of_study)}" if trends.runs else "Trends")
    sections = [
        ("What changed", "changes", _changes(trends) if trends.panels else ""),
        ("Trends", "trends", _panels(trends) if trends.panels else UNKNOWN if trends.runs else EMPTY),
        ("Skipped", "skipped", _skipped(trends.history)),
    ]
    colours = "".join(f".k{place}{{--c:{PALETTE[place]}}}" for place in range(COLOURS))
    return document(
        title,
        _overview(trends),
        sections,
        trend_data(trends),
        [_asset("trend.js")],
        style=colours + _asset("trend.css"),
    )


def _overview(trends: Trends) -> str:
    if not trends.runs:
        return ""
    states = "".join(f"<li>{_state(trends, study, runs[-1])}</li>" for study, runs in trends.of_study.items())
    first = min(trends.runs.values(), key=lambda run: run.at)
    text = f"{count(len(trends.runs), 'run')} since {day(first)}."
    return f'<p class="muted">{text}</p><ul class="states">{states}</ul>'


def _state(trends: Trends, study: str, newest: HistoryRun) -> str:
    """A study's newest run, and what the gates of its experiments said."""
    entries = [entry for entry in trends.history.of_study(study) if entry.run.run_id == newest.run_id]
    gates = [set(entry.verdicts.values()) for entry in entries if entry.verdicts]
    failed, passed = sum("fail" in gate for gate in gates), gates.count({"pass"})
    if failed:
        state = said("bad", f"{count(failed, 'gate')} failed")
    elif not gates:
        state = count(len(entries), "experiment")
    elif passed == len(gates):
        state = said("good", f"{count(passed, 'gate')} passed")
    else:
        state = said("open", f"{passed} of {count(len(gates), 'gate')} passed, none failed")
    name = f"{escape(visible(study))}: " if len(trends.of_study) > 1 else ""
    return f"{name}{state} on {day(newest)}, {commit(newest)}"


def _changes(trends: Trends) -> str:
    """The change points: a row for each pair of runs that something changed between, with all that did."""
    groups: dict[Key, list[tuple[Panel, Step]]] = {}
    for panel in trends.panels:
        for step in panel.steps:
            groups.setdefault((step.before.run.run_id, step.after.run.run_id), []).append((panel, step))
    if not groups:
        return f"<p>No change point in {len(trends.panels):,} series of runs.</p>"
    ordered = sorted(groups.values(), key=lambda group: group[0][1].after.run.at, reverse=True)
    rows = [(day(group[0][1].after.run), between(group[0][1]), _what(trends, group)) for group in ordered[:NEWEST]]
    more = f"; {len(ordered) - NEWEST:,} before are in their panels" if len(ordered) > NEWEST else ""
    head = ("First run after", "Commits", "What changed")
    return table(head, rows, f"Change points, newest first{more}", name="change-points")


def _what(trends: Trends, group: Sequence[tuple[Panel, Step]]) -> str:
    """A line for each metric and direction: size, and which experiments."""
    lines: dict[tuple[str, bool], list[tuple[Panel, Step]]] = {}
    for panel, step in group:
        lines.setdefault((panel.unit.name, panel.worse(step.change)), []).append((panel, step))
    return "<br>".join(
        f"{_sizes(pairs)} {escape(name)}: "
        + ", ".join(f'<a href="#{panel.id}">{_name(trends, panel)}</a>' for panel, _ in pairs[:NAMED])
        + (f" and {len(pairs) - NAMED} more" if len(pairs) > NAMED else "")
        for (name, _), pairs in lines.items()
    )


def _sizes(group: Sequence[tuple[Panel, Step]]) -> str:
    """The size of a change with its interval; of several the smallest and the largest."""
    ordered = sorted(group, key=lambda pair: pair[1].change.ratio)
    ends = list(dict.fromkeys(step_text(*ordered[place]) for place in (0, -1)))
    return f"{ends[0]} ({interval(*ordered[0])})" if len(group) == 1 else " to ".join(ends)


def _name(trends: Trends, panel: Panel) -> str:
    study = f"{panel.series.study}: " if len(trends.of_study) > 1 else ""
    return escape(visible(f"{study}{panel.series.experiment_id}"))


def _panels(trends: Trends) -> str:
    first = trends.metrics[0]
    told: dict[str, str] = {}
    for panel in trends.panels:
        better = "higher" if panel.measure.higher_is_better else "lower"
        told.setdefault(
            panel.measure.name,
            f'<p class="metric" data-metric="{panel.measure.name}"{"" if panel.measure.name == first else " hidden"}>'
            f"<b>{escape(panel.unit.title)}</b>: {better} is better.</p>",
        )
    legend = fold("How to read this", f"<p>{LEGEND}</p>")
    panels = "".join(panel_of(trends, panel, drawn=panel.measure.name == first) for panel in trends.panels)
    return f'{"".join(told.values())}{legend}<div class="panels">{panels}</div>'


def _skipped(history: History) -> str:
    if not history.problems:
        return ""
    items = "".join(f"<li>{escape(visible(problem))}</li>" for problem in history.problems)
    return fold(count(len(history.problems), "problem"), f"<ul>{items}</ul>")


def _asset(name: str) -> str:
    return (files("pytest_llem.results.history.page") / "assets" / name).read_text(encoding="utf-8")
