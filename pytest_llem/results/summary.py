"""Summarises a run: a row per experiment with each metric's value over its valid cycles, its uncertainty and counts.

The session writes `summary.json` and `.csv` at its end; the report summarises too. Names of columns stay.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from types import MappingProxyType

from pytest_llem.errors import JsonValue
from pytest_llem.job.files import write_json, write_text
from pytest_llem.job.metric_names import ACCURACY, HEADLINE, JOULES_PER_CORRECT, SLO_MET_SHARE, percentile_of
from pytest_llem.job.wire import encode
from pytest_llem.results.axes import StudyAxes
from pytest_llem.results.best import Contender, best
from pytest_llem.results.carry_over import CarryOver
from pytest_llem.results.comparability import written_settings
from pytest_llem.results.device_optimum import Optimum, published
from pytest_llem.results.impact import ImpactFigure, figures, made_of
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.manifest import StudyPlan
from pytest_llem.results.metrics import METRICS, SHIPPED, metrics_of, names_with
from pytest_llem.results.optimize_record import OptimizeRecord
from pytest_llem.results.repeatability import spreads
from pytest_llem.results.run_verdict import RunFinding
from pytest_llem.results.schema import Result
from pytest_llem.results.sections.performance import percentile
from pytest_llem.results.sections.quality import Scores, summarised_scores
from pytest_llem.results.served import Served, served
from pytest_llem.results.state import Outcome
from pytest_llem.results.terminal import spreadsheet
from pytest_llem.results.uncertainty import budget_of_experiment

SUMMARY_VERSION = 1
"""Raised when a field is renamed, removed or changes its meaning."""
IDENTITY = (
    "study",
    "experiment_id",
    "config_hash",
    "engine",
    "model",
    "meter",
    "measured",
    "cycles_valid",
    "cycles_total",
)
STATED = ("value", "uncertainty", "spread", "n")
IMPACT = ("value", "uncertainty", "unit")
BOUNDED = [f"{name}_{end}" for name in (SLO_MET_SHARE, ACCURACY, JOULES_PER_CORRECT) for end in ("low", "high")]
"""Columns of intervals that are not even."""
SPREAD_CYCLES = 3
"""Chosen: the quartiles of two values are those values, and no measure of spread."""


@dataclass(frozen=True)
class MetricSummary:
    """A metric over the valid cycles: `value` is their mean, `uncertainty` expanded at 95.45 %, the factor beside it.

    `low` and `high` are that interval, which is not even where requests or questions are a sample of others: the
    uncertainty is then the longer side.

    `spread` is the interquartile range, `None` below three cycles: it describes the cycles, and says little about how
    far the value is from the true one. `half_iqr` is half of it. The uncertainty is `None` where it is not known, as
    after a single cycle, and leaves out the board's gain error.
    """

    median: float
    half_iqr: float | None
    n: int
    value: float
    uncertainty: float | None
    spread: float | None
    coverage_factor: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class ExperimentSummary:
    """One experiment of a run. `metrics` has a key per metric that was measured in at least one valid cycle.

    `cycles_total` includes planned cycles that were not started; `states` counts them as `pending`.
    """

    study: str
    experiment_id: str
    config_hash: str
    engine: str | None
    model: str | None
    meter: str | None
    measured: bool | None
    cycles_valid: int
    cycles_total: int
    states: Mapping[str, int]
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    metrics: Mapping[str, MetricSummary]
    gain_uncertainty_rel: float | None = None
    """The gain error of the sensor's board, which no uncertainty here includes."""
    cycles_reused: int = 0
    """Those that an earlier run measured, and counts as well."""
    point: Mapping[str, JsonValue] = field(default_factory=dict)
    """Its value on each axis of the sweep, by the axis' name; `None` where the axis has no effect on it."""
    settings: Mapping[str, JsonValue] = field(default_factory=dict)
    """What else experiments of the study differ in, by the setting's name; empty where nothing was measured."""
    slo: Served | None = None
    """How it served its load; `None` without an SLO, unless it was saturated."""
    scores: Scores | None = None
    """What its answers scored; `None` where they are not scored."""
    impact: Mapping[str, ImpactFigure] = field(default_factory=dict)
    """Grams of CO2e and money per million output tokens, where the study's section `report` states factors."""
    scope: str | None = None
    """What a joule covers."""
    best: float | None = None
    """How probable it is that it is truly the best of its study's experiments in the headline, where cycles tell it."""


def summarise(
    keys: Iterable[CycleKey],
    outcome_of: Callable[[CycleKey], Outcome | None],
    baseline_dir: Path | None = None,
    plans: Sequence[StudyPlan] = (),
) -> Iterator[ExperimentSummary]:
    """Rows in the order in which experiments first appear; one without any outcome has no row.

    `keys` are the planned cycles and those that were measured; `baseline_dir` may know what equal runs differ by;
    `plans` have each study's axes and headline.
    Outcomes are read experiment by experiment and not kept: those of a large study would fill the memory.
    """
    axes = {plan.name: plan.study_axes() for plan in plans}
    headlines = {plan.name: plan.headline for plan in plans}
    raced = {plan.name for plan in plans if plan.optimize is not None}
    rows: list[ExperimentSummary] = []
    contenders: dict[str, dict[int, Contender]] = {}
    groups: dict[tuple[str, str, str], dict[CycleKey, None]] = {}
    for key in keys:
        groups.setdefault((key.study, key.experiment_id, key.config_hash), {})[key] = None
    for experiment, cycles in groups.items():
        outcomes = [outcome for key in cycles if (outcome := outcome_of(key)) is not None]
        if outcomes:
            of_study = axes.get(experiment[0], StudyAxes())
            row = _summary(*experiment, outcomes, len(cycles) - len(outcomes), baseline_dir)
            settings = _settings(outcomes, of_study.settings)
            seen = [outcome.result for outcome in outcomes if outcome.valid and outcome.result is not None]
            contenders.setdefault(row.study, {})[len(rows)] = Contender.of(headlines.get(row.study), seen)
            rows.append(replace(row, point=of_study.point(experiment[1]), settings=settings))
    ranked = {
        place: share
        for study, of_study in contenders.items()
        if study not in raced  # the race says which is the best, within its limits
        for place, share in best(of_study, headlines.get(study)).items()
    }
    yield from (replace(row, best=ranked.get(place)) for place, row in enumerate(rows))


def with_impact(rows: Iterable[ExperimentSummary], plans: Iterable[StudyPlan]) -> Iterator[ExperimentSummary]:
    """The rows with grams and money, by what the plan of their study states."""
    settings = {plan.name: plan.report for plan in plans}
    for row in rows:
        of = row.metrics.get(HEADLINE)
        stated = settings.get(row.study)
        yield row if of is None or stated is None else replace(row, impact=figures(stated, of.value, of.uncertainty))


def summarise_metrics(results: Iterable[Result], baseline_dir: Path | None = None) -> dict[str, MetricSummary]:
    """Each metric that was measured in at least one of the results."""
    results = list(results)
    spread_of = spreads(results, baseline_dir)
    summaries: dict[str, MetricSummary] = {}
    for name, metric in metrics_of(results).items():
        budget = budget_of_experiment(metric, results, spread_of(name))
        if budget is not None:
            values = sorted(value for result in results if (value := metric.of(result)) is not None)
            enough = len(values) >= SPREAD_CYCLES
            spread = percentile(values, 0.75) - percentile(values, 0.25) if enough else None
            summaries[name] = MetricSummary(
                median=median(values),
                half_iqr=None if spread is None else spread / 2,
                n=len(values),
                value=budget.value,
                uncertainty=budget.uncertainty,
                spread=spread,
                coverage_factor=budget.coverage_factor,
                low=budget.low,
                high=budget.high,
            )
    return summaries


def _summary(
    study: str,
    experiment_id: str,
    config_hash: str,
    outcomes: Sequence[Outcome],
    pending: int,
    baseline_dir: Path | None,
) -> ExperimentSummary:
    valid = [outcome.result for outcome in outcomes if outcome.valid and outcome.result is not None]
    seen = [outcome.result for outcome in outcomes if outcome.result is not None]
    first: Result | None = next(iter(valid or seen), None)
    states = Counter[str](outcome.state for outcome in outcomes)
    if pending:
        states["pending"] = pending
    model = first.experiment.config.get("model") if first else None
    return ExperimentSummary(
        study=study,
        experiment_id=experiment_id,
        config_hash=config_hash,
        engine=first.engine.name if first else None,
        model=model if isinstance(model, str) else None,
        meter=first.energy.meter if first else None,
        measured=first.energy.measured if first else None,
        cycles_valid=len(valid),
        cycles_total=len(outcomes) + pending,
        states=states,
        reasons=tuple(dict.fromkeys(reason for outcome in outcomes for reason in outcome.reasons())),
        warnings=tuple(dict.fromkeys(warning.code for result in seen for warning in result.warnings)),
        metrics=summarise_metrics(valid, baseline_dir),
        gain_uncertainty_rel=first.energy.gain_uncertainty_rel if first else None,
        cycles_reused=sum(outcome.source_run is not None for outcome in outcomes),
        slo=served(seen),
        scores=summarised_scores(valid),
        scope=first.energy.scope if first else None,
    )


def _settings(outcomes: Sequence[Outcome], names: Sequence[str]) -> dict[str, JsonValue]:
    result = next((outcome.result for outcome in outcomes if outcome.result is not None), None)
    if result is None or not names:
        return {}
    written = written_settings(result)
    return {name: written.get(name) for name in names}


def summary_csv(rows: Sequence[ExperimentSummary]) -> str:
    """The content of `summary.csv`: flat columns; an empty cell was not measured, or has no effect.

    Which experiment a row is comes first, the axes and settings in which they differ next, as the study writes them. A
    metric's own column is its median; its mean with uncertainty, spread and count follow after all medians, then the
    intervals that are not even, percentiles that a study chose, other packages' metrics, and grams and money.
    """
    further = [name for name in _metrics(rows) if name not in SHIPPED]
    differ = _differing(rows)
    beyond = list(dict.fromkeys(name for row in rows for name in row.impact))
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        [
            *(name.removesuffix("_id") for name in IDENTITY),
            *(spreadsheet(f"sweep.{name}" if name in IDENTITY or name in METRICS else name) for name in differ),
            *(column for name in SHIPPED for column in (name, f"{name}_half_iqr")),
            *(f"{name}_{column}" for name in SHIPPED for column in STATED),
            "cycles_reused",
            *BOUNDED,
            *(f"{name}{column}" for name in further for column in ("", "_half_iqr", *(f"_{s}" for s in STATED))),
            *(f"{name}_{column}" for name in beyond for column in IMPACT),
        ]
    )
    for row in rows:
        cells: list[object] = [spreadsheet(getattr(row, name)) for name in IDENTITY]
        cells += [_cell(row, name) for name in differ]
        cells += [getattr(row.metrics.get(name), column, None) for name in SHIPPED for column in ("median", "half_iqr")]
        cells += [getattr(row.metrics.get(name), column, None) for name in SHIPPED for column in STATED]
        cells.append(row.cycles_reused)
        cells += [getattr(row.metrics.get(name), end, None) for name, _, end in (c.rpartition("_") for c in BOUNDED)]
        whole = ("median", "half_iqr", *STATED)
        cells += [getattr(row.metrics.get(name), column, None) for name in further for column in whole]
        cells += [getattr(row.impact.get(name), column, None) for name in beyond for column in IMPACT]
        writer.writerow(cells)
    return stream.getvalue()


def _metrics(rows: Sequence[ExperimentSummary]) -> list[str]:
    """Every metric that a row may have: the percentiles that a study chose stand before other packages' metrics."""
    percentiles = {percentile_of(name) for row in rows for name in row.metrics}
    return names_with(each[1] for each in percentiles if each is not None)


def _differing(rows: Sequence[ExperimentSummary]) -> list[str]:
    """The axes and settings in which experiments differ, but for engine and model, which have columns anyway."""
    names = dict.fromkeys(name for row in rows for name in (*row.point, *row.settings))
    stated = {"engine": [row.engine for row in rows], "model": [row.model for row in rows]}
    return [name for name in names if [_cell(row, name) for row in rows] != stated.get(name)]


def _cell(row: ExperimentSummary, name: str) -> str | None:
    value = row.point.get(name, row.settings.get(name))
    return value if value is None else spreadsheet(value if isinstance(value, str) else json.dumps(value))


def write_summary(
    run_dir: Path,
    rows: Sequence[ExperimentSummary],
    findings: Sequence[RunFinding] = (),
    axes: Mapping[str, StudyAxes] = MappingProxyType({}),
    optima: Sequence[Optimum] = (),
    carried: Sequence[CarryOver] = (),
    plans: Sequence[StudyPlan] = (),
    races: Sequence[OptimizeRecord] = (),
) -> None:
    """Write `summary.json` and `summary.csv` into a run's directory."""
    units: JsonValue = {name: METRICS[name].unit for name in _metrics(rows)}
    experiments: JsonValue = [encode(row) for row in rows]
    content: dict[str, JsonValue] = {"schema_version": SUMMARY_VERSION, "units": units, "experiments": experiments}
    content["findings"] = [encode(finding) for finding in findings]
    content["axes"] = {study: [encode(axis) for axis in of_study.axes] for study, of_study in axes.items()}
    content["optimize"] = [race.answer() for race in races]
    content["optima"] = [published(optimum) for optimum in optima]
    captions = {
        plan.name: made_of(plan.report, {row.scope for row in rows if row.study == plan.name}) for plan in plans
    }
    content["impact"] = {name: text for name, text in captions.items() if text}
    content["carry_over"] = [encode(each) for each in carried]
    write_json(run_dir / "summary.json", content)
    write_text(run_dir / "summary.csv", summary_csv(rows))
