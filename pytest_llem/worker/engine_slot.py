"""The engine of a worker process: opened for one job, or kept loaded for the next.

The cycle takes its engine from a slot; `entry.serve` keeps one for several jobs. An engine may be reused only where
every difference between two configurations is one that it declares in `without_reload`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from pytest_llem.engines import open_engine
from pytest_llem.engines.protocol import Engine
from pytest_llem.errors import JsonValue
from pytest_llem.job.config import ExperimentConfig
from pytest_llem.job.gpu_setting import SETTING_NAMES
from pytest_llem.job.job import Job
from pytest_llem.job.wire import encode

ALWAYS_FREE = ("measurement", "slo", *(f"device.{name}" for name in SETTING_NAMES))
"""What of a configuration no engine sees."""


class EngineSlot:
    """The engine of one process, opened by its first job; with `keeps` it stays loaded for the next."""

    def __init__(self, *, keeps: bool = False) -> None:
        self.keeps = keeps
        self._engine: Engine | None = None
        self._job: Job | None = None
        self._version = ""

    @property
    def loaded(self) -> bool:
        """Whether an engine with a loaded model is kept."""
        return self._engine is not None

    @contextmanager
    def engine(self, job: Job) -> Iterator[Engine]:
        """The engine for a job, kept or new; it is shut down after a failure, and afterwards unless it is kept."""
        engine = self._engine if self._engine is not None else open_engine(job.config.engine)
        self._engine = None
        try:
            yield engine
        except BaseException:
            engine.shutdown()
            raise
        if self.keeps:
            self._engine, self._job = engine, job
        else:
            engine.shutdown()

    def prepare(self, engine: Engine, job: Job) -> str:
        """Prepare the engine and return its version; an engine prepared for equal settings is left as it is."""
        prepared = self._job.config if self._job is not None else None
        if prepared is None or _fixed(differences(prepared, job.config), ALWAYS_FREE):
            self._version = engine.prepare(job.config, job.devices)
        return self._version

    def obstacle(self, job: Job) -> str | None:
        """Why the kept engine cannot run a job without loading again; `None` if it can."""
        if self._engine is None or self._job is None:
            return "no engine is loaded"
        if (job.devices, job.environment) != (self._job.devices, self._job.environment):
            return "it needs other devices or another environment"
        free: tuple[str, ...] = (*ALWAYS_FREE, *self._engine.without_reload)
        fixed = _fixed(differences(self._job.config, job.config), free)
        return f"{', '.join(fixed)} cannot change without loading again" if fixed else None

    def unload(self) -> None:
        """Shut the kept engine down."""
        if self._engine is not None:
            engine, self._engine = self._engine, None
            engine.shutdown()


def differences(one: ExperimentConfig, other: ExperimentConfig) -> list[str]:
    """Dotted paths of the settings in which two configurations differ."""
    first, second = dict(_leaves("", encode(one))), dict(_leaves("", encode(other)))
    return [path for path in {**first, **second} if first.get(path) != second.get(path)]


def _fixed(paths: Sequence[str], free: Sequence[str]) -> list[str]:
    return [path for path in paths if not any(path == name or path.startswith(f"{name}.") for name in free)]


def _leaves(prefix: str, value: JsonValue) -> Iterator[tuple[str, JsonValue]]:
    if isinstance(value, Mapping) and value:
        for key, entry in value.items():
            yield from _leaves(f"{prefix}.{key}" if prefix else key, entry)
    else:
        yield prefix, value
