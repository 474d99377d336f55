"""The Docker runner: each cycle in a container of its own, or by exec in one that is kept.

`runners.open_runner` makes it, for the session and for nodes of a cluster; it puts together the rest of `containers`.
It must leave no container behind, whatever happens.
"""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import docker

from pytest_llem.containers.archive import LIFELINE, lifeline_archive
from pytest_llem.containers.daemon import DaemonFacts, connect, daemon_facts, docker_errors
from pytest_llem.containers.ephemeral import CycleEnd, end_error, run_ephemeral
from pytest_llem.containers.errors import DockerError, docker_error
from pytest_llem.containers.host_meter import CONTAINER_EVENT, host_metering
from pytest_llem.containers.images import (
    Tell,
    default_image,
    ensure_image,
    foreign_architecture,
    image_facts,
    with_alternatives,
)
from pytest_llem.containers.inputs import Mounted, inputs_of, with_absolute_paths
from pytest_llem.containers.kept import KeptContainers
from pytest_llem.containers.options import WORKER_COMMAND, ContainerRequest, ImageFacts, passed_on, recorded_options
from pytest_llem.containers.orphaned_containers import SessionIdentity, remove, remove_orphans, remove_session
from pytest_llem.containers.preflight import PreflightSubject, check_settings_in_image, preflight
from pytest_llem.containers.stream import Attachment
from pytest_llem.engines import engine_info
from pytest_llem.engines.signatures import SignatureReport
from pytest_llem.errors import DeviceError, InterruptedCycleError, JsonValue, LlemError
from pytest_llem.job.config import DeviceSettings, ExperimentConfig
from pytest_llem.job.job import DeviceSet, Job, JobDir
from pytest_llem.job.redaction import secrets_of
from pytest_llem.job.report import Note, RunnerSpec, RunReport
from pytest_llem.machine.leases import Lease
from pytest_llem.runners.measure_here import LEASE_TIMEOUT_S
from pytest_llem.runners.protocol import OnEvent, PreflightReport, Runner, RunnerSettings
from pytest_llem.runners.watch import DeadlineWatch, write_if_absent
from pytest_llem.study.runner_settings import DockerSettings

LEASE_PREFIX = "llem-lease-"

POLL_S = 0.5
"""Chosen: short beside a cycle, and little load on a daemon across a network."""


class DockerRunner(Runner):
    """Runs cycles in containers of one daemon, and leaves none behind.

    The daemon is first asked at the first cycle, which sweeps dead sessions; `tell` gets a sentence while it pulls.
    """

    def __init__(self, spec: RunnerSpec, settings: DockerSettings | None = None, tell: Tell | None = None) -> None:
        self.spec = spec
        self.settings = settings or DockerSettings()
        self._tell = tell
        self._identity = SessionIdentity()
        self._connected: tuple[docker.DockerClient, DaemonFacts] | None = None
        self._images: dict[str, ImageFacts] = {}
        self._defaults: dict[str, str] = {}
        self._swept: list[str] = []
        self._kept: KeptContainers | None = None

    @classmethod
    def open(cls, spec: RunnerSpec, settings: RunnerSettings) -> DockerRunner:
        """A runner with the section `docker` of a study's settings."""
        return cls(spec, DockerSettings.from_mapping(settings.docker))

    def run(self, job: Job, job_dir: JobDir, on_event: OnEvent, lease: Lease | None = None) -> RunReport:
        """See `runners.protocol.Runner.run`."""
        watch: DeadlineWatch | None = None
        job = replace(job, config=with_absolute_paths(job.config))
        secrets = secrets_of(os.environ)
        name = self.spec.image or job.config.engine
        try:
            client, facts = self.connect()
            image = self.image(job.config.engine)
            name = image.name
            request, notes = self._request(job, image, facts, secrets)
            hold: AbstractContextManager[object] = nullcontext()
            if not facts.local:
                hold = remote_lease(client, image, job.devices, self._identity, job.run_id, on_wait=self._tell)
            with hold, host_metering(job, job_dir, facts) as (job, observe):
                self.hand_over(job, job_dir)
                # From here on the cycle's own time counts, not that of a pull or of waiting for a device
                watch = DeadlineWatch(job.deadlines)
                end = self._cycle(client, request, job, job_dir, _both(observe, on_event), watch, lease)
        except LlemError as error:
            _write_error(job_dir, error, watch)
            return self._report(name, None, {}, ())
        except KeyboardInterrupt:
            _write_error(job_dir, InterruptedCycleError("the cycle was interrupted"), watch)
            raise
        foreign = foreign_architecture(image, facts) if watch.phase is None else None
        problem = docker_error("arch_mismatch", name, message=foreign) if foreign else end_error(end, image)
        _write_error(job_dir, problem, watch)
        return self._report(name, image, {**recorded_options(request), **end.facts}, notes)

    def connect(self) -> tuple[docker.DockerClient, DaemonFacts]:
        """The client and its daemon's facts, from the first call on; raises `DockerError`."""
        if self._connected is None:
            client = connect()
            self._connected = client, daemon_facts(client)
            self._swept = remove_orphans(client)
        return self._connected

    def image(self, engine: str) -> ImageFacts:
        """The image for an engine, made present; raises `DockerError`."""
        name = self._image_name(engine)
        if name not in self._images:
            client, _ = self.connect()
            try:
                self._images[name] = ensure_image(
                    client, name, pull=self.settings.pull, timeout_s=self.settings.pull_timeout_s, tell=self._tell
                )
            except DockerError as error:
                raise with_alternatives(error, engine, named=self.spec.image is not None) from None
        return self._images[name]

    def _image_name(self, engine: str) -> str:
        """The image that was named, else the default one, which stays the same for the run."""
        if self.spec.image is not None:
            return self.spec.image
        if engine not in self._defaults:
            self._defaults[engine] = default_image(self.connect()[0], engine).name
        return self._defaults[engine]

    def known_image(self, engine: str) -> str | None:
        """The digest, else the id, of an engine's image here (`pull: always` pulls it first); `None` if not known."""
        try:
            if self.settings.pull == "always":
                image: ImageFacts | None = self.image(engine)
            else:
                image = image_facts(self.connect()[0], self._image_name(engine))
        except LlemError:
            return None
        return None if image is None else image.digest or image.id

    def preflight(self, engine: str, configs: Sequence[ExperimentConfig], devices: DeviceSet) -> PreflightReport:
        """Everything that would make cycles of this engine fail here, without pulling or loading anything."""
        try:
            client, daemon = self.connect()
            name = self._image_name(engine)
        except LlemError as error:
            return PreflightReport(problems=(error,))
        subject = PreflightSubject(engine, name, configs, devices, self.settings)
        report = preflight(client, daemon, subject, self._identity)
        named = self.spec.image is not None
        problems = tuple(
            with_alternatives(problem, engine, named=named) if isinstance(problem, DockerError) else problem
            for problem in report.problems
        )
        return replace(report, problems=problems)

    def check_settings(
        self, configs: Sequence[ExperimentConfig], directory: Path, devices: DeviceSet
    ) -> SignatureReport:
        """Compare settings of one engine with the signatures of the one in its image; see `engines.signatures`."""
        try:
            client, _ = self.connect()
            image = self.image(configs[0].engine)
            return check_settings_in_image(client, image, configs, devices, self.settings, self._identity)
        except DockerError as error:
            # The cycle meets the same obstacle, and explains it.
            return SignatureReport(unchecked=error.message)

    def close(self) -> None:
        """Remove the containers that are left, and hang up."""
        if self._connected is None:
            return
        client, _ = self._connected
        self._connected = None
        if self._kept is not None:
            self._kept.close()
            self._kept = None
        remove_session(client, self._identity.id)
        client.close()

    def _request(
        self, job: Job, image: ImageFacts, daemon: DaemonFacts, secrets: Mapping[str, str]
    ) -> tuple[ContainerRequest, tuple[Note, ...]]:
        inputs = inputs_of(job.config)
        mounts = inputs.mounts + tuple(Mounted(path, path) for path in self.settings.mounts)
        if mounts and not daemon.local:
            paths = ", ".join(mounted.source for mounted in mounts)
            raise docker_error(
                "mount_missing", image.name, message=f"{paths}: the daemon at {daemon.address} is remote"
            )
        if job.devices.kind == "cuda" and not daemon.gpus:
            message = f"runtimes: {', '.join(daemon.runtimes)}; no CDI device nvidia.com/gpu"
            raise docker_error("gpu_runtime_missing", image.name, message=message)
        notes: tuple[Note, ...] = ()
        if inputs.downloads:
            what = ", ".join(inputs.downloads)
            advice = "download it here first, then it is mounted"
            notes = (Note("hub_download", f"{what} is downloaded inside the container, each cycle anew: {advice}"),)
        slug = re.sub(r"[^A-Za-z0-9]+", "-", job.experiment_id).strip("-")[:40] or "experiment"
        network = inputs.network(self.settings.network)
        return ContainerRequest(
            name=f"llem-{slug}-c{job.cycle}-{uuid.uuid4().hex[:8]}",
            image=image,
            command=WORKER_COMMAND,
            devices=job.devices,
            settings=self.settings,
            network=network,
            mounts=mounts,
            labels=self._identity.labels(job.run_id),
            secrets=secrets if network != "none" else {},
            environment={**passed_on(os.environ), **job.environment},
            pinned=DeviceSettings() if engine_info(job.config.engine).serves_over_http else job.config.device,
        ), notes

    def _cycle(
        self,
        client: docker.DockerClient,
        request: ContainerRequest,
        job: Job,
        job_dir: JobDir,
        on_event: OnEvent,
        watch: DeadlineWatch,
        lease: Lease | None,
    ) -> CycleEnd:
        if self.settings.lifecycle == "ephemeral":
            return run_ephemeral(client, request, job_dir, on_event, watch, lease)
        if self._kept is None:
            self._kept = KeptContainers(client, self.settings.max_restarts)
        return self._kept.run(request, job.config.engine, job_dir, on_event, watch, lease)

    def _report(
        self, name: str, image: ImageFacts | None, facts: Mapping[str, JsonValue], notes: tuple[Note, ...]
    ) -> RunReport:
        if self._swept:
            notes = (*notes, Note("orphans_removed", f"containers of dead sessions were removed: {self._swept}"))
            self._swept = []
        daemon = self._connected[1] if self._connected else None
        more: dict[str, JsonValue] = {"daemon": daemon.version, "daemon_local": daemon.local} if daemon else {}
        return RunReport(
            name="docker",
            source=self.spec.source,
            isolation="container" if self.settings.lifecycle == "ephemeral" else "process",
            image=name,
            image_digest=(image.digest or image.id) if image else None,
            start_method=None,
            notes=notes,
            facts={**more, **facts},
        )


def _write_error(job_dir: JobDir, error: LlemError, watch: DeadlineWatch | None) -> None:
    """Write `error.json` unless the worker left an outcome; the message names the job directory."""
    error.message = f"{error.message} (see {job_dir.path})"
    write_if_absent(job_dir, error, watch.phase if watch else None, exit_code=error.details.get("returncode"))


def _both(first: OnEvent, second: OnEvent) -> OnEvent:
    """Both receive the worker's events; only the first also what the runner itself says."""

    def pass_on(event: Mapping[str, JsonValue]) -> None:
        first(event)
        if event.get("event") != CONTAINER_EVENT:
            second(event)

    return pass_on


@contextmanager
def remote_lease(
    client: docker.DockerClient,
    image: ImageFacts,
    devices: DeviceSet,
    identity: SessionIdentity,
    run_id: str,
    *,
    timeout_s: float = LEASE_TIMEOUT_S,
    on_wait: Tell | None = None,
) -> Iterator[tuple[str, ...]]:
    """Hold the devices on the daemon's machine for the length of the block; yields the names of the lease containers.

    File locks do not hold there, so the lock is a container per device: its fixed name makes creating it atomic, and
    it ends with its attached client. Taken in the order of the names, against deadlock. Waits while
    others hold them, telling `on_wait` once per device; `DeviceError` after `timeout_s` seconds.
    """
    suffixes = (re.sub(r"[^A-Za-z0-9_.-]", "_", name) for name in sorted(devices.uuids) or (devices.kind,))
    names = tuple(LEASE_PREFIX + suffix for suffix in suffixes)
    deadline = time.monotonic() + timeout_s
    with ExitStack() as held:
        for name in names:
            waiting = False
            while not _take_lease(client, image, name, identity.labels(run_id), held):
                if not waiting:
                    waiting = True
                    remove_orphans(client)
                    if on_wait is not None:
                        on_wait(f"waiting for {name}: another session holds it")
                if time.monotonic() >= deadline:
                    raise DeviceError(
                        f"no lease in time: {name} is held by another session",
                        fix=f"wait for it, or `docker rm -f {name}` when nobody measures there any more",
                        details={"lease": name},
                    )
                time.sleep(POLL_S)
        yield names


def _take_lease(
    client: docker.DockerClient, image: ImageFacts, name: str, labels: dict[str, str], held: ExitStack
) -> bool:
    try:
        with docker_errors(image.name):
            container = client.containers.create(
                image.id,
                [],
                name=name,
                entrypoint=["python3", "-I", "-S", LIFELINE, "run"],
                labels=labels,
                init=True,
                stdin_open=True,
                auto_remove=True,
                network_mode="none",
                healthcheck={"test": ["NONE"]},
                environment={"NVIDIA_VISIBLE_DEVICES": "void"},
            )
    except DockerError as error:
        if error.category == "name_conflict":
            return False
        raise
    held.callback(remove, container)
    with docker_errors(image.name):
        container.put_archive("/", lifeline_archive())
        attachment = Attachment(container.attach_socket(params={"stdin": 1, "stream": 1}))
        held.callback(attachment.close)
        container.start()
    return True
