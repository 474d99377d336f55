"""Containers that live for a session: one per image and device set, each cycle a fresh process in it by exec.

`runner.DockerRunner` uses them for `docker.lifecycle: session`. A container serves another cycle only when it is
healthy: what a failed cycle may have left must never reach the next measurement.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import replace

import docker
from docker.models.containers import Container

from pytest_llem.containers.archive import JOBS, job_archive, worker_archive
from pytest_llem.containers.daemon import docker_errors
from pytest_llem.containers.ephemeral import CycleEnd, collect, drain, end_state, follow
from pytest_llem.containers.errors import DockerError, docker_error
from pytest_llem.containers.host_meter import CONTAINER_EVENT
from pytest_llem.containers.options import ContainerRequest, create, with_lifeline
from pytest_llem.containers.orphaned_containers import remove
from pytest_llem.containers.stream import Attachment, OutputPump
from pytest_llem.errors import JsonValue
from pytest_llem.job.job import JobDir
from pytest_llem.machine.leases import Lease
from pytest_llem.runners.protocol import OnEvent
from pytest_llem.runners.watch import DeadlineWatch
from pytest_llem.worker.container_forkserver import OOM_KILL_EVENT

FORK_SERVER = ("-m", "pytest_llem.worker.container_forkserver")
_Key = tuple[object, ...]


class KeptContainer:
    """A running container with a fork server in it."""

    def __init__(self, client: docker.DockerClient, request: ContainerRequest, engine: str) -> None:
        """Create and start it. Raises `DockerError`, and leaves nothing behind then."""
        self.request = replace(request, command=with_lifeline(*FORK_SERVER, "serve", engine))
        self.broken: str | None = None
        self.cycles = 0
        with docker_errors(request.image.name):
            self.container: Container = create(client, self.request)
        try:
            with docker_errors(request.image.name):
                self.container.put_archive("/", worker_archive())
                self._attachment = Attachment(self.container.attach_socket(params={"stdin": 1, "stream": 1}))
                self.container.start()
        except BaseException:
            remove(self.container)
            raise

    def unhealthy(self) -> str | None:
        """Why no cycle may run here: an earlier failure, its state, or memory in use on its GPUs; `None` if one may."""
        if self.broken is not None:
            return self.broken
        with docker_errors(self.request.image.name):
            self.container.reload()
        if self.container.status != "running":
            return f"the container is {self.container.status}"
        used = self._gpu_memory()
        limit = self.request.settings.residual_bytes
        full = {name: size for name, size in used.items() if size > limit}
        if full:
            sizes = ", ".join(f"{name}: {size / 2**20:.0f} MiB" for name, size in full.items())
            return f"GPU memory is still in use ({sizes})"
        return None

    def close(self) -> None:
        """Remove it."""
        self._attachment.close()
        remove(self.container)

    def _gpu_memory(self) -> dict[str, int]:
        if self.request.devices.kind != "cuda":
            return {}
        with docker_errors(self.request.image.name):
            code, output = self.container.exec_run(["python3", *FORK_SERVER, "memory"])
        lines = bytes(output).decode("utf-8", "replace").strip().splitlines() or ["no output"]  # type: ignore[arg-type]
        if code != 0:
            raise docker_error("gpu_not_visible", self.request.image.name, message=lines[-1])
        used: dict[str, int] = json.loads(lines[-1])
        return used


class KeptContainers:
    """The containers of a session, each made when first needed and replaced a bounded number of times."""

    def __init__(self, client: docker.DockerClient, max_restarts: int) -> None:
        self._client = client
        self._max_restarts = max_restarts
        self._kept: dict[_Key, KeptContainer] = {}
        self.restarts = 0
        self._restarts_in_a_row = 0

    def run(
        self,
        request: ContainerRequest,
        engine: str,
        job_dir: JobDir,
        on_event: OnEvent,
        watch: DeadlineWatch,
        lease: Lease | None,
    ) -> CycleEnd:
        """Run one cycle by exec; a deadline or interruption removes the container. `DockerError`: none is healthy."""
        begun = time.monotonic()
        # The imported engine has read its environment already, so a container serves jobs of one environment only
        environment = tuple(sorted(request.environment.items()))
        image, devices, pinned = request.image.id, request.devices, request.pinned
        key: _Key = (
            image,
            devices,
            pinned.cpus,
            pinned.numa_node,
            request.network,
            request.mounts,
            engine,
            environment,
        )
        kept = self._healthy(key, request, engine)
        if lease is not None:
            lease.occupied_by(pid=os.getpid(), container=kept.request.name)
        try:
            end = _exec_cycle(kept, job_dir, on_event, watch)
        except BaseException:
            self._discard(key)
            raise
        if end.overdue:
            kept.broken = "the cycle before exceeded a deadline"
        elif job_dir.measurement.exists():
            self._restarts_in_a_row = 0
        elif not job_dir.error.exists():
            kept.broken = f"the cycle before ended with exit code {end.returncode} and no outcome"
        more: dict[str, JsonValue] = {
            "container": kept.request.name,
            "restarts": self.restarts,
            "cycles_before": kept.cycles,
            "overhead_s": time.monotonic() - begun - float(str(end.facts["run_s"])),
        }
        kept.cycles += 1
        return replace(end, facts={**end.facts, **more})

    def close(self) -> None:
        """Remove them all."""
        for key in list(self._kept):
            self._discard(key)

    def _healthy(self, key: _Key, request: ContainerRequest, engine: str) -> KeptContainer:
        kept = self._kept.get(key)
        reason = kept.unhealthy() if kept is not None else None
        if kept is not None and reason is None:
            return kept
        if kept is not None:
            self._discard(key)
            if self._restarts_in_a_row >= self._max_restarts:
                message = (
                    f"{reason}, and it was replaced {self._restarts_in_a_row} times in a row (docker.max_restarts)"
                )
                raise docker_error("docker", request.image.name, message=message)
            self.restarts += 1
            self._restarts_in_a_row += 1
        fresh = self._kept[key] = KeptContainer(self._client, request, engine)
        try:
            problem = fresh.unhealthy()
        except DockerError:
            self._discard(key)
            raise
        if problem is not None:
            self._discard(key)
            category = "gpu_oom" if "GPU memory" in problem else "docker"
            raise docker_error(category, request.image.name, message=f"a new container is not healthy: {problem}")
        return fresh

    def _discard(self, key: _Key) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            kept.close()


def _exec_cycle(kept: KeptContainer, job_dir: JobDir, on_event: OnEvent, watch: DeadlineWatch) -> CycleEnd:
    image = kept.request.image
    name = uuid.uuid4().hex
    api = kept.container.client.api if kept.container.client is not None else None
    assert api is not None
    starved = False

    def pass_on(event: Mapping[str, JsonValue]) -> None:
        nonlocal starved
        if event.get("event") == OOM_KILL_EVENT:
            starved = True
        else:
            on_event(event)

    on_event({"event": CONTAINER_EVENT, "id": kept.container.id})
    with docker_errors(image.name):
        kept.container.put_archive("/", job_archive(job_dir.job.read_bytes(), name))
        execution = api.exec_create(kept.container.id, ["python3", *FORK_SERVER, "cycle", f"{JOBS}/{name}"])["Id"]
        stream = Attachment(api.exec_start(execution, socket=True))
    started = time.monotonic()
    try:
        with job_dir.events.open("a", encoding="utf-8") as live:
            pump = OutputPump(stream.frames(), job_dir.log, live)
            pump.start()
            overdue = follow(pump, watch, pass_on)
            ended = time.monotonic()
            if overdue:
                # Removal is what surely ends a process that was started by exec
                collect(kept.container, name, job_dir, image)
                kept.close()
                drain(pump, watch, pass_on)
        returncode, killed = _exec_state(api, execution, kept.container) if not overdue else (None, False)
        problem = collect(kept.container, name, job_dir, image) if not overdue else None
    finally:
        stream.close()
    facts: dict[str, JsonValue] = {
        "returncode": returncode,
        "oom_killed": starved or killed,
        "run_s": ended - started,
        "finish_s": time.monotonic() - ended,
    }
    if problem is not None:
        facts["collect_error"] = problem.message
    return CycleEnd(returncode, starved or killed, overdue, pump.last_output, facts)


def _exec_state(api: docker.APIClient, execution: str, container: Container) -> tuple[int | None, bool]:
    """Exit code of an exec whose output has ended; where the whole container ended instead, that one's state."""
    try:
        with docker_errors(str(container.name)):
            state = api.exec_inspect(execution)
    except DockerError:
        return end_state(container)
    code = state.get("ExitCode")
    return (int(code), False) if code is not None else end_state(container)
