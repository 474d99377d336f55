"""An experiment on the CPU runs on the CPUs and memory that its study names, or says why it cannot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pytest_llem.errors import DeviceError, SettingsError
from pytest_llem.job.config import DeviceSettings
from pytest_llem.worker import pinning
from pytest_llem.worker.pinning import cpus_text, parse_cpus, pinned, pinned_cpus

FIRST = min(os.sched_getaffinity(0))


@pytest.fixture
def two_sockets(tmp_path: Path) -> Path:
    """The files of a machine with CPUs 0-7, of which 5 is offline, in two nodes, and with a third of memory alone."""
    lists = {
        "cpu/present": "0-7", "cpu/online": "0-4,6-7", "node/online": "0-2",
        "node/node0/cpulist": "0-3", "node/node1/cpulist": "4,6-7", "node/node2/cpulist": "",
    }  # fmt: skip
    for name, text in lists.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return tmp_path


@pytest.mark.parametrize("text", ["0", "0-3", "0-1,4", "1,3,5-6"])
def test_lists_are_read_and_written_as_the_kernel_does(text: str) -> None:
    assert cpus_text(parse_cpus(text)) == text
    assert parse_cpus(" 3, 1-2 ,2") == {1, 2, 3}


@pytest.mark.parametrize("text", ["", "x", "3-1", "1,", "-1", "0-9999999999", "0x1"])
def test_what_is_no_list_is_refused_whole(text: str) -> None:
    """A range without end would be made in memory."""
    with pytest.raises(SettingsError, match=r"device\.cpus"):
        parse_cpus(text)


@pytest.mark.parametrize(
    ("cpus", "node", "chosen"),
    [("0-1", None, [0, 1]), (None, 0, [0, 1, 2, 3]), (None, 1, [4, 6]), ("6", 1, [6]), (None, None, [])],
)
def test_a_node_without_cpus_named_has_all_of_its_own_that_may_be_used(
    two_sockets: Path, cpus: str | None, node: int | None, chosen: list[int]
) -> None:
    device = DeviceSettings(cpus=cpus, numa_node=node)
    assert pinned_cpus(device, system=two_sockets, allowed=[0, 1, 2, 3, 4, 6]) == chosen


@pytest.mark.parametrize(
    ("cpus", "node", "message"),
    [
        ("0,8-9", None, r"there is no CPU 8-9 on .*, which has 0-7"),
        ("4-5", None, r"CPU 5 of .* is offline, 0-4,6-7 are online"),
        ("6-7", None, r"this process may not use CPU 7 of .*, only 0-4,6"),
        ("3-4", 1, r"CPU 3 is not in device.numa_node 1 \(CPUs 4,6-7\)"),
        (None, 3, r"device.numa_node 3: .* has no such node, its nodes are 0-2"),
        (None, 2, r"device.numa_node 2: it has no CPUs"),
    ],
)
def test_what_the_machine_lacks_is_named_with_what_it_has(
    two_sockets: Path, cpus: str | None, node: int | None, message: str
) -> None:
    """sched_setaffinity takes a set of which one CPU exists, and silently leaves out the others."""
    with pytest.raises(DeviceError, match=message) as caught:
        pinned_cpus(DeviceSettings(cpus=cpus, numa_node=node), system=two_sockets, allowed=[0, 1, 2, 3, 4, 6])
    assert caught.value.fix


PINNED = """
import json, os, threading
from pytest_llem.job.config import DeviceSettings
from pytest_llem.worker.pinning import pin
pin(DeviceSettings(cpus="{cpu}"), in_container=False)
seen = []
thread = threading.Thread(target=lambda: seen.append(sorted(os.sched_getaffinity(0))))
thread.start(); thread.join()
print(json.dumps([sorted(os.sched_getaffinity(0)), *seen]))
"""


def test_all_threads_of_a_pinned_process_stay_on_its_cpus() -> None:
    done = subprocess.run([sys.executable, "-c", PINNED.format(cpu=FIRST)], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == [[FIRST], [FIRST]]


def test_what_is_started_meanwhile_is_pinned_and_this_thread_afterwards_is_not() -> None:
    """pytest itself, and every server of the next experiment, would stay on those CPUs."""
    before = os.sched_getaffinity(0)
    with pinned(DeviceSettings(cpus=str(FIRST))):
        done = subprocess.run(
            [sys.executable, "-c", "import os; print(*os.sched_getaffinity(0))"], check=True, capture_output=True
        )
    assert done.stdout.split() == [str(FIRST).encode()]
    assert os.sched_getaffinity(0) == before


def test_this_thread_is_free_again_where_memory_cannot_be_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that forbids set_mempolicy: every later experiment that names no CPUs would run on these."""
    before = os.sched_getaffinity(0)
    monkeypatch.setattr(pinning, "MEMPOLICY_CALLS", {})
    monkeypatch.setattr(pinning, "_many_nodes", lambda: True)
    with (
        pytest.raises(DeviceError, match="memory cannot be bound"),
        pinned(DeviceSettings(cpus=str(FIRST), numa_node=0)),
    ):
        pass
    after = os.sched_getaffinity(0)
    os.sched_setaffinity(0, before)
    assert after == before


def test_memory_is_bound_to_a_node_and_the_policy_can_be_put_back() -> None:
    """A policy that stays is that of every server of the next experiment."""
    seen: list[object] = []

    def bind() -> None:  # the policy is a thread's own, and ends with it
        before = pinning._mempolicy()
        mask = pinning._mask()
        mask[0] = 1
        seen.append(pinning._set_mempolicy(pinning.MPOL_BIND, mask))
        mode, nodes = pinning._mempolicy()
        seen.append((mode, nodes[0]))
        pinning._set_mempolicy(*before)
        seen.append(pinning._mempolicy()[0] == before[0])

    thread = threading.Thread(target=bind)
    thread.start()
    thread.join()
    if seen[0] is not None:
        pytest.skip(f"set_mempolicy: {seen[0]}")
    assert seen[1:] == [(pinning.MPOL_BIND, 1), True]
