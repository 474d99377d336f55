"""Judges one experiment's cycles against its budgets and a baseline.

The session and `llem compare` use it. The verdicts must come from `gates` alone, and from no other experiment.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import chain
from statistics import fmean
from typing import Any

from pytest_llem.job.metric_names import ACCURACY, MAX_RATE, SLO_MET_SHARE
from pytest_llem.results.baselines import Baseline, BaselineExperiment, BaselineLevel, BaselineRun
from pytest_llem.results.comparability import (
    MODEL,
    common_conditions,
    differences,
    flat_settings,
    limit_set_otherwise,
    mixed_scores,
    mixture,
    settings_differences,
    settled_by_settings,
    short_hashes,
)
from pytest_llem.results.gate_report import BaselineNamed, GateReport, GateRow
from pytest_llem.results.gate_rows import (
    autocorrelation,
    basis,
    centre,
    compared_row,
    gate_row,
    judge_change,
    none_good,
    not_comparable,
    since,
    unless_more,
    used_values,
    why_not_estimates,
)
from pytest_llem.results.gates import MIN_CYCLES, Status, judge_budget, judge_share, unjudged
from pytest_llem.results.history.replayed import replayed
from pytest_llem.results.measured_cycles import MeasuredCycles, cycles_of, saved_cycles
from pytest_llem.results.metrics import Metric, metric, shipped, why_absent
from pytest_llem.results.question_rows import NO_SCORES, accuracy_row, narrowing, sampling_rel, unpaired
from pytest_llem.results.reading import same_measurements
from pytest_llem.results.repeatability import Repeatability
from pytest_llem.results.schema import Result
from pytest_llem.results.state import Outcome
from pytest_llem.results.statistics import FIRST_LOOK, RUNS_FOR_ESTIMATE, relative_half_width
from pytest_llem.results.uncertainty import systematic_rel
from pytest_llem.results.verdict_text import budgeted, compared
from pytest_llem.study.limits import Budget, Comparison, FailIf
from pytest_llem.study.model import Execution

NO_CYCLE = "no cycle is valid"
NONE_BEFORE = "no answer was right in a cycle of the baseline: what one cost there is beyond any number"
NONE_PASSED = "each run of the history's current level failed its own gate"
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
            follow = settled_by_settings(reference.settings, now.settings if now is not None else {})
            comparison = replace(comparison, allow=(*comparison.allow, *follow))
        else:
            problem = problem or "; ".join(changed)
    meant = MEANT if changed and problem == "; ".join(changed) and not baseline.grows else ""
    more_runs = RUNS_FOR_ESTIMATE if baseline.grows and now is not None else 0
    rows = []
    for limit in comparison.fail_if:
        if reference is None or problem:
            rows.append(replace(not_comparable(limit, problem), basis=meant, more_runs=more_runs))
        else:
            row = _row_of_levels(limit, of[0], reference, now, lost, comparison, baseline.repeatability.get(of[0]))
            if row.status == "not_comparable":
                row = replace(row, more_runs=more_runs)
            # What was changed explains the conditions that follow from it, and summaries have the first reason.
            told = [*changed, row.reason] if row.status == "not_comparable" else [row.reason, *changed]
            rows.append(replace(row, reason="; ".join(told)))
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
        return gate_row(budget.metric, "budget", limit, unjudged(mixed, "not_comparable"), lost)
    measure = metric(budget.metric)
    upper = budget.op.startswith("<")
    if measure.quality and (scores := mixed_scores(valid)):
        told = "; ".join(
            f"the cycles differ in {name}: {short_hashes(', '.join(values))}" for name, values in scores.items()
        )
        return gate_row(budget.metric, "budget", limit, unjudged(told, "not_comparable"), lost)
    if measure.name != SLO_MET_SHARE and (hopeless := none_good(measure, now)) is not None:
        judged = hopeless if upper != measure.higher_is_better else unjudged(hopeless.reason)
        return gate_row(budget.metric, "budget", limit, judged, lost)
    values, missing, lost = used_values(measure, now, lost)
    missing, systematic = missing or why_not_estimates(measure, [now], allow), systematic_rel(measure, valid)
    if now is None or missing or not values or systematic is None:
        unstated = "the meter" if shipped(measure.name) or measure.uncertainty else "the package of this metric"
        missing = missing or (NO_CYCLE if not values else f"{unstated} does not state its sensor's uncertainty")
        return gate_row(budget.metric, "budget", limit, unjudged(missing), lost)
    correlated = now.correlated
    if (counts := _sampled(measure, valid)) is not None:
        least = 1 if measure.name == ACCURACY else MIN_CYCLES
        of_share: Any = {"alpha": alpha, "correlated": correlated, "least": least}
        verdict = judge_share(values, counts, budget.limit, upper=upper, **of_share)
    else:
        of_all: Any = {"alpha": alpha, "systematic": systematic, "correlated": correlated}
        verdict = judge_budget(values, budget.limit, upper=upper, **of_all)
        verdict = unless_more(verdict, "pass" if upper else "fail", measure, now)
    verdict = replace(verdict, reason=budgeted(verdict, budget, alpha, systematic))
    middle = centre(values) if counts is None else fmean(values)
    row = gate_row(budget.metric, "budget", limit, verdict, lost, None, middle)
    following = None if correlated or measure.name == ACCURACY else autocorrelation([values])
    return replace(row, limit_ratio=1.0, autocorrelation=following)


def _sampled(measure: Metric, valid: Sequence[Result]) -> list[float] | None:
    """Of a share, how many requests or questions it is of in each cycle; `None` of other metrics."""
    if measure.name == SLO_MET_SHARE:
        return [result.slo.effective_requests for result in valid if result.slo and result.slo.effective_requests]
    if measure.name == ACCURACY:
        return [float(result.quality.questions) for result in valid if result.quality and result.quality.scores]
    return None


def _row_of_levels(
    limit: FailIf,
    study: str,
    reference: BaselineExperiment,
    now: MeasuredCycles | None,
    lost: Sequence[str],
    comparison: Comparison,
    repeatability: Repeatability | None,
) -> GateRow:
    """The row against the first level whose conditions are those of this run, and of how many equal runs it fails."""
    first: GateRow | None = None
    for level in reference.levels(limit.metric):
        row = _ratio_row(limit, level, now, lost, comparison, repeatability)
        first = first or row
        if row.status != "not_comparable":
            break
    else:
        return first or not_comparable(limit, NONE_PASSED)
    if now is None:
        return row

    def judge(before: Sequence[BaselineRun], run: BaselineRun) -> Status:
        cycles = saved_cycles(study, reference, run)
        return _ratio_row(limit, BaselineLevel(tuple(before)), cycles, (), comparison, repeatability).status

    equal = [run for run in level.equal if not run.shares(now.measurements)]
    return replace(row, would_have_failed=replayed(equal, judge))


def _ratio_row(
    limit: FailIf,
    level: BaselineLevel,
    now: MeasuredCycles | None,
    lost: Sequence[str],
    comparison: Comparison,
    repeatability: Repeatability | None,
) -> GateRow:
    measure = metric(limit.metric)
    hopeless = none_good(measure, now)
    values, missing, lost = used_values(measure, now, lost) if hopeless is None else ([], "", lost)
    if now is None or missing:
        return compared_row(limit, unjudged(missing or NO_CYCLE), lost)
    others = [run for run in level.runs if not run.shares(now.measurements)]
    if not others:
        shared = [each for run in level.runs for each in run.shares(now.measurements)]
        return not_comparable(limit, same_measurements(shared) if shared else NONE_PASSED)
    before = centre([value for run in others for value in run.values.get(measure.name, ())])
    if measure.quality and not any(run.scores for run in others):
        return not_comparable(limit, NO_SCORES)
    if limit.absolute and before is None and measure.name != ACCURACY:
        return not_comparable(limit, "the baseline did not measure it")
    relative = limit.relative_to(before or 1.0)
    if relative.limit <= -1 and measure.name != ACCURACY:
        whole = unjudged("the limit is as large as the baseline itself")
        return compared_row(limit, whole, lost, before, centre(values))
    usable: list[BaselineRun] = []
    for run in others:
        gains = (run.gain_uncertainty_rel, now.gain_uncertainty_rel)
        allow = set(comparison.allow)
        sides = run.conditions, now.conditions
        problems = differences(*sides, measure, relative.limit, gains, allow)
        if not problems:
            usable.append(run)
    if not usable:
        return not_comparable(limit, "; ".join(problems))
    scores = [run.scores_by_cycle for run in usable if run.scores]
    if measure.quality and (problem := unpaired(scores, now.scores)):
        return not_comparable(limit, problem)
    if measure.name == ACCURACY:
        return accuracy_row(limit, scores, now.scores, comparison.alpha, correlated=now.correlated, lost=lost)
    if hopeless is not None:
        alike = unjudged(f"{hopeless.reason}, nor in the baseline")
        return compared_row(limit, hopeless if before else alike, lost, before)
    if refused := why_not_estimates(measure, [now], comparison.allow):
        return compared_row(limit, unjudged(refused), lost)
    measured = [run.values[measure.name] for run in usable if measure.name in run.values]
    if not measured:
        none_before = any(not any(cycle) for run in scores for cycle in run)
        return not_comparable(limit, NONE_BEFORE if none_before else "the baseline did not measure it")
    before = centre([value for run in measured for value in run])
    relative = limit.relative_to(before) if before is not None else relative
    correlated = now.correlated
    spread = repeatability.of(measure.name, now.conditions) if repeatability is not None else None
    sampling = sampling_rel(measure, [*chain(*scores)], now.scores, alpha=comparison.alpha)
    how: Any = {"correlated": correlated, "spread": spread, "questions_rel": sampling}
    verdict = judge_change(measure, relative, measured, values, comparison.alpha, **how)
    verdict = unless_more(verdict, "fail", measure, now)
    more = narrowing(verdict, sampling, comparison.alpha)
    verdict = replace(verdict, reason=compared(verdict, measure, limit, relative, before, comparison.alpha, more))
    return replace(
        compared_row(limit, verdict, lost, before, centre(values)),
        limit_ratio=1 + relative.limit,
        baseline_runs=len(measured),
        basis=basis(len(measured), spread, since([run.named() for run in usable]) if level.equal else ""),
        autocorrelation=None if correlated else autocorrelation([*measured, values]),
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
        hopeless = none_good(measure, cycles_of(now))
        both = [(measure.of(old[cycle]), measure.of(new[cycle])) for cycle in cycles]
        pairs = [(a, b) for a, b in both if a is not None and b is not None]
        if not cycles or (not pairs and hopeless is None):
            absent = why_absent(measure.name, now[0]) if cycles else "no pair of cycles is valid"
            rows.append(compared_row(limit, unjudged(absent), lost))
            continue
        if refused := why_not_estimates(measure, map(cycles_of, (before, now)), comparison.allow):
            rows.append(compared_row(limit, unjudged(refused), lost))
            continue
        firsts, seconds = [a for a, _ in pairs], [b for _, b in pairs]
        conditions = common_conditions(before), common_conditions(now)
        gains = before[0].energy.gain_uncertainty_rel, now[0].energy.gain_uncertainty_rel
        before_all = centre(firsts if hopeless is None else [a for a, _ in both if a is not None])
        relative = limit.relative_to(before_all or 1.0)
        set_otherwise = limit_set_otherwise(flat_settings(before[0]), flat_settings(now[0]))
        allow = {*SIDES, *comparison.allow, *set_otherwise}
        scored = [at for at in cycles if all((of := side[at].quality) and of.scores for side in (old, new))]
        scores = [[of.scores for at in scored if (of := side[at].quality)] for side in (old, new)]
        problem = unpaired(scores[:1], scores[1]) if measure.quality else ""
        problem = "; ".join(differences(*conditions, measure, relative.limit, gains, allow)) or problem
        if problem:
            rows.append(not_comparable(limit, problem))
            continue
        if measure.name == ACCURACY:
            rows.append(accuracy_row(limit, scores[:1], scores[1], comparison.alpha, lost=lost))
            continue
        if hopeless is not None:
            alike = unjudged(f"{hopeless.reason}, nor before")
            rows.append(compared_row(limit, hopeless if before_all else alike, lost, before_all))
            continue
        sampling = sampling_rel(measure, *scores, alpha=comparison.alpha)
        how: Any = {"paired": True, "questions_rel": sampling}
        verdict = judge_change(measure, relative, [firsts], seconds, comparison.alpha, **how)
        for side, doubtful in ((before, "pass"), (now, "fail")):
            verdict = unless_more(verdict, doubtful, measure, cycles_of(side))
        more = narrowing(verdict, sampling, comparison.alpha)
        told = compared(verdict, measure, limit, relative, before_all, comparison.alpha, more)
        verdict = replace(verdict, reason=told)
        row = compared_row(limit, verdict, lost, before_all, centre(seconds))
        rows.append(replace(row, limit_ratio=1 + relative.limit, basis=f"{len(pairs)} pairs of cycles in turn"))
    return GateReport(now[0].study, now[0].experiment.id, tuple(rows), strict)


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
