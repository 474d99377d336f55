"""A container for one cycle: created, filled, followed, emptied, removed."""

from __future__ import annotations

import os
import time

import docker

from pytest_llem.containers.archive import job_archive, worker_archive
from pytest_llem.containers.cycle import CycleEnd, OnEvent, collect, drain, end_state, follow, kill
from pytest_llem.containers.daemon import docker_errors
from pytest_llem.containers.host_meter import CONTAINER_EVENT
from pytest_llem.containers.options import ContainerRequest, create
from pytest_llem.containers.orphans import removed_after
from pytest_llem.containers.stream import Attachment, OutputPump, live_writer
from pytest_llem.errors import JsonValue
from pytest_llem.job import JobDir
from pytest_llem.runners.deadlines import DeadlineWatch
from pytest_llem.runners.lease import Lease

JOB_NAME = "job"


def run_ephemeral(
    client: docker.DockerClient,
    request: ContainerRequest,
    job_dir: JobDir,
    on_event: OnEvent,
    watch: DeadlineWatch,
    lease: Lease | None,
) -> CycleEnd:
    """Run one cycle in a container of its own, which is gone on return, also by exception.

    Raises `DockerError` when the daemon refuses; a failing worker is in the returned `CycleEnd`.
    """
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
                pump = OutputPump(attachment.frames(), job_dir.log, request.secrets.values(), live_writer(live))
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
