"""Device leases: exclusive, inherited by the measured process, and free of deadlock."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pytest_llem.errors import DeviceError
from pytest_llem.job.job import DeviceSet
from pytest_llem.machine.devices import Demand
from pytest_llem.machine.lease_files import Ticket, Waiting, granted, holder, lease_dir
from pytest_llem.machine.leases import ConcurrentRuns, LeaseRequest, take_lease


@pytest.fixture(autouse=True)
def own_leases(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLEM_LEASE_DIR", str(tmp_path / "leases"))


CPU = DeviceSet("cpu")


def test_a_device_is_leased_once_at_a_time_and_the_holder_is_named() -> None:
    with take_lease(CPU, timeout_s=0) as lease:
        lease.occupied_by(pid=4711)
        waited: list[str] = []
        with (
            pytest.raises(DeviceError, match="in use by process 4711"),
            take_lease(CPU, timeout_s=0, on_wait=waited.append),
        ):
            pass
        assert waited == ["waiting for cpu: in use by process 4711"]
    with take_lease(CPU, timeout_s=0):
        pass


def test_other_devices_are_not_affected() -> None:
    with (
        take_lease(DeviceSet("cuda", ("GPU-a",)), timeout_s=0),
        take_lease(DeviceSet("cuda", ("GPU-b",)), timeout_s=0),
    ):
        assert holder("GPU-a").pid == os.getpid()


def test_the_lease_lives_as_long_as_the_process_that_inherited_it() -> None:
    """pytest may die first: the device is free when the measured process is gone, and not before."""
    with take_lease(CPU, timeout_s=0) as lease:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=lease.descriptors)
    with pytest.raises(DeviceError), take_lease(CPU, timeout_s=0):
        pass
    child.communicate(b"\n")
    with take_lease(CPU, timeout_s=5):
        pass


def test_waiting_ends_when_the_device_becomes_free() -> None:
    with take_lease(CPU, timeout_s=0):
        taken = threading.Event()

        def wait() -> None:
            with take_lease(CPU, timeout_s=120):
                taken.set()

        waiting = threading.Thread(target=wait)
        waiting.start()
        time.sleep(0.2)
        assert not taken.is_set()
    waiting.join(120)
    assert taken.is_set()


def test_of_several_free_devices_the_preferred_come_first_and_broken_ones_last() -> None:
    demand = Demand("cuda", ("GPU-a", "GPU-b", "GPU-c"), 1, preferred=("GPU-c",))
    with take_lease(demand, timeout_s=0) as first, take_lease(demand, timeout_s=0) as second:
        assert (first.names, second.names) == (("GPU-c",), ("GPU-a",))
        second.occupied_by(pid=1, not_released="the cycle before")
    two = Demand("cuda", demand.candidates, 2)
    with take_lease(two, timeout_s=0) as lease:
        assert lease.devices == DeviceSet("cuda", ("GPU-b", "GPU-c"))


def test_those_who_wait_are_told_for_whom_and_nothing_that_a_terminal_would_obey() -> None:
    demand = Demand("cuda", ("GPU-a", "GPU-b"), 2)
    told: list[str] = []
    with take_lease(DeviceSet("cuda", ("GPU-b",)), timeout_s=0, request=LeaseRequest("study \x1b[2Jone c1")) as lease:
        lease.occupied_by(pid=4711)
        with pytest.raises(DeviceError, match="no lease for GPU-a and GPU-b in time"):
            take_lease(demand, timeout_s=0, on_wait=told.append)
    assert told == ["waiting for GPU-a and GPU-b: in use by process 4711 (study \\x1b[2Jone c1)"]


RANDOM_DEMANDS = """
import random, sys, time
from pathlib import Path
from pytest_llem.machine.devices import Demand
from pytest_llem.machine.leases import LeaseRequest, take_lease

seed, rounds, log = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
choice, gpus = random.Random(seed), ("GPU-0", "GPU-1", "GPU-2", "GPU-3")
sys.stdin.readline()
for round in range(rounds):
    candidates = tuple(sorted(choice.sample(gpus, choice.randint(1, 4))))
    demand = Demand("cuda", candidates, choice.randint(1, len(candidates)))
    request = LeaseRequest(f"{seed}", f"run {seed % 2}", round * 10 + seed)
    with take_lease(demand, timeout_s=120, request=request) as lease:
        assert len(lease.names) == demand.count and set(lease.names) <= set(candidates)
        for name in lease.names:
            (log / name).touch(exist_ok=False)
        time.sleep(choice.random() * 0.01)
        for name in lease.names:
            (log / name).unlink()
print("done")
"""


def test_random_demands_of_many_processes_all_get_their_turn(tmp_path: Path) -> None:
    """Some want one device of several, some want all: nobody has one that another has, and nobody waits for ever."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANDOM_DEMANDS, str(seed), "12", str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in range(8)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert outputs == ["done\n"] * 8
    assert not list(lease_dir().glob("waiting-*"))


def test_who_needs_two_devices_is_not_overtaken_for_ever_by_those_who_need_one() -> None:
    """One device or the other is always in use; both are free together only because the first is set aside."""
    one, both = Demand("cuda", ("GPU-a", "GPU-b"), 1), Demand("cuda", ("GPU-a", "GPU-b"), 2)
    stop, served = threading.Event(), threading.Event()

    def keep_busy() -> None:
        while not stop.is_set():
            with take_lease(one, timeout_s=60):
                stop.wait(0.3)

    def want_both() -> None:
        with take_lease(both, timeout_s=60):
            served.set()

    threads = [threading.Thread(target=keep_busy) for _ in range(3)]
    for thread in threads:
        thread.start()
        time.sleep(0.1)
    wanting = threading.Thread(target=want_both)
    wanting.start()
    was_served = served.wait(30)
    stop.set()
    for thread in (*threads, wanting):
        thread.join(60)
    assert was_served


@pytest.mark.parametrize(
    ("waiting", "free", "expected"),
    [
        ([], "ab", ("a",)),
        ([Ticket(1, ("a", "b"), 1)], "ab", ("b",)),
        ([Ticket(1, ("a", "b"), 2)], "a", ()),
        ([Ticket(1, ("b", "c"), 2)], "ab", ("a",)),
        ([Ticket(1, ("b",), 1)], "b", ()),
        ([Ticket(9, ("a", "b"), 2)], "a", ("a",)),
        ([Ticket(1, ("a", "b"), 1, "run", 7)], "a", ("a",)),
        ([Ticket(1, ("a", "b"), 1, "other run", 7)], "a", ()),
        ([Ticket(9, ("a", "b"), 1, "run", 2)], "b", ()),
    ],
    ids=[
        "alone", "after one for one", "not into what two need", "past those who want others", "after one for the same",
        "before a later one", "before a later place of its run", "not before another run", "after an earlier place",
    ],
)  # fmt: skip
def test_devices_are_given_in_turn(waiting: list[Ticket], free: str, expected: tuple[str, ...]) -> None:
    mine = Ticket(5, ("a", "b"), 1, "run", 3)
    assert granted(mine, waiting, lambda device: device in free) == expected


def test_a_suspended_process_does_not_keep_others_from_what_is_free(tmp_path: Path) -> None:
    with take_lease(CPU, timeout_s=0), Waiting(("cpu",), 1, None, None) as suspended:
        assert [ticket.number for ticket in _others()] == [suspended.ticket.number]
        [path] = lease_dir().glob("waiting-*")
        os.utime(path, (1.0, 1.0))
        assert _others() == []


def _others() -> list[Ticket]:
    with Waiting(("cpu",), 1, None, None) as mine:
        return mine.others()


def test_other_runs_that_measure_meanwhile_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_XDIST_WORKER_COUNT", raising=False)

    def lease(device: str, run: str) -> contextlib.AbstractContextManager[object]:
        return take_lease(DeviceSet("cuda", (device,)), timeout_s=0, request=LeaseRequest(run=run))

    with lease("GPU-a", "before"):
        pass
    time.sleep(0.1)  # more than the clock's step, so that it was before
    with lease("GPU-b", "mine"), lease("GPU-c", "mine"):
        alone = ConcurrentRuns("mine")
        with lease("GPU-d", "other"):
            begun_with_another = ConcurrentRuns("mine")
        assert alone.count() == 2, "another run came and went"
        time.sleep(0.1)
        with lease("GPU-a", "third"):
            assert begun_with_another.count() == 3
        assert ConcurrentRuns("mine").count() == 1 + 1, "the third one was here just now"
        time.sleep(0.1)
        monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "4")
        assert ConcurrentRuns("mine").count() == 4


def test_the_directory_is_shared_by_all_users() -> None:
    with take_lease(CPU, timeout_s=0):
        assert stat.S_IMODE(lease_dir().stat().st_mode) == 0o1777
        assert stat.S_IMODE((lease_dir() / "cpu.lock").stat().st_mode) == 0o666


def test_a_directory_that_cannot_be_made_names_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLEM_LEASE_DIR", str(tmp_path / "file" / "leases"))
    with pytest.raises(DeviceError, match="LLEM_LEASE_DIR"), take_lease(CPU, timeout_s=0):
        pass
