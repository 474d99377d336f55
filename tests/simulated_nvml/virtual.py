"""The sampler's reading of a simulated GPU on a clock that jumps from one reading to the next.

The real source, tracker, `pynvml` and sensor model run; only time is made up, and so is how late the sampler wakes. A
thousand windows take seconds, come out alike on every machine, and nothing else that runs there has a part in them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from unittest import mock

import pynvml

from pytest_llem.energy import bursts
from pytest_llem.energy import nvml_source as gpu_source
from pytest_llem.energy.calibration import Calibration
from pytest_llem.energy.readings import Sample
from pytest_llem.energy.series import ticks_from
from pytest_llem.errors import JsonValue
from tests.simulated_nvml.simulation import Gpu, Simulation

WAKE_NS = 80_000
LATE_SHARE = 0.01
LATE_NS = 4_000_000


class Readings:
    """Keeps what a source writes, in place of `samples.jsonl`."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.events: list[dict[str, JsonValue]] = []

    def sample(self, sample: Sample) -> None:
        """Keep a reading."""
        self.samples.append(sample)

    def event(self, t_ns: int, event: str, **more: JsonValue) -> None:
        """Keep something that happened."""
        self.events.append({"t_ns": t_ns, "event": event, **more})


class VirtualSampler:
    """A `GpuSource` on one simulated GPU, on the simulation's virtual clock.

    It wakes up to 0.16 ms late, as a sleeping process does, and in one of a hundred readings up to 4 ms.
    """

    def __init__(self, simulation: Simulation, gpu: Gpu, known: Calibration | None, rng: random.Random) -> None:
        self.readings = Readings()
        self._machine = simulation.machine
        self._rng = rng
        handle = pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid.decode())
        self._source = gpu_source.GpuSource(handle, gpu.uuid.decode(), (0,), known)

    def run_until(self, t_ns: int) -> None:
        """Read whatever is due before a time, and let it be that time."""
        while (due_ns := self._source.due_ns) < t_ns:
            late_ns = self._rng.random() * (LATE_NS if self._rng.random() < LATE_SHARE else 2 * WAKE_NS)
            self._machine.virtual_ns = max(self._machine.virtual_ns, due_ns) + round(late_ns)
            self._source.poll(self.readings)  # type: ignore[arg-type]
        self._machine.virtual_ns = max(self._machine.virtual_ns, t_ns)


@contextmanager
def virtual_sampler(
    simulation: Simulation, gpu: Gpu, known: Calibration | None, rng: random.Random
) -> Iterator[VirtualSampler]:
    """A sampler on an idle GPU whose virtual clock stands two seconds after its counter began."""
    machine = simulation.machine
    machine.virtual_ns = gpu.epoch_ns + 2_000_000_000
    gpu.segments = 1
    clock = SimpleNamespace(monotonic_ns=lambda: machine.virtual_ns)
    pynvml.nvmlInit()
    try:
        with mock.patch.object(gpu_source, "time", clock):
            yield VirtualSampler(simulation, gpu, known, rng)
    finally:
        pynvml.nvmlShutdown()
        machine.virtual_ns, gpu.segments = 0, 1


def calibrate_virtually(
    simulation: Simulation, gpu: Gpu, load: Callable[[int, int], None], rng: random.Random
) -> Calibration:
    """What `llem doctor --calibrate` finds on this sensor, whose period and jitter it knows already.

    `load` plans a burst between two times, with whatever the GPU does after it.
    """
    provisional = Calibration(
        uuid=gpu.uuid.decode(),
        driver=simulation.machine.driver.decode(),
        period_ns=gpu.period_ns,
        jitter_ns=max(200_000, gpu.jitter_ns),
        call_latency_ns=gpu.latency_ns,
        poll_step_ns=500_000,
    )
    period_s = gpu.period_ns / 1e9
    edges: list[tuple[int, int]] = []
    with virtual_sampler(simulation, gpu, provisional, rng) as sampler:
        now_ns = int(simulation.machine.virtual_ns) + round(bursts.QUIET_PERIODS * gpu.period_ns)
        for length_s, quiet_s in bursts.plan(16, 8, period_s, rng):
            edges.append((now_ns, now_ns + round(length_s * 1e9)))
            load(*edges[-1])
            now_ns = edges[-1][1] + round(quiet_s * 1e9)
            sampler.run_until(now_ns)
    ticks = ticks_from(sampler.readings.samples, provisional.uuid)
    return bursts.evaluate(ticks, edges, provisional)
