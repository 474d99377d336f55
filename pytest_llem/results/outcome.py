"""What became of a cycle, as its consumers see it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pytest_llem.errors import LlemError
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.schema import Result
from pytest_llem.results.state import StateName

LOG_LINES = 10


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
        server_log = self.error.details.get("log_tail") if self.error is not None else None
        if isinstance(server_log, (list, tuple)) and server_log:
            lines.append("  the server's log ends with:")
            lines += [f"    {line}" for line in server_log[-LOG_LINES:]]
        elif self.log_tail and self.error is not None:
            lines.append("  worker.log ends with:")
            lines += [f"    {line}" for line in self.log_tail[-LOG_LINES:]]
        return "\n".join(lines)
