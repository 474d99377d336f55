"""What a result says follows from what was observed, and from nothing else."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import jsonschema
import pytest

from pytest_llem.engines.protocol import ModelShape
from pytest_llem.job.measurement import Measurement, MeteredDevice
from pytest_llem.job.report import Note
from pytest_llem.results.schema import Result

if TYPE_CHECKING:
    from tests.unit.results.conftest import Bench


def test_energy_per_token_request_and_query(bench: Bench) -> None:
    energy = bench.result().energy
    assert energy.energy_j == 20.0
    assert energy.avg_power_w == 10.0
    assert energy.joules_per_output_token == pytest.approx(20 / 24)
    assert energy.joules_per_total_token == pytest.approx(20 / (24 + 48))
    assert energy.joules_per_request == pytest.approx(20 / 6)
    assert energy.wh_per_1000_queries == pytest.approx(20 / 6 * 1000 / 3600)
    assert energy.tokens_per_joule == pytest.approx(24 / 20)


def test_energy_above_idle_carries_both_uncertainties(bench: Bench) -> None:
    energy = bench.result().energy
    assert energy.idle_power_w == 4.0
    assert energy.energy_above_idle_j == pytest.approx(20 - 4 * 2)
    assert energy.energy_above_idle_uncertainty_j == pytest.approx((0.3**2 + (0.2 * 2) ** 2) ** 0.5)


def test_every_figure_of_energy_has_its_uncertainty(bench: Bench) -> None:
    """The sensor stated 0.3 J of 20 J: each figure had its value alone."""
    energy = bench.result().energy
    figures = (
        "avg_power_w",
        "joules_per_output_token",
        "joules_per_total_token",
        "joules_per_request",
        "wh_per_1000_queries",
        "tokens_per_joule",
    )
    for figure in figures:
        assert getattr(energy, f"{figure}_uncertainty") == pytest.approx(getattr(energy, figure) * 0.3 / 20), figure


def test_an_uncertainty_that_the_meter_does_not_state_is_unknown_in_every_figure(bench: Bench) -> None:
    report = bench.energy()
    silent = replace(report.windows[1], uncertainty_j=None)
    energy = bench.result(
        replace(bench.measurement(), energy=replace(report, windows=(report.windows[0], silent)))
    ).energy
    assert energy.joules_per_output_token is not None
    stated = {name: value for name, value in asdict(energy).items() if name.endswith("_uncertainty")}
    assert len(stated) == 7
    assert set(stated.values()) == {None}


def test_tpot_leaves_out_the_first_token(bench: Bench) -> None:
    """GuideLLM counts the first token in; vLLM and this project do not."""
    latency = bench.result().latency
    assert latency.ttft_s is not None
    assert latency.tpot_s is not None
    assert latency.e2el_s is not None
    assert latency.ttft_s.p50 == pytest.approx(0.1)
    assert latency.tpot_s.mean == pytest.approx(0.01)
    assert latency.e2el_s.mean == pytest.approx(0.13)


def test_percentiles_interpolate_between_requests(bench: Bench) -> None:
    measurement = bench.measurement()
    requests = tuple(
        replace(request, end_ns=request.start_ns + (place + 1) * 1_000_000_000)
        for place, request in enumerate(measurement.requests)
    )
    e2el = bench.result(replace(measurement, requests=requests)).latency.e2el_s
    assert e2el is not None
    assert (e2el.mean, e2el.p50) == pytest.approx((3.5, 3.5))


def test_latency_is_null_when_one_request_has_no_token_times(bench: Bench) -> None:
    measurement = bench.measurement()
    blind = replace(measurement.requests[0], token_times_ns=None)
    latency = bench.result(replace(measurement, requests=(blind, *measurement.requests[1:]))).latency
    assert latency.ttft_s is None
    assert latency.tpot_s is None
    assert latency.itl_s is None
    assert latency.e2el_s is not None


def test_without_meter_every_energy_is_null(bench: Bench) -> None:
    energy = bench.result(replace(bench.measurement(), energy=None)).energy
    numbers = {name: value for name, value in asdict(energy).items() if name.endswith(("_j", "_w", "token", "queries"))}
    assert numbers
    assert set(numbers.values()) == {None}
    assert (energy.meter, energy.measured) == ("none", False)


def test_a_window_that_was_not_measured_leaves_the_total_null(bench: Bench) -> None:
    """A sensor gap must not read as 0 J."""
    report = bench.energy()
    lost = replace(report.windows[1], energy_j=None, uncertainty_j=None, devices=())
    energy = bench.result(
        replace(bench.measurement(), energy=replace(report, windows=(report.windows[0], lost)))
    ).energy
    assert energy.energy_j is None
    assert energy.joules_per_output_token is None
    assert energy.energy_above_idle_j is None
    assert energy.devices[0].energy_j is None
    assert energy.idle_power_w == 4.0


def test_failed_requests_invalidate_and_are_not_averaged_in(bench: Bench) -> None:
    measurement = bench.measurement()
    failed = replace(measurement.requests[0], output_tokens=0, error="timed out", end_ns=10**15)
    result = bench.result(replace(measurement, requests=(failed, *measurement.requests[1:])))
    assert result.status == "invalid"
    assert "failed_requests" in [reason.code for reason in result.validity.reasons]
    assert result.workload.failed_requests == 1
    assert result.tokens.output == 20
    assert result.latency.e2el_s is not None
    assert result.latency.e2el_s.mean == pytest.approx(0.13)
    assert result.latency.e2el_s.n == 5


def test_repeats_with_other_token_counts_are_invalid(bench: Bench) -> None:
    measurement = bench.measurement()
    short = replace(measurement.requests[-1], output_tokens=2)
    result = bench.result(replace(measurement, requests=(*measurement.requests[:-1], short)))
    assert [reason.code for reason in result.validity.reasons] == ["work_differs"]
    assert "24 in / 12 out" in result.validity.reasons[0].message


def test_estimated_energy_is_valid_and_says_so(bench: Bench) -> None:
    report = replace(bench.energy(), meter="estimate", measured=False, source="a data sheet")
    result = bench.result(replace(bench.measurement(), energy=report))
    assert result.status == "valid"
    assert [(warning.code, "a data sheet" in warning.message) for warning in result.warnings] == [("estimated", True)]


def test_a_meter_of_other_devices_than_the_engines_is_invalid(bench: Bench) -> None:
    """Its joules would be those of a GPU that was idle all the time."""
    report = replace(bench.energy(), meter="nvml", devices=(MeteredDevice("GPU-1", "H100", "gpu", leased=False),))
    result = bench.result(replace(bench.measurement(), energy=report))
    assert result.status == "invalid"
    assert [reason.code for reason in result.validity.reasons] == ["meter_not_on_device"]
    assert [device.leased for device in result.energy.devices] == [False]


def test_memory_is_that_of_the_leased_devices_only(bench: Bench) -> None:
    gpus = (MeteredDevice("GPU-1", "H100", "gpu"), MeteredDevice("GPU-2", "H100", "gpu", leased=False))
    measurement = bench.measurement()
    memory = replace(measurement.memory, device_peak_bytes={"GPU-1": 1, "GPU-2": 2})
    result = bench.result(replace(measurement, energy=replace(bench.energy(), devices=gpus), memory=memory))
    assert [(device.id, device.device_peak_bytes) for device in result.memory.devices] == [("GPU-1", 1)]


def test_reasons_of_worker_and_meter_are_kept(bench: Bench) -> None:
    measurement = replace(
        bench.measurement(),
        invalid=(Note("prefix_cache_hit", "12 tokens"),),
        energy=replace(bench.energy(), invalid=(Note("sensor_gap", "0.4 s"),)),
    )
    result = bench.result(measurement)
    assert [reason.code for reason in result.validity.reasons] == ["prefix_cache_hit", "sensor_gap"]


def test_prefill_and_decode_only_where_phases_can_be_told_apart(bench: Bench) -> None:
    report = bench.energy()
    prefill = replace(report.windows[1], name="prefill", energy_j=3.0, uncertainty_j=0.1)
    measurement = replace(bench.measurement(), energy=replace(report, windows=(*report.windows, prefill)))
    blended = bench.result(measurement).energy.phases
    assert [(phase.name, phase.energy_per_repeat_j) for phase in blended] == [("prefill", 3.0), ("decode", None)]
    capable = replace(measurement.engine, capabilities=replace(measurement.engine.capabilities, separable_phases=True))
    split = bench.result(replace(measurement, engine=capable)).energy.phases
    assert split[1].energy_per_repeat_j == pytest.approx(20 / 2 - 3)
    assert split[1].uncertainty_j == pytest.approx((0.15**2 + 0.1**2) ** 0.5)


@pytest.mark.parametrize("energy", [True, False])
def test_a_written_result_satisfies_the_published_schema(bench: Bench, energy: bool) -> None:
    measurement: Measurement = bench.measurement()
    text = bench.result(measurement if energy else replace(measurement, energy=None)).model_dump_json()
    jsonschema.validate(json.loads(text), Result.model_json_schema())
    assert Result.model_validate_json(text).model_dump_json() == text


def test_flops_follow_from_the_model_and_mfu_needs_a_known_board(bench: Bench) -> None:
    shape = ModelShape("llama", 1_000_000, 2, 64, 128, 1000, 2, 1, 32)
    compute = bench.result(replace(bench.measurement(), model=shape)).compute
    assert compute.parameters == 1_000_000
    assert compute.flops is not None
    assert compute.flops > 0
    assert compute.flops_per_output_token == pytest.approx(compute.flops / 24)
    assert compute.achieved_flops_per_s == pytest.approx(compute.flops / 2)
    assert compute.mfu is None
    assert bench.result().compute.flops is None
