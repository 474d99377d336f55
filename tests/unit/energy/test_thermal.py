"""Thermal state on simulated dies with two time constants: what is called settled is, and bounds hold."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from pytest_llem.energy.thermal import UNSETTLED_REL, SettlingWatch, thermal_reading
from tests.simulated_nvml.die import GPU, Die, Load

DIES = [
    Die(fast_s, slow_s, leakage, load_w=load_w, fast_c_per_w=fast_c, slow_c_per_w=slow_c, burst=0.3)
    for (fast_s, slow_s), leakage, (load_w, fast_c, slow_c) in product(
        ((3.0, 40.0), (10.0, 90.0), (25.0, 150.0), (5.0, 200.0)),
        (0.001, 0.004),
        ((400.0, 0.04, 0.05), (700.0, 0.05, 0.02)),
    )
]
"""Leakage of 0.1 to 0.4 % a degree; the load warms them by 27 to 60 degrees and changes their power by 2 to 24 %."""


@pytest.mark.parametrize("repeat_s", [3.0, 20.0])
def test_no_settled_result_is_off_by_more_than_one_percent(repeat_s: float, tmp_path: Path) -> None:
    """A window opened when latency and power of some repeats agree is off by up to a tenth of the energy."""
    for number, die in enumerate(DIES):
        load = Load(replace(die, samples=[]), repeat_s)
        seconds = load.settle(tmp_path / f"{repeat_s}-{number}.jsonl")
        reading = load.measure()
        assert (reading.state, seconds < 900) == ("settled", True), die
        assert abs(load.error_rel) <= 0.01, die
        assert reading.uncertainty_rel is not None
        assert abs(load.error_rel) <= reading.uncertainty_rel <= 0.01, die


@pytest.mark.parametrize("warm_up_s", [12.0, 70.0, 150.0])
def test_an_unsettled_figure_says_how_far_off_it_may_be(warm_up_s: float) -> None:
    held = 0
    for die in DIES:
        load = Load(replace(die, samples=[]))
        load.warm_up(warm_up_s)
        reading = load.measure()
        assert reading.uncertainty_rel is not None
        held += abs(load.error_rel) <= reading.uncertainty_rel
        if reading.distance_c is not None:
            assert reading.temperature_c is not None
            assert abs(load.die.sustained_c - reading.temperature_c) <= reading.distance_c
        assert warm_up_s > 60 or (reading.state, reading.distance_c) == ("unsettled", None)
    assert held >= 0.95 * len(DIES)


@pytest.mark.parametrize("warm_up_s", [12.0, 60.0, 150.0, 400.0])
def test_a_board_at_its_power_limit_still_changes_what_work_costs(warm_up_s: float) -> None:
    """Power stands still while clocks give way to leakage: 10 % of the energy, with a bound of nothing."""
    for (fast_s, slow_s), leakage in product(((3.0, 40.0), (10.0, 90.0), (5.0, 200.0)), (0.001, 0.004)):
        load = Load(Die(fast_s, slow_s, leakage, fast_c_per_w=0.05, limit_w=400.0), 5.0)
        load.warm_up(warm_up_s)
        reading = load.measure()
        seconds = sum(repeat.end_ns - repeat.start_ns for repeat in load.measured) / 1e9
        error_rel = load.die.limited_j * 5.0 * len(load.measured) / (load.power_w * seconds) - 1
        assert reading.uncertainty_rel is not None
        assert abs(error_rel) <= reading.uncertainty_rel, load.die
        assert reading.state != "settled" or abs(error_rel) <= 0.01


@pytest.fixture(scope="module")
def settled() -> Load:
    """A die that has had its load for 400 s."""
    load = Load(Die(10.0, 60.0, 0.003))
    load.warm_up(400.0)
    load.measure()
    return load


def test_the_leakage_of_a_die_is_read_from_its_own_warm_up(settled: Load) -> None:
    reading = thermal_reading(settled.die.samples, (), [GPU], settled.warmup, settled.measured)
    assert reading.state == "settled"
    assert reading.leakage_rel_per_c == pytest.approx(0.003 * settled.die.load_w / settled.die.sustained_w, rel=0.1)


def test_without_temperatures_the_state_is_unknown_and_the_bound_wide(settled: Load) -> None:
    blind = [sample._replace(temperature_c=None) for sample in settled.die.samples]
    reading = thermal_reading(blind, (), [GPU], settled.warmup, settled.measured)
    assert (reading.state, reading.temperature_c, reading.distance_c) == ("unknown", None, None)
    nothing = thermal_reading((), (), [GPU], settled.warmup, settled.measured)
    assert (nothing.state, nothing.uncertainty_rel) == ("unknown", UNSETTLED_REL)


def test_a_counter_that_stands_still_bounds_nothing(settled: Load) -> None:
    still = [sample._replace(counter_mj=1.0) for sample in settled.die.samples]
    reading = thermal_reading(still, (), [GPU], settled.warmup, settled.measured)
    assert (reading.state, reading.uncertainty_rel) == ("unsettled", UNSETTLED_REL)


def test_a_clock_held_down_by_heat_is_no_settled_state(settled: Load) -> None:
    begin_ns, end_ns = settled.warmup[0].start_ns, settled.measured[-1].end_ns
    counts = {begin_ns: 0, end_ns - 20_000_000_000: 0, end_ns - 1: 5_000_000_000}
    events = [{"t_ns": t, "event": "throttle", "device": GPU, "thermal_ns": n} for t, n in counts.items()]
    assert thermal_reading(settled.die.samples, events, [GPU], settled.warmup, settled.measured).state == "unsettled"


def test_every_gpu_of_the_lease_must_have_settled(settled: Load) -> None:
    second = [sample._replace(device="GPU-2") for sample in settled.die.samples]
    both = [*settled.die.samples, *second]
    assert thermal_reading(both, (), [GPU, "GPU-2"], settled.warmup, settled.measured).state == "settled"
    warming = [
        sample._replace(temperature_c=sample.temperature_c and sample.temperature_c + sample.t_ns // 10**10)
        for sample in second
    ]
    both = [*settled.die.samples, *warming]
    assert thermal_reading(both, (), [GPU, "GPU-2"], settled.warmup, settled.measured).state == "unsettled"


def test_a_watch_that_reads_no_temperature_keeps_nobody_waiting(settled: Load, tmp_path: Path) -> None:
    assert SettlingWatch(tmp_path / "absent.jsonl", [GPU])(settled.warmup) is None


def test_a_watch_looks_at_the_gpus_of_the_cycles_own_processes(settled: Load, tmp_path: Path) -> None:
    """A server that runs already may compute on another GPU than the one that was leased."""
    warming = [
        sample._replace(device="GPU-2", temperature_c=sample.temperature_c and float(sample.t_ns // 10**10))
        for sample in settled.die.samples
    ]
    lines: list[dict[str, object]] = [sample._asdict() for sample in [*settled.die.samples, *warming]]
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert SettlingWatch(path, [GPU])(settled.warmup) is True
    seen = {
        "t_ns": 1,
        "event": "processes",
        "device": "GPU-2",
        "pids": [7],
        "foreign": [],
        "unknown": [],
        "containers": {},
    }
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, seen]))
    assert SettlingWatch(path, [GPU])(settled.warmup) is False
