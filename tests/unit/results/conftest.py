"""Jobs and measurements by hand, so that what comes out can be checked against what went in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from pytest_llem.engines.protocol import Capabilities
from pytest_llem.errors import LlemError
from pytest_llem.job.config import Decoding, ExperimentConfig, MeasurementSettings, WorkloadSettings
from pytest_llem.job.job import Deadlines, DeviceSet, Job, JobDir, MeterSettings
from pytest_llem.job.measurement import (
    DeviceEnergy,
    EnergyReport,
    EngineFacts,
    Measurement,
    MemoryPeaks,
    MeteredDevice,
    Repeat,
    RequestRecord,
    WarmupOutcome,
    Window,
    WindowEnergy,
    WorkerFacts,
    write_measurement,
)
from pytest_llem.job.report import RunReport
from pytest_llem.results.derive import derive_result
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.schema import Result
from tests.browser import browse, browser

__all__ = ["browse", "browser"]

S = 1_000_000_000
REPORT = RunReport("local", "default", "process")


@dataclass(frozen=True)
class Bench:
    """Builds the parts of a cycle: 2 repeats of 3 requests in a measure window of 2 s at `power_w`."""

    def job(self, key: CycleKey, attempt: int = 1) -> Job:
        config = ExperimentConfig(
            model="builtin:tiny-llama",
            engine="transformers",
            dtype="float32",
            weights="real",
            workload=WorkloadSettings("synthetic", 3, 8, 4, 0),
            decoding=Decoding(),
            measurement=MeasurementSettings(1.0),
            settings={"batch_size": 1},
        )
        return Job(
            "run-1",
            key.study,
            key.experiment_id,
            key.config_hash,
            config,
            key.cycle,
            attempt,
            DeviceSet("cpu"),
            MeterSettings(),
            Deadlines(60.0),
        )

    def energy(self, power_w: float = 10.0, idle_w: float = 4.0) -> EnergyReport:
        device = MeteredDevice("package-0", "cpu", "cpu")

        def window(name: str, start: int, end: int, joules: float, uncertainty: float) -> WindowEnergy:
            part = DeviceEnergy(device.id, joules, uncertainty)
            return WindowEnergy(
                name, 0, start, end, joules, uncertainty, "rapl_counter", 20, {"tick": uncertainty}, (part,)
            )

        return EnergyReport(
            "rapl",
            True,
            "cpu_package",
            "worker",
            (device,),
            (window("idle", 0, S, idle_w, 0.2), window("measure", 2 * S, 4 * S, power_w * 2, 0.3)),
        )

    def measurement(self, power_w: float = 10.0, output_tokens: int = 4, prompts_hash: str = "p") -> Measurement:
        requests = []
        for repeat in range(2):
            for index in range(3):
                start = (2 + repeat) * S + index * S // 10
                ticks = tuple(start + S // 10 + step * S // 100 for step in range(output_tokens))
                requests.append(RequestRecord(repeat, index, 8, output_tokens, start, ticks[-1], "length", ticks))
        return Measurement(
            engine=EngineFacts("transformers", "5.23", {"dtype": "float32"}, Capabilities(token_times=True)),
            worker=WorkerFacts(1, "here", "spawn", "process"),
            windows=(Window("idle", 0, S), Window("measure", 2 * S, 4 * S)),
            repeats=(Repeat(0, 2 * S, 3 * S, "o"), Repeat(1, 3 * S, 4 * S, "o")),
            requests=tuple(requests),
            prompts_hash=prompts_hash,
            warmup=WarmupOutcome(2, 0.5, True, "converged", 0.01),
            memory=MemoryPeaks((), None, 1_000_000),
            timing={"load_s": 0.25},
            clock={"realtime_ns": 1_700_000_000 * S, "monotonic_ns": 5 * S},
            energy=self.energy(power_w),
        )

    def result(self, measurement: Measurement | None = None, key: CycleKey | None = None) -> Result:
        key = key or CycleKey("study", "a:1", "0123456789abcdef", 1)
        return derive_result(self.job(key), measurement or self.measurement(), REPORT, study=key.study, environment={})


class Worker:
    """A runner's stand-in that counts its calls and delivers what it was given, attempt by attempt."""

    def __init__(self, bench: Bench, key: CycleKey, *deliveries: Measurement | LlemError | BaseException) -> None:
        self.bench, self.key, self.deliveries = bench, key, deliveries
        self.run_id = "run-1"
        self.settings = MeterSettings()
        self.attempts: list[int] = []

    def __call__(self, attempt: int, job_dir: JobDir) -> tuple[Job, RunReport]:
        self.attempts.append(attempt)
        job = replace(self.bench.job(self.key, attempt), run_id=self.run_id, meter=self.settings)
        job_dir.write_job(job)
        job_dir.log.write_text("loading\nstarted\n")
        delivery = self.deliveries[min(len(self.attempts), len(self.deliveries)) - 1]
        if isinstance(delivery, Measurement):
            write_measurement(job_dir.measurement, delivery)
        elif isinstance(delivery, LlemError):
            job_dir.write_error(delivery)
        else:
            raise delivery
        return job, REPORT


@pytest.fixture(scope="session")
def bench() -> Bench:
    return Bench()


@pytest.fixture
def key() -> CycleKey:
    return CycleKey("study", "batch_size:1", "0123456789abcdef", 1)


@pytest.fixture(scope="session")
def worker(bench: Bench) -> Callable[..., Worker]:
    return lambda key, *deliveries: Worker(bench, key, *(deliveries or (bench.measurement(),)))
