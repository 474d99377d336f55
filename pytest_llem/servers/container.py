"""A server started in a container of a stock image, and what can be asked of such an image beforehand.

`starting.begin_server` makes one; `runner` and `session.measuring` ask about images. The image may hold no Python, so
the container must be ended from outside: by `stop`, or by `reaper` when this process is gone.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal

import docker
import requests
from docker.errors import APIError

from pytest_llem.containers.daemon import DaemonFacts, connect, daemon_facts, docker_errors
from pytest_llem.containers.ephemeral import end_state
from pytest_llem.containers.errors import translate_docker_error
from pytest_llem.containers.images import ensure_image, image_facts
from pytest_llem.containers.inputs import HUB, Mounted, found_here
from pytest_llem.containers.options import ContainerRequest, ImageFacts, create, passed_on
from pytest_llem.containers.orphaned_containers import SessionIdentity, remove, remove_orphans
from pytest_llem.containers.preflight import require_pullable
from pytest_llem.containers.stream import Attachment, OutputPump
from pytest_llem.errors import JsonValue, LlemError, RunnerError
from pytest_llem.job.job import Job
from pytest_llem.job.redaction import redact, secrets_of
from pytest_llem.machine.processes import start_ticks
from pytest_llem.servers.server import Begin, Ended, Server, Tell, listens_below
from pytest_llem.servers.spec import LOOPBACK, Launch, ServerSpec
from pytest_llem.study.runner_settings import DockerSettings

HOST = "host"

LAST_S = 5.0
"""How long the rest of a removed container's output may take. Chosen: it is local, and there is little of it."""


def begin_container(
    spec: ServerSpec, job: Job, docker_section: Mapping[str, JsonValue], tell: Tell, descriptors: Sequence[int] = ()
) -> Begin:
    """Pull the image if needed, and return how to start the server in it; `descriptors` as in `ContainerServer`.

    The server shares the host's network, unless the study's `docker.network` says `bridge`: then its port alone is
    published, on loopback. Raises `DockerError`, `ModelNotFoundError`, and `RunnerError` for a daemon elsewhere.
    """
    settings = DockerSettings.from_mapping(docker_section)
    assert spec.image is not None, "a server in a container has an image"
    with closing(connect()) as client:
        require_local(daemon_facts(client), spec.image)
        remove_orphans(client)
        image = ensure_image(client, spec.image, pull=settings.pull, timeout_s=settings.pull_timeout_s, tell=tell)
    network = HOST if settings.network == "auto" else settings.network
    model = spec.model_location()
    mounted = found_here("models", model)
    # Only the study's model is mounted: whatever else the image would download belongs to the image
    hub = {"HF_HUB_CACHE": HUB, "HF_HUB_OFFLINE": "1"} if mounted is not None else {}

    def begin(port: int, log: Path) -> Server:
        launch = spec.filled(model, LOOPBACK if network == HOST else "0.0.0.0", port)
        request = ContainerRequest(
            name=f"llem-server-{uuid.uuid4().hex[:12]}",
            image=image,
            command=launch.arguments,
            devices=job.devices,
            settings=settings,
            network=network,
            mounts=(*((mounted,) if mounted is not None else ()), *(Mounted(path, path) for path in settings.mounts)),
            labels=SessionIdentity().labels(job.run_id),
            secrets={} if mounted is not None else secrets_of(os.environ),
            environment={
                "PYTHONUNBUFFERED": "1",
                **hub,
                **passed_on(os.environ),
                **job.environment,
                **launch.environment,
            },
            waits=False,
            entrypoint=launch.command,
            publish=None if network == HOST else port,
            pinned=job.config.device,
        )
        return ContainerServer(request, launch, log, descriptors)

    return begin


def require_local(daemon: DaemonFacts, image: str) -> None:
    """Raise `RunnerError` for a daemon on another machine, whose devices and ports are not this machine's."""
    if not daemon.local:
        raise RunnerError(
            f"openai.image {image}: the Docker daemon at {daemon.address} is not on this machine",
            fix="start the server there yourself and give its address in openai.base_url",
        )


def unusable_images(images: Iterable[str], docker_section: Mapping[str, JsonValue]) -> Iterator[LlemError]:
    """Why servers cannot start in these images: the daemon, or an image that is neither present nor to be pulled."""
    try:
        client = connect()
    except LlemError as error:
        yield error
        return
    with closing(client):
        for image in images:
            try:
                require_local(daemon_facts(client), image)
                if image_facts(client, image) is None:
                    require_pullable(client, image, str(docker_section.get("pull")))
            except LlemError as error:
                yield error


def known_image(image: str) -> str:
    """The digest, else the id, of a local image; its name if it is not present or the daemon does not respond."""
    try:
        with closing(connect()) as client:
            facts = image_facts(client, image)
    except LlemError:
        return image
    return image if facts is None else facts.digest or facts.id


class ContainerServer:
    """A container, removed at the latest by `reaper`, which holds `descriptors` (a lease's) until it is gone."""

    started_as: Literal["command", "container"] = "container"

    def __init__(self, request: ContainerRequest, launch: Launch, log: Path, descriptors: Sequence[int] = ()) -> None:
        """Create and start it. Raises `DockerError`, and leaves nothing behind then."""
        self.log = log
        self._request = request
        self._launch = launch
        self._ended: Ended | None = None
        self._stopped = False
        self._client: docker.DockerClient = connect()
        try:
            with docker_errors(request.image.name):
                self._container = create(self._client, request)
        except BaseException:
            self._client.close()
            raise
        self._reaper = subprocess.Popen(
            [sys.executable, "-m", "pytest_llem.servers.reaper", str(self._container.id)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=tuple(descriptors),
        )
        self._attachment: Attachment | None = None
        try:
            with docker_errors(request.image.name):
                streams = {"stdout": 1, "stderr": 1, "stream": 1}
                self._attachment = Attachment(self._container.attach_socket(params=streams))
                self._pump = OutputPump(self._attachment.frames(), log)
                self._pump.start()
                self._container.start()
                self._container.reload()
        except BaseException:
            self.stop(0.0)
            raise
        self._pid = pid_here(int(self._container.attrs["State"]["Pid"]), str(self._container.id))

    @property
    def pid(self) -> int | None:
        """The container's first process, where this machine's process ids are the daemon's."""
        return self._pid

    @property
    def facts(self) -> Mapping[str, JsonValue]:
        """The image, the network and the command."""
        image: ImageFacts = self._request.image
        return {
            "image": image.name,
            "image_digest": image.digest or image.id,
            "container": self._request.name,
            "network": self._request.network,
            "command": [redact(word) for word in self._launch.words],
        }

    def ended(self) -> Ended | None:
        """See `Server.ended`: the daemon is asked only once the output has ended."""
        if self._ended is None:
            self._pump.next_event(0.0)
            if self._pump.ended:
                code, out_of_memory = end_state(self._container)
                error = translate_docker_error(
                    code if code else 1, self._pump.last_output, self._request.image.name, oom_killed=out_of_memory
                )
                reason = f"its container ended with exit code {code}" if code is not None else "the daemon lost it"
                if error.category in ("app_error", "docker"):
                    self._ended = Ended(code, reason)
                else:
                    self._ended = Ended(code, f"{reason} ({error.message})", error.fix)
        return self._ended

    def serves(self, port: int) -> bool:
        """See `Server.serves`; a published port is the daemon's own."""
        return self._pid is None or self._request.network != HOST or listens_below(self._pid, port)

    def stop(self, grace_s: float) -> None:
        """See `Server.stop`."""
        if self._stopped:
            return
        try:
            if grace_s > 0 and self._ended is None:
                with contextlib.suppress(APIError, requests.exceptions.RequestException):
                    self._container.kill("SIGTERM")
                deadline = time.monotonic() + grace_s
                while self.ended() is None and time.monotonic() < deadline:
                    time.sleep(0.05)
        finally:
            self._stopped = True
            removed = remove(self._container)
            if self._attachment is not None:
                for _ in self._pump.rest(LAST_S):
                    pass
                self._attachment.close()
            self._client.close()
            if removed:
                self._reaper.kill()
            # What could not be removed now is the reaper's, and then the next session's
            self._reaper.communicate()


def pid_here(pid: int, container: str) -> int | None:
    """The daemon's process id if it is the same process here; `None` where the daemon has another pid namespace."""
    if start_ticks(pid) is None:
        return None
    with contextlib.suppress(OSError):
        if container in Path(f"/proc/{pid}/cgroup").read_text(encoding="ascii"):
            return pid
    return None
