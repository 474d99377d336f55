"""The sensors and loads on which energy meters are compared, and one comparison's worth of truth."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tests.simulated_nvml.simulation import Gpu

IDLE_W = 110.0
PREFILL_W = 620.0
DECODE_W = 430.0
RIPPLE_W = 60.0
STEP_S = 0.023
PREFILL_S = 0.06
QUIET_S = 0.5
COOLING_S = 0.8


@dataclass(frozen=True)
class Case:
    """A sensor's settings, whether the sides are quiet, and whether the calibration is a true one.

    `cooling_w` is how much idle power lies above its rest right after work; it decays over 0.8 s.
    """

    name: str
    settings: Mapping[str, float] = field(default_factory=dict)
    quiet: bool = True
    calibrated: bool = True
    cooling_w: float = 0.0


CASES = (
    Case("default"),
    Case("cooling_idle", cooling_w=30.0),
    Case("busy_sides", quiet=False),
    Case("uncalibrated", calibrated=False),
    Case("part_time_counter", {"duty": 0.25}),
    Case("slow_ramp", {"ramp_ns": 20e6}),
    Case("late_calls", {"late_ns": 7e6, "late_every": 5}),
    Case("jittery_steps", {"jitter_ns": 6e6}),
    Case("fast_counter", {"period_ns": 20e6}),
    Case("slow_counter", {"period_ns": 500e6}),
)


def apply(case: Case, gpu: Gpu) -> None:
    """Give the simulated GPU this case's sensor."""
    for name, value in case.settings.items():
        setattr(gpu, name, type(getattr(gpu, name))(value))


def run_load(gpu: Gpu, seconds: float, case: Case, mark: Callable[[], None], rng: random.Random) -> tuple[int, int]:
    """A window of LLM-like load (a prefill burst, then decoding steps) at random phase; `mark` is called at both edges.

    Returns the window's edges. With busy sides the same decoding runs before and after it.
    """
    if case.quiet:
        time.sleep(QUIET_S + rng.random() * 0.1)
    else:
        gpu.set_power(DECODE_W, ripple_w=RIPPLE_W, ripple_s=STEP_S)
        time.sleep(QUIET_S + rng.random() * 0.1)
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
    time.sleep(QUIET_S)
    if not case.quiet:
        gpu.set_power(IDLE_W)
    return start, end
