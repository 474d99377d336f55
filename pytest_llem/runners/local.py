"""The local runner: each cycle in a fresh process of this machine."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from pathlib import Path

from pytest_llem.energy.protocol import Note
from pytest_llem.errors import (
    InterruptedCycleError,
    JsonValue,
    LlemError,
    OutOfMemoryError,
    WorkerCrashedError,
    WorkerError,
    WorkerSilentError,
    WorkerTimeoutError,
)
from pytest_llem.job import Job, JobDir
from pytest_llem.runners.deadlines import DeadlineWatch
from pytest_llem.runners.lease import Lease
from pytest_llem.runners.process import ForkServer, SpawnedProcess, WorkerProcess, end, oom_kills
from pytest_llem.runners.protocol import OnEvent, RunnerSpec, RunReport
from pytest_llem.worker.preload import PRELOADS

POLL_S = 0.2


class LocalRunner:
    """Forks a worker from a preloaded server where that is safe, and starts a new interpreter elsewhere."""

    def __init__(self, spec: RunnerSpec, log_dir: Path) -> None:
        self.spec = spec
        self._log_dir = log_dir
        self._servers: dict[str, ForkServer] = {}
        self._unsafe: dict[str, str] = {}

    def run(self, job: Job, job_dir: JobDir, on_event: OnEvent, lease: Lease | None = None) -> RunReport:
        """See `runners.protocol.Runner.run`."""
        environment = {**job.environment, **_visible(job)}
        before = oom_kills()
        process, start_method, notes = self._start(job, job_dir, environment, lease)
        if lease is not None:
            lease.occupied_by(pid=process.pid)
        watch = _Watch(job, job_dir, on_event)
        try:
            code, problem = watch.until_end(process)
        except KeyboardInterrupt:
            end(process, grace_s=1.0)
            _write_if_absent(job_dir, InterruptedCycleError("the cycle was interrupted"), watch, None)
            raise
        if problem is None:
            problem = _explain(code, job_dir, before, oom_kills())
        _write_if_absent(job_dir, problem, watch, code)
        return RunReport(
            name="local",
            source=self.spec.source,
            isolation="process",
            start_method=start_method,
            notes=notes,
        )

    def close(self) -> None:
        """End the fork servers."""
        for server in self._servers.values():
            server.close()
        self._servers.clear()

    def _start(
        self, job: Job, job_dir: JobDir, environment: Mapping[str, str], lease: Lease | None
    ) -> tuple[WorkerProcess, str, tuple[Note, ...]]:
        descriptors = lease.descriptors if lease is not None else ()
        engine = job.config.engine
        notes: tuple[Note, ...] = ()
        if engine in PRELOADS:
            try:
                return self._server(engine).fork(job_dir, environment, descriptors), "forkserver", notes
            except (WorkerError, OSError) as error:
                self._unsafe.setdefault(engine, str(error))
                notes = (Note("start_method", f"started with spawn: {self._unsafe[engine]}"),)
        return SpawnedProcess(job_dir, environment, descriptors), "spawn", notes

    def _server(self, engine: str) -> ForkServer:
        if engine in self._unsafe:
            raise WorkerError(self._unsafe[engine])
        server = self._servers.get(engine)
        if server is None or not server.alive:
            server = self._servers[engine] = ForkServer(engine, self._log_dir / f"forkserver-{engine}.log")
        return server


class _Watch:
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
        """Wait for the worker; its exit code and, where it had to be killed, the reason."""
        while True:
            code = process.wait(POLL_S)
            self._read()
            if code is not None:
                # What the worker left behind in its process group must not outlive it.
                end(process, grace_s=0.0)
                return code, None
            overdue = self._deadlines.overdue()
            if overdue:
                code = end(process)
                self._read()
                return code, self._timeout(overdue)

    def _timeout(self, reason: str) -> LlemError:
        return WorkerTimeoutError(
            f"the worker was killed in phase {self.phase or 'start'!r}: {reason}",
            fix="give it more time in the study's `execution` section, or make the workload smaller",
            details={"phase": self.phase, "timeout_s": self._timeout_s},
        )

    def _read(self) -> None:
        """Pass on the events that are new and whole."""
        try:
            with self._job_dir.events.open("rb") as stream:
                stream.seek(self._offset)
                data = stream.read()
        except FileNotFoundError:
            return
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            event: dict[str, JsonValue] = json.loads(line)
            self._deadlines.heard(event)
            self._on_event(event)


def _visible(job: Job) -> dict[str, str]:
    if job.devices.kind == "cuda":
        return {"CUDA_VISIBLE_DEVICES": ",".join(job.devices.uuids), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    return {"CUDA_VISIBLE_DEVICES": ""}


def _explain(code: int | None, job_dir: JobDir, oom_before: int | None, oom_after: int | None) -> LlemError:
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


def _write_if_absent(job_dir: JobDir, problem: LlemError, watch: _Watch, code: int | None) -> None:
    if job_dir.measurement.exists() or job_dir.error.exists():
        return
    tail: list[JsonValue] = list(job_dir.log_tail())
    job_dir.write_error(problem, phase=watch.phase, log_tail=tail, origin="runner", exit_code=code)
