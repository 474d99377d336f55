"""Small jobs for the scripted engine."""

from __future__ import annotations

from collections.abc import Callable

from pytest_llem.errors import JsonValue
from pytest_llem.job import (
    Deadlines,
    Decoding,
    DeviceSet,
    ExperimentConfig,
    IdleSettings,
    Job,
    JobDir,
    MeasurementSettings,
    MeterSettings,
    WorkloadSettings,
)

MakeJob = Callable[..., tuple[Job, JobDir]]


def small_job(
    cycle: int,
    script: str = "work",
    *,
    engine: str = "scripted",
    model: str = "builtin:tiny-llama",
    devices: DeviceSet | None = None,
    deadlines: Deadlines | None = None,
    settings: dict[str, JsonValue] | None = None,
) -> Job:
    """A job of a few milliseconds; `script` is what the scripted engine does in `load`."""
    config = ExperimentConfig(
        model=model,
        engine=engine,
        dtype="float32" if engine == "transformers" else None,
        weights="real",
        workload=WorkloadSettings("synthetic", prompts=2, input_tokens=8, output_tokens=4, seed=0),
        decoding=Decoding(),
        measurement=MeasurementSettings(min_duration_s=0.05, idle=IdleSettings(duration_s=0.0)),
        settings=settings if settings is not None else {"script": script},
    )
    return Job(
        run_id="run",
        study="study",
        experiment_id=f"script:{script.split(' ')[0]}",
        config_hash="0" * 16,
        config=config,
        cycle=cycle,
        attempt=1,
        devices=devices or DeviceSet("cpu"),
        meter=MeterSettings(),
        deadlines=deadlines or Deadlines(timeout_s=60.0, heartbeat_s=0.2),
        environment={"OMP_NUM_THREADS": "1"},
    )
