"""Before the first cycle: can the servers of a study be started here at all?"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence

from pytest_llem.errors import JsonValue, LlemError, ServerStartError
from pytest_llem.job.config import ExperimentConfig
from pytest_llem.job.job import DeviceSet
from pytest_llem.runners.protocol import PreflightReport
from pytest_llem.servers.spec import ServerSpec


def check_servers(
    configs: Sequence[ExperimentConfig], devices: DeviceSet, docker: Mapping[str, JsonValue]
) -> PreflightReport:
    """Look for programs, images and the daemon, without starting or pulling anything; what is found is not raised."""
    specs = dict.fromkeys(ServerSpec.of(config, devices) for config in configs)
    programs = dict.fromkeys(spec.command[0] for spec in specs if spec.image is None)
    images = dict.fromkeys(spec.image for spec in specs if spec.image is not None)
    problems = [*_missing(programs), *(_unusable(images, docker) if images else ())]
    return PreflightReport(tuple(problems))


def known_image(image: str) -> str:
    """The digest, else the id, of an image as it lies here; its name where it does not, or nobody answers."""
    from pytest_llem.containers.daemon import connect
    from pytest_llem.containers.images import image_facts

    try:
        client = connect()
        try:
            found = image_facts(client, image)
        finally:
            client.close()
    except LlemError:
        return image
    return image if found is None else found.digest or found.id


def _missing(programs: Mapping[str, None]) -> Iterator[LlemError]:
    for program in programs:
        if "{" not in program and shutil.which(program) is None:
            yield ServerStartError(
                f"openai.command: there is no program {program!r} here",
                fix="install it in this environment, give its path, or use openai.image",
                details={"program": program},
            )


def _unusable(images: Mapping[str, None], docker: Mapping[str, JsonValue]) -> Iterator[LlemError]:
    from pytest_llem.containers.daemon import connect, daemon_facts, docker_errors
    from pytest_llem.containers.errors import docker_error
    from pytest_llem.containers.images import image_facts
    from pytest_llem.servers.container import require_local

    try:
        client = connect()
    except LlemError as error:
        yield error
        return
    try:
        for image in images:
            try:
                require_local(daemon_facts(client), image)
                if image_facts(client, image) is not None:
                    continue
                if docker.get("pull") == "never":
                    raise docker_error("image_not_found", image, said="it is not present, and docker.pull is never")
                with docker_errors(image):
                    client.api.inspect_distribution(image)  # type: ignore[no-untyped-call]
            except LlemError as error:
                yield error
    finally:
        client.close()
