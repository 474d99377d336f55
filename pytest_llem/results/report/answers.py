"""The section of answers: of each experiment how many were right, how sure its place on the front is, and wrong ones.

`page` shows it where a study scores answers. The texts are a model's: they are escaped, and never markup.
"""

from __future__ import annotations

from html import escape

from pytest_llem.errors import visible
from pytest_llem.job.metric_names import ACCURACY, JOULES_PER_CORRECT
from pytest_llem.results.front import STANDINGS, Standing
from pytest_llem.results.report.answered import AnswersOf, WrongAnswer
from pytest_llem.results.report.charts.pareto import standings_of
from pytest_llem.results.report.content import Content, ExperimentRow
from pytest_llem.results.report.markup import NOT_KNOWN, count, fold, table, text
from pytest_llem.results.terminal import significant

HEAD = ("experiment", "front (95 %)", "questions", "right", "wrong", "cut", "failed", "unstable", "scorer")
MOST = 30
"""Experiments whose wrong answers are shown. Chosen: more make a page of hundreds of kilobytes that nobody reads."""
NOTE = """<p class="muted">Front: of accuracy against joules per correct answer, by the intervals of both, among
experiments with the same questions and scorer. Counts are of one repeat, the mean over all of them. Cut: ended
by <code>output_tokens</code>, whatever its score. Unstable: not the same score in all repeats and cycles. Every
answer is in the <code>answers.jsonl</code> of its cycle, and <code>llem score</code> scores it again.</p>"""


def answers(content: Content) -> str:
    """A row per experiment that was scored, and some of its wrong answers; empty where nothing was."""
    scored = [(_name(row, content), row.answers) for row in content.experiments if row.answers is not None]
    if not scored:
        return ""
    wrong = [_wrong(name, of.wrong) for name, of in scored if of.wrong]
    more = f"<p>Those of {count(len(wrong) - MOST, 'more experiment')} are not shown.</p>" if len(wrong) > MOST else ""
    front = standings_of(content.experiments, JOULES_PER_CORRECT, ACCURACY)
    stands = [front.get(row.key) for row in content.experiments if row.answers is not None]
    rows = [_row(name, stand, of) for (name, of), stand in zip(scored, stands, strict=True)]
    return table(HEAD, rows, "Answers of each experiment") + NOTE + "".join(wrong[:MOST]) + more


def _name(row: ExperimentRow, content: Content) -> str:
    named = f"{row.study}[{row.experiment}]" if len(content.axes) > 1 else row.experiment
    return f"{named}, run {row.run}" if len({each.run for each in content.experiments}) > 1 else named


def _row(name: str, stand: Standing | None, of: AnswersOf) -> tuple[str, ...]:
    right = NOT_KNOWN if of.right is None else _number(of.right)
    wrong = NOT_KNOWN if of.right is None else _number(of.questions - of.right)
    reason = f'<div><span class="bad">{text(of.reason)}</span></div>' if of.reason else ""
    counts = (f"{of.questions:,}", right, wrong, _number(of.cut), _number(of.failed), f"{of.unstable:,}")
    return (text(name), STANDINGS[stand] if stand else NOT_KNOWN, *counts, text(of.scorer) + reason)


def _number(value: float) -> str:
    return f"{value:,.1f}".removesuffix(".0")


def _wrong(name: str, shown: tuple[WrongAnswer, ...]) -> str:
    rows = [
        (text(each.question), _answer(each), f"<code>{escape(visible(each.key))}</code>", significant(each.score))
        for each in shown
    ]
    title = f"Wrong answers of {name}"
    return fold(title, table(("question", "answer", "key", "score"), rows, f"{title}: the first ones of a cycle"))


def _answer(wrong: WrongAnswer) -> str:
    why = f' <span class="open">{text(wrong.why)}</span>' if wrong.why else ""
    return (NOT_KNOWN if wrong.text is None else f"<q>{escape(visible(wrong.text))}</q>") + why
