"""Makes the markup of a panel: its level now, the drawing, and in words what is marked in it.

`page` calls it. Readers without scripts have all of it for the first metric; `assets/trend.js` finds its places by the
classes and `data-` attributes here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import chain

from pytest_llem.errors import visible
from pytest_llem.results.comparability import short_hashes
from pytest_llem.results.history.links import commit_page, compare_page
from pytest_llem.results.history.page import drawing
from pytest_llem.results.history.page.trends import Panel, SeriesLevel, Step, Trends, moment
from pytest_llem.results.history.record import HistoryEntry, HistoryRun
from pytest_llem.results.history.series import Segment
from pytest_llem.results.report.markup import Tone, count, fold, said, table
from pytest_llem.results.terminal import significant
from pytest_llem.results.verdict_text import change
from pytest_llem.study.limits import SHARES

SHOWN = 5
"""Change points, segments and levels that a panel names, the newest. Chosen: as many as fit beside its drawing."""
COLOURS = 8
"""Of segments, in turn: `charts.chart.PALETTE` has as many."""
NEAR = 150
"""Of `drawing.WIDE`: marks that are nearer than the width of one stand in two rows."""
LABELS = 3
"""Dates below a drawing. Chosen: as many as fit on a phone."""
DAYS_APART = 3
"""From which on dates need no time of day beside them."""


def panel_of(trends: Trends, panel: Panel, *, drawn: bool) -> str:
    """A panel as an article; without `drawn` it is hidden, and its paths are left to the script."""
    name = escape(visible(panel.series.experiment_id))
    study = escape(visible(panel.series.study))
    of = f'<span class="muted">{study}</span>' if len(trends.of_study) > 1 else ""
    label = f"{visible(panel.series.experiment_id)}: {panel.unit.title} over {trends_span(trends, panel)}"
    paths = "".join(_paths(trends, panel)) if drawn else ""
    ticks = "".join(_ticks(panel)) if drawn else ""
    marks = "".join(_marks(trends, panel))
    dates = "".join(_dates(trends.of_study[panel.series.study])) if drawn else ""
    view = f'viewBox="0 0 {drawing.WIDE} {drawing.HIGH}" preserveAspectRatio="none"'
    return (
        f'<article class="panel" id="{panel.id}" data-metric="{panel.measure.name}" data-study="{study}"'
        f"{'' if drawn else ' hidden'}><h3>{name} {of}</h3>{_now(trends, panel)}"
        f'<div class="plot" role="img" aria-label="{escape(label)}" data-unit="{escape(_symbol(panel))}">'
        f'<div class="frame"><div class="ticks">{ticks}</div><svg {view} aria-hidden="true">{paths}</svg>{marks}</div>'
        f'<div class="dates">{dates}</div></div>'
        f"{_notes(panel)}{fold('Levels and runs', _levels(panel))}</article>"
    )


def step_text(panel: Panel, step: Step) -> str:
    """A change point in markup: its size, worse or better by mark and colour."""
    tone: Tone = "bad" if panel.worse(step.change) else "good"
    return said(tone, _size(panel, step, step.change.ratio))


def _size(panel: Panel, step: Step, ratio: float) -> str:
    """A ratio as a change; that of a share in points, as its limits are."""
    name = panel.measure.name
    return change(name, ratio, drawing.mean(step.old_level, name) if name in SHARES else None)


def between(step: Step) -> str:
    """The commits of a change point, last before and first after, with a link to what changed between them."""
    before, after = step.before.run, step.after.run
    if before.commit and before.commit == after.commit:
        return f"{commit(after)} before and after: not by a commit"
    page = compare_page(before, after)
    what = f' (<a href="{escape(page)}">compare</a>)' if page else ""
    return f"{commit(before)} to {commit(after)}{what}"


def commit(run: HistoryRun) -> str:
    """A run's commit with a link to it; its id where it has none."""
    page = commit_page(run)
    text = escape(visible(run.commit[:10] if run.commit else run.run_id))
    link = f'<a href="{escape(page)}">{text}</a>' if page else f"<code>{text}</code>"
    return f"{link} with changes on top" if run.dirty else link


def day(run: HistoryRun) -> str:
    """The date of a run, in markup."""
    return f"<time>{escape(_date(run))}</time>"


def _date(run: HistoryRun) -> str:
    at = moment(run)
    return f"{at:%Y-%m-%d}" if at else visible(run.at)


def trends_span(trends: Trends, panel: Panel) -> str:
    """How many runs there are, and of which days."""
    ordered = sorted(panel.series.entries, key=trends.number)
    days = dict.fromkeys([_date(ordered[0].run), _date(ordered[-1].run)])
    return f"{count(len(ordered), 'run')}, {' to '.join(days)}"


def _now(trends: Trends, panel: Panel) -> str:
    level, since = panel.levels[0], trends.since(panel)
    value = _value(panel, drawing.mean(level.entries, panel.measure.name))
    runs = f"mean of {count(len(level.entries), 'run')} since {day(level.entries[0].run)}"
    text = f"<b>{value}</b> {runs}" if len(level.entries) > 1 else f"<b>{value}</b> on {day(level.entries[0].run)}"
    if since:
        text += f'; <span class="open">not in the newest {"run" if since == 1 else f"{since:,} runs"}</span>'
    failed = sum(_failed(panel, entry) for entry in level.entries)
    return f'<p class="now">{text}{f"; {failed} × gate failed" if failed else ""}</p>'


def _notes(panel: Panel) -> str:
    """What is marked in the drawing, in words."""
    steps = [
        f"<li>{step_text(panel, step)} ({interval(panel, step)}) on {day(step.after.run)}: "
        f"{between(step)}{_within(step)}</li>"
        for step in panel.steps[:SHOWN]
    ]
    later = [segment for segment in panel.series.segments if segment.begun_by]
    begun = [
        f"<li>{_badge(segment)} since {day(segment.entries[0].run)}: {escape(_reasons(segment))}</li>"
        for segment in reversed(later[-SHOWN:])
    ]
    left = max(0, len(panel.steps) - SHOWN), max(0, len(later) - SHOWN)
    more = [
        f'<li class="muted">and {count(number, noun)} before</li>'
        for number, noun in zip(left, ("change point", "segment"), strict=True)
        if number
    ]
    lines = "".join((*steps, *begun, *more))
    return f'<ul class="notes">{lines}</ul>' if lines else ""


def interval(panel: Panel, step: Step) -> str:
    """Both bounds of a change point's size."""
    low, high = (_size(panel, step, ratio) for ratio in (step.change.low, step.change.high))
    return f"90 % interval {low} to {high}"


def _within(step: Step) -> str:
    """How far from its place a change point may lie, with a link to all that changed there; empty where it is sure."""
    before, after = (entry.run for entry in step.widest)
    if (before, after) == (step.before.run, step.after.run):
        return ""
    runs = " to ".join(
        f"{count(number, 'run')} {side}"
        for number, side in ((step.change.earlier, "before"), (step.change.later, "later"))
        if number
    )
    page = compare_page(before, after)
    linked = f'<a href="{escape(page)}">{runs}</a>' if page else runs
    return f", or up to {linked} (95 %)"


def _reasons(segment: Segment) -> str:
    return visible("; ".join(short_hashes(each) for each in segment.begun_by))


def _badge(segment: Segment) -> str:
    return f'<b class="segment k{(segment.number - 1) % COLOURS}">{segment.number}</b>'


def _levels(panel: Panel) -> str:
    """A table of levels, newest first."""
    rows = [
        (
            f"{day(level.entries[0].run)} to {day(level.entries[-1].run)}",
            f"{len(level.entries):,}",
            _value(panel, drawing.mean(level.entries, panel.measure.name)),
            step_text(panel, level.step) if level.step else "",
            _badge(level.segment),
        )
        for level in panel.levels[:SHOWN]
    ]
    caption = f"Levels of {visible(panel.series.experiment_id)}, newest first"
    return table(("Days", "Runs", panel.unit.title, "Change", "Segment"), rows, caption, name=f"{panel.id}-levels")


def _value(panel: Panel, value: float) -> str:
    return f"{significant(value * panel.unit.factor, 4)}{_symbol(panel)}"


def _symbol(panel: Panel) -> str:
    """What stands behind a value: ` mJ`, `/s`, nothing where there is no unit."""
    symbol = panel.unit.symbol.removeprefix("1")
    return symbol if not symbol or symbol.startswith("/") else f" {symbol}"


def _failed(panel: Panel, entry: HistoryEntry) -> bool:
    return entry.verdicts.get(panel.measure.name) == "fail"


def _marks(trends: Trends, panel: Panel) -> Iterator[str]:
    """Labels over the drawing: change points by their size, segments by their number."""
    total = len(trends.of_study[panel.series.study])
    changes = [(trends.number(step.after), step) for step in panel.steps[:SHOWN]]
    before, row = -drawing.WIDE, 0
    for number, step in sorted(changes, key=lambda pair: pair[0]):
        x = drawing.x_of(number, total)
        row = 1 - row if x - before < NEAR else 0
        before = x
        tone = "bad" if panel.worse(step.change) else "good"
        yield _mark(f"{tone} row{row}", number, x, _size(panel, step, step.change.ratio))
    for segment in [each for each in panel.series.segments if each.begun_by][-SHOWN:]:
        number = trends.number(segment.entries[0])
        kind = f"segment k{(segment.number - 1) % COLOURS}"
        yield _mark(kind, number, drawing.x_of(number, total), str(segment.number))


def _mark(kind: str, number: int, x: int, text: str) -> str:
    left = f'style="--x:{100 * x / drawing.WIDE:.1f}%"'
    return f'<span class="mark {kind}" data-run="{number}" {left} aria-hidden="true"><i>{text}</i></span>'


def _paths(trends: Trends, panel: Panel) -> Iterator[str]:
    total, metric, scale = len(trends.of_study[panel.series.study]), panel.measure.name, panel.scale
    rings: list[drawing.Point] = []
    for segment in panel.series.segments:
        entries = [(drawing.x_of(trends.number(entry), total), entry) for entry in segment.entries]
        points = [(x, scale.y(entry.metrics[metric].value)) for x, entry in entries]
        rings += [point for point, (_, entry) in zip(points, entries, strict=True) if _failed(panel, entry)]
        paths = {
            "band": drawing.band([(x, entry.metrics[metric]) for x, entry in entries], scale),
            "line": drawing.line(points),
            "dots": drawing.dots(points) if len(points) <= drawing.MOST_DOTS else "",
            "level": "".join(_rules(trends, panel, segment, total)),
        }
        colour = f"k{(segment.number - 1) % COLOURS}"
        yield from (f'<path class="{kind} {colour}" d="{path}"/>' for kind, path in paths.items() if path)
    if rings:
        path = drawing.dots(rings)
        yield f'<path class="ring" d="{path}"/><path class="hole" d="{path}"/>'


def _rules(trends: Trends, panel: Panel, segment: Segment, total: int) -> Iterator[str]:
    levels: Sequence[SeriesLevel] = [level for level in panel.levels if level.segment is segment]
    for level in levels:
        ends = [drawing.x_of(trends.number(level.entries[place]), total) for place in (0, -1)]
        yield drawing.rule((ends[0], panel.scale.y(drawing.mean(level.entries, panel.measure.name))), ends[1])


def _ticks(panel: Panel) -> Iterator[str]:
    scale = drawing.ValueScale(panel.scale.low * panel.unit.factor, panel.scale.high * panel.unit.factor)
    for tick in scale.ticks():
        top = 100 * scale.y(tick) / drawing.HIGH
        yield f'<span style="top:{top:.1f}%"><i>{_short(tick)}</i></span>'


def _dates(runs: Sequence[HistoryRun]) -> Iterator[str]:
    places = [round(place * (len(runs) - 1) / (LABELS - 1)) for place in range(LABELS)]
    known = [(place, at) for place in dict.fromkeys(places) if (at := moment(runs[place]))]
    ends = list(chain(known[:1], known[-1:]))
    long = bool(ends) and (ends[-1][1] - ends[0][1]).days >= DAYS_APART
    for _, at in known:
        yield f"<span>{at:{'%Y-%m-%d' if long else '%m-%d %H:%M'}}</span>"


def _short(value: float) -> str:
    """Four significant digits without needless zeros, as the script writes them."""
    text = significant(value, 4)
    return text.rstrip("0").rstrip(".") if "." in text else text
