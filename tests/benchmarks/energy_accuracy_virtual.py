"""This project's estimates for hundreds of windows of a case, on a virtual clock: how often the stated bound holds."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_llem.energy.calibration import Calibration
from pytest_llem.energy.estimators import from_counter
from pytest_llem.energy.protocol import EnergyEstimate, combined
from pytest_llem.energy.series import ticks_from
from pytest_llem.job.config import Thresholds
from pytest_llem.job.measurement import Window
from tests.benchmarks.energy_accuracy_cases import Case, apply, calibration_of, plan_load, side_s
from tests.simulated_nvml.simulation import Gpu, Simulation
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
    refused: bool = False

    @property
    def error(self) -> float | None:
        """Relative to the truth."""
        return None if self.energy_j is None else self.energy_j / self.truth_j - 1

    @property
    def bound(self) -> float | None:
        """Relative to the truth."""
        return None if self.bound_j is None else self.bound_j / self.truth_j

    @property
    def valid(self) -> bool:
        """Whether the number may be used: its bound is small enough, and its sensor loses nothing that is known of."""
        return not self.refused and self.bound is not None and self.bound <= Thresholds().uncertainty_rel

    @property
    def covered(self) -> bool:
        """Whether the truth lies within the bound."""
        if self.energy_j is None or self.bound_j is None:
            return False
        return abs(self.energy_j - self.truth_j) <= self.bound_j


def run_virtually(case: Case, plan: Mapping[float, int], simulation: Simulation, seed: int = 7) -> list[Run]:
    """Every window of the plan, in random order, on the simulation's first GPUs; `BATCH` of them make one cycle."""
    gpus = simulation.gpus[: case.gpus]
    known: list[Calibration | None] = []
    for gpu in gpus:
        apply(case, gpu)
        known.append(calibration_of(case, simulation, gpu))
    lengths = [length for length, count in plan.items() for _ in range(count)]
    rng = random.Random(seed)
    rng.shuffle(lengths)
    found: list[Run] = []
    for first in range(0, len(lengths), BATCH):
        batch, seeds = lengths[first : first + BATCH], rng.random()
        parts = [
            _run_batch(case, batch, simulation, gpu, calibrated, random.Random(seeds))
            for gpu, calibrated in zip(gpus, known, strict=True)
        ]
        for length, of_window in zip(batch, zip(*parts, strict=True), strict=True):
            estimates = [estimate for _, estimate in of_window if estimate is not None]
            truth_j = sum(truth for truth, _ in of_window)
            if len(estimates) < len(of_window):
                found.append(Run(length, truth_j, None, None, None, {}))
                continue
            whole = combined(estimates)
            lossy = any(entry is not None and entry.counter_type == "lossy" for entry in known)
            found.append(
                Run(length, truth_j, whole.energy_j, whole.uncertainty_j, whole.estimator, whole.terms, refused=lossy)
            )
    return found


def _run_batch(
    case: Case,
    lengths: Sequence[float],
    simulation: Simulation,
    gpu: Gpu,
    known: Calibration | None,
    rng: random.Random,
) -> list[tuple[float, EnergyEstimate | None]]:
    """What each window drew on one GPU, and what was found; equal `rng` plan equal loads, at another phase."""
    windows: list[Window] = []
    truths: list[float] = []
    phases = random.Random(rng.random())
    with virtual_sampler(simulation, gpu, known, rng) as sampler:
        now_ns = int(simulation.machine.virtual_ns) + round(rng.random() * gpu.period_ns)
        for length in lengths:
            window, now_ns = plan_load(gpu, now_ns, length, case, side_s(known), phases)
            truths.append(gpu.energy_between_j(window.start_ns, window.end_ns))
            windows.append(window)
            sampler.run_until(now_ns)
        sampler.run_until(now_ns + 2 * gpu.period_ns)
    ticks = ticks_from(sampler.readings.samples, gpu.uuid.decode())
    return [(truth, from_counter(ticks, window, known)) for window, truth in zip(windows, truths, strict=True)]
