"""Runs a cycle in a container of its own; also what both lifecycles share: following, ending and emptying a container.

`runner.DockerRunner` uses it for `docker.lifecycle: ephemeral`; `kept` and `servers.container` use its parts. Every way
out must remove the container.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import docker
import requests
from docker.errors import APIError, DockerException, NotFound
from docker.models.containers import Container

from pytest_llem.containers.archive import JOBS, job_archive, take_results, worker_archive
from pytest_llem.containers.daemon import docker_errors
from pytest_llem.containers.errors import DockerError, docker_error, translate_docker_error
from pytest_llem.containers.host_meter import CONTAINER_EVENT
from pytest_llem.containers.options import JOB_NAME, ContainerRequest, ImageFacts, create
from pytest_llem.containers.orphaned_containers import removed_after
from pytest_llem.containers.stream import Attachment, OutputPump
from pytest_llem.errors import JsonValue
from pytest_llem.job.job import JobDir
from pytest_llem.machine.leases import Lease
from pytest_llem.runners.protocol import OnEvent
from pytest_llem.runners.watch import DeadlineWatch
from pytest_llem.worker.lifeline import LOST_OWNER_EXIT

POLL_S = 0.2
"""How often deadlines are checked without events. Chosen: fine beside deadlines of seconds, and no load."""

STATE_S = 15.0
"""Chosen: a restarting daemon with live-restore is back within seconds."""


@dataclass(frozen=True)
class CycleEnd:
    """How a cycle in a container ended. `returncode` is `None` when the daemon could not say."""

    returncode: int | None
    oom_killed: bool = False
    overdue: str | None = None
    output: str = ""
    facts: Mapping[str, JsonValue] = field(default_factory=dict)


def follow(pump: OutputPump, watch: DeadlineWatch, on_event: OnEvent) -> str | None:
    """Pass on events until the stream ends (`None`) or a deadline is exceeded (which one, in words)."""
    while True:
        event = pump.next_event(POLL_S)
        if event is not None:
            watch.heard(event)
            on_event(event)
        elif pump.ended:
            return None
        overdue = watch.overdue()
        if overdue:
            return overdue


def drain(pump: OutputPump, watch: DeadlineWatch, on_event: OnEvent) -> None:
    """Pass on the events that a container wrote before it was killed."""
    for event in pump.rest(2.0):
        watch.heard(event)
        on_event(event)


def end_state(container: Container, timeout_s: float = STATE_S) -> tuple[int | None, bool]:
    """Exit code and OOMKilled of an ended container; `(None, False)` if the daemon is not back within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            container.reload()
            state = container.attrs["State"]
            if not state.get("Running"):
                return int(state.get("ExitCode", -1)), bool(state.get("OOMKilled"))
        except NotFound:
            return None, False
        except (DockerException, requests.exceptions.RequestException):
            pass
        if time.monotonic() >= deadline:
            return None, False
        time.sleep(0.05)


def kill(container: Container) -> None:
    """SIGKILL, if it still runs."""
    with contextlib.suppress(APIError, requests.exceptions.RequestException):
        container.kill()


def collect(container: Container, name: str, job_dir: JobDir, image: ImageFacts) -> DockerError | None:
    """Copy the worker's files into `job_dir`; the error when that failed."""
    try:
        with docker_errors(image.name):
            chunks, _ = container.get_archive(f"{JOBS}/{name}")
            take_results(chunks, job_dir, image.name)
    except DockerError as error:
        return error
    return None


def end_error(end: CycleEnd, image: ImageFacts) -> DockerError:
    """The error of a cycle in a container that ended without a measurement or an error of the worker's own."""
    if end.overdue:
        category, message = "timeout", end.overdue
    elif end.returncode is None:
        category = "daemon_down"
        message = "it stopped answering while the container ran, or somebody removed the container"
    elif end.returncode == LOST_OWNER_EXIT:
        category, message = "daemon_down", "the connection to the container was lost, so it ended itself"
    elif end.returncode == 0:
        category, message = "app_error", "it ended normally and wrote neither a measurement nor an error"
    else:
        error = translate_docker_error(end.returncode, end.output, image.name, oom_killed=end.oom_killed)
        error.details.update(end.facts)
        return error
    return docker_error(category, image.name, message=message, stderr=end.output, facts=end.facts)


def run_ephemeral(
    client: docker.DockerClient,
    request: ContainerRequest,
    job_dir: JobDir,
    on_event: OnEvent,
    watch: DeadlineWatch,
    lease: Lease | None,
) -> CycleEnd:
    """Run one cycle in a container that is gone on return, also by exception. `DockerError` when the daemon refuses."""
    begun = time.monotonic()
    with docker_errors(request.image.name):
        container = create(client, request)
    with removed_after(container):
        on_event({"event": CONTAINER_EVENT, "id": container.id})
        with docker_errors(request.image.name):
            container.put_archive("/", worker_archive())
            container.put_archive("/", job_archive(job_dir.job.read_bytes(), JOB_NAME))
            streams = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
            attachment = Attachment(container.attach_socket(params=streams))
        try:
            with job_dir.events.open("a", encoding="utf-8") as live:
                pump = OutputPump(attachment.frames(), job_dir.log, live)
                pump.start()
                with docker_errors(request.image.name):
                    container.start()
                started = time.monotonic()
                if lease is not None:
                    lease.occupied_by(pid=os.getpid(), container=request.name)
                overdue = follow(pump, watch, on_event)
                ended = time.monotonic()
                if overdue:
                    kill(container)
                    drain(pump, watch, on_event)
            returncode, oom_killed = end_state(container)
            problem = collect(container, JOB_NAME, job_dir, request.image)
        except KeyboardInterrupt:
            kill(container)
            collect(container, JOB_NAME, job_dir, request.image)
            raise
        finally:
            attachment.close()
    facts: dict[str, JsonValue] = {
        "returncode": returncode,
        "oom_killed": oom_killed,
        "start_s": started - begun,
        "run_s": ended - started,
        "finish_s": time.monotonic() - ended,
    }
    if problem is not None:
        facts["collect_error"] = problem.message
    return CycleEnd(returncode, oom_killed, overdue, pump.last_output, facts)
