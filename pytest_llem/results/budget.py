"""`llem budget`: the table of what a figure's uncertainty is made of, for one result or for each experiment of a run.

`cli` calls it. It must show the budget behind the printed intervals, `uncertainty`, and add nothing to it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pytest_llem.errors import JsonValue, SettingsError
from pytest_llem.job.wire import encode
from pytest_llem.results.layout import MANIFEST, RESULT
from pytest_llem.results.metrics import Metric, metric
from pytest_llem.results.reading import load, read_result
from pytest_llem.results.repeatability import spreads
from pytest_llem.results.schema import Result
from pytest_llem.results.sections.energy import MEASURE
from pytest_llem.results.statistics import K
from pytest_llem.results.terminal import PREFIXED, fitted_table, plus_minus, quantity, show
from pytest_llem.results.uncertainty import UncertaintyBudget, budget_of_experiment, budget_of_result

HEAD = ("component", "type", "distribution", "value", "sensitivity", "contribution", "degrees of freedom", "share")


@dataclass(frozen=True)
class NamedBudget:
    """A budget with what it is of: `cycle` is `None` for the mean over an experiment's valid cycles.

    `sensor_terms_j` are standard uncertainties that one cycle's sensor component consists of; `shape` is a bound.
    """

    run: str
    study: str
    experiment_id: str
    cycle: int | None
    sensor_terms_j: dict[str, float]
    budget: UncertaintyBudget


def print_budget(options: argparse.Namespace) -> int:
    """`llem budget`: print the tables; `SettingsError` where no result measured the metric."""
    chosen = [metric(name) for name in options.metric or ["joules_per_output_token"]]
    found = [
        entry for path in options.paths for measure in chosen for entry in budgets(path, measure, options.baseline_dir)
    ]
    if not found:
        names = ", ".join(measure.name for measure in chosen)
        raise SettingsError(f"no valid result here measured {names}", fix="name another --metric, or another run")
    if options.format == "json":
        text = json.dumps([_encoded(entry) for entry in found], indent=2, allow_nan=False)
    else:
        text = "\n\n".join("\n".join(lines(entry)) for entry in found)
    show(text)
    return 0


def budgets(path: Path, measure: Metric, baseline_dir: Path | None = None) -> Iterator[NamedBudget]:
    """The budget of the one result at `path`, a cycle's directory or its file, else of each experiment of its runs."""
    file = path / RESULT if path.is_dir() else path
    if file.is_file() and file.name != MANIFEST:
        result = read_result(file)
        single = budget_of_result(measure, result)
        if single is not None:
            yield NamedBudget(*_names(result), result.cycle, _terms(result, single), single)
        return
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for result in load(path).valid:
        groups.setdefault(_names(result), []).append(result)
    for names, group in groups.items():
        mean = budget_of_experiment(measure, group, spreads(group, baseline_dir)(measure.name))
        if mean is not None:
            yield NamedBudget(*names, None, {}, mean)


def lines(entry: NamedBudget) -> list[str]:
    """What the figure is, its expanded uncertainty, and the table of components."""
    budget = entry.budget
    what = f"{budget.n} valid cycle{'s' * (budget.n != 1)}" if entry.cycle is None else f"cycle {entry.cycle} alone"
    if budget.unit in PREFIXED:
        figure = quantity(budget.value, budget.unit, budget.uncertainty)
    elif budget.unit == "1":
        figure = f"{plus_minus(100 * budget.value, budget.uncertainty and 100 * budget.uncertainty)} %"
    else:
        figure = f"{plus_minus(budget.value, budget.uncertainty)} {budget.unit}"
    shown = f"{budget.metric}: {figure}"
    if budget.coverage_factor is not None:
        shown += f" (95 %, k={budget.coverage_factor:.3g})"
    freedom = "infinite" if budget.degrees is None else f"{budget.degrees:.3g}"
    body = [
        (
            part.name,
            part.type,
            part.distribution,
            "not known" if part.value is None else _amount(part.value, part.unit),
            f"{part.sensitivity:.4g}",
            "-" if part.value is None else _amount(part.contribution, budget.unit),
            "-" if part.value is None else "infinite" if part.degrees is None else f"{part.degrees:.3g}",
            "-" if part.value is None or part.share is None else f"{part.share:.1%}",
        )
        for part in budget.components
    ]
    notes = [f"effective degrees of freedom: {freedom}"] if budget.uncertainty is not None else []
    if budget.unknown:
        notes.append(f"the uncertainty is not known for want of: {budget.unknown}")
    elif entry.cycle is not None:
        causes = " and ".join(part.name for part in budget.components)
        notes.append(f"of {causes} alone: scatter and the state of the machine show only between cycles and runs")
    if budget.low is not None and budget.high is not None and any(part.below is not None for part in budget.components):
        low, high = (_amount(max(0.0, bound), budget.unit) for bound in (budget.low, budget.high))
        notes.append(f"its sides are not even: from {low} to {high}")
    if any(part.value is None for part in budget.components) and not budget.unknown:
        notes.append("what is not known is left out of the sum")
    if entry.sensor_terms_j:
        terms = ", ".join(f"{name} {value:.2g}" for name, value in entry.sensor_terms_j.items())
        notes.append(f"sensor in joules (shape is added, the others in quadrature): {terms}")
    if budget.gain_uncertainty_rel is not None:
        notes.append(
            f"apart: the board's gain error, {budget.gain_uncertainty_rel:.1%}, the same in all runs on one board"
        )
    return [
        f"{entry.study}[{entry.experiment_id}] of {entry.run}, {what}",
        shown,
        *fitted_table(HEAD, body, left=3),
        *notes,
    ]


def _amount(value: float, unit: str) -> str:
    if unit in PREFIXED:
        return quantity(value, unit)
    return f"{value * 100:.3g} %" if unit == "1" else f"{value:.3g} {unit}"


def _names(result: Result) -> tuple[str, str, str]:
    return result.run_id, result.study, result.experiment.id


def _terms(result: Result, budget: UncertaintyBudget) -> dict[str, float]:
    """Standard uncertainties by term, added over the measure windows; none for a figure that is not of these."""
    terms: dict[str, float] = {}
    if any(part.unit == "J" for part in budget.components):
        for window in result.energy.windows:
            for name, value in window.terms.items() if window.name == MEASURE else ():
                terms[name] = terms.get(name, 0.0) + value / K
        resets = result.energy.reset_energy_uncertainty_j
        terms |= {"resets": resets / K} if terms and resets is not None else {}
    return terms


def _encoded(entry: NamedBudget) -> JsonValue:
    parts = [{**vars(part), "contribution": part.contribution} for part in entry.budget.components]
    named = {name: value for name, value in vars(entry).items() if name != "budget"}
    whole: JsonValue = encode({**named, **vars(entry.budget), "components": parts})
    return whole
