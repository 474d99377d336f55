"""Device leases: exclusive, inherited by the measured process, and free of deadlock."""

from __future__ import annotations

import random
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pytest_llem.errors import DeviceError
from pytest_llem.job import DeviceSet
from pytest_llem.runners.lease import device_lease, holder, lease_dir


@pytest.fixture(autouse=True)
def own_leases(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLEM_LEASE_DIR", str(tmp_path / "leases"))


CPU = DeviceSet("cpu")


def test_a_device_is_leased_once_at_a_time_and_the_holder_is_named() -> None:
    with device_lease(CPU, timeout_s=0) as lease:
        lease.occupied_by(pid=4711)
        waited: list[str] = []
        with (
            pytest.raises(DeviceError, match="in use by process 4711"),
            device_lease(CPU, timeout_s=0, on_wait=waited.append),
        ):
            pass
        assert waited == ["waiting for cpu: in use by process 4711"]
    with device_lease(CPU, timeout_s=0):
        pass


def test_other_devices_are_not_affected() -> None:
    with (
        device_lease(DeviceSet("cuda", ("GPU-a",)), timeout_s=0),
        device_lease(DeviceSet("cuda", ("GPU-b",)), timeout_s=0),
    ):
        assert "pid" in holder("GPU-a")


def test_the_lease_lives_as_long_as_the_process_that_inherited_it() -> None:
    """pytest may die first: the device is free when the measured process is gone, and not before."""
    with device_lease(CPU, timeout_s=0) as lease:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=lease.descriptors)
    with pytest.raises(DeviceError), device_lease(CPU, timeout_s=0):
        pass
    child.communicate(b"\n")
    with device_lease(CPU, timeout_s=5):
        pass


def test_waiting_ends_when_the_device_becomes_free() -> None:
    with device_lease(CPU, timeout_s=0):
        taken = threading.Event()

        def wait() -> None:
            with device_lease(CPU, timeout_s=10):
                taken.set()

        waiting = threading.Thread(target=wait)
        waiting.start()
        time.sleep(0.2)
        assert not taken.is_set()
    waiting.join(10)
    assert taken.is_set()


def test_random_demands_on_four_devices_all_get_their_turn() -> None:
    """Taken in one order everywhere: two cycles that want the same two devices cannot wait for one another."""
    done: list[int] = []

    def demand(seed: int) -> None:
        choice = random.Random(seed)
        for _ in range(3):
            wanted = choice.sample(["GPU-0", "GPU-1", "GPU-2", "GPU-3"], choice.randint(1, 4))
            with device_lease(DeviceSet("cuda", tuple(wanted)), timeout_s=60):
                time.sleep(0.001)
        done.append(seed)

    threads = [threading.Thread(target=demand, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(done) == list(range(8))


def test_the_directory_is_shared_by_all_users() -> None:
    with device_lease(CPU, timeout_s=0):
        assert stat.S_IMODE(lease_dir().stat().st_mode) == 0o1777
        assert stat.S_IMODE((lease_dir() / "cpu.lock").stat().st_mode) == 0o666


def test_a_directory_that_cannot_be_made_names_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLEM_LEASE_DIR", str(tmp_path / "file" / "leases"))
    with pytest.raises(DeviceError, match="LLEM_LEASE_DIR"), device_lease(CPU, timeout_s=0):
        pass
