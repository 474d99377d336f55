"""Which server a cycle measures: one started for it, one that listens here, or one on another machine."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_llem.job.config import Decoding, ExperimentConfig, MeasurementSettings, WorkloadSettings
from pytest_llem.job.job import Deadlines, DeviceSet, Job, MeterSettings, ServerProcess
from pytest_llem.worker import servers
from pytest_llem.worker.servers import RunningServer, find_server

LISTENER = """
import socket, sys
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
sys.stdin.read()
"""


def job(url: str | None, started: ServerProcess | None = None) -> Job:
    config = ExperimentConfig(
        model="m",
        engine="openai",
        dtype=None,
        weights="real",
        workload=WorkloadSettings("synthetic", 1, 4, 4, 0),
        decoding=Decoding(),
        measurement=MeasurementSettings(1.0),
        settings={} if url is None else {"base_url": url},
    )
    made = Job("r", "s", "e", "0" * 64, config, 1, 1, DeviceSet("cpu"), MeterSettings(), Deadlines(60.0))
    return replace(made, server=started)


@pytest.fixture
def listener() -> Iterator[tuple[int, int]]:
    """A process that listens at a port: its id, and the port."""
    command = [sys.executable, "-c", LISTENER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        yield process.pid, port
        process.kill()


def test_a_server_that_listens_here_is_found_with_its_process(listener: tuple[int, int]) -> None:
    pid, port = listener
    for host in ("127.0.0.1", "localhost"):
        assert find_server(job(f"http://{host}:{port}/v1")).tree == RunningServer(pid)


def test_a_process_that_cannot_be_seen_is_unknown_and_not_the_wrong_one() -> None:
    with socket.socket() as unbound:
        unbound.bind(("127.0.0.1", 0))
        found = find_server(job(f"http://127.0.0.1:{unbound.getsockname()[1]}/v1"))
    assert (found.tree, found.elsewhere) == (RunningServer(None), None)


def test_energy_of_another_machine_is_not_that_of_the_sensors_here() -> None:
    found = find_server(job("http://203.0.113.77:8000/v1"))
    assert found.tree is None
    assert found.elsewhere is not None
    assert found.elsewhere.code == "server_elsewhere"
    assert "203.0.113.77" in found.elsewhere.message


@pytest.mark.parametrize(
    ("program", "elsewhere"), [("ssh", True), ("sshd-session", True), ("docker-proxy", False), ("nginx", False)]
)
def test_a_port_that_leads_on_is_not_taken_for_the_server(
    listener: tuple[int, int], monkeypatch: pytest.MonkeyPatch, program: str, elsewhere: bool
) -> None:
    """A tunnel's CPU time, or a proxy's, is not what the server draws."""
    monkeypatch.setattr(servers, "program", lambda _pid: program)
    found = find_server(job(f"http://127.0.0.1:{listener[1]}/v1"))
    assert (found.elsewhere is not None) == elsewhere
    assert found.tree == (None if elsewhere else RunningServer(None))


def test_a_server_that_was_started_for_the_cycle_is_known(tmp_path: Path) -> None:
    started = ServerProcess(7, "command", str(tmp_path / "server.log"), 0, 1.0)
    assert find_server(job("http://127.0.0.1:1/v1", started)).tree == started
    assert find_server(job(None)).tree is None
