"""What a dead pytest leaves behind is ended by the next holder of the lease, and nothing else ever is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pytest_llem.errors import DeviceError
from pytest_llem.job.job import DeviceSet
from pytest_llem.machine.lease_files import LeaseFacts, holder, lease_dir
from pytest_llem.machine.leases import end_orphaned_workers, take_lease

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


def test_the_worker_of_a_killed_pytest_is_ended_by_the_next_holder(run: StartedRun) -> None:
    pytest_process, worker = run
    pytest_process.kill()
    pytest_process.wait()
    assert worker.is_running()

    with take_lease(CPU, timeout_s=0) as lease:
        assert lease.previous["cpu"].pid == worker.pid

    worker.wait(10)


def test_leftovers_are_ended_on_request_where_nobody_comes_to_hold_the_device(run: StartedRun) -> None:
    pytest_process, worker = run
    assert end_orphaned_workers() == [], "its pytest lives"

    pytest_process.kill()
    pytest_process.wait()

    assert end_orphaned_workers() == [worker.pid]
    worker.wait(10)


def test_the_worker_of_a_living_pytest_is_waited_for(run: StartedRun) -> None:
    _, worker = run

    with pytest.raises(DeviceError, match=f"in use by process {worker.pid}"), take_lease(CPU, timeout_s=0.3):
        pass

    assert worker.is_running()


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: {**facts, "start_ticks": facts["start_ticks"] + 1},
        lambda facts: {**facts, "boot_id": "of another boot"},
        lambda facts: {**facts, "pid_namespace": "pid:[1]"},
        lambda facts: {key: value for key, value in facts.items() if key != "owner"},
    ],
    ids=["reused process id", "another boot", "another namespace", "unknown owner"],
)
def test_a_process_that_is_not_surely_the_leftover_is_left_alone(
    run: StartedRun, change: Callable[[dict[str, object]], dict[str, object]]
) -> None:
    pytest_process, worker = run
    pytest_process.kill()
    pytest_process.wait()
    path = lease_dir() / "cpu.lock"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))

    with pytest.raises(DeviceError), take_lease(CPU, timeout_s=0.3):
        pass

    assert worker.is_running()


def test_a_process_without_a_group_of_its_own_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Killing the group of such a process would end whoever started it, too."""
    monkeypatch.setenv("LLEM_LEASE_DIR", str(tmp_path / "leases"))
    with subprocess.Popen(["sleep", "600"]) as ours:
        with take_lease(CPU, timeout_s=0) as lease:
            lease.occupied_by(pid=ours.pid)
            path = lease_dir() / "cpu.lock"
            facts = json.loads(path.read_text())
            path.write_text(json.dumps({**facts, "owner": ours.pid + 1, "owner_start_ticks": -1}))
        assert os.getpgid(ours.pid) != ours.pid
        with take_lease(CPU, timeout_s=0):
            pass
        assert ours.poll() is None
        ours.kill()


def test_without_leases_nothing_is_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLEM_LEASE_DIR", "none")
    with take_lease(CPU, timeout_s=0) as one, take_lease(CPU, timeout_s=0) as other:
        assert one.names == other.names == ()
        assert holder("cpu") == LeaseFacts()
