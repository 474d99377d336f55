"""Finds the server that a cycle measures: whether it runs on this machine, and its process tree.

The cycle and the container runner's host meter call it, so that the server's processes count as measured. Without a
known process nothing may be guessed.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from pytest_llem.energy.processes import PROXIES, TUNNELS, is_here, listening_pid, program
from pytest_llem.energy.protocol import ServerTree
from pytest_llem.job.job import Job
from pytest_llem.job.report import Note


@dataclass(frozen=True)
class RunningServer:
    """A server that ran before the cycle; `pid` is `None` if its process is unknown."""

    pid: int | None


@dataclass(frozen=True)
class MeasuredServer:
    """The server whose processes count as measured, if any; or why no meter on this machine can measure it."""

    tree: ServerTree | None = None
    elsewhere: Note | None = None


def find_server(job: Job) -> MeasuredServer:
    """The server of a job: the one started for it, or the process that listens at its `base_url`."""
    url = job.config.settings.get("base_url")
    if job.server is not None or not isinstance(url, str):
        return MeasuredServer(job.server)
    return running_server(url)


def running_server(url: str) -> MeasuredServer:
    """The server that runs already at a URL: the process that listens there."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    if is_here(host) is False:
        return MeasuredServer(elsewhere=_elsewhere(f"{host} is another machine"))
    pid = listening_pid(port)
    name = program(pid) if pid is not None else None
    if name in TUNNELS:
        return MeasuredServer(elsewhere=_elsewhere(f"{name} listens at port {port} and leads to another machine"))
    return MeasuredServer(RunningServer(None if name in PROXIES else pid))


def _elsewhere(why: str) -> Note:
    return Note(
        "server_elsewhere", f"no energy was measured: {why}, and the sensors here do not see what the server draws"
    )
