"""Follows a worker of this machine: its events, its deadlines, and the error when it ends without an outcome.

The local runners wait with `WorkerWatch`; those of containers and servers use its parts. Only a runner may write
`error.json` from here, and never over what the worker wrote.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Mapping

from pytest_llem.errors import (
    JsonValue,
    LlemError,
    OutOfMemoryError,
    WorkerCrashedError,
    WorkerSilentError,
    WorkerTimeoutError,
)
from pytest_llem.job.files import log_tail, parse_object
from pytest_llem.job.job import Deadlines, Job, JobDir
from pytest_llem.runners.process import KILL_GRACE_S, WorkerProcess, end
from pytest_llem.runners.protocol import OnEvent

POLL_S = 0.2
"""Chosen: events reach the terminal soon enough, and five wake-ups a second do not disturb a measurement."""

ENDED = ("done", "failed")
EXIT_S = 10.0
"""Chosen: the exit handlers of engines with many processes take seconds."""

HUNG_GRACE_S = 1.0
"""Chosen: a worker that has been silent for minutes will not answer SIGTERM either."""


class WorkerWatch:
    """Follows a worker's events and holds it to its deadlines."""

    def __init__(self, job: Job, job_dir: JobDir, on_event: OnEvent) -> None:
        self._timeout_s = job.deadlines.timeout_s
        self._job_dir = job_dir
        self._on_event = on_event
        self._deadlines = DeadlineWatch(job.deadlines)
        self._offset = 0

    @property
    def phase(self) -> str | None:
        """The last phase that the worker announced."""
        return self._deadlines.phase

    def until_end(self, process: WorkerProcess) -> tuple[int | None, LlemError | None]:
        """Wait until the job is done; the exit code and, where the worker had to be killed, the reason."""
        while True:
            code = process.wait(POLL_S)
            try:
                self._read()
            except ValueError as problem:
                fix = "find what in the engine writes to the files of the cycle"
                broken = WorkerCrashedError(f"what the worker reports cannot be read: {problem}", fix=fix)
                return (end(process) if code is None else code), broken
            if code is not None:
                return code, None
            if self._deadlines.phase in ENDED and self._deadlines.phase_age_s > EXIT_S:
                # Its outcome is written: what a thread or an exit handler of the engine waits for changes nothing.
                return end(process), None
            overdue = self._deadlines.overdue()
            if overdue:
                code = end(process, HUNG_GRACE_S if self._deadlines.silent else KILL_GRACE_S)
                with contextlib.suppress(ValueError):
                    self._read()
                return code, WorkerTimeoutError(
                    f"the worker was killed in phase {self.phase or 'start'!r}: {overdue}",
                    fix="give it more time in the study's `execution` section, or make the workload smaller",
                    details={"phase": self.phase, "timeout_s": self._timeout_s},
                )

    def _read(self) -> None:
        """Pass on the events that are new and whole. Raises `ValueError` for one that cannot be read."""
        try:
            with self._job_dir.events.open("rb") as stream:
                stream.seek(self._offset)
                data = stream.read()
        except FileNotFoundError:
            return
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            event = parse_object(line, self._job_dir.events)
            self._deadlines.heard(event)
            self._on_event(event)


def exit_error(code: int | None, job_dir: JobDir, oom_before: int | None, oom_after: int | None) -> LlemError:
    """The error of a worker that wrote nothing (code negative: a signal); out-of-memory kills as from `oom_kills`."""
    if code is not None and code < 0:
        return _killed(signal.Signals(-code), oom_before, oom_after)
    if code == 0:
        return WorkerSilentError(
            "the worker ended normally and wrote neither a measurement nor an error",
            fix=f"read {job_dir.log}: something ended the process early (os._exit in a plugin of the engine?)",
        )
    return WorkerCrashedError(
        f"the worker ended with exit code {code} and wrote no error",
        fix=f"read {job_dir.log}; repeat the cycle with: python -m pytest_llem.worker {job_dir.path} --out DIR",
        details={"exit_code": code},
    )


def _killed(number: signal.Signals, oom_before: int | None, oom_after: int | None) -> LlemError:
    details: dict[str, JsonValue] = {"signal": number.name}
    if number is signal.SIGKILL and oom_before is not None and oom_after is not None and oom_after > oom_before:
        return OutOfMemoryError(
            "the worker was killed by SIGKILL while the kernel's out-of-memory killer was at work",
            fix="use a smaller model, batch or dtype, or give the machine more memory",
            details=details,
        )
    fix = {
        signal.SIGKILL: "something outside killed it: look for the out-of-memory killer (dmesg) or a job limit",
        signal.SIGSEGV: "a compiled library failed: the log ends with its stack; check the engine's version",
        signal.SIGILL: "a compiled library uses an instruction that this CPU lacks: try dtype: float32",
    }.get(number, "the log's last lines may say why")
    return WorkerCrashedError(f"the worker was killed by {number.name}", fix=fix, details=details)


def write_if_absent(job_dir: JobDir, problem: LlemError, phase: str | None, **facts: JsonValue) -> None:
    """Write the problem as `error.json`, unless the worker has written its measurement or its own error."""
    if job_dir.measurement.exists() or job_dir.error.exists():
        return
    tail = problem.details.get("log_tail", tuple(log_tail(job_dir.log)))
    job_dir.write_error(problem, phase=phase, log_tail=tail, origin="runner", **facts)


class DeadlineWatch:
    """Says if a worker is overdue: in all, loading, or silent; by events' arrival, as their clock may be another."""

    def __init__(self, limits: Deadlines, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._started = self._heard = self._phase_since = clock()
        self.phase: str | None = None

    def heard(self, event: Mapping[str, JsonValue]) -> None:
        """An event has arrived."""
        self._heard = self._clock()
        if event.get("event") == "phase":
            self.phase = str(event.get("name"))
            self._phase_since = self._heard

    @property
    def phase_age_s(self) -> float:
        """How long the last phase has lasted."""
        return self._clock() - self._phase_since

    @property
    def silent(self) -> bool:
        """Whether there was no sign of life for too long."""
        return self._clock() - self._heard > self._limits.silence_s

    def overdue(self) -> str | None:
        """Which limit is exceeded, in words; `None` while all are kept."""
        limits, now = self._limits, self._clock()
        if now - self._started > limits.timeout_s:
            return f"it ran for more than {limits.timeout_s:g} s (execution.timeout_s)"
        if limits.load_timeout_s and self.phase == "load" and self.phase_age_s > limits.load_timeout_s:
            return f"loading took more than {limits.load_timeout_s:g} s (execution.load_timeout_s)"
        if self.silent:
            return f"no sign of life for {limits.silence_s:g} s"
        return None
