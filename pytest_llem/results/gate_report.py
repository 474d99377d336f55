"""The verdicts on one experiment: a row per gate, their text, and `gate.json`.

`judging` makes them; the session, `run_verdict`, `compare` and the HTML report show them. `gate.json` is published:
fields are only added, with defaults.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pytest_llem.errors import StoreError
from pytest_llem.job.files import read_json, write_json
from pytest_llem.job.wire import decode, encode
from pytest_llem.results.gates import Status
from pytest_llem.results.terminal import table

VERDICT_HEAD = ("gate", "verdict", "baseline", "now", "ratio", "interval", "limit")
GATE = "gate.json"
WORDS: dict[Status, str] = {
    "pass": "passed",
    "fail": "failed",
    "inconclusive": "inconclusive",
    "not_comparable": "not comparable",
}
SHOWN_CAUSES = 3
"""Different causes that the line of gates names. Chosen: it stays one line, and each gate has its own in full."""


@dataclass(frozen=True)
class GateRow:
    """One gate's verdict. `baseline` and `current` are geometric means in the metric's unit.

    `ratio` and its bounds are current over baseline (or over the budget) as the metric reads, also where higher is
    better; each bound is one-sided. `limit_ratio` is the ratio beyond which it fails. `basis` says what so many
    baseline runs can and cannot decide. `autocorrelation` is that of successive cycles, without its bias. `common` is
    the ratio that all experiments of the run share, known when the run has ended; the verdict does not depend on it.
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

    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of `VERDICT_HEAD`."""
        bounds = self.ci_low is not None and self.ci_high is not None
        return (
            self.metric,
            word(self.status),
            _value(self.baseline),
            _value(self.current),
            _value(self.ratio),
            f"{self.ci_low:.4g} .. {self.ci_high:.4g}" if bounds else "-",
            self.limit,
        )

    def cause(self) -> str:
        """Why it could not be judged, in a few words that gates of one cause share."""
        if self.ratio is not None:
            return "too noisy"
        return self.reason.partition(" (not used")[0].partition("; ")[0]


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


@dataclass(frozen=True)
class GateReport:
    """All verdicts on one experiment; `baseline` is what it was compared with, `None` for budgets alone."""

    study: str
    experiment_id: str
    rows: tuple[GateRow, ...]
    strict: bool
    baseline: BaselineNamed | None = None

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
        """The verdicts as a short table with the reasons below."""
        reasons = [f"{row.metric}: {row.reason}" for row in self.rows if row.status != "pass"]
        bases = dict.fromkeys(row.basis for row in self.rows if row.status == "fail" and row.basis)
        title = f"{self.study}[{self.experiment_id}]: {word(self.status)}"
        return "\n".join([title, *table(VERDICT_HEAD, [row.cells() for row in self.rows]), *reasons, *bases])


def gates_line(reports: Iterable[GateReport]) -> str:
    """`gates: 3 passed, 1 failed, 2 not comparable (batch_size 4 -> 1)`."""
    rows = [row for report in reports for row in report.rows]
    parts = []
    for status, shown in WORDS.items():
        of_status = [row for row in rows if row.status == status]
        if of_status:
            causes = Counter(row.cause() for row in of_status) if status in ("inconclusive", "not_comparable") else {}
            parts.append(f"{len(of_status)} {shown}{_causes(causes)}")
    return f"gates: {', '.join(parts) or 'none judged'}"


def _causes(causes: Counter[str] | dict[str, int]) -> str:
    if not causes:
        return ""
    named = sorted(causes.items(), key=lambda entry: -entry[1])
    shown = [cause if len(named) == 1 else f"{count} {cause}" for cause, count in named[:SHOWN_CAUSES]]
    more = [f"{len(named) - SHOWN_CAUSES} other causes"] if len(named) > SHOWN_CAUSES else []
    return f" ({'; '.join([*shown, *more])})"


def word(status: str) -> str:
    """A verdict as a word."""
    return status.replace("_", " ")


def _value(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


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
