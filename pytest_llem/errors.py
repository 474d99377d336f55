"""The errors of pytest-llem: each says what happened, where, and what to do about it.

Every room raises them; `to_dict` and `from_dict` carry them through `error.json` from a worker to the pytest side.
Standard library only, since a worker runs in any image; a `category` is part of the result format and must not change.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, TypeAlias, Union

JsonValue: TypeAlias = Union[
    None, bool, int, float, str, "list[JsonValue]", "tuple[JsonValue, ...]", "Mapping[str, JsonValue]"
]

_BY_CATEGORY: dict[str, type[LlemError]] = {}


class LlemError(Exception):
    """The base of every error that pytest-llem reports to its user.

    `message` says what happened and where, `fix` what the user can do about it (`None` when no remedy is known), and
    `details` holds facts for machines. A subclass with a `category` of its own is registered, so that `from_dict`
    rebuilds it.
    """

    category: ClassVar[str] = "error"

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "category" in vars(cls):
            # Containers have a timeout and an interruption too: a category is rebuilt as its most general error
            _BY_CATEGORY.setdefault(cls.category, cls)

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
    """The study file is invalid; the message begins with `file:line:column`."""

    category = "study"


class SettingsError(LlemError):
    """A command-line option, ini value, environment variable or user setting is wrong."""

    category = "settings"


class EngineError(LlemError):
    """The inference engine cannot run the experiment."""

    category = "engine"


class EngineNotInstalledError(EngineError):
    """The engine's package cannot be imported in the environment that should run it."""

    category = "engine_not_installed"


class EngineSettingError(EngineError):
    """The engine rejects a setting or a combination of settings."""

    category = "engine_setting"


class ModelNotFoundError(EngineError):
    """The model is not built in, not a local path, and not available on the hub."""

    category = "model_not_found"


class ServerUnreachableError(EngineError):
    """The server named by the study does not respond, or never becomes ready."""

    category = "server_unreachable"


class OutOfMemoryError(EngineError):
    """The device or the host ran out of memory."""

    category = "out_of_memory"


class WorkloadError(LlemError):
    """The prompts cannot be loaded, or do not fit the requested lengths."""

    category = "workload"


class MeterError(LlemError):
    """A meter is unknown, unavailable, or failed while measuring."""

    category = "meter"


class WorkerError(LlemError):
    """The worker process delivered no measurement."""

    category = "worker"


class WorkerCrashedError(WorkerError):
    """The worker process died without a result; its exit code or signal is in the message."""

    category = "worker_crashed"


class WorkerTimeoutError(WorkerError):
    """The worker exceeded its deadline and was killed."""

    category = "timeout"


class WorkerSilentError(WorkerError):
    """The worker exited normally but wrote neither a measurement nor an error."""

    category = "worker_silent"


class InterruptedCycleError(WorkerError):
    """The cycle was stopped by the user or the system before it finished."""

    category = "interrupted"


class StoreError(LlemError):
    """A result file cannot be read or written."""

    category = "store"


class DeviceError(LlemError):
    """A device could not be leased, or was not released."""

    category = "device"


class ResidualMemoryError(DeviceError):
    """Memory of a leased device is in use before the cycle begins; `details` names the processes."""

    category = "residual_memory"


class NotReleasedError(DeviceError):
    """A device is not back to its previous state after a cycle: memory in use, or a process left behind."""

    category = "not_released"


class RunnerError(LlemError):
    """The runner chosen for a cycle is unknown or cannot be used."""

    category = "runner"


class NodeLostError(RunnerError):
    """The cluster node that ran a cycle died or lost its worker, on every retry."""

    category = "node_lost"


class InfeasibleError(RunnerError):
    """No node of the cluster has the resources that a cycle requests."""

    category = "infeasible"


class ServerError(LlemError):
    """A server that pytest-llem starts for a cycle failed."""

    category = "server"


class ServerStartError(ServerError):
    """The server could not be started, or exited before it was ready."""

    category = "server_start"


class ServerNotReadyError(ServerError):
    """The server was not ready within its deadline."""

    category = "server_not_ready"


class ServerDiedError(ServerError):
    """The server exited while a cycle ran against it."""

    category = "server_died"


def from_dict(data: Mapping[str, JsonValue]) -> LlemError:
    """Rebuild an error from `LlemError.to_dict`; an unknown category becomes a plain `LlemError`."""
    cls = _BY_CATEGORY.get(str(data.get("category")), LlemError)
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
