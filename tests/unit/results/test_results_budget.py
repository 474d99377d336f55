"""`llem budget`: the components behind a printed interval, for a run's experiments and for one result."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_llem.cli import main
from pytest_llem.results.attempts import get_or_measure
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.store import RunStore

if TYPE_CHECKING:
    from tests.unit.results.conftest import Bench, Worker

    MakeWorker = Callable[..., Worker]


@pytest.fixture
def run(tmp_path: Path, bench: Bench, key: CycleKey, worker: MakeWorker) -> Path:
    store = RunStore.create(tmp_path, "run-1", environment={})
    for cycle, watts in enumerate((10.0, 10.1, 10.3), 1):
        at = replace(key, cycle=cycle)
        measurement = bench.measurement(power_w=watts)
        assert measurement.energy is not None
        windows = tuple(replace(window, terms={"edge": 0.2, "shape": 0.1}) for window in measurement.energy.windows)
        energy = replace(measurement.energy, windows=windows, gain_uncertainty_rel=0.05)
        get_or_measure(store, at, worker(at, replace(measurement, energy=energy)))
    return store.run_dir


def test_a_runs_experiments_have_a_table_of_components(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")  # where rows of a hundred characters wrapped
    assert main(["budget", str(run)]) == 0
    said = capsys.readouterr().out
    assert "study[batch_size:1] of run-1, 3 valid cycles" in said
    rows = [line.split() for line in said.splitlines()]
    assert ["150", "mJ", "0.04167", "6.25", "mJ", "infinite"] in [row[:-1] for row in rows]
    thermal = rows[rows.index(["thermal", "state,", "B,", "normal"]) + 1]
    assert thermal[:2] + thermal[3:] == ["not", "known", "-", "-", "-"]
    assert "what is not known is left out of the sum" in said
    assert "the board's gain error, 5.0%" in said


def test_json_holds_what_the_summary_states(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["budget", str(run), "--metric", "avg_power_w", "--metric", "output_tokens_per_s", "--format=json"]) == 0
    )
    power, speed = json.loads(capsys.readouterr().out)
    assert (power["metric"], power["experiment_id"], power["n"]) == ("avg_power_w", "batch_size:1", 3)
    assert power["value"] == pytest.approx(30.4 / 3)
    assert sum(part["share"] for part in power["components"]) == pytest.approx(1)
    parts = {part["name"]: part["contribution"] for part in power["components"]}
    assert parts["sensor"] == pytest.approx(0.075)
    assert speed["unit"] == "1/s"
    assert [part["name"] for part in speed["components"]] == ["scatter over cycles", "between runs, assumed"]


def test_one_result_has_its_sensors_terms_and_no_scatter(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (first, *_) = sorted(run.glob("*/*/c1"))
    for place in (first, first / "result.json"):
        assert main(["budget", str(place)]) == 0
        said = capsys.readouterr().out
        assert "cycle 1 alone" in said
        assert "833 ± 12 mJ (95 %, k=2)" in said
        assert "edge 0.1, shape 0.05" in said
        assert "scatter over cycles" not in said


def test_units_that_take_no_prefix_have_none(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["budget", str(run), "--metric", "output_tokens_per_s"]) == 0
    said = capsys.readouterr().out
    assert "output_tokens_per_s: 12.00 ± 0.17 1/s" in said
    assert "0.707 %" in said


def test_a_metric_that_nobody_measured_is_an_error(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["budget", str(run), "--metric", "mfu"]) == 2
    assert "measured mfu" in capsys.readouterr().err
