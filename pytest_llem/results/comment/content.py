"""What a comment on a pull request holds, and its Markdown: verdict first, then what changed, then how to see it again.

`collecting` fills it from a run. Standard library alone, since whoever may write comments should install nothing; all
that a run says is escaped here, because the file that carries it may come from a stranger.
"""

from __future__ import annotations

import hashlib
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pytest_llem.job.files import slug
from pytest_llem.job.metric_names import known_metric
from pytest_llem.results.gate_report import GateReport, GateRow, word
from pytest_llem.results.history.sparkline import sparkline
from pytest_llem.results.run_verdict import run_findings
from pytest_llem.results.terminal import as_markdown, markdown_table, middle_cut, one_line

COMMENT_VERSION = 1
"""Raised when a field is renamed, removed or changes its meaning."""
LONGEST = 65_536
"""GitHub's limit for the text of a comment, which it counts in characters; here in UTF-16, which is never fewer."""
LONGEST_NAME = 90
"""Characters of an experiment's id. Chosen: the ends of longer ones, which tell it from others, fit in a table."""
LONGEST_TEXT = 400
"""Characters of a sentence. Chosen: a gate's whole sentence is shorter, and an engine's error may be a page."""
LISTED = 10
"""Problems and causes that are listed. Chosen: a comment is read, and the report has all of them."""
SPARKS = 20
"""Characters of a series. Chosen: a month of working days, and narrow enough for a table."""
HISTORY_OPTION = "--llem-baseline=history:"
MARKER = "<!-- pytest-llem: {} -->"


@dataclass(frozen=True)
class Comment:
    """A run's verdicts and what is needed to read them; `name` tells its comment from those of other gates.

    `command` is how pytest was called, and `history_branch` the branch of the history among its options. `series` has
    earlier values and the run's own, oldest first, by study, experiment and metric, joined as `series_key` does.
    """

    name: str
    run_id: str
    gates: tuple[GateReport, ...] = ()
    problems: tuple[str, ...] = ()
    cycles: int = 0
    command: tuple[str, ...] = ()
    commit: str | None = None
    history_branch: str | None = None
    series: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    schema_version: int = COMMENT_VERSION

    @property
    def marker(self) -> str:
        """The hidden first line, by which the comment is found again; names of one slug have comments of their own."""
        shown = slug(self.name)
        if shown != self.name:
            shown += f"-{hashlib.sha256(self.name.encode(errors='replace')).hexdigest()[:8]}"
        return MARKER.format(shown)


def series_key(study: str, experiment_id: str, metric: str) -> str:
    """The key of a series."""
    return "\n".join((study, experiment_id, metric))


@dataclass(frozen=True)
class _Judged:
    """A gate's row with the experiment it is of, and the name of that in this comment."""

    name: str
    report: GateReport
    row: GateRow

    @property
    def changed(self) -> bool:
        """Whether it differs from its baseline beyond its interval."""
        low, high = self.row.ci_low, self.row.ci_high
        return self.row.kind != "budget" and low is not None and high is not None and not low <= 1 <= high

    @property
    def kind(self) -> str:
        """Its verdict in a word or two; a change that no limit forbids says which way it went."""
        if self.row.status != "pass":
            return {"fail": "❌ failed"}.get(self.row.status, f"⚠️ {word(self.row.status)}")
        metric = known_metric(self.row.metric)
        if not self.changed or metric is None or self.row.ratio is None:
            return "passed"
        better = (self.row.ratio > 1) == metric.higher_is_better
        return "✅ better" if better else "🔸 worse, within the limit"


def markdown(comment: Comment, report_url: str | None = None) -> str:
    """The comment's text, shorter than GitHub allows for any run; what does not fit is counted."""
    several = len({report.study for report in comment.gates}) > 1
    rows = [_Judged(_name(report, several), report, row) for report in comment.gates for row in report.rows]
    unjudged = [each for each in rows if each.row.status in ("inconclusive", "not_comparable")]
    judged = [each for each in rows if each not in unjudged] if unjudged else rows
    shown = sorted(
        (each for each in judged if each.row.status == "fail" or each.changed),
        key=lambda each: (each.row.status != "fail", -_distance(each.row)),
    )
    others = [each for each in judged if each.row.status != "fail" and not each.changed]
    head = [comment.marker, f"### {_verdict(comment, rows)}", ""]
    worst = next((each for each in shown if each.row.status == "fail"), None)
    if worst is not None:
        head += [f"**{_text(worst.name, LONGEST_NAME)}**: {_text(worst.row.sentence())}", ""]
    head += [f"Held against {line}  " for line in _baselines(comment.gates)]
    head += _on_equal_runs(rows)
    head += [f"{_text(finding.message)}  " for finding in run_findings(comment.gates)[:LISTED]]
    tail = [*_problems(comment), *_unjudged(unjudged), *_again(comment, report_url)]
    room = LONGEST - _length([*head, *tail]) - 2 * LONGEST_TEXT
    table = _table(comment, shown, room // 2 if others else room, history=True)
    if others:
        experiments = len({each.name for each in others})
        title = f"Passed: {_n(len(others), 'gate')} of {_n(experiments, 'experiment')}"
        folded = _table(comment, others, room - _length(table), history=False)
        table += ["", f"<details><summary>{title}</summary>", "", *folded, "", "</details>"]
    return "\n".join([*head, "", *table, *tail]) + "\n"


def _verdict(comment: Comment, rows: Sequence[_Judged]) -> str:
    """One line that says it all."""
    experiments = {each.name for each in rows}
    failed = {each.name for each in rows if each.row.status == "fail"}
    unjudged = {each.name for each in rows if each.row.status not in ("fail", "pass")}
    count = len(experiments)
    if failed:
        beyond = "is beyond its limit" if len(failed) == 1 else "are beyond their limits"
        return f"❌ {len(failed)} of {_n(count, 'experiment')} {beyond}"
    lost = f"; {len(comment.problems)} of {_n(comment.cycles, 'cycle')} did not measure" if comment.problems else ""
    if not rows:
        return f"⚠️ Nothing was judged: there is no baseline yet, or the study has no limit{lost}"
    if unjudged:
        judged = f"{len(unjudged)} of {_n(count, 'experiment')} could not be judged"
        return f"⚠️ {judged}; the others are within their limits{lost}" if len(unjudged) < count else f"⚠️ {judged}{lost}"
    within = "The experiment is within its limits" if count == 1 else f"All {count} experiments are within their limits"
    return f"⚠️ {within}{lost}" if lost else f"✅ {within}"


def _baselines(gates: Sequence[GateReport]) -> list[str]:
    named = Counter(str(report.baseline) for report in gates if report.baseline is not None and report.baseline.runs)
    return [f"{_text(name)}" for name, _ in named.most_common(1)]


def _on_equal_runs(rows: Sequence[_Judged]) -> list[str]:
    """How often these gates would have failed on runs that were equal: what a red one is worth."""
    known = [each.row.would_have_failed for each in rows if each.row.would_have_failed]
    if not known:
        return []
    failed, judged = (sum(counts) for counts in zip(*known, strict=True))
    runs = max(count for _, count in known)
    return [f"On the last {_n(runs, 'equal run')} these gates would have failed in {failed} of {judged} verdicts  "]


def _table(comment: Comment, rows: Sequence[_Judged], room: int, *, history: bool) -> list[str]:
    """As many rows as fit, each a gate; below them how many did not."""
    if not rows:
        return []
    history = history and bool(comment.series)
    head = ("experiment", "metric", "verdict", "baseline", "now", "change", "interval", "limit")
    lines = markdown_table((*head, "history") if history else head, [], left=3)
    used = _length(lines)
    for number, each in enumerate(rows):
        cells = [middle_cut(each.name, LONGEST_NAME), each.row.metric, each.kind, *each.row.cells()[2:]]
        if history:
            key = series_key(each.report.study, each.report.experiment_id, each.row.metric)
            cells.append(sparkline(comment.series.get(key, ()), SPARKS))
        line = markdown_table([], [[middle_cut(cell, LONGEST_NAME) for cell in cells]], left=3)[-1]
        used += _length([line])
        if used > room:
            return [*lines, "", f"… and {_n(len(rows) - number, 'more gate')}: the report has all of them."]
        lines.append(line)
    return lines


def _problems(comment: Comment) -> list[str]:
    if not comment.problems:
        return []
    more = len(comment.problems) - LISTED
    lines = [f"- {_text(problem)}" for problem in comment.problems[:LISTED]]
    return ["", "**Cycles that did not measure**", "", *lines, *([f"- {more} more"] if more > 0 else [])]


def _unjudged(rows: Sequence[_Judged]) -> list[str]:
    """What could not be judged and why, gates of one cause together, with what would help."""
    causes: dict[str, list[_Judged]] = {}
    for each in rows:
        causes.setdefault(f"{word(each.row.status)}: {each.row.cause()}", []).append(each)
    lines = []
    for cause, of_cause in sorted(causes.items(), key=lambda item: -len(item[1]))[:LISTED]:
        first = of_cause[0]
        names = [*dict.fromkeys(_text(each.name, LONGEST_NAME) for each in of_cause)]
        listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        why = [first.row.sentence()] if first.row.ratio is not None else []
        why += [first.row.basis] if first.row.basis else []
        lines.append(f"- {_n(len(of_cause), 'gate')} {_text(cause)} ({listed})" + "".join(f"; {_text(s)}" for s in why))
    if len(causes) > LISTED:
        lines.append(f"- {len(causes) - LISTED} other causes")
    return ["", "**Not judged**", "", *lines] if lines else []


def _again(comment: Comment, report_url: str | None) -> Iterator[str]:
    """How to measure it again, and where the rest is."""
    lines = []
    if comment.commit:
        lines.append(f"git fetch origin {shlex.quote(comment.commit)} && git checkout FETCH_HEAD")
    folders = (
        word.partition("=history:")[2] for word in comment.command if word.startswith("--llem-baseline=history:")
    )
    folder = next(folders, "")
    if folder and comment.history_branch:
        branch = shlex.quote(comment.history_branch)
        lines.append(f"git fetch origin {branch} && git worktree add --detach {shlex.quote(folder)} FETCH_HEAD")
    if comment.command:
        lines.append(shlex.join(comment.command))
    if lines:
        longest = 4 * LONGEST_TEXT
        yield from ("", "<details><summary>Reproduce it</summary>", "", "```sh")
        yield from (middle_cut(_plain(line), longest) for line in lines)
        yield from ("```", "", "</details>")
    link = f"[Results and report](<{report_url}>) · " if report_url else ""
    yield from ("", f"{link}Run {_text(comment.run_id, LONGEST_NAME)}")


def _plain(line: str) -> str:
    """A line inside a fence of code, which it cannot end."""
    return one_line(line).replace("```", "` ` `")


def _name(report: GateReport, several: bool) -> str:
    return f"{report.study}[{report.experiment_id}]" if several else report.experiment_id


def _distance(row: GateRow) -> float:
    """How far a ratio is from 1, either way."""
    return max(row.ratio, 1 / row.ratio) if row.ratio else 0.0


def _text(text: str, longest: int = LONGEST_TEXT) -> str:
    """A text of others as Markdown, no longer than that with all its escapes."""
    width = longest
    while _length([shown := as_markdown(middle_cut(text, width))]) > longest + 1:
        width = 2 * width // 3
    return shown


def _n(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'s' * (count != 1)}"


def _length(lines: Iterable[str]) -> int:
    """Characters of lines with their ends, as GitHub would count them at most."""
    return sum(len(line.encode("utf-16-le", "replace")) // 2 + 1 for line in lines)
