"""The verdicts of a report: each gate with what it is held against, comparisons, and the windows of each search.

`page` shows them; `gate_report`, `compare` and `search_record` have their texts.
"""

from __future__ import annotations

from collections.abc import Sequence

from pytest_llem.results.compare import HEAD, ComparedMetric, cells
from pytest_llem.results.gate_report import VERDICT_HEAD, WORDS, BaselineNamed, GateReport
from pytest_llem.results.report.asked import moment
from pytest_llem.results.report.content import Content
from pytest_llem.results.report.markup import NOT_KNOWN, fold, said, table, text
from pytest_llem.results.report.overview import LEVELS, TONES
from pytest_llem.results.search_record import SearchedWindow
from pytest_llem.results.terminal import significant

WINDOW_HEAD = ("window", "load", "SLO", "what decided it", "why this load")


def gates(content: Content) -> str:
    """Each gate's verdict, the ones that failed first, why, and the baseline's runs; empty where nothing was judged."""
    order = [*TONES]
    judged = [(run, report, row) for run, reports in content.gates.items() for report in reports for row in report.rows]
    if not judged:
        return ""
    judged.sort(key=lambda entry: order.index(entry[2].status))
    several = len({run for run, _, _ in judged}) > 1
    studies = len({report.study for _, report, _ in judged}) > 1
    gate, verdict, *numbers = VERDICT_HEAD
    replayed = any(row.would_have_failed for _, _, row in judged)
    equal = ["failed of last equal runs"] if replayed else []
    head = [verdict, *(["run"] if several else []), "experiment", gate, *numbers, *equal]
    body = []
    why = []
    for run, report, row in judged:
        name = f"{report.study}[{report.experiment_id}]" if studies else report.experiment_id
        shown = row.cells()
        body.append(
            [
                said(TONES[row.status], WORDS[row.status]),
                *([text(run)] if several else []),
                *map(text, (name, shown[0], *shown[2:])),
                *([text(" of ".join(map(str, row.would_have_failed)) or "–")] if replayed else []),
            ]
        )
        if row.reason:
            why.append(f"<li>{text(f'{name}: {row.sentence()}')}</li>")
    against = _baselines([report for _, report, _ in judged])
    caption = "Verdicts on budgets and against the baseline"
    return table(head, body, caption) + fold("Why", f"<ul>{''.join(why)}</ul>") + against


def _baselines(reports: Sequence[GateReport]) -> str:
    """Each baseline with its runs, when they began, and the commits that they measured."""
    named: dict[str, dict[str, tuple[str, str]]] = {}
    for report in reports:
        baseline: BaselineNamed | None = report.baseline
        if baseline is not None:
            for run in baseline.runs:
                commit = "–" if run.commit is None else run.commit[:10] + (" with changes" if run.dirty else "")
                named.setdefault(baseline.name, {})[run.run_id] = (moment(run.started_at) or "–", commit)
            named.setdefault(baseline.name, {})
    rows = [
        (text(name), text(run), *map(text, facts))
        for name, runs in named.items()
        for run, facts in (runs or {"no run of these experiments": ("–", "–")}).items()
    ]
    return table(("baseline", "run", "measured", "commit"), rows, "What the gates compare with") if rows else ""


def comparison(compared: Sequence[ComparedMetric]) -> str:
    """Every run against the baseline, and what else differs between them."""
    if not compared:
        return ""
    runs, studies = ({getattr(row, name) for row in compared} for name in ("run", "study"))
    body = []
    for row in compared:
        *shown, verdict = cells(row, several_studies=len(studies) > 1)
        tone = TONES.get(row.verdict or "")
        run = [text(row.run)] if len(runs) > 1 else []
        body.append([said(tone, verdict) if tone else text(verdict), *run, *map(text, shown)])
    differs = dict.fromkeys(difference for row in compared for difference in row.differs)
    notes = "".join(f"<li>{text(difference)}</li>" for difference in differs)
    *head, verdict = HEAD
    columns = (verdict, *(["run"] if len(runs) > 1 else []), *head)
    below = f"<p>* note:</p><ul>{notes}</ul>" if notes else ""
    return table(columns, body, "Against the baseline") + below


def searches(content: Content) -> str:
    """A sentence and a table per search; empty where nothing was searched."""
    parts = []
    for row in content.experiments:
        if row.search is not None:
            several = len(row.search.cycles) > 1
            body = [
                _window(window, f"c{number} " if several else "")
                for number, cycle in row.search.cycles.items()
                for window in cycle.windows
            ]
            name = f"{row.study}[{row.search.name}]" if len(content.axes) > 1 else row.search.name
            where = f", run {row.run}" if len({each.run for each in content.experiments}) > 1 else ""
            parts.append(f"<p>{text(name)}{text(where)}: <strong>{text(row.search.line)}</strong></p>")
            parts.append(table(WINDOW_HEAD, body, f"Windows of {name}{where}"))
    return "".join(parts)


def _window(window: SearchedWindow, cycle: str) -> tuple[str, ...]:
    came = "" if window.came == window.load else f" ({significant(window.came)} came)"
    tone = LEVELS.get(window.level or "")
    return (
        text(f"{cycle}{window.step}"),
        text(f"{significant(window.load)}{came}"),
        said(tone, window.level or "") if tone else NOT_KNOWN,
        text(window.decided),
        text(window.reason),
    )
