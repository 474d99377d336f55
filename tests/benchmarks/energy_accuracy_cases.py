"""The sensors and loads on which energy meters are compared, and one comparison's worth of truth."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pytest_llem.energy.calibration import Calibration
from pytest_llem.energy.window_edges import lag_of
from pytest_llem.job.measurement import Window
from pytest_llem.worker.windows import ASSUMED_PERIOD_S, idle_padding_s
from tests.simulated_nvml.simulation import Gpu, Simulation
from tests.simulated_nvml.virtual import calibrate_virtually

IDLE_W = 110.0
PREFILL_W = 620.0
DECODE_W = 430.0
RIPPLE_W = 60.0
STEP_S = 0.023
PREFILL_S = 0.06
COOLING_S = 0.8
CALIBRATION_W = 600.0
BEAT_W = 620.0
BEAT_OFF_W = 150.0
STEP_RIPPLE_W = 150.0
HELD_NS = 50_000_000
LAST_NS = 20_000_000


@dataclass(frozen=True)
class Case:
    """A sensor's settings, whether the sides are quiet and known to be, whether it is calibrated, and the load.

    `cooling_w` is how much idle power lies above its rest right after work; it decays over 0.8 s. Clocks may stay up
    for 50 ms after work and draw `held_w` more, as in calibration. The last 20 ms may draw a share `last` of decoding.
    With `burst`, work of busy sides begins with a prefill. `beat_s` is the period of a load that is on and off in
    turns; `step_s` that of decoding whose steps rise and fall. `peers` says whether other meters are compared on it,
    in real time.
    """

    name: str
    settings: Mapping[str, float] = field(default_factory=dict)
    quiet: bool = True
    confirmed: bool = True
    calibrated: bool = True
    cooling_w: float = 0.0
    held_w: float = 0.0
    last: float = 1.0
    burst: bool = False
    gpus: int = 1
    beat_s: float = 0.0
    step_s: float = 0.0
    peers: bool = False


CASES = (
    Case("default", peers=True),
    Case("cooling_idle", cooling_w=30.0, peers=True),
    Case("busy_sides", quiet=False, peers=True),
    Case("unconfirmed_sides", confirmed=False),
    Case("uncalibrated", calibrated=False),
    Case("part_time_counter", {"duty": 0.25}, peers=True),
    Case("short_delay", {"delay_ns": 5e6}),
    Case("delay", {"delay_ns": 25e6}),
    Case("filter", {"filter_ns": 25e6}),
    Case("slow_ramp", {"ramp_ns": 20e6}),
    Case("slow_fall", {"fall_ns": 20e6}),
    Case("slow_rise", {"ramp_ns": 20e6, "fall_ns": 1.5e6}),
    Case("late_calls", {"late_ns": 7e6, "late_every": 5}),
    Case("jittery_steps", {"jitter_ns": 6e6}),
    Case("fast_counter", {"period_ns": 20e6}),
    Case("slow_counter", {"period_ns": 500e6}, peers=True),
    Case("slow_unconfirmed", {"period_ns": 500e6}, confirmed=False),
    Case("blind", {"blind_ns": 60e6}),
    Case("lossy", {"lost_share": 0.1}),
    Case("late_uncalibrated", {"delay_ns": 100e6}, calibrated=False),
    Case("blind_uncalibrated", {"blind_ns": 60e6}, calibrated=False),
    Case("part_time_uncalibrated", {"duty": 0.25}, calibrated=False),
)
IN_WORDS = {
    "default": "default",
    "cooling_idle": "idle power that cools down",
    "busy_sides": "the same load on both sides",
    "unconfirmed_sides": "engine that cannot confirm quiet",
    "uncalibrated": "not calibrated",
    "part_time_counter": "counter that looks at a quarter of the time",
    "short_delay": "values 5 ms old",
    "delay": "values 25 ms old",
    "filter": "low-pass of 25 ms",
    "slow_ramp": "ramp of 20 ms",
    "slow_fall": "power falls with 20 ms",
    "slow_rise": "power rises with 20 ms",
    "late_calls": "every fifth read 7 ms late",
    "jittery_steps": "steps up to 6 ms early or late",
    "fast_counter": "steps every 20 ms",
    "slow_counter": "steps every 500 ms",
    "slow_unconfirmed": "steps every 500 ms, quiet unconfirmed",
    "blind": "60 ms of each rise are lost",
    "lossy": "one step in ten is lost",
    "late_uncalibrated": "values 100 ms old, not calibrated",
    "blind_uncalibrated": "60 ms of each rise are lost, not calibrated",
    "part_time_uncalibrated": "looks at a quarter of the time, not calibrated",
}
LOADS: dict[str, dict[str, Any]] = {
    "prefill, decoding": {},
    "cools down": {"cooling_w": 30.0},
    "clocks held up": {"held_w": 150.0},
    "clock step": {"held_w": 40.0},
    "weak end": {"last": 1 / 3},
    "busy sides": {"quiet": False},
    "busy, two GPUs, burst": {"quiet": False, "burst": True, "gpus": 2},
    "unconfirmed": {"confirmed": False},
    "beat of 100 ms": {"beat_s": 0.1},
    "steps of 50 ms": {"step_s": 0.05},
}
"""The loads of the matrix in docs/energy.md: what they change in a case."""

SENSORS = tuple(
    case for case in CASES if case.quiet and case.confirmed and not case.cooling_w and case.name != "blind_uncalibrated"
)
"""The sensors of the matrix. What is lost without a trace or a calibration shows only beside power readings."""


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
    prefilled = start + round(min(PREFILL_S, seconds / 3) * 1e9)
    if not case.quiet:
        gpu.plan_power(now_ns, DECODE_W, ripple_w=RIPPLE_W, ripple_s=STEP_S)
    if case.beat_s:
        half_ns = round(case.beat_s / 2 * 1e9)
        for on in range(start, end, 2 * half_ns):
            gpu.plan_power(on, BEAT_W)
            gpu.plan_power(on + half_ns, BEAT_OFF_W)
    elif case.step_s:
        gpu.plan_power(start, DECODE_W, ripple_w=STEP_RIPPLE_W, ripple_s=case.step_s)
    elif case.quiet or case.burst:
        gpu.plan_power(start, PREFILL_W)
        gpu.plan_power(prefilled, DECODE_W, ripple_w=RIPPLE_W, ripple_s=STEP_S)
    if case.last < 1:
        gpu.plan_power(end - LAST_NS, case.last * DECODE_W)
    over = end + round(side_s * 1e9)
    if case.quiet:
        plan_rest(gpu, end, case)
    else:
        gpu.plan_power(over, IDLE_W)
        over += 1_000_000
    quiet_s = side_s if case.quiet and case.confirmed else None
    repeats = round(seconds / case.beat_s) if case.beat_s else None
    return Window("measure", start, end, 0, quiet_s, quiet_s, repeats, step_s=case.step_s or STEP_S), over


def plan_rest(gpu: Gpu, end_ns: int, case: Case) -> None:
    """What the GPU draws after work that ends at a time."""
    if case.held_w:
        gpu.plan_power(end_ns, IDLE_W + case.held_w)
        end_ns += HELD_NS
    gpu.plan_power(end_ns, IDLE_W, extra_w=case.cooling_w, extra_s=COOLING_S if case.cooling_w else 0.0)


def calibration_of(case: Case, simulation: Simulation, gpu: Gpu) -> Calibration | None:
    """What calibration finds of this case's sensor on a virtual clock; `None` where it was never calibrated."""
    if not case.calibrated:
        return None

    def load(start_ns: int, end_ns: int) -> None:
        gpu.plan_power(start_ns, CALIBRATION_W)
        plan_rest(gpu, end_ns, case)

    return calibrate_virtually(simulation, gpu, load, random.Random(3))


def side_s(known: Calibration | None) -> float:
    """What a cycle leaves on each side of a window with a counter of which this is known."""
    return idle_padding_s(ASSUMED_PERIOD_S if known is None else known.period_ns / 1e9, lag_of(known).settle_ns / 1e9)
