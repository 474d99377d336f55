"""What a node sends back, and how it is written down here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pytest_llem.containers.errors import error_from_dict
from pytest_llem.errors import JsonValue, LlemError, RunnerError
from pytest_llem.job.files import write_bytes
from pytest_llem.job.job import JobDir
from pytest_llem.job.report import RunReport

ERROR_FILE = JobDir(Path()).error.name


@dataclass(frozen=True)
class NodeFacts:
    """Which node a cycle runs on."""

    id: str
    hostname: str
    address: str
    pid: int


@dataclass(frozen=True)
class Delivery:
    """What a node sends back: the job directory's files by name, the report, and an error that no file holds."""

    files: Mapping[str, bytes] = field(default_factory=dict)
    report: RunReport | None = None
    error: Mapping[str, JsonValue] | None = None


def failure_of(delivery: Delivery) -> LlemError | None:
    """What the cycle failed for, whether it is told beside the files or in `error.json`."""
    told = delivery.error
    if told is None and ERROR_FILE in delivery.files:
        told = json.loads(delivery.files[ERROR_FILE])
    return error_from_dict(told) if told is not None else None


def write_files(files: Mapping[str, bytes], job_dir: JobDir) -> None:
    """The node's files, each atomically; those that say how the cycle ended come last."""
    last = (job_dir.measurement.name, job_dir.error.name)
    for name in sorted(files, key=lambda name: (name in last, name)):
        if Path(name).name != name:
            raise RunnerError(f"a node sent a file with the name {name!r}")
        write_bytes(job_dir.path / name, files[name])
