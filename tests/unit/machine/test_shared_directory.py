"""What another user of the machine may put into the directory of leases: named with its owner and the way out."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_llem.errors import DeviceError
from pytest_llem.job.job import DeviceSet
from pytest_llem.machine import lease_files
from pytest_llem.machine.lease_files import LeaseFacts, deciding, holder, lease_file, read_object
from pytest_llem.machine.leases import ConcurrentRuns, remove_orphans, take_lease

CPU = DeviceSet("cpu")
STRANGER = 65534
"""The user id of `nobody`."""


@pytest.fixture(autouse=True)
def leases(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    directory = tmp_path / "leases"
    directory.mkdir()
    directory.chmod(0o1777)
    monkeypatch.setenv("LLEM_LEASE_DIR", str(directory))
    return directory


def give_away(path: Path) -> None:
    """Let another user own it, where this one may do that."""
    if os.getuid() != 0:
        pytest.skip("only root can make files of another user")
    os.lchown(path, STRANGER, STRANGER)


def refused() -> str:
    with pytest.raises(DeviceError) as caught, take_lease(CPU, timeout_s=0):
        pass
    assert "LLEM_LEASE_DIR" in str(caught.value.fix)
    return caught.value.message


def test_a_symlink_in_place_of_a_lock_is_not_followed(leases: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    lease_file("cpu").symlink_to(mine)
    assert "cpu.lock: a symbolic link" in refused()
    assert mine.read_text() == "mine"


def test_a_second_name_of_a_file_is_not_written(leases: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    os.link(mine, lease_file("cpu"))
    assert "cpu.lock: a file with another name elsewhere" in refused()
    assert mine.read_text() == "mine"


def test_a_pipe_in_place_of_a_lock_is_refused_and_never_waited_for(leases: Path) -> None:
    os.mkfifo(lease_file("cpu"))
    os.mkfifo(leases / "GPU-1.lock")
    (leases / "GPU-2.lock").symlink_to("/dev/zero")
    os.mkfifo(leases / "waiting-000000000001-1-ab.json")
    assert "cpu.lock: not a regular file" in refused()
    assert holder("GPU-1") == holder("GPU-2") == LeaseFacts()
    remove_orphans(lambda: pytest.fail("a container?"))
    assert ConcurrentRuns("run").count() == 1


def test_the_owner_of_what_is_in_the_way_is_named(leases: Path) -> None:
    os.mkfifo(lease_file("cpu"))
    give_away(lease_file("cpu"))
    assert "it is of the user nobody" in refused()


def test_a_directory_that_another_user_has_linked_is_refused(
    leases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "link"
    link.symlink_to(leases)
    monkeypatch.setenv("LLEM_LEASE_DIR", str(link))
    with take_lease(CPU, timeout_s=0):
        pass  # one's own link is one's own choice
    give_away(link)
    assert f"{link}: a symbolic link; it is of the user nobody" in refused()


def test_only_a_directory_of_ones_own_making_is_opened_to_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    monkeypatch.setenv("LLEM_LEASE_DIR", str(private))
    with take_lease(CPU, timeout_s=0):
        pass
    assert private.stat().st_mode & 0o7777 == 0o700


def test_who_keeps_the_queue_locked_is_named(leases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_files, "DECIDE_LIMIT_S", 0.05)
    with take_lease(CPU, timeout_s=0):
        pass
    held = os.open(leases / lease_files.DECISION, os.O_RDWR)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(DeviceError, match=f"process {os.getpid()} of the user ") as caught, deciding():
            pass
        assert "LLEM_LEASE_DIR" in str(caught.value.fix)
    finally:
        os.close(held)


def test_who_holds_a_device_is_named_whatever_its_file_says(leases: Path) -> None:
    lie = json.dumps({"pid": 1, "owner": 1, "title": "innocent"})
    code = (
        "import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True); input()"
    )
    lease_file("cpu").write_text(lie)
    command = [sys.executable, "-c", code, str(lease_file("cpu"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        told: list[str] = []
        with pytest.raises(DeviceError), take_lease(CPU, timeout_s=0, on_wait=told.append):
            pass
        child.communicate("\n")
    assert f"process {child.pid} of the user" in told[0]


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a": "\\ud800"}', "x" * 10_000_000, '{"pid": 1e999}', "\0"])
def test_facts_of_a_hostile_file_are_none(leases: Path, content: str) -> None:
    lease_file("cpu").write_text(content)
    assert read_object(lease_file("cpu")).get("pid") in (None, float("inf"))
    (leases / "waiting-²-1-ab.json").write_text('{"candidates": ["cpu"], "count": -1}')
    with take_lease(CPU, timeout_s=0):
        pass
