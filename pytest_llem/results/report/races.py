"""The section on races for the best setting: the answer, its chart, and of each setting when and why it left.

`page` shows it right after the results: it is what a study with `optimize` was run for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from html import escape

from pytest_llem.job.metric_names import metric_name
from pytest_llem.results.optimize_record import OptimizeRecord
from pytest_llem.results.racing.answer import Bounds
from pytest_llem.results.report.charts.race import ratio_text
from pytest_llem.results.report.content import Content
from pytest_llem.results.report.markup import NOT_KNOWN, Tone, count, fold, said, table, text
from pytest_llem.results.report.shown_race import MAY_BE, RECOMMENDED, ShownRace, breaks
from pytest_llem.results.terminal import significant

STATUS: dict[str, Tone] = {"found": "good", "infeasible": "bad"}
STATES: dict[str, Tone] = {RECOMMENDED: "good", MAY_BE: "good", "infeasible": "bad", "failed": "bad"}


def races(content: Content, drawn: Callable[[ShownRace], str]) -> str:
    """An answer, a chart as `drawn` and a table per race; empty without one."""
    return "".join(_race(race, drawn(race), several=len(content.races) > 1) for race in content.races)


def _race(race: ShownRace, drawn: str, *, several: bool) -> str:
    record = race.record
    name = f"{record.study}, run {race.run}" if several else ""
    head = f"<h3>{text(name)}</h3>" if several else ""
    tone = STATUS.get(record.status, "open")
    first, *more = map(text, record.lines())
    lines = "".join(f"<li>{line}</li>" for line in more)
    status = "not over" if record.status == "running" else record.status
    answer = f'<div class="banner {tone}"><strong>{said(tone, status)}</strong>: {first}<ul>{lines}</ul></div>'
    unit = metric_name(record.metric).unit
    figure = f"{record.metric}{'' if unit == '1' else f' ({unit})'}"
    columns = ("setting", "what became of it", "cycles", figure, "ratio to its best rivals", *record.subject_to)
    caption = f"Every setting of the race{f' of {name}' if several else ''}"
    return "".join((head, answer, _asked(race), drawn, table(columns, _rows(race), caption), _left_out(record)))


def _asked(race: ShownRace) -> str:
    record = race.record
    settings = ", ".join(map(str, record.course))
    asked = (
        f"Asked: {100 * record.confidence:g} % confidence, a regret of {100 * record.regret:g} % at most, and "
        f"{record.max_cycles} cycles of a setting at most. Settings measured in each round: {settings or 'none'}."
    )
    return f'<p class="muted">{text(asked)}</p>'


def _rows(race: ShownRace) -> Iterable[tuple[str, ...]]:
    for name, fate in race.fates.items():
        tone = STATES.get(race.state(name))
        became = said(tone, race.left(name)) if tone else text(race.left(name))
        why = f'<br><span class="muted">{text(fate.reason)}</span>' if fate.reason else ""
        value = race.record.settings[name].value
        yield (
            f"<code>{escape(name)}</code>",
            became + why,
            text(fate.cycles),
            NOT_KNOWN if value is None else text(significant(value)),
            f'<span class="n">{text(ratio_text(fate.ratios[-1]))}</span>' if fate.ratios else NOT_KNOWN,
            *(
                NOT_KNOWN if bounds is None else _limited(bounds, breaks(fate, budget), fate.feasible)
                for budget, bounds in race.limited(name)
            ),
        )


def _limited(bounds: Bounds, broken: bool, feasible: bool | None) -> str:
    low, high = ("?" if end is None else f"{end:.3g}" for end in (bounds.low, bounds.high))
    shown = f"{bounds.value:.3g} ({low} .. {high})"
    return said("bad", shown) if broken else said("good", shown) if feasible else text(shown)


def _left_out(record: OptimizeRecord) -> str:
    if not record.left_out:
        return ""
    rows = [f"<li><code>{escape(id)}</code>: {text(reason)}</li>" for id, reason in record.left_out.items()]
    return fold(f"{count(len(rows), 'setting')} did not take part", f"<ul>{''.join(rows)}</ul>")
