"""The steps of one device's energy counter over a cycle, as the estimators and calibration need them.

`gpu_meter`, `calibrate` and what they call use it, after the cycle. Internal: free to change while the bounds cover.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import gcd
from statistics import median

from pytest_llem.energy.readings import Sample

WRAP_MJ = 2**32
"""Where a counter kept in 32 bits wraps; NVML states millijoules in 64 bits and does not say how the board counts."""

PLAUSIBLE_W = 5000.0
"""Chosen: above any board or module (a GB200 module is rated at 2.7 kW): a larger step is a jump and no energy."""


@dataclass(frozen=True)
class TickSeries:
    """Counter steps in joules, each taken between `low_ns` and `high_ns`; in `resets_ns` the counter jumped."""

    low_ns: tuple[int, ...]
    high_ns: tuple[int, ...]
    energy_j: tuple[float, ...]
    resets_ns: tuple[tuple[int, int], ...] = ()

    def __len__(self) -> int:
        return len(self.energy_j)

    @cached_property
    def mid_ns(self) -> tuple[int, ...]:
        """The middles of the brackets."""
        return tuple((low + high) // 2 for low, high in zip(self.low_ns, self.high_ns, strict=True))

    @cached_property
    def period_ns(self) -> float | None:
        """The median interval between two steps; `None` with fewer than two."""
        gaps = [b - a for a, b in zip(self.mid_ns, self.mid_ns[1:], strict=False)]
        return float(median(gaps)) if gaps else None

    @cached_property
    def resolution_j(self) -> float:
        """The step in which the counter states energy, which all its differences are multiples of."""
        return gcd(*(round(1e3 * (b - a)) for a, b in pairwise(self.energy_j))) / 1e3

    def half_width_ns(self, index: int) -> float:
        """Half of a step's bracket."""
        return (self.high_ns[index] - self.low_ns[index]) / 2

    def power_w(self, index: int) -> float:
        """Mean power between the steps `index` and `index + 1`."""
        return (self.energy_j[index + 1] - self.energy_j[index]) / (self.mid_ns[index + 1] - self.mid_ns[index]) * 1e9

    @cached_property
    def closely_bracketed(self) -> TickSeries:
        """Without the steps that were seen late, which say less than the steps around them.

        Late means a bracket wider than five times the median and than a twentieth of the period (chosen: see
        tests/benchmarks/energy_accuracy.py, case `late_calls`).
        """
        if len(self) < 3:
            return self
        widths = [self.half_width_ns(i) for i in range(len(self))]
        limit = max(5 * median(widths), (self.period_ns or 0.0) / 40)
        keep = [i for i, width in enumerate(widths) if width <= limit]
        return TickSeries(
            tuple(self.low_ns[i] for i in keep),
            tuple(self.high_ns[i] for i in keep),
            tuple(self.energy_j[i] for i in keep),
            self.resets_ns,
        )

    def last_before(self, t_ns: int) -> int:
        """Index of the last step at or before a time; -1 if there is none."""
        return bisect_right(self.mid_ns, t_ns) - 1

    def first_after(self, t_ns: int) -> int:
        """Index of the first step at or after a time; the length if there is none."""
        return bisect_left(self.mid_ns, t_ns)

    def reset_within(self, start_ns: int, end_ns: int) -> bool:
        """Whether the counter jumped between the steps that surround an interval."""
        return any(low < end_ns and high > start_ns for low, high in self.resets_ns)


def ticks_from(samples: Iterable[Sample], device: str) -> TickSeries:
    """The steps of one device's counter, with wraps of 32 bits undone, and jumps taken out and marked."""
    low: list[int] = []
    high: list[int] = []
    energy: list[float] = []
    resets: list[tuple[int, int]] = []
    offset_mj = 0.0
    previous: Sample | None = None
    for sample in samples:
        if sample.device != device or sample.counter_mj is None or sample.bracket_ns is None:
            continue
        if previous is not None and previous.counter_mj is not None:
            step_mj = sample.counter_mj - previous.counter_mj
            if step_mj == 0:
                # Read again before it stepped, by a source that reads at a fixed distance
                continue
            apart_ns = sample.t_ns + sample.bracket_ns - previous.t_ns + (previous.bracket_ns or 0)
            most_mj = PLAUSIBLE_W * apart_ns / 1e6
            if step_mj < 0 and 0 < step_mj + WRAP_MJ < most_mj:
                offset_mj += WRAP_MJ
            elif not 0 < step_mj < most_mj:
                resets.append((previous.t_ns, sample.t_ns))
                offset_mj -= step_mj
        previous = sample
        low.append(sample.t_ns - sample.bracket_ns)
        high.append(sample.t_ns + sample.bracket_ns)
        energy.append((sample.counter_mj + offset_mj) / 1e3)
    return TickSeries(tuple(low), tuple(high), tuple(energy), tuple(resets))
