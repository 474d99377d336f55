"""Reading the texts of Docker, of NVIDIA's container tools and of the engines: from a failed run to one error."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from pytest_llem.containers import error_patterns as patterns
from pytest_llem.containers.error_tree import DockerError, error_classes
from pytest_llem.errors import JsonValue, LlemError
from pytest_llem.redaction import redact

__all__ = ["DockerError", "docker_error", "translate_docker_error"]

SNIPPET_LINES = 15
_SNIPPET_CHARACTERS = 4000
_DAEMON_EXITS = (125, 126, 127)
_DAEMON_EXIT_CATEGORIES = {125: "docker", 126: "command_missing", 127: "command_missing"}
_SIGNAL_EXITS = {130: "interrupted", 135: "shm", 137: "killed", 139: "segfault", 143: "terminated"}
_WORKER_CATEGORIES = {
    "engine_not_installed": "image_contents",
    "interrupted": "interrupted",
    "timeout": "timeout",
}
_VAGUE_WORKER_CATEGORIES = ("error", "engine", "worker", "worker_crashed", "worker_silent", "out_of_memory")
_CLIENT_LINE = re.compile(
    r"docker: |Error response from daemon: |(?:Got )?permission denied while trying to connect to the [Dd]ocker"
    r"|Cannot connect to the Docker daemon|failed to connect to the docker API|error during connect: "
)


def docker_error(
    category: str,
    image: str,
    *,
    said: str | None = None,
    stderr: str = "",
    secrets: Iterable[str] = (),
    facts: Mapping[str, JsonValue] | None = None,
) -> DockerError:
    """The error of a known category: `said` is the telling line, `facts` go into the details beside the snippet."""
    cls = error_classes()[category]
    secrets = tuple(secrets)
    headline = cls.headline.format(image=image)
    message = f"{headline}: {redact(said.strip(), secrets)[:500]}" if said and said.strip() else headline
    details: dict[str, JsonValue] = {"image": image, **(facts or {})}
    snippet = redact("\n".join(stderr.strip().splitlines()[-SNIPPET_LINES:]), secrets)[-_SNIPPET_CHARACTERS:]
    if snippet:
        details["stderr_snippet"] = snippet
    fix = cls.advice.format(image=image) if cls.advice else None
    return cls(message, fix=fix, details=details)


def translate_docker_error(
    returncode: int | None,
    stderr: str | bytes | None,
    image: str,
    *,
    oom_killed: bool = False,
    worker_error: Mapping[str, JsonValue] | LlemError | str | None = None,
) -> DockerError:
    """Say why a container run failed.

    `returncode` is the exit code, with 125 for a refusal by the daemon (`None` counts as such), `stderr` what the
    client or the program wrote, `oom_killed` the daemon's `State.OOMKilled`, `worker_error` the content of the
    worker's `error.json`. Read in this order: the worker's own error; for exits 125 to 127 the daemon's words; the
    inspected state; then the program's own last words. A timeout is never inferred: the runner knows it.
    """
    text = stderr.decode("utf-8", "replace") if isinstance(stderr, bytes) else stderr or ""
    if worker_error:
        category, said = _from_worker(worker_error, oom_killed)
    elif returncode is None or returncode in _DAEMON_EXITS:
        category, said = _from_daemon(returncode, text)
    else:
        category, said = _from_program(returncode, text, oom_killed)
    facts: dict[str, JsonValue] = {"returncode": returncode, "oom_killed": oom_killed}
    return docker_error(category, image, said=said, stderr=text, facts=facts)


def _from_daemon(returncode: int | None, text: str) -> tuple[str, str | None]:
    lines = [line for line in text.splitlines() if line.strip()]
    match = patterns.first_match(patterns.CLIENT, lines) or patterns.first_match(patterns.DAEMON, lines)
    return match or (_DAEMON_EXIT_CATEGORIES[returncode or 125], lines[-1] if lines else None)


def _from_program(returncode: int, text: str, oom_killed: bool) -> tuple[str, str | None]:
    if oom_killed:
        return "host_oom", None
    if returncode == 1:
        # `docker pull` and `docker exec` exit 1 for the daemon's refusals, in the client's own words
        said = [line for line in text.splitlines() if _CLIENT_LINE.match(line)]
        match = patterns.first_match(patterns.CLIENT, said) or patterns.first_match(patterns.DAEMON, said)
        if match:
            return match
    telling = patterns.telling_lines(text)
    match = patterns.first_match(patterns.CONTAINER, telling)
    if match:
        return match
    last = telling[-1] if telling else None
    if returncode in _SIGNAL_EXITS:
        return _SIGNAL_EXITS[returncode], last
    return "app_error", last or f"exit code {returncode} and nothing on standard error"


def _from_worker(worker_error: Mapping[str, JsonValue] | LlemError | str, oom_killed: bool) -> tuple[str, str | None]:
    if isinstance(worker_error, LlemError):
        worker_error = worker_error.to_dict()
    elif isinstance(worker_error, str):
        worker_error = {"message": worker_error}
    category = str(worker_error.get("category", "error"))
    message = str(worker_error.get("message") or worker_error.get("error") or "") or None
    known = _WORKER_CATEGORIES.get(category, category)
    if known in error_classes():
        return known, message
    kind = worker_error.get("type")
    words = [f"{kind}: {line}" if kind else line for line in (message or "").splitlines()]
    trace = worker_error.get("traceback")
    if trace:
        words += [line for line in str(trace).splitlines() if patterns.EXCEPTION_LINE.search(line)]
    match = patterns.first_match(patterns.CONTAINER, words)
    if match:
        return match[0], message
    if category == "model_not_found":
        return "hf_not_found", message
    if oom_killed and category in _VAGUE_WORKER_CATEGORIES:
        return "host_oom", message
    return ("gpu_oom" if category == "out_of_memory" else "app_error"), message
