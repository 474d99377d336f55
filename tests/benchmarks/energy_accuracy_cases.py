"""The sensors and loads on which energy meters are compared, and one comparison's worth of truth."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pytest_llem.energy.calibration import Calibration
from pytest_llem.job.measurement import Window
from pytest_llem.worker.windows import ASSUMED_PERIOD_S, idle_padding_s
from tests.simulated_nvml.simulation import Gpu, Simulation

IDLE_W = 110.0
PREFILL_W = 620.0
DECODE_W = 430.0
RIPPLE_W = 60.0
STEP_S = 0.023
PREFILL_S = 0.06
COOLING_S = 0.8


@dataclass(frozen=True)
class Case:
    """A sensor's settings, whether the sides are quiet and known to be, and whether the calibration is a true one.

    `cooling_w` is how much idle power lies above its rest right after work; it decays over 0.8 s. `peers` says whether
    other meters are compared on it, in real time.
    """

    name: str
    settings: Mapping[str, float] = field(default_factory=dict)
    quiet: bool = True
    confirmed: bool = True
    calibrated: bool = True
    cooling_w: float = 0.0
    peers: bool = False


CASES = (
    Case("default", peers=True),
    Case("cooling_idle", cooling_w=30.0, peers=True),
    Case("busy_sides", quiet=False, peers=True),
    Case("unconfirmed_sides", confirmed=False),
    Case("uncalibrated", calibrated=False),
    Case("part_time_counter", {"duty": 0.25}, peers=True),
    Case("slow_ramp", {"ramp_ns": 20e6}),
    Case("late_calls", {"late_ns": 7e6, "late_every": 5}),
    Case("jittery_steps", {"jitter_ns": 6e6}),
    Case("fast_counter", {"period_ns": 20e6}),
    Case("slow_counter", {"period_ns": 500e6}, peers=True),
    Case("slow_unconfirmed", {"period_ns": 500e6}, confirmed=False),
)
IN_WORDS = {
    "default": "default",
    "cooling_idle": "idle power that cools down",
    "busy_sides": "the same load on both sides",
    "unconfirmed_sides": "engine that cannot confirm quiet",
    "uncalibrated": "not calibrated",
    "part_time_counter": "counter that looks at a quarter of the time",
    "slow_ramp": "ramp of 20 ms",
    "late_calls": "every fifth read 7 ms late",
    "jittery_steps": "steps up to 6 ms early or late",
    "fast_counter": "steps every 20 ms",
    "slow_counter": "steps every 500 ms",
    "slow_unconfirmed": "steps every 500 ms, quiet unconfirmed",
}


def apply(case: Case, gpu: Gpu) -> None:
    """Give the simulated GPU this case's sensor."""
    for name, value in case.settings.items():
        setattr(gpu, name, type(getattr(gpu, name))(value))


def run_load(
    gpu: Gpu, seconds: float, case: Case, side_s: float, mark: Callable[[], None], rng: random.Random
) -> tuple[int, int]:
    """A window of LLM-like load (a prefill burst, then decoding steps) at random phase; `mark` is called at both edges.

    Returns the window's edges. With busy sides the same decoding runs before and after it.
    """
    if case.quiet:
        time.sleep(side_s + rng.random() * 0.1)
    else:
        gpu.set_power(DECODE_W, ripple_w=RIPPLE_W, ripple_s=STEP_S)
        time.sleep(side_s + rng.random() * 0.1)
    mark()
    if case.quiet:
        prefill_s = min(PREFILL_S, seconds / 3)
        start = gpu.set_power(PREFILL_W)
        time.sleep(prefill_s)
        gpu.set_power(DECODE_W, ripple_w=RIPPLE_W, ripple_s=STEP_S)
        time.sleep(max(0.0, seconds - prefill_s))
        end = gpu.set_power(IDLE_W, extra_w=case.cooling_w, extra_s=COOLING_S if case.cooling_w else 0.0)
    else:
        start = time.monotonic_ns()
        time.sleep(seconds)
        end = time.monotonic_ns()
    mark()
    time.sleep(side_s)
    if not case.quiet:
        gpu.set_power(IDLE_W)
    return start, end


def plan_load(
    gpu: Gpu, now_ns: int, seconds: float, case: Case, side_s: float, rng: random.Random
) -> tuple[Window, int]:
    """What `run_load` does, written down for a virtual clock: the window, and when all is over."""
    start = now_ns + round((side_s + rng.random() * 0.1) * 1e9)
    end = start + round(seconds * 1e9)
    if case.quiet:
        gpu.plan_power(start, PREFILL_W)
        gpu.plan_power(start + round(min(PREFILL_S, seconds / 3) * 1e9), DECODE_W, ripple_w=RIPPLE_W, ripple_s=STEP_S)
        gpu.plan_power(end, IDLE_W, extra_w=case.cooling_w, extra_s=COOLING_S if case.cooling_w else 0.0)
    else:
        gpu.plan_power(now_ns, DECODE_W, ripple_w=RIPPLE_W, ripple_s=STEP_S)
    over = end + round(side_s * 1e9)
    if not case.quiet:
        gpu.plan_power(over, IDLE_W)
        over += 1_000_000
    quiet_s = side_s if case.quiet and case.confirmed else None
    return Window("measure", start, end, 0, quiet_s, quiet_s), over


def true_calibration(simulation: Simulation, gpu: Gpu) -> Calibration:
    """What calibration finds on this sensor (`tests/unit/energy/test_calibrate.py`), with the bounds it then states."""
    return Calibration(
        uuid=gpu.uuid.decode(),
        driver=simulation.machine.driver.decode(),
        period_ns=gpu.period_ns,
        jitter_ns=max(200_000, gpu.jitter_ns),
        call_latency_ns=gpu.latency_ns,
        poll_step_ns=500_000,
        ramp_ns=gpu.ramp_ns if gpu.duty >= 1 else None,
        ramp_uncertainty_ns=max(300_000, gpu.ramp_ns // 10) if gpu.duty >= 1 else None,
        counter_type="accumulating" if gpu.duty >= 1 else "part_time",
        duty=gpu.duty if gpu.duty < 1 else None,
    )


def side_s(known: Calibration | None) -> float:
    """What a cycle leaves on each side of a window with a counter of which this is known."""
    return idle_padding_s(ASSUMED_PERIOD_S if known is None else known.period_ns / 1e9)
