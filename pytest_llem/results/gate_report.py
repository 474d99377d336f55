"""The verdicts on one experiment: a row per gate, their text, and `gate.json`.

`judging` makes them; the session, `run_verdict`, `compare` and the HTML report show them. `gate.json` is published:
fields are only added, with defaults.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_llem.errors import StoreError
from pytest_llem.job.files import read_json, write_json
from pytest_llem.job.metric_names import ACCURACY
from pytest_llem.job.wire import decode, encode
from pytest_llem.results.gates import Status
from pytest_llem.results.terminal import table
from pytest_llem.results.verdict_text import change, in_unit

VERDICT_HEAD = ("gate", "verdict", "baseline", "now", "change", "interval", "limit")
GATE = "gate.json"
WORDS: dict[Status, str] = {
    "pass": "passed",
    "fail": "failed",
    "inconclusive": "inconclusive",
    "not_comparable": "not comparable",
}
EXPLAINED = ("fail", "not_comparable")
"""Verdicts whose `basis` a reader needs."""
UNUSED = " (not used"
"""Where the reason of a gate begins to name the cycles that its verdict is not of."""
NOT_CONFIRMED = "not confirmed"
"""What the reason of a gate begins with whose cycles failed and, measured once more, did not."""
SHOWN = 3
"""Experiments or causes that the line of gates names. Chosen: it stays one line, and each gate has its own in full."""


@dataclass(frozen=True)
class GateRow:
    """One gate's verdict. `baseline` and `current` are geometric means in the metric's unit.

    `ratio` and its bounds are current over baseline (or over the budget) as the metric reads, also where higher is
    better; each bound is one-sided. `limit_ratio` is the ratio beyond which it fails. `basis` says what so many
    baseline runs can and cannot decide, or what to do where settings differ on purpose. `autocorrelation` is that of
    successive cycles, without its bias. `common` is the ratio that all experiments of the run share, known when the
    run has ended; the verdict does not depend on it. `more_runs` is how many more baseline runs decide what is not
    decided, and 0 where it is, or where they would not. `would_have_failed` is, of a history, in how many of the last
    equal runs this gate would have failed, and how many these are.
    """

    metric: str
    kind: str
    status: Status
    limit: str
    baseline: float | None
    current: float | None
    ratio: float | None
    ci_low: float | None
    ci_high: float | None
    reason: str
    limit_ratio: float | None = None
    baseline_runs: int = 0
    basis: str = ""
    autocorrelation: float | None = None
    common: float | None = None
    more_runs: int = 0
    would_have_failed: tuple[int, ...] = ()

    def cells(self) -> tuple[str, ...]:
        """The row as text in the sign and unit of its limit, in the order of `VERDICT_HEAD`."""
        said, budget, low, high = self.said, self.kind == "budget", self.ci_low, self.ci_high
        return (
            self.metric,
            word(self.status),
            "-" if self.baseline is None else in_unit(self.metric, self.baseline),
            "-" if self.current is None else in_unit(self.metric, self.current),
            "-" if self.ratio is None or budget else said(self.ratio),
            "-" if low is None or high is None else f"{said(low)} .. {said(high)}",
            self.limit,
        )

    def said(self, ratio: float) -> str:
        """A ratio of this gate in the sign and unit of its limit: `+8.2 %`, or `0.62 J` of a budget."""
        if self.kind == "budget":
            return in_unit(self.metric, ratio * float(self.limit.split()[-1]))
        return change(self.metric, ratio, None if self.limit.endswith("%") else self.baseline)

    def sentence(self) -> str:
        """What was found: `output_tokens_per_s fell by 88.5 % (...), the limit is -30 %`, or why nothing could be."""
        if self.ratio is None:
            return f"{self.metric}: {word(self.status)}: {self.told()}"
        return f"{self.metric} {self.told()}"

    def told(self) -> str:
        """The reason and, of a failure, how often this gate would have failed before."""
        often = self.on_equal_runs() if self.status == "fail" else ""
        return self.reason + (f"; this gate {often}" if often else "")

    def on_equal_runs(self) -> str:
        """How often it would have failed: `would have failed in 1 of the last 20 equal runs`; empty if not known."""
        if not self.would_have_failed:
            return ""
        failed, runs = self.would_have_failed
        return f"would have failed in {failed} of the last {runs} equal runs"

    def cause(self) -> str:
        """Why it could not be judged, in a few words that gates of one cause share."""
        if self.reason.startswith(NOT_CONFIRMED):
            return NOT_CONFIRMED
        if self.ratio is not None and self.more_runs:
            return f"needs {self.more_runs} more baseline run{'s' * (self.more_runs > 1)}"
        if self.ratio is not None:
            by_questions = self.metric == ACCURACY and "own noise" not in self.reason
            return "too few questions" if by_questions else "too noisy"
        return self.reason.partition(UNUSED)[0].partition("; ")[0]


@dataclass(frozen=True)
class RunOfBaseline:
    """A run that an experiment was compared with: its id, when it began, and the commit that it measured.

    `dirty`: the working tree had changes on top of that commit. What is not known is `None`.
    """

    run_id: str
    started_at: str | None = None
    commit: str | None = None
    dirty: bool | None = None


@dataclass(frozen=True)
class BaselineNamed:
    """The baseline as it was given, and its runs of the experiment, oldest first; none where it lacks that."""

    name: str
    runs: tuple[RunOfBaseline, ...] = ()

    def __str__(self) -> str:
        """`main (3 runs, the newest of 2026-11-01, commit 4f2a91c)`."""
        if not self.runs:
            return f"{self.name} (no run)"
        newest = max(self.runs, key=lambda run: run.started_at or "")
        of = f" of {newest.started_at[:10]}" if newest.started_at else ""
        several = f"{len(self.runs)} runs, the newest{of}" if len(self.runs) > 1 else f"1 run{of}"
        changed = " with changes" if newest.dirty else ""
        return f"{self.name} ({several}{f', commit {newest.commit[:7]}{changed}' if newest.commit else ''})"


@dataclass(frozen=True)
class GateReport:
    """All verdicts on one experiment; `baseline` is what it was compared with, `None` for budgets alone.

    Where `execution.confirm` had cycles measured once more, `first` are the verdicts on those that were planned, and
    `further` those on the others alone; both are empty otherwise.
    """

    study: str
    experiment_id: str
    rows: tuple[GateRow, ...]
    strict: bool
    baseline: BaselineNamed | None = None
    first: tuple[GateRow, ...] = ()
    further: tuple[GateRow, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether the gate's test fails: a limit is exceeded or, when strict, something could not be judged."""
        bad = {"fail", "inconclusive", "not_comparable"} if self.strict else {"fail"}
        return any(row.status in bad for row in self.rows)

    @property
    def status(self) -> Status:
        """The worst of the verdicts: fail, then not comparable, then inconclusive, then pass."""
        statuses = {row.status for row in self.rows}
        order: tuple[Status, ...] = ("fail", "not_comparable", "inconclusive", "pass")
        return next((status for status in order if status in statuses), "pass")

    def skip_reason(self) -> str:
        """Why the gate could not be judged, for a skip; empty when every verdict passed."""
        unjudged = (row for row in self.rows if row.status != "pass")
        return "; ".join(f"{row.metric}: {word(row.status)}: {row.reason}" for row in unjudged)

    def text(self) -> str:
        """What failed first, in sentences, then all verdicts as a table, and what they are held against."""
        failed = [row.sentence() for row in self.rows if row.status == "fail"]
        others = [row.sentence() for row in self.rows if row.status not in ("fail", "pass")]
        bases = dict.fromkeys(row.basis for row in self.rows if row.status in EXPLAINED and row.basis)
        against = [f"baseline {self.baseline}"] if self.baseline is not None else []
        return "\n".join([*failed, *others, *table(VERDICT_HEAD, [row.cells() for row in self.rows]), *against, *bases])


def gates_line(reports: Iterable[GateReport]) -> str:
    """`gates: 3 passed, 1 failed (batch_size:4), 2 not comparable (batch_size 4 -> 1); baseline main (1 run)`."""
    reports = list(reports)
    rows = [row for report in reports for row in report.rows]
    parts = []
    for status, shown in WORDS.items():
        count = sum(row.status == status for row in rows)
        if count:
            parts.append(f"{count} {shown}{_which(status, reports)}")
    baselines = [report.baseline for report in reports if report.baseline is not None]
    runs = {run.run_id: run for baseline in baselines for run in baseline.runs}
    named = BaselineNamed(baselines[0].name, tuple(runs.values())) if baselines else None
    return f"gates: {', '.join(parts) or 'none judged'}" + ("" if named is None else f"; baseline {named}")


def _which(status: Status, reports: Sequence[GateReport]) -> str:
    """In brackets, the experiments that failed, or why others could not be judged."""
    if status == "pass":
        return ""
    of_status = [(report, row) for report in reports for row in report.rows if row.status == status]
    if status == "fail":
        several = len({report.study for report in reports}) > 1
        named = list(
            dict.fromkeys(
                f"{each.study}[{each.experiment_id}]" if several else each.experiment_id for each, _ in of_status
            )
        )
        more = [f"{len(named) - SHOWN} more"] if len(named) > SHOWN else []
        return f" ({', '.join([*named[:SHOWN], *more])})"
    causes = Counter(row.cause() for _, row in of_status).most_common()
    shown = [cause if len(causes) == 1 else f"{count} × {cause}" for cause, count in causes[:SHOWN]]
    more = [f"{len(causes) - SHOWN} other causes"] if len(causes) > SHOWN else []
    return f" ({'; '.join([*shown, *more])})"


def word(status: str) -> str:
    """A verdict as a word."""
    return status.replace("_", " ")


def write_gate(experiment_directory: Path, report: GateReport) -> None:
    """Write an experiment's verdicts, and create its directory if no cycle has."""
    experiment_directory.mkdir(parents=True, exist_ok=True)
    write_json(experiment_directory / GATE, encode(report))


def read_gates(run_dir: Path) -> list[GateReport]:
    """The verdicts of a run, by study and experiment; empty where nothing was judged. `StoreError` for a broken one."""
    return list(gate_files(run_dir).values())


def gate_files(run_dir: Path) -> dict[Path, GateReport]:
    """The same by the experiment's directory."""
    reports: dict[Path, GateReport] = {}
    for path in sorted(run_dir.glob(f"*/*/{GATE}")):
        try:
            reports[path.parent] = decode(GateReport, read_json(path))
        except ValueError as problem:
            raise StoreError(f"{path}: {problem}") from None
    return reports
