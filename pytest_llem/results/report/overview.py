"""The top of a report: its title, how far the runs came, what the gates say, and what energy figures are worth.

`page` shows it before anything else: who opens a page must not read a number before a reason not to believe it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from pytest_llem.results.gate_report import WORDS
from pytest_llem.results.report.content import Content, RunProgress
from pytest_llem.results.report.markup import Tone, count, said, text

TONES: Mapping[str, Tone] = {"fail": "bad", "not_comparable": "open", "inconclusive": "open", "pass": "good"}
LEVELS: Mapping[str, Tone] = {"reached": "good", "not reached": "bad", "saturated": "bad", "undecided": "open"}
"""By verdict, the worst first; one that is not here says nothing good or bad."""
SHOWN_RUNS = 4
"""Runs with a line of their own. Chosen: they stay within one screen; more are counted."""
SHOWN_FAILURES = 3
"""Failed gates that are quoted. Chosen: enough to see what happened, the table below has all."""
UNCALIBRATED = {
    "uncalibrated": "The sensor is not calibrated: the bounds are wide.",
    "calibration_expired": "The sensor's calibration has expired.",
    "calibration_foreign": "The sensor has no calibration of its own: that of another GPU or driver was not used.",
}
"""Warnings about a sensor that change how far each joule can be believed."""


def title_of(content: Content) -> str:
    """The title of the study, or what the studies are called."""
    plans = [plan for manifest in content.manifests.values() for plan in manifest.studies]
    named = [*content.axes, *(item.study for item in content.problems)]
    names = dict.fromkeys(named or (plan.name for plan in plans))
    titles = {plan.title for plan in plans if plan.name in names}
    title = titles.pop() if len(names) == len(titles) == 1 else None
    return title or f"Energy of {', '.join(names)}"


def overview(content: Content) -> str:
    """What stands below the title."""
    states = "".join(f"<li>{line}</li>" for line in (*_states(content), *_gates(content)))
    return f'{_subtitle(content)}<ul class="states">{states}</ul>{"".join(_banners(content))}'


def _subtitle(content: Content) -> str:
    studies = ", ".join(content.axes)
    runs = [*content.states] or sorted({result.run_id for result in content.results})
    run = f"run {runs[0]}" if len(runs) == 1 else count(len(runs), "run")
    parts = [f"study {studies}" if studies else "", count(len(content.experiments), "experiment"), run]
    return f'<p class="muted">{text(" · ".join(part for part in parts if part))}</p>'


def _states(content: Content) -> Iterable[str]:
    if not content.states:
        valid, total = len(content.results.valid), len(content.results)
        yield said("good" if valid == total else "bad", f"{valid} of {count(total, 'cycle')} valid")
        return
    states = content.states.values()
    if len(states) <= SHOWN_RUNS:
        for name, state in content.states.items():
            yield said(*_came(state, "" if len(states) == 1 else f"{name}: "))
        return
    valid, planned = (
        sum(each.valid - each.reused for each in states),
        sum(each.planned - each.reused for each in states),
    )
    yield said("good" if valid == planned else "bad", f"{valid} of {count(planned, 'cycle')} valid")
    became = Counter(state.state for state in states)
    words = ", ".join(f"{number} {state}" for state, number in became.items())
    yield said("good" if set(became) == {"complete"} else "open", f"runs: {words}")


def _came(run: RunProgress, name: str = "") -> tuple[Tone, str]:
    """`7 of 24 cycles, interrupted`."""
    if run.state in ("complete", "failed"):
        tone: Tone = "good" if run.valid == run.planned else "bad"
        return tone, f"{name}{run.valid} of {count(run.planned, 'cycle')} valid"
    invalid = f", {run.ended - run.valid} of them not valid" if run.valid < run.ended else ""
    tone = "open" if run.state == "running" else "bad"
    return tone, f"{name}{run.ended} of {count(run.planned, 'cycle')}, {run.state}{invalid}"


def _gates(content: Content) -> Iterable[str]:
    counts = Counter(row.status for reports in content.gates.values() for each in reports for row in each.rows)
    for status in sorted(counts, key=[*TONES].index):
        said_so = said(TONES[status], f"{count(counts[status], 'gate')} {WORDS[status]}")
        yield f'<a href="#gates">{said_so}</a>'


def _banners(content: Content) -> Iterable[str]:
    failed = [
        f"{report.experiment_id}: {row.sentence()}"
        for reports in content.gates.values()
        for report in reports
        for row in report.rows
        if row.status == "fail"
    ]
    if failed:
        lines = [f"<li>{text(line)}</li>" for line in failed[:SHOWN_FAILURES]]
        more = len(failed) - SHOWN_FAILURES
        lines += [f'<li><a href="#gates">and {more} more</a></li>'] if more > 0 else []
        head = f"<strong>{count(len(failed), 'gate')} failed</strong>"
        yield f'<div class="banner bad">{head}<ul>{"".join(lines)}</ul></div>'
    meters = {result.energy.meter for result in content.results}
    if "none" in meters:
        some = "" if meters == {"none"} else " in some cycles"
        yield _banner("bad", f"Energy was NOT measured{some}.", "The meter was <code>none</code>.")
    estimates = sorted({result.energy.meter for result in content.results if not result.energy.measured} - {"none"})
    if estimates:
        some = "" if meters == set(estimates) else " in some cycles"
        how = f"it is estimated ({text(', '.join(estimates))}). Compare runs on one machine, do not publish joules."
        yield _banner("open", f"Energy is NOT measured{some}", how, colon=True)
    codes = {warning.code for result in content.results for warning in result.warnings}
    for code, sentence in UNCALIBRATED.items():
        if code in codes:
            yield _banner("open", sentence, "Remedy: <code>llem doctor --calibrate</code>.")


def _banner(tone: Tone, strong: str, more: str, *, colon: bool = False) -> str:
    return f'<p class="banner {tone}"><strong>{text(strong)}</strong>{":" if colon else ""} {more}</p>'
