"""Whether the hub would hand out a model or data set: one small request."""

from __future__ import annotations

import os
import urllib.error
import urllib.request

from pytest_llem.containers.errors import DockerError, docker_error

ENDPOINT = "https://huggingface.co"


def hub_problem(name: str, image: str, *, timeout_s: float = 10.0) -> DockerError | None:
    """Why the hub would refuse the model `name` to the container; `None` when it would not.

    Asks for the model's configuration, since a gated model's page is public. A data set is asked for by its page.
    """
    endpoint = os.environ.get("HF_ENDPOINT", ENDPOINT).rstrip("/")
    request = urllib.request.Request(f"{endpoint}/{name}/resolve/main/config.json", method="HEAD")
    token = os.environ.get("HF_TOKEN")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=timeout_s):
            return None
    except urllib.error.HTTPError as answer:
        if answer.code in (401, 403):
            code = answer.headers.get("X-Error-Code")
            absent = code == "RepoNotFound" or (code is None and not token)
            return docker_error("hf_not_found" if absent else "hf_gated", image, said=f"{name}: HTTP {answer.code}")
        if answer.code == 404:
            return docker_error("hf_not_found", image, said=f"{name}: HTTP 404")
        return docker_error("network", image, said=f"{endpoint} answered HTTP {answer.code} for {name}")
    except (urllib.error.URLError, TimeoutError, ConnectionError) as problem:
        return docker_error("network", image, said=f"{endpoint} cannot be reached for {name}: {problem}")
