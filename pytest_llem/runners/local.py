"""The local runner: each cycle in a fresh process of this machine."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pytest_llem.engines.signatures import SignatureReport
from pytest_llem.errors import InterruptedCycleError
from pytest_llem.job.config import ExperimentConfig
from pytest_llem.job.job import DeviceSet, Job, JobDir
from pytest_llem.job.report import RunnerSpec, RunReport
from pytest_llem.machine.leases import Lease
from pytest_llem.runners.process import end, oom_kills
from pytest_llem.runners.protocol import OnEvent, Runner, RunnerSettings
from pytest_llem.runners.resident import ResidentRunner
from pytest_llem.runners.settings_check import check_here
from pytest_llem.runners.starting import WorkerStarter
from pytest_llem.runners.watch import Watch, explain, write_if_absent


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
        watch = Watch(job, job_dir, on_event)
        try:
            if lease is not None:
                lease.occupied_by(pid=started.process.pid)
            code, problem = watch.until_end(started.process)
        except KeyboardInterrupt:
            end(started.process, grace_s=1.0)
            write_if_absent(job_dir, InterruptedCycleError("the cycle was interrupted"), watch, None)
            raise
        finally:
            # Whatever ended the wait, a plugin's timeout included: the worker and its process group do not outlive it.
            end(started.process, grace_s=0.0)
        if problem is None:
            problem = explain(code, job_dir, before, oom_kills())
        write_if_absent(job_dir, problem, watch, code)
        return RunReport(
            name="local",
            source=self.spec.source,
            isolation="process",
            start_method=started.method,
            notes=started.notes,
        )

    def check_settings(
        self, configs: Sequence[ExperimentConfig], directory: Path, devices: DeviceSet
    ) -> SignatureReport:
        """Compare settings of one engine with its signatures, in a child of the fork server that has it imported."""
        return check_here(configs, directory, devices, partial(self._starter.start_check, configs[0].engine))

    def close(self) -> None:
        """End the fork servers."""
        self._starter.close()
