"""Device leases: the exclusive right of one cycle to its devices, as file locks that die with their holder.

A lease is an `flock` on one file per device in a directory that all users of the machine share. The measured process
inherits the locked descriptor, so the lease ends when *it* is dead, also when pytest was killed before it. Locks are
taken in the order of the device names, so that two cycles that want two devices each cannot wait for one another.
Whoever takes a lease first ends what a dead pytest left behind: see `leftovers`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from pytest_llem.errors import DeviceError, JsonValue
from pytest_llem.job import DeviceSet
from pytest_llem.runners.leftovers import described, end_leftover, remove_leftover_container

LEASE_DIR_VARIABLE = "LLEM_LEASE_DIR"
NO_LEASES = "none"
POLL_S = 0.1
ENDING_S = 10.0
OnWait = Callable[[str], None]


def lease_dir() -> Path:
    """Where the lock files lie; `LLEM_LEASE_DIR` moves them, for machines whose temporary directories are private.

    The variable's value `none` stands for no leases at all, for machines without any directory to share.
    """
    chosen = os.environ.get(LEASE_DIR_VARIABLE)
    return Path(chosen) if chosen else Path(tempfile.gettempdir()) / "pytest-llem-leases"


class Lease:
    """A held lease: `descriptors` are to be inherited by the measured process, `names` are its devices.

    Without leases (`LLEM_LEASE_DIR=none`) both are empty. `previous` is what each lease file said before.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        descriptors: tuple[int, ...],
        previous: Mapping[str, Mapping[str, JsonValue]] | None = None,
    ) -> None:
        self.names = names
        self.descriptors = descriptors
        self.previous = dict(previous or {})

    def occupied_by(self, *, pid: int, **facts: JsonValue) -> None:
        """Write down who uses the devices (`pid`, `container`): for those who wait, and for whoever cleans up."""
        text = json.dumps({"since": time.time(), **described(pid), **facts}).encode()
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
    """Hold the devices for the length of a `with` block; see `take_lease`."""
    lease = take_lease(devices, timeout_s=timeout_s, on_wait=on_wait)
    try:
        yield lease
    finally:
        lease.release()


def take_lease(devices: DeviceSet, *, timeout_s: float, on_wait: OnWait | None = None) -> Lease:
    """Take the devices until `Lease.release`, and end what a dead pytest left on them.

    Waits while others hold them, telling `on_wait` once for whom; `DeviceError` after `timeout_s` seconds, or when the
    lock files cannot be made.
    """
    if os.environ.get(LEASE_DIR_VARIABLE) == NO_LEASES:
        return Lease((), ())
    names = tuple(sorted(devices.uuids)) or (devices.kind,)
    deadline = time.monotonic() + timeout_s
    descriptors: list[int] = []
    previous: dict[str, dict[str, JsonValue]] = {}
    try:
        for name in names:
            descriptor = _open(name)
            descriptors.append(descriptor)
            _lock(descriptor, name, deadline, on_wait)
            previous[name] = holder(name)
            end_leftover(previous[name], lease_dir() / _file(name))
            remove_leftover_container(previous[name])
        lease = Lease(names, tuple(descriptors), previous)
        lease.occupied_by(pid=os.getpid())
        descriptors = []
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    return lease


def is_free(name: str) -> bool:
    """Whether nobody holds a device at this moment; true where there are no leases to hold."""
    if os.environ.get(LEASE_DIR_VARIABLE) == NO_LEASES:
        return True
    descriptor = _open(name)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


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
            return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
            except FileExistsError:  # another run has just made it
                return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            with contextlib.suppress(PermissionError):
                os.fchmod(descriptor, 0o666)
            return descriptor
    except OSError as problem:
        raise DeviceError(
            f"no lease for {name}: {path}: {problem.strerror}",
            fix=f"make the directory writable, name another one in {LEASE_DIR_VARIABLE}, or set {LEASE_DIR_VARIABLE}="
            f"{NO_LEASES} to measure without leases, which every result then says",
        ) from None


def _lock(descriptor: int, name: str, deadline: float, on_wait: OnWait | None) -> None:
    told = ended = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            pass
        facts = holder(name)
        if end_leftover(facts, lease_dir() / _file(name)) is not None and not ended:
            ended, deadline = True, max(deadline, time.monotonic() + ENDING_S)
        elif not told and on_wait is not None:
            on_wait(f"waiting for {name}: in use by {_describe(facts)}")
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
