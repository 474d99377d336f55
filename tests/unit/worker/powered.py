"""A cycle whose true power is known at every moment: an engine that draws it, and a meter that knows it."""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import ClassVar

import pytest

from pytest_llem.energy.protocol import EnergyEstimate, Meter, window_energy
from pytest_llem.engines.protocol import CacheState, Completion, Progress, Request
from pytest_llem.job.config import IdleSettings, MeasurementSettings, Phase, WarmupSettings
from pytest_llem.job.job import MeterSettings
from pytest_llem.job.measurement import EnergyReport, MeteredDevice, Window
from pytest_llem.job.report import RunReport
from pytest_llem.results.derive import derive_result
from pytest_llem.results.schema import Result
from tests.unit.worker.scripted import ScriptedEngine, make_job, run

LOAD_W, IDLE_W = 400.0, 100.0
REPEAT_S, RESET_S = 0.06, 0.04


class PoweredEngine(ScriptedEngine):
    """Computes for 60 ms, and takes 40 ms to empty its cache, as a server that is asked over HTTP does."""

    reset_w = IDLE_W
    reset_s, repeat_s = RESET_S, REPEAT_S

    def __init__(self) -> None:
        super().__init__()
        self.powers: list[tuple[int, int, float]] = []
        self._took: dict[float, list[float]] = defaultdict(list)

    def spend(self, seconds: float, power_w: float) -> None:
        start_ns = time.monotonic_ns()
        time.sleep(seconds)
        end_ns = time.monotonic_ns()
        self.powers.append((start_ns, end_ns, power_w))
        self._took[seconds].append((end_ns - start_ns) / 1e9)

    def took_s(self, seconds: float, last: int = 0) -> float:
        """How long work of so many seconds really took on average: a busy machine wakes sleepers late."""
        return fmean(self._took[seconds][-last:])

    def generate(self, requests: Sequence[Request], progress: Progress) -> list[Completion]:
        self.on_generate = lambda: self.spend(self.repeat_s, LOAD_W)
        return super().generate(requests, progress)

    def reset(self) -> CacheState:
        self.spend(self.reset_s, self.reset_w)
        return super().reset()


class TrueMeter(Meter):
    """Knows the power at every moment: that of the engine's work, and idle power else. Its readings are exact."""

    name: ClassVar[str] = "true"
    sees_standstill: ClassVar[bool] = True

    def __init__(self, engine: PoweredEngine) -> None:
        self._engine = engine

    def start(self) -> None:
        pass

    def mark(self) -> int:
        return time.monotonic_ns()

    def energy_j(self, window: Window) -> float:
        joules = IDLE_W * window.duration_s
        for start_ns, end_ns, power_w in self._engine.powers:
            inside_ns = min(end_ns, window.end_ns) - max(start_ns, window.start_ns)
            joules += (power_w - IDLE_W) * max(0, inside_ns) / 1e9
        return joules

    def stop(self, windows: Sequence[Window]) -> EnergyReport:
        device = MeteredDevice("package-0", "board", "cpu")
        accounted = tuple(
            window_energy(window, {device.id: EnergyEstimate(self.energy_j(window), 0.0, "exact", 2)})
            for window in windows
        )
        return EnergyReport("true", True, "cpu_package", "worker", (device,), accounted)


def measured(
    monkeypatch: pytest.MonkeyPatch,
    path: Path,
    seconds: float = 0.55,
    idle_s: float = 0.02,
    phases: tuple[Phase, ...] = (),
    reset_w: float = IDLE_W,
    engine: PoweredEngine | None = None,
) -> Result:
    """The result of one cycle of a few repeats."""
    engine = engine or PoweredEngine()
    engine.reset_w = reset_w
    monkeypatch.setattr("pytest_llem.worker.engine_slot.open_engine", lambda _name: engine)
    monkeypatch.setattr("pytest_llem.worker.cycle.open_meter", lambda *_: TrueMeter(engine))
    settings = MeasurementSettings(seconds, WarmupSettings(0, 0), IdleSettings(idle_s, 0.0), phases)
    job = dataclasses.replace(make_job(measurement=settings), meter=MeterSettings("auto"))
    measurement = run(job, path)
    return derive_result(job, measurement, RunReport("local", "default", "process"), study="s", environment={})
