"""Checks the servers of a study before anything runs: combinations that cannot work, and how often servers are started.

`session.options` calls it per loaded study, `reporting` for notices. It must agree with `spec.ServerSpec` on restarts.
"""

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
"""The settings that a server is started with; `spec.ServerSpec` adds the devices, which are not known here."""


def require_possible_servers(study: Study, runner_of: Callable[[str], str]) -> None:
    """Raise `StudyError` for servers that cannot be measured or kept; `runner_of` names an engine's runner."""
    experiment = next((each for each in study.experiments if _server_of(each) is not None), None)
    if experiment is None:
        return
    started = "openai.image" if getter(experiment.flat_settings)("openai.image") is not None else "openai.command"
    server = f"{study.locate(started)}: a server that is started ({started})"
    isolation = study.execution.isolation
    if isolation != "process":
        raise StudyError(
            f"{server} cannot be combined with execution.isolation: {isolation}",
            fix="leave isolation out: a server stays loaded for all cycles that it can serve anyway",
        )
    runner = runner_of(ENGINE)
    if runner != "local":
        raise StudyError(
            f"{server} cannot be combined with the runner {runner}: its processes would not be counted from there",
            fix="use the runner local for openai (the server itself may be a container: openai.image), or start the "
            "server yourself and give openai.base_url",
        )


def server_notice(study: Study) -> str | None:
    """A notice if servers are started more often than there are different servers; else `None`."""
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
    """How many servers are started for cycles in this order, none running at first."""
    starts, before = 0, None
    for server in servers:
        starts += server is not None and server != before
        before = server
    return starts


def _kept_server_of(experiment: Experiment) -> str | None:
    """The key of the experiment's server, if that is kept between cycles; else `None`."""
    return _server_of(experiment) if getter(experiment.flat_settings)("openai.keep_server") is not False else None


def _server_of(experiment: Experiment) -> str | None:
    """The key of the experiment's server, equal for experiments that can share it; `None` when none is started."""
    if experiment.engine != ENGINE:
        return None
    get: Get = getter(experiment.flat_settings)
    if get("openai.command") is None and get("openai.image") is None:
        return None
    values: list[JsonValue] = [get(path) for path in LOAD_SETTINGS]
    return repr(values)
