"""Idle power that the cycles of one run share: `RUN/.idle-power`, one entry per loaded model, devices and runner.

Whoever starts a worker loads an entry into its job before and stores one afterwards. Whether an entry still holds is
decided in the worker (`energy.idle_power`), because only there the sensors are read.
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
"""Sections of a configuration that do not change what is loaded."""


def load(job: Job, run_dir: Path, runner: str) -> Job:
    """The job with the idle power of an earlier cycle, if the study reuses it and there is an entry.

    `runner` names the runner and where it runs.
    """
    if not _reuses(job) or not (entry := _entry(job, run_dir, runner)).exists():
        return job
    return replace(job, idle_reference=decode(IdleReference, read_json(entry)))


def store(job: Job, job_dir: JobDir, run_dir: Path, runner: str) -> None:
    """Store a valid cycle's idle power for later ones, replacing an older entry."""
    if not _reuses(job) or not job_dir.measurement.exists():
        return
    measurement = read_measurement(job_dir.measurement)
    if measurement.energy is None or measurement.invalid or measurement.energy.invalid:
        return
    origin = f"{job.study}/{job.experiment_id} cycle {job.cycle}, attempt {job.attempt}"
    reference = reference_from(measurement.energy, origin)
    if reference is not None:
        entry = _entry(job, run_dir, runner)
        entry.parent.mkdir(exist_ok=True)
        write_json(entry, encode(reference))


def _reuses(job: Job) -> bool:
    idle = job.config.measurement.idle
    return idle.reuse == "matching" and idle.duration_s > 0 and job.devices.kind == "cuda"


def _entry(job: Job, run_dir: Path, runner: str) -> Path:
    config = encode(job.config)
    assert isinstance(config, dict)
    loaded = {name: value for name, value in config.items() if name not in NOT_LOADED}
    key = [runner, job.meter.name, encode(job.devices), encode(job.environment), loaded]
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return run_dir / DIRECTORY / f"{digest[:16]}.json"
