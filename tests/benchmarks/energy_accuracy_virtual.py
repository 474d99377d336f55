"""This project's estimates for hundreds of windows of a case, on a virtual clock: how often the stated bound holds."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_llem.energy.calibration import Calibration
from pytest_llem.energy.estimators import from_counter
from pytest_llem.energy.series import ticks_from
from pytest_llem.job.measurement import Window
from tests.benchmarks.energy_accuracy_cases import Case, apply, plan_load, side_s, true_calibration
from tests.simulated_nvml.simulation import Simulation
from tests.simulated_nvml.virtual import virtual_sampler

BATCH = 40


@dataclass(frozen=True)
class Run:
    """One window: what was drawn, what was found, and what was said to be known (joules, k=2)."""

    seconds: float
    truth_j: float
    energy_j: float | None
    bound_j: float | None
    estimator: str | None
    terms: Mapping[str, float]

    @property
    def error(self) -> float | None:
        """Relative to the truth."""
        return None if self.energy_j is None else self.energy_j / self.truth_j - 1

    @property
    def bound(self) -> float | None:
        """Relative to the truth."""
        return None if self.bound_j is None else self.bound_j / self.truth_j

    @property
    def covered(self) -> bool:
        """Whether the truth lies within the bound."""
        if self.energy_j is None or self.bound_j is None:
            return False
        return abs(self.energy_j - self.truth_j) <= self.bound_j


def run_virtually(case: Case, plan: Mapping[float, int], simulation: Simulation, seed: int = 7) -> list[Run]:
    """Every window of the plan, in random order, on the simulation's first GPU; `BATCH` of them make one cycle."""
    apply(case, simulation.gpus[0])
    known = true_calibration(simulation, simulation.gpus[0]) if case.calibrated else None
    lengths = [length for length, count in plan.items() for _ in range(count)]
    rng = random.Random(seed)
    rng.shuffle(lengths)
    found: list[Run] = []
    for first in range(0, len(lengths), BATCH):
        found += _run_batch(case, lengths[first : first + BATCH], simulation, known, rng)
    return found


def _run_batch(
    case: Case, lengths: Sequence[float], simulation: Simulation, known: Calibration | None, rng: random.Random
) -> list[Run]:
    gpu = simulation.gpus[0]
    windows: list[Window] = []
    truths: list[float] = []
    with virtual_sampler(simulation, gpu, known, rng) as sampler:
        now_ns = int(simulation.machine.virtual_ns)
        for length in lengths:
            window, now_ns = plan_load(gpu, now_ns, length, case, side_s(known), rng)
            truths.append(gpu.energy_between_j(window.start_ns, window.end_ns))
            windows.append(window)
            sampler.run_until(now_ns)
        sampler.run_until(now_ns + 2 * gpu.period_ns)
    ticks = ticks_from(sampler.readings.samples, gpu.uuid.decode())
    found: list[Run] = []
    for window, truth_j, length in zip(windows, truths, lengths, strict=True):
        estimate = from_counter(ticks, window, known)
        if estimate is None:
            found.append(Run(length, truth_j, None, None, None, {}))
        else:
            found.append(
                Run(length, truth_j, estimate.energy_j, estimate.uncertainty_j, estimate.estimator, estimate.terms)
            )
    return found
