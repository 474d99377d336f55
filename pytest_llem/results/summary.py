"""Summarises a run: a row per experiment with the median over its valid cycles, spread and counts.

The session writes `summary.json` and `.csv` at its end; the report summarises too. Columns are only added, at the end.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from pytest_llem.errors import JsonValue
from pytest_llem.job.files import write_json, write_text
from pytest_llem.job.wire import encode
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.metrics import METRICS
from pytest_llem.results.schema import Result
from pytest_llem.results.sections.performance import percentile
from pytest_llem.results.state import Outcome

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
SPREAD_CYCLES = 3
"""Chosen: the quartiles of two values are those values, and no measure of spread."""


@dataclass(frozen=True)
class MetricSummary:
    """A metric over the valid cycles: median, and half the interquartile range (`None` below three cycles)."""

    median: float
    half_iqr: float | None
    n: int


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

    def value(self, metric: str) -> float | None:
        """The median of a metric, `None` when no valid cycle measured it."""
        estimate = self.metrics.get(metric)
        return estimate.median if estimate else None


def summarise(
    keys: Iterable[CycleKey], outcome_of: Callable[[CycleKey], Outcome | None]
) -> Iterator[ExperimentSummary]:
    """Rows in the order in which experiments first appear; one without any outcome has no row.

    `keys` are the planned cycles and those that were measured. Outcomes are read experiment by experiment and not
    kept: those of a large study would fill the memory.
    """
    groups: dict[tuple[str, str, str], dict[CycleKey, None]] = {}
    for key in keys:
        groups.setdefault((key.study, key.experiment_id, key.config_hash), {})[key] = None
    for experiment, cycles in groups.items():
        outcomes = [outcome for key in cycles if (outcome := outcome_of(key)) is not None]
        if outcomes:
            yield _summary(*experiment, outcomes, len(cycles) - len(outcomes))


def summarise_metrics(results: Iterable[Result]) -> dict[str, MetricSummary]:
    """Each metric that was measured in at least one of the results."""
    results = list(results)
    summaries: dict[str, MetricSummary] = {}
    for name, metric in METRICS.items():
        values = sorted(value for result in results if (value := metric.of(result)) is not None)
        if values:
            quartiles = percentile(values, 0.25), percentile(values, 0.75)
            spread = (quartiles[1] - quartiles[0]) / 2 if len(values) >= SPREAD_CYCLES else None
            summaries[name] = MetricSummary(median(values), spread, len(values))
    return summaries


def _summary(
    study: str, experiment_id: str, config_hash: str, outcomes: Sequence[Outcome], pending: int
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
        metrics=summarise_metrics(valid),
    )


def summary_csv(rows: Sequence[ExperimentSummary]) -> str:
    """The content of `summary.csv`: flat columns, the same in every run; an empty cell was not measured."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        [
            *(name.removesuffix("_id") for name in IDENTITY),
            *(column for name in METRICS for column in (name, f"{name}_half_iqr")),
        ]
    )
    for row in rows:
        cells: list[object] = [getattr(row, name) for name in IDENTITY]
        for name in METRICS:
            summary = row.metrics.get(name)
            cells += [summary.median, summary.half_iqr] if summary else [None, None]
        writer.writerow(cells)
    return stream.getvalue()


def write_summary(run_dir: Path, rows: Sequence[ExperimentSummary]) -> None:
    """Write `summary.json` and `summary.csv` into a run's directory."""
    units: JsonValue = {name: metric.unit for name, metric in METRICS.items()}
    experiments: JsonValue = [encode(row) for row in rows]
    content: JsonValue = {"schema_version": SUMMARY_VERSION, "units": units, "experiments": experiments}
    write_json(run_dir / "summary.json", content)
    write_text(run_dir / "summary.csv", summary_csv(rows))
