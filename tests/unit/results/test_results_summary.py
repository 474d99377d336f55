"""Summaries speak of valid cycles only, and an empty cell means not measured."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_llem.errors import EngineError, SettingsError
from pytest_llem.job.report import Note
from pytest_llem.results.attempts import get_or_measure
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.manifest import StudyPlan
from pytest_llem.results.metrics import METRICS, metric
from pytest_llem.results.state import Outcome
from pytest_llem.results.store import RunStore
from pytest_llem.results.summary import IDENTITY, ExperimentSummary, summarise, summary_csv, write_summary
from pytest_llem.study.model import SweptAxis

if TYPE_CHECKING:
    from tests.unit.results.conftest import Bench, Worker

    MakeWorker = Callable[..., Worker]


@pytest.fixture
def outcomes(tmp_path: Path, bench: Bench, key: CycleKey, worker: MakeWorker) -> list[Outcome]:
    store = RunStore.create(tmp_path, "run-1", environment={})
    spoilt = replace(bench.measurement(power_w=999.0), invalid=(Note("throttled", "12 s"),))
    deliveries = [*(bench.measurement(power_w=watts) for watts in (10.0, 12.0, 20.0)), spoilt, EngineError("gone")]
    keys = [replace(key, cycle=cycle) for cycle in range(1, len(deliveries) + 1)]
    return [get_or_measure(store, each, worker(each, given)) for each, given in zip(keys, deliveries, strict=True)]


def rows(outcomes: list[Outcome]) -> list[ExperimentSummary]:
    known = {outcome.key: outcome for outcome in outcomes}
    return list(summarise(known, known.get))


def test_rows_hold_value_uncertainty_spread_and_count_of_valid_cycles(outcomes: list[Outcome]) -> None:
    (row,) = rows(outcomes)
    power = row.metrics["avg_power_w"]
    assert (power.value, power.median, power.n) == (14.0, 12.0, 3)
    assert power.spread == pytest.approx(16.0 - 11.0)
    assert power.half_iqr == pytest.approx(2.5)
    # By hand: s^2 = 28 over three cycles at t = 4.5266, 0.3 J in 2 s from the sensor, 1 %/sqrt(2) between runs at k=2.
    by_hand = (4.5266**2 * 28 / 3 + 0.15**2 + 14**2 * 2e-4) ** 0.5
    assert power.uncertainty == pytest.approx(by_hand, rel=1e-4)
    assert (row.cycles_valid, row.cycles_total) == (3, 5)
    assert row.states == {"valid": 3, "invalid": 1, "failed": 1}
    assert row.reasons == ("throttled: 12 s", "gone")


def test_csv_is_flat_and_leaves_the_unmeasured_empty(outcomes: list[Outcome], tmp_path: Path) -> None:
    write_summary(tmp_path, rows(outcomes))
    (row,) = csv.DictReader(io.StringIO((tmp_path / "summary.csv").read_text()))
    assert float(row["avg_power_w"]) == 12.0
    assert (float(row["avg_power_w_value"]), row["avg_power_w_n"]) == (14.0, "3")
    assert float(row["avg_power_w_uncertainty"]) > float(row["avg_power_w_spread"]) == 5.0
    assert (row["mfu"], row["mfu_value"], row["mfu_n"]) == ("", "", "")
    assert list(row)[-8:-6] == [f"{[*METRICS][-1]}_n", "cycles_reused"]
    assert [column for column in row if column in METRICS] == list(METRICS)


def test_csv_has_a_column_per_axis_and_setting_in_which_experiments_differ(outcomes: list[Outcome]) -> None:
    """Whoever read it had to take the settings out of the ids."""
    plan = StudyPlan(
        outcomes[0].key.study,
        None,
        axes=(
            SweptAxis("transformers.batch_size", "batch_size", ("1",), (1,)),
            SweptAxis("quantization", "quantization", ("none",), ("none",)),
            SweptAxis("energy_j", "energy_j", ("-1",), ("-1",)),
            SweptAxis("model", "model", ("m",), ("m",)),
        ),
        points={outcomes[0].key.experiment_id: (1, "none", "-1", "builtin:tiny-llama")},
        settings=("transformers.batch_size", "workload.prompts", "transformers.gone"),
    )
    known = {outcome.key: outcome for outcome in outcomes}
    table = summary_csv(list(summarise(known, known.get, plans=[plan])))
    (row,) = csv.DictReader(io.StringIO(table))
    settings = outcomes[0].result.experiment.config if outcomes[0].result else {}
    prompts = settings["workload"]["prompts"]  # type: ignore[index, call-overload]
    columns = list(row)[len(IDENTITY) : list(row).index(next(iter(METRICS)))]
    expected = {
        "transformers.batch_size": "1",
        "quantization": "none",
        "sweep.energy_j": "'-1",
        "workload.prompts": str(prompts),
        "transformers.gone": "",
    }
    assert {name: row[name] for name in columns} == expected


def test_an_experiment_without_valid_cycles_has_no_numbers(outcomes: list[Outcome]) -> None:
    (row,) = rows(outcomes[3:])
    assert row.metrics == {}
    assert ",0,2," in summary_csv([row])


def test_unknown_metrics_get_a_suggestion() -> None:
    with pytest.raises(SettingsError) as caught:
        metric("joules_per_output_tokens")
    assert str(caught.value.fix).startswith("did you mean 'joules_per_output_token'?")
