"""Whether a gate that failed fails when its cycles are measured once more: `execution.confirm`.

`session.run_results` calls it. A verdict on one set of cycles is `judging`'s; here two sets come to one. docs/gates.md
has the rates, by `tests/benchmarks/gate_confirming.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from pytest_llem.results.gate_report import NOT_CONFIRMED, UNUSED, GateReport, GateRow
from pytest_llem.results.gates import undecided
from pytest_llem.results.metrics import metric
from pytest_llem.results.state import Outcome

Judge = Callable[[Sequence[Outcome]], GateReport]
"""Judges the cycles of the experiment, always by the same limits and baseline."""


def unconfirmed(report: GateReport) -> GateReport:
    """A failed report as it stands until its cycles are measured once more, should that never end."""
    rows = (
        replace(row, reason=f"{row.reason}; not yet measured once more") if row.status == "fail" else row
        for row in report.rows
    )
    return replace(report, rows=tuple(rows))


def confirmed(report: GateReport, cycles: Sequence[Outcome], further: Sequence[Outcome], judge: Judge) -> GateReport:
    """The report on `cycles`, of which a limit that failed fails only if the `further` cycles say so too.

    They do where they fail by themselves, or where their mean lies beyond the limit and all cycles together fail. Where
    they say nothing, because none could be used, the failure stands.
    """
    alone, together = judge(further), judge([*cycles, *further])
    rows = [
        confirmed_row(first, again, both, _used(first, cycles), _used(first, further))
        if first.status == "fail"
        else first
        for first, again, both in zip(report.rows, alone.rows, together.rows, strict=True)
    ]
    return replace(report, rows=tuple(rows), first=report.rows, further=alone.rows)


def _used(row: GateRow, cycles: Sequence[Outcome]) -> int:
    results = [outcome.result for outcome in cycles if outcome.valid and outcome.result is not None]
    return sum(metric(row.metric).of(result) is not None for result in results)


def confirmed_row(first: GateRow, again: GateRow, both: GateRow, before: int, after: int) -> GateRow:
    """One limit's verdict, of three: on the planned cycles, on so many more, and on all of them."""
    ratio = _estimate(first, again)
    if again.status != "fail" and ratio is None:
        return replace(first, reason=f"{first.reason}; measured once more in vain: {again.reason}")
    found = first.reason if first.ratio is None else f"{first.said(first.ratio)} in the first {_cycles(before)}"
    more = again.reason if ratio is None else f"{first.said(ratio)} in {after} more"
    both = replace(both, autocorrelation=first.autocorrelation)  # between the sets lies a time that none measured
    if again.status == "fail" or (both.status == "fail" and ratio is not None and _beyond(first, ratio)):
        row = both if both.status == "fail" else first
        return replace(row, reason=f"{row.reason}; confirmed: {found}, {more}")
    limit = f"the {'budget' if first.kind == 'budget' else 'limit'} is {first.limit}"
    waits = f"; {undecided(both.more_runs)}" if both.more_runs else ""
    lost = "".join(both.reason.partition(UNUSED)[1:])
    return replace(both, status="inconclusive", reason=f"{NOT_CONFIRMED}: {found}, {more}; {limit}{waits}{lost}")


def _estimate(first: GateRow, again: GateRow) -> float | None:
    """The further cycles' ratio, also where they are too few for bounds."""
    reference = float(first.limit.split()[-1]) if first.kind == "budget" else first.baseline
    if again.ratio is not None or again.current is None or not reference:
        return again.ratio
    return again.current / reference


def _beyond(first: GateRow, ratio: float) -> bool:
    """Whether a ratio lies on that side of the limit on which the failed one does."""
    if first.ratio is None or first.limit_ratio is None:
        return True
    return (ratio - first.limit_ratio) * (first.ratio - first.limit_ratio) > 0


def _cycles(count: int) -> str:
    return f"{count} cycle{'s' * (count != 1)}"
