"""The errors of pytest-llem: each says what happened, where, and what to do.

Standard library only: a worker raises these inside any image, and `to_dict`/`from_dict` carry them through
`error.json` to the pytest side.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, TypeAlias, Union

JsonValue: TypeAlias = Union[
    None, bool, int, float, str, "list[JsonValue]", "tuple[JsonValue, ...]", "Mapping[str, JsonValue]"
]


class LlemError(Exception):
    """Anything that pytest-llem reports to its user.

    `message` says what happened and where, `fix` what the user can do about it (`None` when nothing is known
    to help), and `details` holds facts for machines.
    """

    category: ClassVar[str] = "error"

    def __init__(self, message: str, *, fix: str | None = None, details: Mapping[str, JsonValue] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix
        self.details: dict[str, JsonValue] = dict(details or {})

    def __str__(self) -> str:
        return f"{self.message}\nfix: {self.fix}" if self.fix else self.message

    def to_dict(self) -> dict[str, JsonValue]:
        """The error as JSON: `category`, `message`, `fix`, `details`."""
        return {
            "category": self.category,
            "message": self.message,
            "fix": self.fix,
            "details": dict(self.details),
        }


class StudyError(LlemError):
    """A study file that cannot be used; the message begins with `file:line:column`."""

    category = "study"


class SettingsError(LlemError):
    """A wrong command-line option, ini value, environment variable or user setting."""

    category = "settings"


class EngineError(LlemError):
    """The inference engine could not do what the experiment asks."""

    category = "engine"


class EngineNotInstalledError(EngineError):
    """The engine's package is not importable in the environment that would run it."""

    category = "engine_not_installed"


class EngineSettingError(EngineError):
    """The engine refuses a setting or a combination of settings."""

    category = "engine_setting"


class ModelNotFoundError(EngineError):
    """The model is neither built in, nor a local path, nor reachable on the hub."""

    category = "model_not_found"


class ServerUnreachableError(EngineError):
    """Nothing answers where the study says that a server runs, or it never gets ready."""

    category = "server_unreachable"


class OutOfMemoryError(EngineError):
    """The device or the host ran out of memory."""

    category = "out_of_memory"


class WorkloadError(LlemError):
    """The prompts cannot be had or do not fit the request."""

    category = "workload"


class MeterError(LlemError):
    """A meter is unknown, unavailable, or stopped working."""

    category = "meter"


class WorkerError(LlemError):
    """The worker process did not deliver a measurement."""

    category = "worker"


class WorkerCrashedError(WorkerError):
    """The worker process ended without writing its result: an exit code or a signal says how."""

    category = "worker_crashed"


class WorkerTimeoutError(WorkerError):
    """The worker outlived its deadline and was killed."""

    category = "timeout"


class WorkerSilentError(WorkerError):
    """The worker ended normally and yet wrote neither a measurement nor an error."""

    category = "worker_silent"


class InterruptedCycleError(WorkerError):
    """The cycle was stopped by the user or by the system before it was done."""

    category = "interrupted"


class StoreError(LlemError):
    """An artifact cannot be read or written."""

    category = "store"


class DeviceError(LlemError):
    """No device lease could be had, or a device was not released."""

    category = "device"


class ResidualMemoryError(DeviceError):
    """Memory of a leased device is in use before the cycle has begun; `details` name the processes."""

    category = "residual_memory"


class NotReleasedError(DeviceError):
    """A cycle has ended, and its device is not back to what it was: memory in use, or a process left behind."""

    category = "not_released"


class RunnerError(LlemError):
    """The place where a cycle should run is unknown or not usable."""

    category = "runner"


class NodeLostError(RunnerError):
    """The cluster node that ran a cycle died or lost its worker, as often as that is retried."""

    category = "node_lost"


class InfeasibleError(RunnerError):
    """No node of the cluster has what a cycle asks for."""

    category = "infeasible"


class ServerError(LlemError):
    """A server that had to be started for a cycle did not do its part."""

    category = "server"


class ServerStartError(ServerError):
    """The server could not be started, or ended before it was ready."""

    category = "server_start"


class ServerNotReadyError(ServerError):
    """The server did not answer within its deadline."""

    category = "server_not_ready"


class ServerDiedError(ServerError):
    """The server ended while a cycle ran against it."""

    category = "server_died"


def _tree(cls: type[LlemError]) -> dict[str, type[LlemError]]:
    found = {cls.category: cls}
    for sub in cls.__subclasses__():
        found = {**_tree(sub), **found}
    return found


def from_dict(data: Mapping[str, JsonValue]) -> LlemError:
    """Rebuild an error from `LlemError.to_dict`; an unknown category becomes a plain `LlemError`."""
    cls = _tree(LlemError).get(str(data.get("category")), LlemError)
    fix = data.get("fix")
    details = data.get("details")
    error = LlemError.__new__(cls)
    LlemError.__init__(
        error,
        str(data.get("message", "no message")),
        fix=str(fix) if fix is not None else None,
        details=details if isinstance(details, Mapping) else None,
    )
    return error
