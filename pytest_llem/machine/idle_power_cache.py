"""Idle power that cycles of one run lend each other: `RUN/.idle-power`, written and read beside the workers.

One record per devices, runner and settings that shape what is loaded. A worker judges whether it still holds
(`energy.idle_power`), because only there the sensors are read.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

from pytest_llem.energy.idle_power import reference_from
from pytest_llem.job.files import read_json, write_json
from pytest_llem.job.job import IdleReference, Job, JobDir
from pytest_llem.job.measurement import read_measurement
from pytest_llem.job.wire import decode, encode

DIRECTORY = ".idle-power"
NOT_LOADED = ("workload", "decoding", "measurement", "seed")
"""Parts of a configuration that change nothing of what is loaded."""


def load(job: Job, run_dir: Path, place: str) -> Job:
    """The job with the idle power of an earlier cycle, where the study wants that and there is one.

    `place` names the runner and where it runs.
    """
    if not _wanted(job) or not (record := _record(job, run_dir, place)).exists():
        return job
    return replace(job, idle_reference=decode(IdleReference, read_json(record)))


def store(job: Job, job_dir: JobDir, run_dir: Path, place: str) -> None:
    """Record a valid cycle's idle power for later ones, in place of an older record."""
    if not _wanted(job) or not job_dir.measurement.exists():
        return
    measurement = read_measurement(job_dir.measurement)
    if measurement.energy is None or measurement.invalid or measurement.energy.invalid:
        return
    origin = f"{job.study}/{job.experiment_id} cycle {job.cycle}, attempt {job.attempt}"
    reference = reference_from(measurement.energy, origin)
    if reference is not None:
        record = _record(job, run_dir, place)
        record.parent.mkdir(exist_ok=True)
        write_json(record, encode(reference))


def _wanted(job: Job) -> bool:
    idle = job.config.measurement.idle
    return idle.reuse == "matching" and idle.duration_s > 0 and job.devices.kind == "cuda"


def _record(job: Job, run_dir: Path, place: str) -> Path:
    config = encode(job.config)
    assert isinstance(config, dict)
    loaded = {name: value for name, value in config.items() if name not in NOT_LOADED}
    key = [place, job.meter.name, encode(job.devices), encode(job.environment), loaded]
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return run_dir / DIRECTORY / f"{digest[:16]}.json"
