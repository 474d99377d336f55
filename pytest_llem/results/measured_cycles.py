"""The valid cycles of one experiment in one run as a comparison reads them, from its results or from a saved baseline.

`judging` and `compare` read them: for both it must make no difference where they came from.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from pytest_llem.errors import StoreError
from pytest_llem.results.baselines import BaselineExperiment, BaselineRun
from pytest_llem.results.comparability import (
    CORRELATED,
    Conditions,
    common_conditions,
    compared_settings,
    mixture,
)
from pytest_llem.results.metrics import NOT_MEASURED, Metric, is_at_least, why_absent
from pytest_llem.results.reading import MeasurementId, measurement_id
from pytest_llem.results.saved_scores import as_saved
from pytest_llem.results.schema import Result


@dataclass(frozen=True)
class MeasuredCycles:
    """One experiment's valid cycles in one run; `names` and `measurements` say which.

    `read` gives a metric's value in each cycle, `None` where that lacks it, and `why` the reason for the last such
    cycle. `at_least` names the cycles in which its figure may be more, for want of an upper end. `mixed` says why the
    cycles do not repeat one measurement, unless what differs is allowed. `estimated_by` is the meter that stood in for
    a sensor. `scores` are those of each question in each cycle whose answers were scored.
    """

    run: str
    config_hash: str
    names: tuple[str, ...]
    conditions: Conditions
    settings: Conditions
    gain_uncertainty_rel: float | None
    measurements: tuple[MeasurementId, ...]
    estimated_by: str | None
    read: Callable[[Metric], Sequence[float | None]]
    why: Callable[[Metric], str]
    at_least: Callable[[Metric], Sequence[str]]
    mixed: Callable[[Collection[str]], list[str]]
    scores: Sequence[Sequence[float]]

    def values(self, measure: Metric) -> list[float]:
        """A metric in those cycles that have it."""
        return [value for value in self.read(measure) if value is not None]

    def shares(self, others: Collection[MeasurementId]) -> list[MeasurementId]:
        """Those of the measurements that it holds."""
        return [each for each in self.measurements if each in others]

    @property
    def correlated(self) -> bool:
        """Whether the cycles shared one loaded engine."""
        return self.conditions.get("isolation") in CORRELATED


def cycles_of(results: Sequence[Result]) -> MeasuredCycles | None:
    """The valid cycles of one experiment in one run; `None` where there are none."""
    if not results:
        return None
    first = results[0]

    def why(measure: Metric) -> str:
        return why_absent(measure.name, [result for result in results if measure.of(result) is None][-1])

    return MeasuredCycles(
        run=first.run_id,
        config_hash=first.experiment.config_hash,
        names=tuple(f"c{result.cycle}" for result in results),
        conditions=common_conditions(results),
        settings=compared_settings(first),
        gain_uncertainty_rel=first.energy.gain_uncertainty_rel,
        measurements=tuple(map(measurement_id, results)),
        estimated_by=next((result.energy.meter for result in results if not result.energy.measured), None),
        read=lambda measure: [measure.of(result) for result in results],
        why=why,
        at_least=lambda measure: [f"c{result.cycle}" for result in results if is_at_least(measure, result)],
        mixed=lambda allow: mixture(results, allow),
        scores=[as_saved(each.quality.scores) for each in results if each.quality and each.quality.scores],
    )


def saved_cycles(study: str, experiment: BaselineExperiment, run: BaselineRun) -> MeasuredCycles:
    """The same of one run in a saved baseline, which keeps the metrics that each of its cycles has."""
    which = (study, experiment.config_hash)
    ids = [_identity(text, which) for text in run.measurements]
    if not ids:  # an older file
        ids = [MeasurementId(run.run_id, which, cycle, 1) for cycle in range(1, run.cycles + 1)]
    meter = run.conditions.get("meter")
    return MeasuredCycles(
        run=run.run_id,
        config_hash=experiment.config_hash,
        names=tuple(f"c{each.cycle}" for each in ids),
        conditions=run.conditions,
        settings=experiment.settings,
        gain_uncertainty_rel=run.gain_uncertainty_rel,
        measurements=tuple(ids),
        estimated_by=str(meter) if run.conditions.get("energy_measured") is False else None,
        read=lambda measure: run.values.get(measure.name) or [None] * len(ids),
        why=lambda measure: NOT_MEASURED,
        at_least=lambda measure: [],  # such figures are not saved
        mixed=lambda allow: [],
        scores=run.scores_by_cycle,
    )


def _identity(text: str, configuration: tuple[str, str]) -> MeasurementId:
    """What a baseline writes as `RUN/c1/1`."""
    match = re.fullmatch(r"(.+)/c(\d+)/(\d+)", text)
    if match is None:
        raise StoreError(f"baseline of {configuration[0]}: {text!r} is no measurement, such as RUN/c1/1")
    return MeasurementId(match[1], configuration, int(match[2]), int(match[3]))
