"""The directory of device leases: files that all users of the machine share, and what they say.

The leases and their queue use it. Files of older versions and of other users must stay readable: every fact in them may
be missing.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pytest_llem.errors import DeviceError, JsonValue

LEASE_DIR_VARIABLE = "LLEM_LEASE_DIR"
NO_LEASES = "none"
LONGEST_TITLE = 100
"""Chosen: about as much of a title as fits on a terminal's line."""


def lease_dir() -> Path:
    """Where the lock files lie; `LLEM_LEASE_DIR` moves them, for machines whose temporary directories are private.

    The variable's value `none` stands for no leases at all, for machines without any directory to share.
    """
    chosen = os.environ.get(LEASE_DIR_VARIABLE)
    return Path(chosen) if chosen else Path(tempfile.gettempdir()) / "pytest-llem-leases"


def leases_are_off() -> bool:
    """Whether the user has chosen to measure without leases."""
    return os.environ.get(LEASE_DIR_VARIABLE) == NO_LEASES


def lease_file(device: str) -> Path:
    """The lock file of a device."""
    name = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in device)
    return lease_dir() / f"{name}.lock"


def open_shared(path: Path, purpose: str) -> int:
    """Open a file of the lease directory for reading and writing, for all users; made where it is missing.

    Raises `DeviceError`, which names the `purpose`, when that is not possible.
    """
    try:
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.parent.chmod(0o1777)
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
            f"{purpose}: {path}: {problem.strerror}",
            fix=f"make the directory writable, name another one in {LEASE_DIR_VARIABLE}, or set {LEASE_DIR_VARIABLE}="
            f"{NO_LEASES} to measure without leases, which every result then says",
        ) from None


def open_device(device: str) -> int:
    """Open the lock file of a device. Raises `DeviceError` when it cannot be made."""
    return open_shared(lease_file(device), f"no lease for {device}")


def try_lock(descriptor: int) -> bool:
    """Lock an open file exclusively if nobody else has; at once."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_free(device: str) -> bool:
    """Whether nobody holds a device at this moment; true where there are no leases to hold."""
    if leases_are_off():
        return True
    descriptor = open_device(device)
    try:
        return try_lock(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class LeaseFacts:
    """What a lease file says of the present or last user of its device; any user of the machine may have written it.

    `pid` with its start time (clock ticks since boot) uses the device, `owner` is the pytest process that it works for.
    Both count in `boot_id` and `pid_namespace`. `not_released` names the cycle that left something on the device;
    `since` is in Unix seconds. `None` is unknown.
    """

    since: float | None = None
    title: str | None = None
    run: str | None = None
    pid: int | None = None
    start_ticks: int | None = None
    owner: int | None = None
    owner_start_ticks: int | None = None
    boot_id: str | None = None
    pid_namespace: str | None = None
    container: str | None = None
    not_released: str | None = None

    @classmethod
    def read(cls, path: Path) -> LeaseFacts:
        """The facts of a lease file; those that are missing, or of another type than they should be, are `None`."""
        data = read_object(path)
        kinds: dict[str, type] = {"since": float, "title": str, "run": str, "container": str, "not_released": str}
        kinds |= {"boot_id": str, "pid_namespace": str}
        values = {name: data.get(name) for name in cls.__dataclass_fields__}
        return cls(**{name: value for name, value in values.items() if type(value) is kinds.get(name, int)})  # type: ignore[arg-type]

    @property
    def stated(self) -> dict[str, JsonValue]:
        """What is known, as JSON."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def __str__(self) -> str:
        """Who uses the device, in words fit for a terminal, whoever wrote them."""
        title = f" ({_printable(self.title)})" if self.title else ""
        if self.container:
            return f"container {_printable(self.container)}{title}"
        return "another process" if self.pid is None else f"process {self.pid}{title}"


def holder(device: str) -> LeaseFacts:
    """What the lease file of a device says about its present or last user."""
    return LeaseFacts.read(lease_file(device))


def read_object(path: Path) -> dict[str, JsonValue]:
    """A file of the lease directory as a JSON object; empty when it is none. Any user of the machine may write them."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _printable(text: str) -> str:
    return "".join(letter for letter in text if letter.isprintable())[:LONGEST_TITLE]
