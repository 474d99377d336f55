"""A GPU's die on a clock of its own: what it draws, how warm it becomes, and what a sampler would read of both.

Two first-order masses (the die, and what cools it), leakage in proportion to temperature, NVML's whole degrees every
half second, and a counter that steps every 100 ms. Tests of the thermal state use it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from pytest_llem.energy import thermal
from pytest_llem.energy.readings import Sample
from pytest_llem.energy.thermal import SettlingWatch, ThermalReading, thermal_reading
from pytest_llem.job.measurement import Interval

GPU = "GPU-1"
STEP_NS = 100_000_000
REFERENCE_C = 50.0


@dataclass
class Die:
    """Draws `load_w` at `REFERENCE_C`, and `leakage_rel_per_c` of it more per degree, idle or not.

    `fast_s` and `slow_s` are the time constants of the rises `fast_c_per_w` and `slow_c_per_w` over `ambient_c`.
    """

    fast_s: float
    slow_s: float
    leakage_rel_per_c: float
    load_w: float = 400.0
    idle_w: float = 80.0
    fast_c_per_w: float = 0.04
    slow_c_per_w: float = 0.05
    ambient_c: float = 30.0
    burst: float = 0.0
    """Share by which the first fifth of a repeat draws more."""
    limit_w: float = inf
    """What the board's control allows: what leaks is then taken off the clocks, and work takes longer."""

    now_ns: int = 0
    energy_j: float = 0.0
    samples: list[Sample] = field(default_factory=list)

    def __post_init__(self) -> None:
        at_rest_w = self._settled_w(self.idle_w)
        self._fast_c, self._slow_c = self.fast_c_per_w * at_rest_w, self.slow_c_per_w * at_rest_w

    @property
    def temperature_c(self) -> float:
        """Of the die, now."""
        return self.ambient_c + self._fast_c + self._slow_c

    @property
    def sustained_w(self) -> float:
        """What the load draws when it has lasted for ever."""
        return self._settled_w(self.load_w)

    @property
    def limited_j(self) -> float:
        """What a second's work costs at the limit, when the load has lasted for ever."""
        celsius = self.ambient_c + (self.fast_c_per_w + self.slow_c_per_w) * self.limit_w
        leakage_w = self.leakage_rel_per_c * self.load_w * (celsius - REFERENCE_C)
        return self.load_w * self.limit_w / (self.limit_w - leakage_w)

    @property
    def sustained_c(self) -> float:
        """The temperature that the load keeps."""
        return self.ambient_c + (self.fast_c_per_w + self.slow_c_per_w) * self.sustained_w

    def rest(self, seconds: float) -> None:
        """Idle."""
        self._advance(seconds, lambda _: self.idle_w)

    def repeat(self, seconds: float) -> float:
        """One repeat of the load; returns its true energy in joules."""
        before_j = self.energy_j
        if self.limit_w < inf:
            done_s = 0.0
            while seconds - done_s > 1e-9:
                leakage_w = self.leakage_rel_per_c * self.load_w * (self.temperature_c - REFERENCE_C)
                speed = min(1.0, (self.limit_w - leakage_w) / self.load_w)
                step_s = min(STEP_NS / 1e9, (seconds - done_s) / speed)
                self._step(speed * self.load_w + leakage_w, step_s)
                done_s += speed * step_s
            return self.energy_j - before_j
        high_w, low_w = self.load_w * (1 + self.burst), self.load_w * (1 - self.burst / 4)
        self._advance(seconds, lambda passed_s: high_w if passed_s < 0.2 * seconds - 1e-9 else low_w)
        return self.energy_j - before_j

    def _settled_w(self, watts: float) -> float:
        slope_w_per_c = self.leakage_rel_per_c * self.load_w
        cold_w = watts + slope_w_per_c * (self.ambient_c - REFERENCE_C)
        return cold_w / (1 - slope_w_per_c * (self.fast_c_per_w + self.slow_c_per_w))

    def _advance(self, seconds: float, load_w: Callable[[float], float]) -> None:
        step_s = STEP_NS / 1e9
        for step in range(round(seconds / step_s)):
            leakage_w = self.leakage_rel_per_c * self.load_w * (self.temperature_c - REFERENCE_C)
            self._step(load_w(step * step_s) + leakage_w, step_s)

    def _step(self, watts: float, step_s: float) -> None:
        before_ns = self.now_ns
        self.energy_j += watts * step_s
        self._fast_c += step_s / self.fast_s * (self.fast_c_per_w * watts - self._fast_c)
        self._slow_c += step_s / self.slow_s * (self.slow_c_per_w * watts - self._slow_c)
        self.now_ns += round(step_s * 1e9)
        read = before_ns // (5 * STEP_NS) < self.now_ns // (5 * STEP_NS)
        celsius = float(round(self.temperature_c)) if read else None
        counter_mj = float(int(self.energy_j * 1e3))
        self.samples.append(Sample(self.now_ns, GPU, watts, counter_mj, celsius, bracket_ns=1_000_000))


@dataclass
class Load:
    """Repeats on one die, as the worker warms up and measures; `power_w` is the true mean of the measured ones."""

    die: Die
    repeat_s: float = 3.0
    warmup: list[Interval] = field(default_factory=list)
    measured: list[Interval] = field(default_factory=list)
    power_w: float = 0.0

    def warm_up(self, seconds: float) -> None:
        """Repeat for as long, after a rest."""
        self.die.rest(5.0)
        while not self.warmup or _seconds(self.warmup) < seconds:
            self.warmup.append(self._repeat()[0])

    def settle(self, samples: Path) -> float:
        """Repeat until the warm-up's watch, which reads `samples`, says that it is settled; at most 900 s."""
        written = 0
        with mock.patch.object(thermal, "time", SimpleNamespace(monotonic=lambda: self.die.now_ns / 1e9)):
            watch = SettlingWatch(samples, [GPU])
            self.warm_up(self.repeat_s)
            with samples.open("w", encoding="utf-8") as stream:
                while not watch(self.warmup) and _seconds(self.warmup) < 900:
                    self.warmup.append(self._repeat()[0])
                    for sample in self.die.samples[written:]:
                        stream.write(json.dumps(sample._asdict()) + "\n")
                    written = len(self.die.samples)
                    stream.flush()
        return _seconds(self.warmup)

    def measure(self, seconds: float = 10.0) -> ThermalReading:
        """Repeat for as long, and read the whole cycle as a result does."""
        joules = 0.0
        while not self.measured or _seconds(self.measured) < seconds:
            repeat, energy_j = self._repeat()
            self.measured.append(repeat)
            joules += energy_j
        self.power_w = joules / _seconds(self.measured)
        self.die.rest(0.5)
        return thermal_reading(self.die.samples, (), [GPU], self.warmup, self.measured)

    @property
    def error_rel(self) -> float:
        """How far the sustained power is from the measured one."""
        return self.die.sustained_w / self.power_w - 1

    def _repeat(self) -> tuple[Interval, float]:
        start_ns = self.die.now_ns
        energy_j = self.die.repeat(self.repeat_s)
        return Interval(start_ns, self.die.now_ns), energy_j


def _seconds(repeats: list[Interval]) -> float:
    return (repeats[-1].end_ns - repeats[0].start_ns) / 1e9
