"""Steady state and device memory: what is summed, and from which part of the time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest

from pytest_llem.energy.readings import Sample, SampleWriter
from pytest_llem.job.measurement import Measurement, Window, WindowEnergy
from pytest_llem.results.attempts import write_power
from pytest_llem.results.derive import derive_result, device_peaks
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.performance_schema import SteadyState
from tests.unit.results.conftest import REPORT

if TYPE_CHECKING:
    from tests.unit.results.conftest import Bench

S = 1_000_000_000


def serving(bench: Bench, *windows: Window, joules: float | None = 6.0) -> Measurement:
    """A measurement whose token times are 2.1 s, 2.11 s, ... with steady windows and their energy."""
    plain = bench.measurement()
    assert plain.energy is not None
    accounted = tuple(WindowEnergy(w.name, w.index, w.start_ns, w.end_ns, joules, 0.5, "x") for w in windows)
    return replace(
        plain,
        engine=replace(plain.engine, capabilities=replace(plain.engine.capabilities, serves=True)),
        windows=(*plain.windows, *windows),
        energy=replace(plain.energy, windows=(*plain.energy.windows, *accounted)),
    )


def steady(bench: Bench, measurement: Measurement) -> SteadyState:
    found = bench.result(measurement).steady_state
    assert found is not None
    return found


def test_tokens_count_from_the_opening_edge_up_to_the_closing_one(bench: Bench) -> None:
    window = Window("steady_state", 2 * S + S // 10, 2 * S + S // 10 + 2 * S // 100, index=0)
    found = steady(bench, serving(bench, window))
    assert found.output_tokens == 2
    assert found.joules_per_output_token == pytest.approx(3.0)
    assert found.output_tokens_per_s == pytest.approx(2 / 0.02)
    assert found.avg_power_w == pytest.approx(6 / 0.02)
    assert found.joules_per_output_token_uncertainty == pytest.approx(0.5 / 2)
    assert found.avg_power_w_uncertainty == pytest.approx(0.5 / 0.02)


def test_a_window_counts_the_tokens_of_its_own_repeat(bench: Bench) -> None:
    whole = [Window("steady_state", 2 * S, 3 * S, index=0), Window("steady_state", 3 * S, 4 * S, index=1)]
    found = steady(bench, serving(bench, *whole))
    assert (found.output_tokens, found.duration_s, found.energy_j, found.uncertainty_j) == (24, 2.0, 12.0, 1.0)
    assert steady(bench, serving(bench, replace(whole[0], index=1))).output_tokens == 0


def test_less_than_thirty_seconds_are_not_valid(bench: Bench) -> None:
    short = steady(bench, serving(bench, Window("steady_state", 2 * S, 31 * S)))
    assert (short.valid, short.reason is not None) == (False, True)
    long = steady(bench, serving(bench, Window("steady_state", 2 * S, 32 * S)))
    assert (long.valid, long.reason) == (True, None)


def test_without_a_steady_state_the_reason_is_given_and_no_number(bench: Bench) -> None:
    found = steady(bench, serving(bench))
    assert not found.valid
    assert "never" in str(found.reason)
    assert (found.energy_j, found.joules_per_output_token, found.output_tokens_per_s) == (None, None, None)


def test_a_meter_that_did_not_account_the_window_gives_no_energy(bench: Bench) -> None:
    found = steady(bench, serving(bench, Window("steady_state", 2 * S, 40 * S), joules=None))
    assert found.output_tokens == 12
    assert (found.energy_j, found.avg_power_w) == (None, None)


def test_the_method_is_the_one_that_the_study_chose(bench: Bench, key: CycleKey) -> None:
    job = bench.job(key)
    chosen = replace(job.config.measurement, steady_state="ml_energy")
    job = replace(job, config=replace(job.config, measurement=chosen))
    measurement = serving(bench, Window("steady_state", 2 * S, 32 * S))
    found = derive_result(job, measurement, REPORT, study="study", environment={}).steady_state
    assert found is not None
    assert found.method == "ml_energy"
    assert found.joules_per_output_token == pytest.approx(6.0 / 12)
    assert steady(bench, measurement).method == "concurrency_limit"


def test_an_engine_that_does_not_serve_has_none(bench: Bench) -> None:
    assert bench.result().steady_state is None


@pytest.mark.parametrize(("load_shape", "warned"), [("offline", False), ("poisson", True)])
def test_a_short_steady_state_is_a_warning_where_requests_arrive_over_time(
    bench: Bench, load_shape: str, warned: bool
) -> None:
    result = bench.result(replace(serving(bench), load_shape=load_shape))
    assert ("steady_state_short" in {warning.code for warning in result.warnings}) is warned
    assert result.validity.valid


def test_device_memory_is_the_highest_reading_within_the_windows(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    writer = SampleWriter(path)
    for t_s, device, used in ((1, "a", 900), (2, "a", 300), (3, "a", 500), (3, "b", None), (5, "a", 800)):
        writer.sample(Sample(t_s * S, device, memory_bytes=used))
    writer.close()
    assert device_peaks(path, [Window("measure", 2 * S, 4 * S)]) == {"a": 500}
    assert device_peaks(tmp_path / "absent", [Window("measure", 0, S)]) == {}


SPOILT = (
    "",
    "{",
    "null",
    "[1]",
    '{"t_ns": "now", "device": "a"}',
    '{"device": "a"}',
    "{" * 5000,
    '{"t_ns": 1, "volts": 2}',
)


def test_a_spoilt_line_of_readings_is_a_gap_and_no_end(tmp_path: Path) -> None:
    """Whoever read the file raised, and with that the whole cycle was lost."""
    path = tmp_path / "samples.jsonl"
    good = f'{{"t_ns": {3 * S}, "device": "a", "memory_bytes": 500}}'
    path.write_text("\n".join([*SPOILT, good, *SPOILT, good]) + "\n", encoding="utf-8")

    assert device_peaks(path, [Window("measure", 2 * S, 4 * S)]) == {"a": 500}
    write_power(path, tmp_path / "power.parquet")

    assert pq.read_table(tmp_path / "power.parquet").num_rows == 2
