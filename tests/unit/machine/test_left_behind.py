"""The next holder of a lease waits for what a dead pytest leaves behind, which ends by itself."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pytest_llem.errors import DeviceError
from pytest_llem.job.job import DeviceSet
from pytest_llem.machine.lease_files import LeaseFacts, holder, lease_dir
from pytest_llem.machine.leases import take_lease
from pytest_llem.machine.processes import owner_is_gone

CPU = DeviceSet("cpu")

PYTEST_STAND_IN = """
import subprocess, sys
from pytest_llem.job.job import DeviceSet
from pytest_llem.machine.leases import take_lease
lease = take_lease(DeviceSet("cpu"), timeout_s=0)
worker = subprocess.Popen(
    [sys.executable, "-c", "import time; time.sleep(600)"], pass_fds=lease.descriptors, start_new_session=True
)
lease.occupied_by(pid=worker.pid)
print(worker.pid, flush=True)
sys.stdin.read()
"""

StartedRun = tuple[subprocess.Popen[str], psutil.Process]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StartedRun]:
    """A process that holds the CPU's lease, as pytest does, and its worker, which inherited it."""
    monkeypatch.setenv("LLEM_LEASE_DIR", str(tmp_path / "leases"))
    command = [sys.executable, "-c", PYTEST_STAND_IN]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as pytest_process:
        assert pytest_process.stdout is not None
        worker = psutil.Process(int(pytest_process.stdout.readline()))
        yield pytest_process, worker
        pytest_process.kill()
    if worker.is_running():
        worker.kill()


def test_the_next_holder_waits_until_the_worker_of_a_killed_pytest_has_ended(run: StartedRun) -> None:
    pytest_process, worker = run
    pytest_process.kill()
    pytest_process.wait()
    threading.Timer(0.5, worker.kill).start()

    with take_lease(CPU, timeout_s=0) as lease:
        assert lease.previous["cpu"].pid == worker.pid


def test_the_worker_of_a_living_pytest_is_waited_for(run: StartedRun) -> None:
    _, worker = run

    with pytest.raises(DeviceError, match=f"in use by process {worker.pid}"), take_lease(CPU, timeout_s=0.3):
        pass

    assert worker.is_running()


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: {**facts, "boot_id": "of another boot"},
        lambda facts: {**facts, "pid_namespace": "pid:[1]"},
        lambda facts: {key: value for key, value in facts.items() if key != "owner"},
    ],
    ids=["another boot", "another namespace", "unknown owner"],
)
def test_a_pytest_that_is_not_surely_dead_counts_as_alive(
    run: StartedRun, change: Callable[[dict[str, object]], dict[str, object]]
) -> None:
    pytest_process, _ = run
    assert not owner_is_gone(holder("cpu"))
    pytest_process.kill()
    pytest_process.wait()
    assert owner_is_gone(holder("cpu"))
    path = lease_dir() / "cpu.lock"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))

    assert not owner_is_gone(holder("cpu"))


def test_without_leases_nothing_is_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLEM_LEASE_DIR", "none")
    with take_lease(CPU, timeout_s=0) as one, take_lease(CPU, timeout_s=0) as other:
        assert one.names == other.names == ()
        assert holder("cpu") == LeaseFacts()
