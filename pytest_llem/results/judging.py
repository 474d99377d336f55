"""Judges one experiment's cycles against its budgets and a baseline.

The session and `llem compare` use it. The verdicts must come from `gates` alone, and from no other experiment.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from statistics import fmean, geometric_mean
from typing import Any

from pytest_llem.job.metric_names import ESTIMATED_ENERGY, MAX_RATE, SLO_MET_SHARE
from pytest_llem.results.baselines import Baseline, BaselineRun
from pytest_llem.results.comparability import (
    MODEL,
    SETTLED_BY_SETTINGS,
    common_conditions,
    differences,
    mixture,
    settings_differences,
)
from pytest_llem.results.gate_report import BaselineNamed, GateReport, GateRow
from pytest_llem.results.gates import (
    MIN_CYCLES,
    Status,
    Verdict,
    inverted,
    judge_budget,
    judge_pairs,
    judge_runs,
    judge_share,
    unjudged,
)
from pytest_llem.results.measured_cycles import MeasuredCycles, cycles_of
from pytest_llem.results.metrics import NOT_MEASURED, Metric, is_energy, metric, shipped, why_absent
from pytest_llem.results.reading import same_measurements
from pytest_llem.results.repeatability import Repeatability
from pytest_llem.results.schema import Result
from pytest_llem.results.state import Outcome
from pytest_llem.results.statistics import (
    BETWEEN_RUNS,
    FIRST_LOOK,
    RUNS_FOR_ESTIMATE,
    RunSpread,
    first_autocorrelation,
    relative_half_width,
)
from pytest_llem.results.uncertainty import systematic_rel
from pytest_llem.results.verdict_text import budgeted, compared
from pytest_llem.study.limits import Budget, Comparison, FailIf, change_text
from pytest_llem.study.model import Execution

NO_CYCLE = "no cycle is valid"
MEANT = "where the change is meant: compare: {match: id}, or a new baseline (--llem-save-baseline=NAME)"


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
    now = cycles_of(valid)
    rows = [_budget_row(budget, now, valid, lost, alpha, mixed, allowed) for budget in expect]
    named: BaselineNamed | None = None
    if compare is not None and baseline is not None and compare.fail_if:
        comparison = replace(compare, allow=(*compare.allow, *allow))
        of = key.study, key.experiment_id, key.config_hash
        rows += judge_comparison(baseline, of, now, lost, comparison)
        named = baseline.named(*of, by_id=compare.match == "id")
    rows = [_beside_none(row, cycles) for row in rows]
    return GateReport(key.study, key.experiment_id, tuple(rows), strict, named)


def _beside_none(row: GateRow, cycles: Sequence[Outcome]) -> GateRow:
    """The row, which does not pass on the cycles alone in which a search found a load that kept the SLO."""
    searches = [(outcome.key.cycle, outcome.result.search) for outcome in cycles if outcome.result is not None]
    without = [f"c{cycle}" for cycle, search in searches if search is not None and search.answer is None]
    if row.metric != MAX_RATE or row.status != "pass" or not without:
        return row
    return replace(row, status="inconclusive", reason=f"no load kept the SLO in {', '.join(without)}; {row.reason}")


def judge_comparison(
    baseline: Baseline,
    of: tuple[str, str, str],
    now: MeasuredCycles | None,
    lost: Sequence[str],
    comparison: Comparison,
) -> list[GateRow]:
    """A row per limit: the one judgement of an experiment against a baseline, of gates and of `llem compare`.

    `of` is its study, id and `config_hash`; `now` are its valid cycles, and `lost` says what became of the others.
    Raises `StoreError` when the baseline does not have the study.
    """
    reference = baseline.find(*of, by_id=comparison.match == "id")
    problem = "; ".join(now.mixed(comparison.allow)) if now is not None else ""
    changed: list[str] = []
    if reference is None:
        problem = problem or f"{baseline.source} has no valid cycle of this experiment"
    elif reference.config_hash != of[2]:
        changed = settings_differences(reference.settings, now.settings) if now is not None else []
        if comparison.match == "id":
            comparison = replace(comparison, allow=(*comparison.allow, *SETTLED_BY_SETTINGS))
        else:
            problem = problem or "; ".join(changed)
    meant = MEANT if changed and problem == "; ".join(changed) else ""
    rows = []
    for limit in comparison.fail_if:
        if reference is None or problem:
            rows.append(replace(_not_comparable(limit, problem), basis=meant))
        else:
            row = _ratio_row(limit, reference.runs, now, lost, comparison, baseline.repeatability.get(of[0]))
            rows.append(replace(row, reason="; ".join([row.reason, *changed])))
    return rows


def _budget_row(
    budget: Budget,
    now: MeasuredCycles | None,
    valid: Sequence[Result],
    lost: Sequence[str],
    alpha: float,
    mixed: str,
    allow: Collection[str],
) -> GateRow:
    limit = f"{budget.op} {budget.limit:g}"
    if mixed:
        return _row(budget.metric, "budget", limit, unjudged(mixed, "not_comparable"), lost)
    measure = metric(budget.metric)
    upper = budget.op.startswith("<")
    if measure.name != SLO_MET_SHARE and (hopeless := none_good(measure, now)) is not None:
        judged = hopeless if upper != measure.higher_is_better else unjudged(hopeless.reason)
        return _row(budget.metric, "budget", limit, judged, lost)
    values, missing, lost = _values(measure, now, lost)
    missing, systematic = missing or _estimated(measure, [now], allow), systematic_rel(measure, valid)
    if now is None or missing or not values or systematic is None:
        unstated = "the meter" if shipped(measure.name) or measure.uncertainty else "the package of this metric"
        missing = missing or (NO_CYCLE if not values else f"{unstated} does not state its sensor's uncertainty")
        return _row(budget.metric, "budget", limit, unjudged(missing), lost)
    correlated = now.correlated
    counts = [result.slo.effective_requests for result in valid if result.slo and result.slo.effective_requests]
    if measure.name == SLO_MET_SHARE:
        verdict = judge_share(values, counts, budget.limit, upper=upper, alpha=alpha, correlated=correlated)
    else:
        of_all: Any = {"alpha": alpha, "systematic": systematic, "correlated": correlated}
        verdict = judge_budget(values, budget.limit, upper=upper, **of_all)
        verdict = _unless_more(verdict, "pass" if upper else "fail", measure, now)
    verdict = replace(verdict, reason=budgeted(verdict, budget, alpha, systematic))
    middle = fmean(values) if measure.name == SLO_MET_SHARE else centre(values)
    row = _row(budget.metric, "budget", limit, verdict, lost, None, middle)
    return replace(row, limit_ratio=1.0, autocorrelation=None if correlated else _autocorrelation([values]))


def _ratio_row(
    limit: FailIf,
    runs: Sequence[BaselineRun],
    now: MeasuredCycles | None,
    lost: Sequence[str],
    comparison: Comparison,
    repeatability: Repeatability | None,
) -> GateRow:
    measure = metric(limit.metric)
    hopeless = none_good(measure, now)
    values, missing, lost = _values(measure, now, lost) if hopeless is None else ([], "", lost)
    if now is None or missing:
        return _row(limit.metric, "comparison", limit_text(limit), unjudged(missing or NO_CYCLE), lost)
    others = [run for run in runs if not run.shares(now.measurements)]
    if not others:
        return _not_comparable(limit, same_measurements(each for run in runs for each in run.shares(now.measurements)))
    before = centre([value for run in others for value in run.values.get(measure.name, ())])
    if limit.absolute and before is None:
        return _not_comparable(limit, "the baseline did not measure it")
    relative = limit.relative_to(before or 1.0)
    if relative.limit <= -1:
        whole = unjudged("the limit is as large as the baseline itself")
        return _row(limit.metric, "comparison", limit_text(limit), whole, lost, before, centre(values))
    usable: list[BaselineRun] = []
    for run in others:
        gains = (run.gain_uncertainty_rel, now.gain_uncertainty_rel)
        allow = set(comparison.allow)
        sides = run.conditions, now.conditions
        problems = differences(*sides, measure.energy, relative.limit, gains, allow, of_slo=measure.slo)
        if not problems:
            usable.append(run)
    if not usable:
        return _not_comparable(limit, "; ".join(problems))
    if hopeless is not None:
        alike = unjudged(f"{hopeless.reason}, nor in the baseline")
        return _row(limit.metric, "comparison", limit_text(limit), hopeless if before else alike, lost, before)
    if refused := _estimated(measure, [now], comparison.allow):
        return _row(limit.metric, "comparison", limit_text(limit), unjudged(refused), lost)
    measured = [run.values[measure.name] for run in usable if measure.name in run.values]
    if not measured:
        return _not_comparable(limit, "the baseline did not measure it")
    before = centre([value for run in measured for value in run])
    relative = limit.relative_to(before) if before is not None else relative
    correlated = now.correlated
    spread = repeatability.of(measure.name, now.conditions) if repeatability is not None else None
    verdict = judge_change(measure, relative, measured, values, comparison.alpha, correlated=correlated, spread=spread)
    verdict = _unless_more(verdict, "fail", measure, now)
    verdict = replace(verdict, reason=compared(verdict, measure, limit, relative, before, comparison.alpha))
    return replace(
        _row(limit.metric, "comparison", limit_text(limit), verdict, lost, before, centre(values)),
        limit_ratio=1 + relative.limit,
        baseline_runs=len(measured),
        basis=basis(len(measured), spread),
        autocorrelation=None if correlated else _autocorrelation([*measured, values]),
    )


SIDES = ("engine", "engine_version", *MODEL, "lora_fingerprint", "runner")
"""Conditions that the two sides of `llem ab` may be there to compare."""


def judge_in_turn(
    before: Sequence[Result], now: Sequence[Result], comparison: Comparison, *, strict: bool = False
) -> GateReport:
    """Judge the cycles of one experiment, measured in turn with those of another, by pairs of valid cycles."""
    old, new = ({result.cycle: result for result in side} for side in (before, now))
    cycles = sorted(set(old) & set(new))
    lost = [f"c{cycle} of one side only" for cycle in sorted(set(old) ^ set(new))]
    rows = []
    for limit in comparison.fail_if:
        measure = metric(limit.metric)
        if (hopeless := none_good(measure, cycles_of(now))) is not None:
            rows.append(_row(limit.metric, "comparison", limit_text(limit), hopeless, lost))
            continue
        both = [(measure.of(old[cycle]), measure.of(new[cycle])) for cycle in cycles]
        pairs = [(a, b) for a, b in both if a is not None and b is not None]
        if not pairs:
            absent = why_absent(measure.name, now[0]) if cycles else "no pair of cycles is valid"
            rows.append(_row(limit.metric, "comparison", limit_text(limit), unjudged(absent), lost))
            continue
        if refused := _estimated(measure, map(cycles_of, (before, now)), comparison.allow):
            rows.append(_row(limit.metric, "comparison", limit_text(limit), unjudged(refused), lost))
            continue
        firsts, seconds = [a for a, _ in pairs], [b for _, b in pairs]
        conditions = common_conditions(before), common_conditions(now)
        gains = before[0].energy.gain_uncertainty_rel, now[0].energy.gain_uncertainty_rel
        before_all = centre(firsts)
        relative = limit.relative_to(before_all or 1.0)
        allow = {*SIDES, *comparison.allow}
        problems = differences(*conditions, measure.energy, relative.limit, gains, allow, of_slo=measure.slo)
        if problems:
            rows.append(_not_comparable(limit, "; ".join(problems)))
            continue
        verdict = judge_change(measure, relative, [firsts], seconds, comparison.alpha, paired=True)
        for side, doubtful in ((before, "pass"), (now, "fail")):
            verdict = _unless_more(verdict, doubtful, measure, cycles_of(side))
        verdict = replace(verdict, reason=compared(verdict, measure, limit, relative, before_all, comparison.alpha))
        row = _row(limit.metric, "comparison", limit_text(limit), verdict, lost, before_all, centre(seconds))
        rows.append(replace(row, limit_ratio=1 + relative.limit, basis=f"{len(pairs)} pairs of cycles in turn"))
    return GateReport(now[0].study, now[0].experiment.id, tuple(rows), strict)


def basis(runs: int, spread: RunSpread | None = None) -> str:
    """What a comparison with so many baseline runs can and cannot decide."""
    if spread is not None:
        return (
            f"equal runs were measured to differ by {100 * math.sqrt(spread.variance):.1f} %, which the bounds include"
        )
    if runs >= RUNS_FOR_ESTIMATE:
        return f"{runs} baseline runs: how much runs differ is estimated from them, and the bounds include it"
    return (
        f"{runs} baseline run{'s' * (runs > 1)}: a change is told from the noise of cycles, but not from what a whole "
        f"run shares (temperature, clocks, the machine): {100 * BETWEEN_RUNS:g} % is assumed for it, not measured"
    )


def _autocorrelation(runs: Sequence[Sequence[float]]) -> float | None:
    long = [[math.log(value) for value in run] for run in runs if len(run) >= MIN_CYCLES and min(run) > 0]
    return first_autocorrelation(long) if long else None


def judge_change(
    measure: Metric,
    limit: FailIf,
    runs: Sequence[Sequence[float]],
    values: Sequence[float],
    alpha: float,
    *,
    correlated: bool = False,
    spread: RunSpread | None = None,
    paired: bool = False,
) -> Verdict:
    """`judge_runs` for a relative limit; where higher is better, both sides and the resulting ratio are inverted.

    `paired`: `judge_pairs` of the only run.
    """

    inverse = measure.higher_is_better and all(value > 0 for run in (*runs, values) for value in run)

    def judge(before: Sequence[Sequence[float]], now: Sequence[float], change: float) -> Verdict:
        stated: Any = {"alpha": alpha, "resolution": limit.resolution}
        if paired:
            return judge_pairs(before[0], now, change, **stated)
        return judge_runs(before, now, change, correlated=correlated, spread=spread, **stated)

    if not inverse:
        return judge(runs, values, limit.limit)
    inverses = [[1 / value for value in run] for run in runs]
    verdict = judge(inverses, [1 / value for value in values], inverted(limit.limit))
    if verdict.ratio is None or verdict.ci_low is None or verdict.ci_high is None:
        return verdict
    return replace(verdict, ratio=1 / verdict.ratio, ci_low=1 / verdict.ci_high, ci_high=1 / verdict.ci_low)


def _estimated(measure: Metric, sides: Iterable[MeasuredCycles | None], allow: Collection[str]) -> str:
    """Why energy that no sensor measured is not judged; empty where all was measured, or a study wants it judged."""
    estimates = [side.estimated_by for side in sides if side is not None and side.estimated_by is not None]
    if not estimates or not is_energy(measure.name) or ESTIMATED_ENERGY in allow:
        return ""
    why = f"energy is estimated by the meter {estimates[0]}, not measured: a sensor decides it"
    return f"{why}, or compare: {{allow: [{ESTIMATED_ENERGY}]}}"


def _values(measure: Metric, now: MeasuredCycles | None, lost: Sequence[str]) -> tuple[list[float], str, list[str]]:
    """The metric's values, why there are none, and the cycles lost: those before, and those that lack the metric."""
    if now is None:
        return [], "", [*lost]
    values = now.values(measure)
    if not values:
        return values, now.why(measure), [*lost]
    without = [name for name, value in zip(now.names, now.read(measure), strict=False) if value is None]
    lacking = [f"{name} without {measure.name}" for name in without]
    why = now.why(measure) if without else NOT_MEASURED
    if why != NOT_MEASURED:
        lacking[-1] += f" ({why})"
    return values, "", [*lost, *lacking]


def _unless_more(verdict: Verdict, doubtful: str, measure: Metric, side: MeasuredCycles | None) -> Verdict:
    """The verdict, unless it is the one that would be doubtful if a figure that is at least so much were more."""
    more = side.at_least(measure) if side is not None else ()
    if not more or verdict.status != doubtful:
        return verdict
    return unjudged(f"the load may be larger in {', '.join(more)}, whose search has no upper end: raise its high")


def none_good(measure: Metric, now: MeasuredCycles | None) -> Verdict | None:
    """The verdict where cycles had no good request, so that it is 0, or joules for one are beyond any number.

    No ratio holds that: where it is so in all cycles it is worse than any limit, and in some it is not decided.
    """
    if now is None or not measure.slo:
        return None
    each = zip(now.names, now.read(measure), now.read(metric(SLO_MET_SHARE)), strict=False)
    without = [name for name, value, share in each if share == 0 and not value]
    if not without:
        return None
    status: Status = "fail" if len(without) == len(now.names) else "inconclusive"
    return unjudged(f"no request was good in {', '.join(without)}", status)


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
        status=verdict.status,
        limit=limit,
        baseline=baseline,
        current=current,
        ratio=verdict.ratio,
        ci_low=verdict.ci_low,
        ci_high=verdict.ci_high,
        reason=verdict.reason + without,
    )


def _not_comparable(limit: FailIf, reason: str) -> GateRow:
    return _row(limit.metric, "comparison", limit_text(limit), unjudged(reason, "not_comparable"))


def centre(values: Sequence[float]) -> float | None:
    """The geometric mean; `None` without values, or where one has no logarithm."""
    return geometric_mean(values) if values and min(values) > 0 else None


def limit_text(limit: FailIf) -> str:
    """A limit as it is written: `+5 %`, `+0.05 s`."""
    return change_text(limit.metric, limit.limit, absolute=limit.absolute)


def precise_after(outcomes: Sequence[Outcome], execution: Execution) -> bool:
    """Whether the headline metric is known within `target_ci` (95 %), and further cycles need not be measured."""
    first = max(execution.cycles, FIRST_LOOK)
    if execution.target_ci is None or len(outcomes) < first:
        return False
    headline = metric(execution.headline)
    values = [headline.of(outcome.result) for outcome in outcomes if outcome.valid and outcome.result is not None]
    looks = max(1, execution.max_cycles - first + 1)
    width = relative_half_width([value for value in values if value is not None], looks)
    return width is not None and width <= execution.target_ci
