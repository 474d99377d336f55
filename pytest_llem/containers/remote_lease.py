"""Device leases on a remote daemon: a container per device, whose name is the lock.

`runner.DockerRunner` takes them, because file locks of this machine do not hold on another one. Creating a container
under a fixed name is atomic there, and it ends with its attached client: keep both, or a lease can be lost or held
forever.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import docker

from pytest_llem.containers.archive import LIFELINE, lifeline_archive
from pytest_llem.containers.daemon import docker_errors
from pytest_llem.containers.errors import DockerError
from pytest_llem.containers.options import ImageFacts
from pytest_llem.containers.orphaned_containers import SessionIdentity, remove, remove_orphans
from pytest_llem.containers.stream import Attachment
from pytest_llem.errors import DeviceError
from pytest_llem.job.job import DeviceSet

PREFIX = "llem-lease-"
POLL_S = 0.5
"""Chosen: short beside a cycle, and little load on a daemon across a network."""


@contextlib.contextmanager
def remote_lease(
    client: docker.DockerClient,
    image: ImageFacts,
    devices: DeviceSet,
    identity: SessionIdentity,
    run_id: str,
    *,
    timeout_s: float,
    on_wait: Callable[[str], None] | None = None,
) -> Iterator[tuple[str, ...]]:
    """Hold the devices on the daemon's machine for the length of the block; yields the names of the lease containers.

    Waits while others hold them, telling `on_wait` once per device; `DeviceError` after `timeout_s` seconds. Taken in
    the order of the names, so that two sessions that want two devices each cannot wait for one another.
    """
    names = tuple(PREFIX + re.sub(r"[^A-Za-z0-9_.-]", "_", name) for name in sorted(devices.uuids) or (devices.kind,))
    deadline = time.monotonic() + timeout_s
    with ExitStack() as held:
        for name in names:
            _wait_for(client, image, name, identity.labels(run_id), held, deadline, on_wait)
        yield names


def _wait_for(
    client: docker.DockerClient,
    image: ImageFacts,
    name: str,
    labels: dict[str, str],
    held: ExitStack,
    deadline: float,
    on_wait: Callable[[str], None] | None,
) -> None:
    told = False
    while not _taken(client, image, name, labels, held):
        if not told:
            remove_orphans(client)
            if on_wait is not None:
                on_wait(f"waiting for {name}: another session holds it")
            told = True
        if time.monotonic() >= deadline:
            raise DeviceError(
                f"no lease in time: {name} is held by another session",
                fix=f"wait for it, or `docker rm -f {name}` when nobody measures there any more",
                details={"lease": name},
            )
        time.sleep(POLL_S)


def _taken(client: docker.DockerClient, image: ImageFacts, name: str, labels: dict[str, str], held: ExitStack) -> bool:
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
