"""Device leases: the exclusive right of one cycle to its devices, as file locks that die with their holder.

A lease is an `flock` on one file per device in a directory that all users of the machine share. The measured process
inherits the locked descriptor, so the lease ends when *it* is dead, also when pytest was killed before it. Locks are
taken in the order of the device names, so that two cycles that want two devices each cannot wait for one another.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pytest_llem.errors import DeviceError, JsonValue
from pytest_llem.job import DeviceSet

LEASE_DIR_VARIABLE = "LLEM_LEASE_DIR"
POLL_S = 0.1
OnWait = Callable[[str], None]


def lease_dir() -> Path:
    """Where the lock files lie; `LLEM_LEASE_DIR` moves them, for machines whose temporary directories are private."""
    chosen = os.environ.get(LEASE_DIR_VARIABLE)
    return Path(chosen) if chosen else Path(tempfile.gettempdir()) / "pytest-llem-leases"


class Lease:
    """A held lease: `descriptors` are to be inherited by the measured process, `names` are its devices."""

    def __init__(self, names: tuple[str, ...], descriptors: tuple[int, ...]) -> None:
        self.names = names
        self.descriptors = descriptors

    def occupied_by(self, **facts: JsonValue) -> None:
        """Write down who uses the device (`pid`, `container`), for the error messages of those who wait."""
        text = json.dumps({"since": time.time(), **facts}).encode()
        for descriptor in self.descriptors:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, text, 0)

    def release(self) -> None:
        """Close this process's descriptors; the lock lives on while the measured process holds its own."""
        for descriptor in self.descriptors:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self.descriptors = ()


@contextlib.contextmanager
def device_lease(devices: DeviceSet, *, timeout_s: float, on_wait: OnWait | None = None) -> Iterator[Lease]:
    """Hold the devices for the length of a `with` block.

    Waits while others hold them, telling `on_wait` once for whom; `DeviceError` after `timeout_s` seconds, or when the
    lock files cannot be made.
    """
    names = tuple(sorted(devices.uuids)) or (devices.kind,)
    deadline = time.monotonic() + timeout_s
    descriptors: list[int] = []
    try:
        for name in names:
            descriptor = _open(name)
            descriptors.append(descriptor)
            _lock(descriptor, name, deadline, on_wait)
        lease = Lease(names, tuple(descriptors))
        lease.occupied_by(pid=os.getpid())
        descriptors = []
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    try:
        yield lease
    finally:
        lease.release()


def holder(name: str) -> dict[str, JsonValue]:
    """What the lease file of a device says about its present or last user; empty when nothing is known."""
    try:
        data = json.loads((lease_dir() / _file(name)).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _file(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name) + ".lock"


def _open(name: str) -> int:
    directory = lease_dir()
    path = directory / _file(name)
    try:
        if not directory.is_dir():
            directory.mkdir(parents=True, exist_ok=True)
            directory.chmod(0o1777)
        # In a sticky directory the kernel may refuse O_CREAT on another user's file: open what is there first.
        try:
            return os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_CREAT, 0o666)
            with contextlib.suppress(PermissionError):
                os.fchmod(descriptor, 0o666)
            return descriptor
    except OSError as problem:
        raise DeviceError(
            f"no lease for {name}: {path}: {problem.strerror}",
            fix=f"make the directory writable, or name another one in {LEASE_DIR_VARIABLE}",
        ) from None


def _lock(descriptor: int, name: str, deadline: float, on_wait: OnWait | None) -> None:
    told = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            pass
        if not told and on_wait is not None:
            on_wait(f"waiting for {name}: in use by {_describe(holder(name))}")
            told = True
        if time.monotonic() >= deadline:
            raise DeviceError(
                f"no lease for {name} in time: it is in use by {_describe(holder(name))}",
                fix="wait for the other run, or end the process that holds the device",
                details={"device": name, **holder(name)},
            )
        time.sleep(POLL_S)


def _describe(facts: dict[str, JsonValue]) -> str:
    if facts.get("container"):
        return f"container {facts['container']}"
    return f"process {facts['pid']}" if facts.get("pid") else "another process"
