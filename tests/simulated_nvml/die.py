"""A GPU's die on a clock of its own: what it draws, how warm it becomes, and what a sampler would have read of both.

Two first-order masses in series with the load (the die, and what cools it), leakage in proportion to temperature, NVML's
whole degrees every half second, and a counter that steps every 100 ms. Tests and benchmarks of the thermal state use it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pytest_llem.energy.readings import Sample

STEP_NS = 100_000_000
REFERENCE_C = 50.0


@dataclass
class Die:
    """Draws `load_w` at `REFERENCE_C`, and `leakage_rel_per_c` more per degree; idle power has the same leakage in watts.

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
    def sustained_c(self) -> float:
        """The temperature that the load keeps."""
        return self.ambient_c + (self.fast_c_per_w + self.slow_c_per_w) * self.sustained_w

    def rest(self, seconds: float) -> None:
        """Idle."""
        self._advance(seconds, lambda _: self.idle_w)

    def repeat(self, seconds: float) -> float:
        """One repeat of the load; returns its true energy in joules."""
        before_j = self.energy_j
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
            watts = load_w(step * step_s) + leakage_w
            self.energy_j += watts * step_s
            self._fast_c += step_s / self.fast_s * (self.fast_c_per_w * watts - self._fast_c)
            self._slow_c += step_s / self.slow_s * (self.slow_c_per_w * watts - self._slow_c)
            self.now_ns += STEP_NS
            celsius = float(round(self.temperature_c)) if self.now_ns % (5 * STEP_NS) == 0 else None
            counter_mj = float(int(self.energy_j * 1e3))
            self.samples.append(Sample(self.now_ns, "GPU-1", watts, counter_mj, celsius, bracket_ns=1_000_000))
