"""Runs cycles that need a server: starts it under the lease, keeps it while it is needed, and stops it.

`session.measuring` puts a `ServingRunner` around the runner of a study whose engine starts servers. Nothing may
outlive `close`: the next cycle's devices depend on it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pytest_llem.engines import starts_server
from pytest_llem.errors import InterruptedCycleError, JsonValue, LlemError, ServerDiedError, ServerStartError
from pytest_llem.job.config import ExperimentConfig
from pytest_llem.job.files import read_json
from pytest_llem.job.job import DeviceSet, Job, JobDir
from pytest_llem.job.report import RunnerSpec, RunReport
from pytest_llem.machine.leases import Lease
from pytest_llem.runners.protocol import OnEvent, PreflightReport, Runner
from pytest_llem.runners.watch import write_if_absent
from pytest_llem.servers.server import Ended
from pytest_llem.servers.spec import ServerSpec, server_settings
from pytest_llem.servers.starting import LOGS, ReadyServer, begin_server, redacted_tail, start_server

STOP_GRACE_S = 10.0
"""Chosen: long enough for an engine to end its requests and release its devices itself."""

INTERRUPT_GRACE_S = 2.0
"""Chosen: after Ctrl-C the user waits, and pytest-xdist gives a worker about 5 s to tear down."""

ASIDE = "measurement.server_died.json"


class ServingRunner(Runner):
    """Runs each cycle by another runner, beside a server that outlives it, its devices leased while it is `loaded`.

    It is stopped after a cycle without a measurement; with `keep` off, or the study's `keep_server`, after every cycle:
    processes may wait for one another's devices.
    """

    def __init__(
        self,
        inner: Runner,
        run_dir: Path,
        docker: Mapping[str, JsonValue],
        tell: Callable[[str | None], None],
        *,
        keep: bool = True,
    ) -> None:
        """`tell` gets a sentence while a server is waited for, and `None` when it is there."""
        self.spec: RunnerSpec = inner.spec
        self._inner = inner
        self._run_dir = run_dir
        self._docker = docker
        self._tell = tell
        self._keep = keep
        self._ready: ReadyServer | None = None

    @property
    def loaded(self) -> bool:
        """Whether a server runs, and so the lease that it was started under is still in use."""
        return self._ready is not None

    def can_serve(self, job: Job) -> bool:
        """Whether the server that runs is the one that this job needs."""
        ready = self._ready
        if ready is None or not self._keeps(job) or ready.server.ended():
            return False
        return ready.spec == ServerSpec.of(job.config, job.devices)

    def run(self, job: Job, job_dir: JobDir, on_event: OnEvent, lease: Lease | None = None) -> RunReport:
        """See `runners.protocol.Runner.run`; a server that runs was asked (`can_serve`), and `lease` is its own."""
        reused = self._ready is not None
        try:
            ready = self._ready or self._start(job, lease)
            ready.cycles += 1
            report = self._beside(ready, job, job_dir, on_event, lease)
        except LlemError as error:
            write_if_absent(job_dir, error, "server")
            self.unload()
            return RunReport(name=self.spec.name, source=self.spec.source, isolation=self._isolation(job))
        except KeyboardInterrupt:
            write_if_absent(job_dir, InterruptedCycleError("the cycle was interrupted"), "server")
            self._stop(INTERRUPT_GRACE_S)
            raise
        facts: dict[str, JsonValue] = {**report.facts, "server": ready.facts(self._run_dir, reused=reused)}
        still_there = ready.still_there()
        how = ready.server.ended()
        if how is not None:
            _server_died(ready, how, job_dir)
        # After a cycle that failed it may still work on requests that nobody waits for, under the next measurement
        if not (still_there and self._keeps(job) and job_dir.measurement.exists()):
            self.unload()
        report = replace(report, facts=facts, isolation=self._isolation(job))
        image, digest = ready.spec.image, ready.server.facts.get("image_digest")
        return report if image is None else replace(report, image=image, image_digest=str(digest))

    def unload(self) -> None:
        """Stop the server."""
        self._stop(STOP_GRACE_S)

    def preflight(self, engine: str, configs: Sequence[ExperimentConfig], devices: DeviceSet) -> PreflightReport:
        """Everything that would keep these experiments' servers from starting here, without starting or pulling any."""
        return check_servers([config for config in configs if starts_server(config)], devices, self._docker)

    def close(self) -> None:
        """Stop the server and release the runner beside it."""
        try:
            self.unload()
        finally:
            self._inner.close()

    def _keeps(self, job: Job) -> bool:
        return self._keep and job.config.settings.get("keep_server") is not False

    def _isolation(self, job: Job) -> str:
        """What the cycle has to itself: its client alone, or the server too."""
        return "server" if self._keeps(job) else "process"

    def _stop(self, grace_s: float) -> None:
        ready, self._ready = self._ready, None
        if ready is not None:
            ready.stop(grace_s)

    def _start(self, job: Job, lease: Lease | None) -> ReadyServer:
        spec, settings = ServerSpec.of(job.config, job.devices), server_settings(job.config)
        begin = begin_server(spec, job, self._docker, lease, self._tell)
        self._ready = start_server(spec, begin, self._run_dir / LOGS, job.study, settings, self._tell)
        self._tell(None)
        return self._ready

    def _beside(
        self, ready: ReadyServer, job: Job, job_dir: JobDir, on_event: OnEvent, lease: Lease | None
    ) -> RunReport:
        """Run the cycle against the server, and end it when the server dies: its client might wait for long."""
        settings = {**job.config.settings, "base_url": ready.base_url}
        told = replace(job, config=replace(job.config, settings=settings), server=ready.process)

        def watching(event: Mapping[str, JsonValue]) -> None:
            on_event(event)
            how = ready.server.ended()
            if how is not None:
                raise _died(ready, how)

        try:
            return self._inner.run(told, job_dir, watching, lease)
        except ServerDiedError:
            return RunReport(name=self.spec.name, source=self.spec.source, isolation=self._isolation(job))


def _died(ready: ReadyServer, how: Ended) -> ServerDiedError:
    tail = redacted_tail(ready.server.log)
    return ServerDiedError(
        f"the server {ready.spec.name} died while the cycle ran: {how}",
        fix=f"read its log, {ready.server.log}; the next cycle gets a new server",
        details={"exit_code": how.code, "log": str(ready.server.log), "log_tail": tail, "server": ready.id},
    )


def _server_died(ready: ReadyServer, how: Ended, job_dir: JobDir) -> None:
    """Say what really happened, in place of what the client made of it; what it measured until then is kept aside."""
    error = _died(ready, how)
    if job_dir.measurement.exists():
        job_dir.measurement.replace(job_dir.path / ASIDE)
    if job_dir.error.exists():
        error.details["client"] = read_json(job_dir.error).get("message")
    job_dir.write_error(error, origin="runner", log_tail=error.details["log_tail"])


def keeps_servers() -> bool:
    """Whether this process may keep a server between cycles: not beside others that wait for the same devices."""
    return "PYTEST_XDIST_WORKER" not in os.environ


def check_servers(
    configs: Sequence[ExperimentConfig], devices: DeviceSet, docker: Mapping[str, JsonValue]
) -> PreflightReport:
    """Look for programs, images and the daemon, without starting or pulling anything; what is found is not raised."""
    specs = dict.fromkeys(ServerSpec.of(config, devices) for config in configs)
    programs = dict.fromkeys(spec.command[0] for spec in specs if spec.image is None)
    images = dict.fromkeys(spec.image for spec in specs if spec.image is not None)
    problems = list(_missing(programs))
    if images:
        from pytest_llem.servers.container import unusable_images

        problems += unusable_images(images, docker)
    return PreflightReport(tuple(problems))


def _missing(programs: Mapping[str, None]) -> Iterator[LlemError]:
    for program in programs:
        if "{" not in program and shutil.which(program) is None:
            yield ServerStartError(
                f"openai.command: there is no program {program!r} here",
                fix="install it in this environment, give its path, or use openai.image",
                details={"program": program},
            )
