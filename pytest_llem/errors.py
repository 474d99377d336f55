"""The errors of pytest-llem: each says what happened, where, and what to do about it.

The whole package raises them; `to_dict` and `from_dict` carry them through `error.json` from a worker to the pytest
side. A worker runs in any image: standard library only. A `category` is part of the result format and must not change.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar, TypeAlias, Union

JsonValue: TypeAlias = Union[
    None, bool, int, float, str, "list[JsonValue]", "tuple[JsonValue, ...]", "Mapping[str, JsonValue]"
]

_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\N{ARABIC LETTER MARK}\N{LEFT-TO-RIGHT MARK}\N{RIGHT-TO-LEFT MARK}"
    "\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Control characters (Unicode's Cc but for tab and newline), separators of lines, bidirectional marks, surrogates."""

_COMMAND = re.compile(r"(?m)^(\s*)(?=::)")
"""How commands to the runner of GitHub Actions begin: `::` at a line's start, `##[` anywhere (actions/runner)."""

_BY_CATEGORY: dict[str, type[LlemError]] = {}


def visible(text: str) -> str:
    """A text of others for people: escapes where something unseen could act on a terminal, no commands to GitHub."""
    plain = _UNSEEN.sub(lambda match: match.group().encode("unicode_escape").decode(), text)
    return _COMMAND.sub(r"\1\\", plain).replace("##[", r"#\u0023[")  # which in JSON is the same text


class LlemError(Exception):
    """The base of every error that pytest-llem reports to its user.

    `message` says what happened and where, `fix` what the user can do about it (`None` when no remedy is known), both
    made `visible`; `details` holds facts for machines. A subclass with a `category` of its own, as a keyword of the
    class statement or as an attribute, is registered, so that `from_dict` rebuilds it.
    """

    category: ClassVar[str] = "error"

    def __init_subclass__(cls, category: str | None = None) -> None:
        super().__init_subclass__()
        if category is not None:
            cls.category = category
        if "category" in vars(cls):
            # Containers have a timeout and an interruption too: a category is rebuilt as its most general error
            _BY_CATEGORY.setdefault(cls.category, cls)

    def __init__(self, message: str, *, fix: str | None = None, details: Mapping[str, JsonValue] | None = None) -> None:
        super().__init__(message)
        self.message = visible(message)
        self.fix = fix if fix is None else visible(fix)
        self.details: dict[str, JsonValue] = dict(details or {})

    def __str__(self) -> str:
        return f"{self.message}\nfix: {self.fix}" if self.fix else self.message

    def to_dict(self) -> dict[str, JsonValue]:
        """The error as JSON: `category`, `message`, `fix`, `details`."""
        return {"category": self.category, "message": self.message, "fix": self.fix, "details": dict(self.details)}

    def restated(self, message: str) -> LlemError:
        """The same error with another message."""
        return from_dict({**self.to_dict(), "message": message})


class StudyError(LlemError, category="study"):
    """The study file is invalid; the message begins with `file:line:column`."""


class SettingsError(LlemError, category="settings"):
    """A command-line option, ini value, environment variable or user setting is wrong."""


class EngineError(LlemError, category="engine"):
    """The inference engine cannot run the experiment."""


class EngineNotInstalledError(EngineError, category="engine_not_installed"):
    """The engine's package cannot be imported in the environment that should run it."""


class EngineSettingError(EngineError, category="engine_setting"):
    """The engine rejects a setting or a combination of settings."""


class ModelNotFoundError(EngineError, category="model_not_found"):
    """The model is not built in, not a local path, and not available on the hub."""


class ServerUnreachableError(EngineError, category="server_unreachable"):
    """The server named by the study does not respond, or never becomes ready."""


class OutOfMemoryError(EngineError, category="out_of_memory"):
    """The device or the host ran out of memory."""


class WorkloadError(LlemError, category="workload"):
    """The prompts cannot be loaded, or do not fit the requested lengths."""


class ScoringError(LlemError, category="scoring"):
    """An answer cannot be scored: the scorer failed, or gave no number from 0 to 1."""


class MeterError(LlemError, category="meter"):
    """A meter is unknown, unavailable, or failed while measuring."""


class WorkerError(LlemError, category="worker"):
    """The worker process delivered no measurement."""


class WorkerCrashedError(WorkerError, category="worker_crashed"):
    """The worker process died without a result; its exit code or signal is in the message."""


class WorkerTimeoutError(WorkerError, category="timeout"):
    """The worker exceeded its deadline and was killed."""


class WorkerSilentError(WorkerError, category="worker_silent"):
    """The worker exited normally but wrote neither a measurement nor an error."""


class InterruptedCycleError(WorkerError, category="interrupted"):
    """The cycle was stopped by the user or the system before it finished."""


class LlemWarning(UserWarning):
    """What a user should know and nothing ends by: pytest lists it, `llem` prints it as a note."""


class StoreError(LlemError, category="store"):
    """A result file cannot be read or written."""


class WriteError(StoreError, category="write"):
    """A file cannot be written: no space is left, or its directory is gone."""


class GitHubError(LlemError, category="github"):
    """GitHub refused a request, or did not answer it."""


class DeviceError(LlemError, category="device"):
    """A device could not be leased, or was not released."""


class ResidualMemoryError(DeviceError, category="residual_memory"):
    """Memory of a leased device is in use before the cycle begins; `details` names the processes."""


class NotReleasedError(DeviceError, category="not_released"):
    """A device is not back to its previous state after a cycle: memory in use, or a process left behind."""


class DeviceSettingsError(DeviceError, category="device_settings"):
    """A power limit, clock or profile cannot be set on a GPU here, or not in a way that could be put back."""


class PowerLimitNotAppliedError(DeviceSettingsError, category="power_limit_not_applied"):
    """A power limit was set, and another is in force."""


class RunnerError(LlemError, category="runner"):
    """The runner chosen for a cycle is unknown or cannot be used."""


class NodeLostError(RunnerError, category="node_lost"):
    """The cluster node that ran a cycle died or lost its worker, on every retry."""


class InfeasibleError(RunnerError, category="infeasible"):
    """No node of the cluster has the resources that a cycle requests."""


class ServerError(LlemError, category="server"):
    """A server that pytest-llem starts for a cycle failed."""


class ServerStartError(ServerError, category="server_start"):
    """The server could not be started, or exited before it was ready."""


class ServerNotReadyError(ServerError, category="server_not_ready"):
    """The server was not ready within its deadline."""


class ServerDiedError(ServerError, category="server_died"):
    """The server exited while a cycle ran against it."""


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
