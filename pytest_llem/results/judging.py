"""Judges one experiment's cycles against its budgets and a baseline, and keeps the verdicts in `gate.json`.

The session, `compare` and, through `gate.json`, the report use it. The verdicts must come from `gates` alone.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import geometric_mean

from pytest_llem.errors import StoreError
from pytest_llem.job.files import read_json, write_json
from pytest_llem.job.wire import decode, encode
from pytest_llem.results.baselines import Baseline, BaselineRun
from pytest_llem.results.comparability import common_conditions, differences, mixture
from pytest_llem.results.gates import Status, Verdict, inverted, judge_budget, judge_runs, unjudged
from pytest_llem.results.metrics import Metric, is_energy, metric, why_absent
from pytest_llem.results.reading import measurement_id, same_measurements
from pytest_llem.results.schema import Result
from pytest_llem.results.state import Outcome
from pytest_llem.results.statistics import relative_half_width
from pytest_llem.results.terminal import table
from pytest_llem.study.limits import Budget, Comparison, FailIf, change_text
from pytest_llem.study.model import Execution

VERDICT_HEAD = ("gate", "verdict", "baseline", "now", "ratio", "interval", "limit")

CORRELATED = ("experiment", "load", "server")
"""Isolations under which the cycles of an experiment share one loaded engine."""


@dataclass(frozen=True)
class GateRow:
    """One gate's verdict. `baseline` and `current` are geometric means in the metric's unit.

    `ratio` and its bounds are current over baseline (or over the budget) as the metric reads, also where higher is
    better; each bound is one-sided.
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

    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of `VERDICT_HEAD`."""
        bounds = self.ci_low is not None and self.ci_high is not None
        return (
            self.metric,
            _word(self.status),
            _value(self.baseline),
            _value(self.current),
            _value(self.ratio),
            f"{self.ci_low:.4g} .. {self.ci_high:.4g}" if bounds else "-",
            self.limit,
        )


@dataclass(frozen=True)
class GateReport:
    """All verdicts on one experiment."""

    study: str
    experiment_id: str
    rows: tuple[GateRow, ...]
    strict: bool

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
        return "; ".join(f"{row.metric}: {_word(row.status)}: {row.reason}" for row in unjudged)

    def text(self) -> str:
        """The verdicts as a short table with the reasons below."""
        reasons = [f"{row.metric}: {row.reason}" for row in self.rows if row.status != "pass"]
        title = f"{self.study}[{self.experiment_id}]: {_word(self.status)}"
        return "\n".join([title, *table(VERDICT_HEAD, [row.cells() for row in self.rows]), *reasons])


def judge_experiment(
    cycles: Sequence[Outcome],
    expect: Sequence[Budget] = (),
    compare: Comparison | None = None,
    baseline: Baseline | None = None,
    *,
    strict: bool = False,
    allow: Collection[str] = (),
) -> GateReport:
    """Judge an experiment by its cycles, in order; only valid ones count.

    `allow` names conditions that may differ from the baseline's, besides those of `compare.allow`. Where `target_ci`
    adds cycles, pass only the first `cycles`: optional stopping biases a bound. Raises `StoreError` when the baseline
    does not have the study.
    """
    key = cycles[0].key
    valid = [outcome.result for outcome in cycles if outcome.valid and outcome.result is not None]
    lost = [f"c{outcome.key.cycle} {outcome.state}" for outcome in cycles if not outcome.valid]
    alpha = compare.alpha if compare else 0.05
    allowed = {*allow, *(compare.allow if compare else ())}
    mixed = "; ".join(mixture(valid, allowed))
    rows = [_budget_row(budget, valid, lost, alpha, mixed) for budget in expect]
    if compare is not None and baseline is not None and compare.fail_if:
        reference = baseline.find(key.study, key.experiment_id, key.config_hash)
        problem = mixed
        if reference is None:
            problem = mixed or f"{baseline.source} does not have this experiment"
        elif reference.config_hash != key.config_hash:
            problem = mixed or f"{baseline.source} has it with another configuration"
        for limit in compare.fail_if:
            if reference is None or problem:
                rows.append(_not_comparable(limit, problem))
            else:
                rows.append(_ratio_row(limit, reference.runs, valid, lost, alpha, allowed))
    return GateReport(key.study, key.experiment_id, tuple(rows), strict)


def _budget_row(budget: Budget, valid: Sequence[Result], lost: Sequence[str], alpha: float, mixed: str) -> GateRow:
    limit = f"{budget.op} {budget.limit:g}"
    if mixed:
        return _row(budget.metric, "budget", limit, unjudged(mixed, "not_comparable"), lost)
    values, missing, lost = _values(metric(budget.metric), valid, lost)
    upper = budget.op.startswith("<")
    verdict = unjudged(missing) if missing else judge_budget(values, budget.limit, upper=upper, alpha=alpha)
    return _row(budget.metric, "budget", limit, verdict, lost, None, centre(values))


def _ratio_row(
    limit: FailIf,
    runs: Sequence[BaselineRun],
    valid: Sequence[Result],
    lost: Sequence[str],
    alpha: float,
    allow: Collection[str],
) -> GateRow:
    measure = metric(limit.metric)
    values, missing, lost = _values(measure, valid, lost)
    if missing or not valid:
        return _row(limit.metric, "comparison", limit_text(limit), unjudged(missing or "no cycle is valid"), lost)
    own = {*map(measurement_id, valid)}
    others = [run for run in runs if not run.shares(own)]
    if not others:
        return _not_comparable(limit, same_measurements(each for run in runs for each in run.shares(own)))
    before = centre([value for run in others for value in run.values.get(measure.name, ())])
    if limit.absolute and before is None:
        return _not_comparable(limit, "the baseline did not measure it")
    relative = limit.relative_to(before or 1.0)
    if relative.limit <= -1:
        whole = unjudged("the limit is as large as the baseline itself")
        return _row(limit.metric, "comparison", limit_text(limit), whole, lost, before, centre(values))
    now, gain = common_conditions(valid), valid[0].energy.gain_uncertainty_rel
    usable: list[BaselineRun] = []
    for run in others:
        gains = (run.gain_uncertainty_rel, gain)
        problems = differences(run.conditions, now, is_energy(measure.name), relative.limit, gains, allow)
        if not problems:
            usable.append(run)
    if not usable:
        return _not_comparable(limit, "; ".join(problems))
    measured = [run.values[measure.name] for run in usable if measure.name in run.values]
    if not measured:
        return _not_comparable(limit, "the baseline did not measure it")
    before = centre([value for run in measured for value in run])
    relative = limit.relative_to(before) if before is not None else relative
    correlated = valid[0].runner.isolation in CORRELATED
    verdict = judge_change(measure, relative, measured, values, alpha, correlated=correlated)
    return _row(limit.metric, "comparison", limit_text(limit), verdict, lost, before, centre(values))


def judge_change(
    measure: Metric,
    limit: FailIf,
    runs: Sequence[Sequence[float]],
    values: Sequence[float],
    alpha: float,
    *,
    correlated: bool = False,
) -> Verdict:
    """`judge_runs` for a relative limit; where higher is better, both sides and the resulting ratio are inverted."""
    if not measure.higher_is_better or any(value <= 0 for run in (*runs, values) for value in run):
        return judge_runs(runs, values, limit.limit, alpha=alpha, resolution=limit.resolution, correlated=correlated)
    verdict = judge_runs(
        [[1 / value for value in run] for run in runs],
        [1 / value for value in values],
        inverted(limit.limit),
        alpha=alpha,
        resolution=limit.resolution,
        correlated=correlated,
    )
    if verdict.ratio is None or verdict.ci_low is None or verdict.ci_high is None:
        return verdict
    return replace(verdict, ratio=1 / verdict.ratio, ci_low=1 / verdict.ci_high, ci_high=1 / verdict.ci_low)


def _values(measure: Metric, valid: Sequence[Result], lost: Sequence[str]) -> tuple[list[float], str, list[str]]:
    """The metric's values, why there are none, and the cycles lost: those before, and those that lack the metric."""
    values = [value for result in valid if (value := measure.of(result)) is not None]
    if valid and not values:
        return values, why_absent(measure.name, valid[0]), [*lost]
    lacking = [f"c{result.cycle} without {measure.name}" for result in valid if measure.of(result) is None]
    return values, "", [*lost, *lacking]


def _row(
    name: str,
    kind: str,
    limit: str,
    verdict: Verdict,
    lost: Sequence[str] = (),
    baseline: float | None = None,
    current: float | None = None,
) -> GateRow:
    without = f" (not used: {', '.join(lost)})" if lost else ""
    return GateRow(
        metric=name,
        kind=kind,
        limit=limit,
        baseline=baseline,
        current=current,
        **{**vars(verdict), "reason": verdict.reason + without},
    )


def _not_comparable(limit: FailIf, reason: str) -> GateRow:
    return _row(limit.metric, "comparison", limit_text(limit), unjudged(reason, "not_comparable"))


def centre(values: Sequence[float]) -> float | None:
    """The geometric mean; `None` without values, or where one has no logarithm."""
    return geometric_mean(values) if values and min(values) > 0 else None


def limit_text(limit: FailIf) -> str:
    """A limit as it is written: `+5 %`, `+0.05 s`."""
    return change_text(limit.metric, limit.limit, absolute=limit.absolute)


def _word(status: str) -> str:
    return status.replace("_", " ")


def _value(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


GATE = "gate.json"


def write_gate(experiment_directory: Path, report: GateReport) -> None:
    """Write an experiment's verdicts, and create its directory if no cycle has."""
    experiment_directory.mkdir(parents=True, exist_ok=True)
    write_json(experiment_directory / GATE, encode(report))


def read_gates(run_dir: Path) -> list[GateReport]:
    """The verdicts of a run, by study and experiment; empty where nothing was judged. `StoreError` for a broken one."""
    reports = []
    for path in sorted(run_dir.glob(f"*/*/{GATE}")):
        try:
            reports.append(decode(GateReport, read_json(path)))
        except ValueError as problem:
            raise StoreError(f"{path}: {problem}") from None
    return reports


def precise_after(outcomes: Sequence[Outcome], execution: Execution) -> float | None:
    """The relative half width of the headline metric's interval if it has reached `target_ci`, else `None`."""
    if execution.target_ci is None or len(outcomes) < execution.cycles:
        return None
    headline = metric(execution.headline)
    values = [headline.of(outcome.result) for outcome in outcomes if outcome.valid and outcome.result is not None]
    width = relative_half_width([value for value in values if value is not None])
    return width if width is not None and width <= execution.target_ci else None
