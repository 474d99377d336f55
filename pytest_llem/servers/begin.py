"""From a specification to a started server: as a command or as a container."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pytest_llem.errors import JsonValue
from pytest_llem.job.job import Job
from pytest_llem.machine.leases import Lease
from pytest_llem.runners.starting import visible
from pytest_llem.servers.command import CommandServer
from pytest_llem.servers.server import Server
from pytest_llem.servers.spec import LOOPBACK, ServerSpec
from pytest_llem.servers.starting import Begin, Tell


def begin_server(spec: ServerSpec, job: Job, docker: Mapping[str, JsonValue], lease: Lease | None, tell: Tell) -> Begin:
    """How this server is started; whatever takes long and can fail without a port is done before this returns.

    Raises `ModelNotFoundError` for its model, and `DockerError` for its image.
    """
    if spec.image is not None:
        from pytest_llem.servers.container import begin_container

        return begin_container(spec, job, docker, tell, lease.descriptors if lease is not None else ())
    model = spec.model_location()
    environment = {**job.environment, **visible(job)}

    def begin(port: int, log: Path) -> Server:
        server = CommandServer(
            spec.filled(model, LOOPBACK, port), log, environment, lease.descriptors if lease is not None else ()
        )
        if lease is not None and server.pid is not None:
            lease.occupied_by(pid=server.pid)
        return server

    return begin
