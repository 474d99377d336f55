"""The local runners: a fresh worker for each cycle, or one worker whose engine stays loaded over several.

The session opens them for the runner `local`, a cluster's node for what it measures. Whatever ends a wait, a plugin's
timeout included, the worker and its process group must not outlive the run.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pytest_llem.engines.signatures import SignatureReport
from pytest_llem.errors import InterruptedCycleError, JsonValue, WorkerCrashedError
from pytest_llem.job.config import ExperimentConfig
from pytest_llem.job.job import DeviceSet, Job, JobDir
from pytest_llem.job.report import RunnerSpec, RunReport
from pytest_llem.job.wire import encode
from pytest_llem.machine.leases import Lease
from pytest_llem.runners.process import Started, WorkerStarter, end, oom_kills
from pytest_llem.runners.protocol import Isolation, OnEvent, Runner, RunnerSettings
from pytest_llem.runners.settings_check import check_here
from pytest_llem.runners.watch import WorkerWatch, exit_error, write_if_absent
from pytest_llem.worker.channel import receive, send

ANSWER_S = 30.0
"""Chosen: a worker between two jobs answers within milliseconds; one that takes longer is of no use."""

UNLOAD_S = 30.0
"""Chosen: how long an engine may take to shut down before its process group is killed."""


class LocalRunner(Runner):
    """Forks a worker from a preloaded server where that is safe, and starts a new interpreter elsewhere."""

    def __init__(self, spec: RunnerSpec, log_dir: Path) -> None:
        self.spec = spec
        self._starter = WorkerStarter(log_dir)

    @classmethod
    def open(cls, spec: RunnerSpec, settings: RunnerSettings) -> Runner:
        """A runner with a worker per cycle, or one that keeps its engine where the study's isolation says so."""
        if settings.isolation == "process":
            return cls(spec, settings.run_dir)
        return ResidentRunner(spec, settings.run_dir, settings.isolation)

    def run(self, job: Job, job_dir: JobDir, on_event: OnEvent, lease: Lease | None = None) -> RunReport:
        """See `runners.protocol.Runner.run`."""
        self.hand_over(job, job_dir)
        before = oom_kills()
        started = self._starter.start(job, job_dir, lease)
        watch = WorkerWatch(job, job_dir, on_event)
        try:
            if lease is not None:
                lease.occupied_by(pid=started.process.pid)
            code, problem = watch.until_end(started.process)
        except KeyboardInterrupt:
            end(started.process, grace_s=1.0)
            write_if_absent(job_dir, InterruptedCycleError("the cycle was interrupted"), watch.phase, exit_code=None)
            raise
        finally:
            end(started.process, grace_s=0.0)
        if problem is None:
            problem = exit_error(code, job_dir, before, oom_kills())
        write_if_absent(job_dir, problem, watch.phase, exit_code=code)
        return _report(self.spec, "process", started)

    def check_settings(
        self, configs: Sequence[ExperimentConfig], directory: Path, devices: DeviceSet
    ) -> SignatureReport:
        """Compare settings of one engine with its signatures, in a child of the fork server that has it imported."""
        return check_here(configs, directory, partial(self._starter.start_check, configs[0].engine))

    def close(self) -> None:
        """End the fork servers."""
        self._starter.close()


@dataclass
class ResidentWorker:
    """A worker that runs job after job; as a `WorkerProcess` it ends with the job at hand, or with its process."""

    started: Started
    channel: socket.socket
    first: Job
    cycles: int = 0

    @property
    def pid(self) -> int:
        """The process, which leads its own process group."""
        return self.started.process.pid

    def accepts(self, job: Job) -> bool:
        """Whether its loaded engine is one for this job; a worker that does not answer is of no use either."""
        try:
            send(self.channel, {"can_serve": encode(job)})
        except OSError:
            return False
        readable, _, _ = select.select([self.channel], [], [], ANSWER_S)
        answer = receive(self.channel)[0] if readable else None
        return answer is not None and answer["obstacle"] is None

    def begin(self, job_dir: JobDir) -> None:
        """Hand over a job. Raises `WorkerCrashedError` when the worker is gone."""
        with job_dir.log.open("ab") as log:
            try:
                send(self.channel, {"job_dir": str(job_dir.path.resolve())}, (log.fileno(),))
            except OSError as problem:
                raise WorkerCrashedError(f"the worker that kept the engine is gone: {problem}") from None

    def wait(self, timeout_s: float) -> int | None:
        """See `WorkerProcess.wait`: the code of the job, or of the process when that ends first."""
        readable, _, _ = select.select([self.channel], [], [], timeout_s)
        if not readable:
            return None
        answer, _ = receive(self.channel)
        return int(answer["code"]) if answer is not None else self.started.process.wait(timeout_s)

    def close(self, grace_s: float) -> None:
        """Let it unload its engine and end; after `grace_s` seconds its process group is killed."""
        self.channel.close()
        try:
            self.started.process.wait(grace_s)
        finally:
            end(self.started.process, grace_s=0.0)


class ResidentRunner(LocalRunner):
    """Keeps the engine of one worker loaded: for the cycles of an experiment, or for all that it can serve so."""

    def __init__(self, spec: RunnerSpec, log_dir: Path, isolation: Isolation) -> None:
        super().__init__(spec, log_dir)
        self._isolation = isolation
        self._worker: ResidentWorker | None = None

    @property
    def loaded(self) -> bool:
        """See `runners.protocol.Runner.loaded`."""
        return self._worker is not None

    def can_serve(self, job: Job) -> bool:
        """Whether the loaded engine can run this job."""
        worker = self._worker
        if worker is None or job.devices != worker.first.devices:
            return False
        same = (job.study, job.config_hash) == (worker.first.study, worker.first.config_hash)
        return (same or self._isolation == "load") and worker.accepts(job)

    def run(self, job: Job, job_dir: JobDir, on_event: OnEvent, lease: Lease | None = None) -> RunReport:
        """See `runners.protocol.Runner.run`; a loaded engine was asked (`can_serve`), and `lease` is its own."""
        self.hand_over(job, job_dir)
        before = oom_kills()
        worker = self._worker
        if worker is None:
            started, channel = self._starter.start_resident(job, job_dir.log, lease, self._isolation)
            worker = self._worker = ResidentWorker(started, channel, job)
        reused = worker.cycles > 0
        watch = WorkerWatch(job, job_dir, on_event)
        try:
            if lease is not None and not reused:
                lease.occupied_by(pid=worker.pid)
            worker.begin(job_dir)
            code, problem = watch.until_end(worker)
        except WorkerCrashedError as gone:
            code, problem = None, gone
        except KeyboardInterrupt:
            self._worker = None
            end(worker.started.process, grace_s=1.0)
            write_if_absent(job_dir, InterruptedCycleError("the cycle was interrupted"), watch.phase, exit_code=None)
            raise
        if code != 0 or problem is not None:
            self.unload()
        problem = problem or exit_error(code, job_dir, before, oom_kills())
        write_if_absent(job_dir, problem, watch.phase, exit_code=code)
        worker.cycles += 1
        facts: dict[str, JsonValue] = {"engine_reused": reused, "engine_cycles": worker.cycles}
        return replace(_report(self.spec, self._isolation, worker.started), facts=facts)

    def unload(self) -> None:
        """End the worker, and with it its engine and its part of the lease."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close(UNLOAD_S)

    def close(self) -> None:
        """End the worker and the fork servers."""
        self.unload()
        super().close()


def _report(spec: RunnerSpec, isolation: Isolation, started: Started) -> RunReport:
    return RunReport("local", spec.source, isolation, start_method=started.method, notes=started.notes)
