"""`state.json`: a cycle's state, written before each attempt and at its end; and its outcome, as consumers get it.

`attempts` writes it, `results` and the session read it. A terminal state must stay final for its run.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psutil

from pytest_llem.errors import LlemError, StoreError
from pytest_llem.job.files import read_json, write_json
from pytest_llem.job.wire import decode, encode
from pytest_llem.results.layout import STATE, CycleKey, WindowKey

if TYPE_CHECKING:
    # Reading it costs every collection half a second.
    from pytest_llem.results.schema import Result

StateName = Literal["running", "valid", "invalid", "failed", "crashed", "interrupted"]
TERMINAL: tuple[StateName, ...] = ("valid", "invalid", "failed", "crashed", "interrupted")
STATE_VERSION = 1
"""Raised when a field is renamed, removed or changes its meaning."""
LOG_LINES = 10
"""Lines of a log that a failure message quotes. Chosen: enough for the exception and the frames around it."""


@dataclass(frozen=True)
class Holder:
    """The process that measures a cycle. Its start time distinguishes it from a later process with the same id."""

    pid: int
    started: float
    hostname: str

    @staticmethod
    def of(pid: int) -> Holder:
        """A process of this host that lives."""
        return Holder(pid, psutil.Process(pid).create_time(), platform.node())

    @staticmethod
    def me() -> Holder:
        """This process."""
        return Holder.of(os.getpid())

    def lives(self) -> bool:
        """Whether that process exists on this host; a living holder elsewhere would have the lock that callers hold."""
        if self.hostname != platform.node():
            return False
        try:
            process = psutil.Process(self.pid)
            # The crashed worker of a living controller stays a zombie until the controller ends.
            return abs(process.create_time() - self.started) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


@dataclass(frozen=True)
class CycleState:
    """One cycle's state, its attempts (how each ended, in order) and when it last changed."""

    study: str
    experiment_id: str
    config_hash: str
    cycle: int
    state: StateName
    attempts: tuple[StateName, ...]
    changed_at: str
    holder: Holder | None = None
    source_run: str | None = None
    reasons: tuple[str, ...] = ()
    not_reused: str | None = None
    step: int | None = None
    """The window (from 1) of a search whose cycle this is."""
    confirms: bool = False
    """Whether it was measured because a gate had failed (`execution.confirm`)."""
    schema_version: int = STATE_VERSION

    @property
    def key(self) -> CycleKey:
        """Which cycle this is."""
        names = (self.study, self.experiment_id, self.config_hash, self.cycle)
        if self.step is None:
            return CycleKey(*names, confirms=self.confirms)
        return WindowKey(*names, self.step, confirms=self.confirms)

    @property
    def attempt(self) -> int:
        """The latest attempt, 1-based."""
        return len(self.attempts)

    def ended(self, state: StateName, reasons: tuple[str, ...] = ()) -> CycleState:
        """The same cycle with its latest attempt ended."""
        attempts = (*self.attempts[:-1], state)
        return replace(self, state=state, attempts=attempts, holder=None, reasons=reasons, changed_at=now())


def begin(key: CycleKey, before: CycleState | None, not_reused: str | None = None) -> CycleState:
    """The state of a new attempt that this process is about to make; `not_reused` says why it has to."""
    return CycleState(
        **vars(key),
        state="running",
        attempts=(*(before.attempts if before else ()), "running"),
        changed_at=now(),
        holder=Holder.me(),
        not_reused=before.not_reused if before else not_reused,
    )


def given(key: CycleKey, result: Result, source_run: str | None) -> CycleState:
    """The state of a cycle whose result was not measured for it: by an earlier run, or in a window of its search."""
    reasons = tuple(reason.code for reason in result.validity.reasons)
    state: StateName = result.status
    return CycleState(**vars(key), state=state, attempts=(), changed_at=now(), source_run=source_run, reasons=reasons)


def read_state(directory: Path) -> CycleState | None:
    """The state of the cycle in `directory`; `None` when it was never begun."""
    path = directory / STATE
    if not path.exists():
        return None
    try:
        return decode(CycleState, read_json(path))
    except ValueError as problem:
        raise StoreError(f"{path}: {problem}") from None


def write_state(directory: Path, state: CycleState) -> None:
    """Record a state atomically."""
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / STATE, encode(state))


def now() -> str:
    """This moment in UTC, ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Outcome:
    """A cycle's terminal state. `result` is there when it is valid or invalid, `error` otherwise."""

    state: StateName
    key: CycleKey
    directory: Path
    result: Result | None
    error: LlemError | None
    attempts: int
    log_tail: tuple[str, ...]
    source_run: str | None = None

    @property
    def valid(self) -> bool:
        """Whether the result may be used."""
        return self.state == "valid"

    def reasons(self) -> tuple[str, ...]:
        """Why the result may not be used, a sentence each."""
        if self.result is not None:
            return tuple(f"{reason.code}: {reason.message}" for reason in self.result.validity.reasons)
        return (self.error.message,) if self.error is not None else ()

    def message(self) -> str:
        """The short failure text: what, where, fix, and the last lines of the worker's log. Empty when valid."""
        if self.valid:
            return ""
        attempts = f" after {self.attempts} attempts" if self.attempts > 1 else ""
        lines = [f"{self.key}: {self.state}{attempts}", *(f"  {reason}" for reason in self.reasons())]
        if self.error is not None and self.error.fix:
            lines.append(f"  fix: {self.error.fix}")
        lines.append(f"  artifacts: {self.directory}")
        of_server = self.error.details.get("log_tail") if self.error is not None else None
        whose, log = "the server's log", of_server if isinstance(of_server, (list, tuple)) else ()
        if not log and self.error is not None:
            whose, log = "worker.log", self.log_tail
        if log:
            lines += [f"  {whose} ends with:", *(f"    {line}" for line in log[-LOG_LINES:])]
        return "\n".join(lines)
