"""Reads the section `optimize` of a study, and refuses what a race over its settings cannot be combined with.

`loader` calls it. What a run adds to that (its meter, a baseline, shards) is for `session.options` to refuse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pytest_llem.errors import JsonValue, SettingsError
from pytest_llem.job.metric_names import ACCURACY, metric_name
from pytest_llem.study.experiments import Experiment, Study
from pytest_llem.study.fields import Report
from pytest_llem.study.limits import Budget, parse_budget
from pytest_llem.study.model import Execution, Order, Overrides, SweptAxis
from pytest_llem.study.optimize import MIN_CYCLES, Optimize
from pytest_llem.study.parts import check_section
from pytest_llem.study.schema import OptimizeSettings

SECTION = "optimize"
EXAMPLE = "write optimize: {minimize: joules_per_output_token}"
VERBS = {"minimize": False, "maximize": True}
"""The keys that name the metric, each with whether higher is better in it."""
EITHER_WAY = frozenset({"cached_input_share"})
"""Metrics of which much may be unwanted as well: a cache that users' prompts will not hit makes settings look good."""
ORDER: Order = "shuffled"
"""The order of a race unless the study says another. Chosen: what drifts within a round meets no setting in each."""


def read_optimize(data: JsonValue, overrides: Overrides, report: Report, *, empty: bool) -> Optimize | None:
    """The race that a study asks for; `None` without the section, where that is wrong, or where null takes it away.

    `empty` is whether the section is written and has a value nowhere, in the study and its bases.
    """
    if data is None and not empty:
        return None
    checked = check_section(OptimizeSettings, data, report, (SECTION,))
    metric = _metric(checked, report) if isinstance(data, Mapping) or empty else None
    budgets = _budgets(checked.pop("subject_to", None), report)
    if metric is None:
        return None
    for budget in budgets:
        if budget.metric == metric:
            text = f"{SECTION}.subject_to: {metric} is what is optimised"
            report((SECTION, "subject_to", metric), text, "limit other metrics", True)
    plain = {key: value for key, value in checked.items() if key not in VERBS and value is not None}
    goal = Optimize(metric, tuple(budgets), **plain)  # type: ignore[arg-type]  # checked above
    if overrides.cycles is None:
        return goal
    if overrides.cycles < MIN_CYCLES:
        text = (
            f"{SECTION}: the run asks for {overrides.cycles} of the {MIN_CYCLES} cycles that each setting gets at least"
        )
        fix = f"raise --llem-cycles (LLEM_CYCLES, llem_cycles) to {MIN_CYCLES}, or leave it out"
        report((SECTION,), text, fix, True)
    return replace(goal, max_cycles=overrides.cycles)


def _metric(checked: Mapping[str, JsonValue], report: Report) -> str | None:
    named = [verb for verb in VERBS if checked.get(verb) is not None]
    if len(named) != 1:
        what = "names both minimize and maximize" if named else "names no metric"
        report((SECTION,), f"{SECTION} {what}", EXAMPLE, True)
        return None
    (verb,) = named
    name = str(checked[verb])
    try:
        metric = metric_name(name)
    except SettingsError as problem:
        report((SECTION, verb), f"{SECTION}.{verb}: {problem.message}", problem.fix, False)
        return None
    if metric.higher_is_better != VERBS[verb]:
        better, right = ("higher", "maximize") if metric.higher_is_better else ("lower", "minimize")
        report((SECTION, verb), f"{SECTION}.{verb}: of {name} {better} is better", f"write {right}: {name}", True)
        return None
    if name == ACCURACY:
        text = f"{SECTION}.{verb}: cycles that repeat answers tell nothing of the noise of {ACCURACY}"
        report((SECTION, verb), text, 'limit it instead: subject_to: {accuracy: ">= 0.6"}', False)
        return None
    return name


def _budgets(data: JsonValue, report: Report) -> list[Budget]:
    budgets: list[Budget] = []
    for metric, limit in (data if isinstance(data, Mapping) else {}).items():
        try:
            budget = parse_budget(metric, limit)
            if metric not in EITHER_WAY and metric_name(metric).higher_is_better != (budget.op in (">=", ">")):
                better, right = ("higher", ">=") if metric_name(metric).higher_is_better else ("lower", "<=")
                text = f"of {metric} {better} is better, and {budget.op} would keep the best settings out"
                raise SettingsError(text, fix=f'write "{right} {budget.limit:g}"')
            budgets.append(budget)
        except SettingsError as problem:
            unknown = "unknown metric" in problem.message
            report((SECTION, "subject_to", metric), f"{SECTION}.subject_to: {problem.message}", problem.fix, unknown)
    return budgets


def raced(goal: Optimize, execution: Execution, written: JsonValue, overrides: Overrides, report: Report) -> Execution:
    """How a study with a race runs: every setting once, and again round by round while the race needs it.

    What the study writes against that is refused; a user's own defaults give way.
    """
    own = written if isinstance(written, Mapping) else {}
    for key, why, fix in (
        ("cycles", "the race decides how many a setting gets", f"write {SECTION}: {{max_cycles: N}} instead"),
        ("max_cycles", "the race has its own", f"write {SECTION}: {{max_cycles: N}} instead"),
        ("target_ci", "the race decides when a setting is known well enough", f"set {SECTION}.regret instead"),
    ):
        if own.get(key) is not None:
            report(("execution", key), f"execution.{key} cannot be combined with {SECTION}: {why}", fix, True)
    if own.get("isolation") not in (None, "process"):
        text = f"execution.isolation {own['isolation']} cannot be combined with {SECTION}"
        report(("execution", "isolation"), f"{text}, which goes through the settings in rounds", "use process", False)
    if own.get("order") == "sequential":
        text = f"execution.order sequential cannot be combined with {SECTION}, which runs in rounds"
        report(("execution", "order"), text, f"use {ORDER}, interleaved or balanced, or leave it out", False)
    elif overrides.order == "sequential":
        text = f"{SECTION} cannot be combined with the order sequential that this run asks for"
        report((SECTION,), text, "leave --llem-order (LLEM_ORDER, llem_order) out", True)
    return replace(
        execution,
        cycles=1,
        max_cycles=goal.max_cycles,
        target_ci=None,
        isolation="process",
        order=ORDER if execution.order == "sequential" else execution.order,
        headline=execution.headline if own.get("headline") is not None else goal.metric,
    )


def check_race(
    goal: Optimize, experiments: Sequence[Experiment], axes: Sequence[SweptAxis], overrides: Overrides, report: Report
) -> None:
    """Report what experiments a race cannot be run over, and limits that would judge settings by few cycles."""
    few = "the race measures some settings too seldom to be judged"
    if any(each.expect for each in experiments):
        text = f"expect cannot be combined with {SECTION}: {few}"
        report(("expect",), text, f"write the limits into {SECTION}.subject_to", True)
    if overrides.fail_if:
        text = f"{SECTION} cannot be combined with --llem-fail-if: {few}"
        report((SECTION,), text, "leave it out, and compare settings with `llem compare`", True)
    elif any(each.compare is not None for each in experiments):
        text = f"compare.fail_if cannot be combined with {SECTION}: {few}"
        report(("compare", "fail_if"), text, "gate on a study of its own, of the settings that matter", True)
    if any(each.search is not None for each in experiments):
        text = f"{SECTION} cannot be combined with a searched load, which is an optimum of its own"
        report((SECTION,), text, "sweep loads, and limit latencies in subject_to", True)
    if len(experiments) < 2:
        text = f"{SECTION} has one setting to choose from"
        report((SECTION,), text, "sweep some: sweep: {transformers.batch_size: [1, 4, 16]}", True)
    if goal.assume is not None:
        _check_structure(goal.assume, experiments, axes, report)


def _check_structure(assume: str, experiments: Sequence[Experiment], axes: Sequence[SweptAxis], report: Report) -> None:
    lacks = None
    if any(not each.labels for each in experiments):
        lacks = "every setting on the axes of a sweep", "sweep them, or leave assume out"
    elif assume == "monotone" and not any(axis.ordered and len(axis.values) > 2 for axis in axes):
        lacks = "an axis of three numbers or more, so that one is between others", "leave assume out"
    elif assume == "additive" and sum(len(axis.values) > 1 for axis in axes) < 2:
        lacks = "two axes whose effects may add up", "leave assume out"
    elif assume == "additive" and len(experiments) < (least := 3 + sum(len(axis.values) - 1 for axis in axes)):
        lacks = f"{least} settings of these axes, so that measured ones can contradict it", "leave assume out"
    if lacks is not None:
        report((SECTION, "assume"), f"{SECTION}.assume: {assume} needs {lacks[0]}", lacks[1], False)


def refuse_race(study: Study, command: str) -> None:
    """Raise `SettingsError` for a study with a race, of which a command needs all cycles of all settings."""
    if study.optimize is not None:
        raise SettingsError(
            f"{study.locate(SECTION)}: {command} needs as many cycles of each experiment, and {SECTION} drops some",
            fix=f"take {SECTION} out, and sweep only the settings that matter",
        )
