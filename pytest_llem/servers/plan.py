"""What a study asks of its servers, before anything runs: what cannot be had, and how often they will be started."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pytest_llem.errors import JsonValue, StudyError
from pytest_llem.servers.spec import ENGINE
from pytest_llem.study import Experiment, Study
from pytest_llem.study.canonical import Get, getter

LOAD_SETTINGS = (
    "openai.command",
    "openai.image",
    "openai.server_args",
    "openai.environment",
    "openai.tensor_parallel_size",
    "model",
    "revision",
    "dtype",
    "weights",
)
"""What a server is started with; the devices, which a plan does not know, come to it (`spec.ServerSpec`)."""


def require_possible_servers(study: Study, runner_of: Callable[[str], str]) -> None:
    """Raise `StudyError` for servers that would have to be started where they cannot be measured or kept.

    `runner_of` gives the name of an engine's runner.
    """
    experiment = next((one for one in study.experiments if _server_of(one) is not None), None)
    if experiment is None:
        return
    started = "openai.image" if getter(experiment.flat_settings)("openai.image") is not None else "openai.command"
    said = f"{study.locate(started)}: a server that is started ({started})"
    isolation = study.execution.isolation
    if isolation != "process":
        raise StudyError(
            f"{said} cannot be combined with execution.isolation: {isolation}",
            fix="leave isolation out: a server stays loaded for all cycles that it can serve anyway",
        )
    runner = runner_of(ENGINE)
    if runner != "local":
        raise StudyError(
            f"{said} cannot be combined with the runner {runner}: its processes would not be counted from there",
            fix="use the runner local for openai (the server itself may be a container: openai.image), or start the "
            "server yourself and give openai.base_url",
        )


def server_notice(study: Study) -> str | None:
    """How often servers are started, where that is more often than there are servers; `None` where it is not."""
    if all(experiment.engine != ENGINE for experiment in study.experiments):
        return None
    keys = {experiment.id: _kept_server_of(experiment) for experiment in study.experiments}
    starts = _starts(keys[experiment.id] for experiment, _ in study.schedule())
    servers = len({key for key in keys.values() if key is not None})
    if starts <= servers:
        return None
    order = study.execution.order
    several = "server" if servers == 1 else f"{servers} servers"
    least = _starts(keys[experiment.id] for experiment, _ in study.schedule(order="sequential"))
    if least == servers:
        better = f"with order: sequential it would be {servers}"
    else:
        better = f"with order: sequential, and what a server is started with first in the sweep, it would be {servers}"
    return f"study {study.name}: order: {order} starts its {several} {starts} times in all; {better}"


def _starts(servers: Iterable[str | None]) -> int:
    """How often the server changes to another one, from none at first."""
    starts, before = 0, None
    for server in servers:
        starts += server is not None and server != before
        before = server
    return starts


def _kept_server_of(experiment: Experiment) -> str | None:
    """What the experiment's server is known by, if it is kept for others; one that is not is started for each cycle."""
    return _server_of(experiment) if getter(experiment.flat_settings)("openai.keep_server") is not False else None


def _server_of(experiment: Experiment) -> str | None:
    """What the experiment's server is known by; `None` when none is started for it."""
    if experiment.engine != ENGINE:
        return None
    get: Get = getter(experiment.flat_settings)
    if get("openai.command") is None and get("openai.image") is None:
        return None
    values: list[JsonValue] = [get(path) for path in LOAD_SETTINGS]
    return repr(values)
