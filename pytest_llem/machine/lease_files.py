"""The directory of device leases, which all users of the machine share: locks, the facts in them, and the queue.

`leases` and `processes` use it; `llem doctor` and `xdist.scheduling` ask for its settings. Files of older
versions and of other users must stay readable: every fact in them may be missing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import pwd
import secrets
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_llem.errors import DeviceError, JsonValue, visible
from pytest_llem.job.files import parse_json

LEASE_DIR_VARIABLE = "LLEM_LEASE_DIR"
NO_LEASES = "none"
LONGEST_TITLE = 100
"""Chosen: about as much of a title as fits on a terminal's line."""
DECISION = "deciding.turn"
SHARED = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
MOST_FACTS_BYTES = 65536
"""Chosen: 64 times what a lease file holds; a larger one is none."""

DECIDE_POLL_S = 0.005
"""Chosen: the lock is held for about a millisecond."""

DECIDE_LIMIT_S = 60.0
"""Chosen: long enough for hundreds of processes, short enough to say that one of them is suspended."""

SIGN_OF_LIFE_S = 1.0
"""Chosen: setting a file's time once a second costs nothing beside a cycle."""

STOPPED_AFTER_S = 10.0
"""Chosen: ten missed signs of life; a suspended process must not keep the others from free devices."""


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
    return lease_dir() / f"{_file_name(device)}.lock"


def settings_file(gpu: str) -> Path:
    """What is known of a GPU's settings while they are another's: see `gpu_settings.record`."""
    return lease_dir() / f"settings-{_file_name(gpu)}.json"


def _file_name(device: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in device)


def open_shared(path: Path, purpose: str) -> int:
    """Open a file for all users to read and write, made if missing. `DeviceError`, naming the `purpose`, on failure."""
    try:
        _make_shared(path.parent, purpose)
        # In a sticky directory the kernel may refuse O_CREAT on another user's file: open what is there first.
        try:
            descriptor = os.open(path, SHARED)
        except FileNotFoundError:
            try:
                descriptor = os.open(path, SHARED | os.O_CREAT | os.O_EXCL, 0o666)
            except FileExistsError:  # another run has just made it
                descriptor = os.open(path, SHARED)
            else:
                with contextlib.suppress(PermissionError):
                    os.fchmod(descriptor, 0o666)
    except OSError as problem:
        what = "a symbolic link" if problem.errno == errno.ELOOP else str(problem.strerror)
        raise _in_the_way(path if os.path.lexists(path) else path.parent, what, purpose) from None
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(descriptor)
        what = "a file with another name elsewhere" if stat.S_ISREG(found.st_mode) else "not a regular file"
        raise _in_the_way(path, what, purpose)
    return descriptor


def _make_shared(directory: Path, purpose: str) -> None:
    """Make a directory for all users, where it is not there; `DeviceError` where another user has linked it."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    try:
        directory.mkdir()
    except FileExistsError:
        if directory.is_symlink() and directory.lstat().st_uid not in (0, os.getuid()):
            raise _in_the_way(directory, "a symbolic link", purpose) from None
        return
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    os.fchmod(opened, 0o1777)
    os.close(opened)


def _in_the_way(path: Path, what: str, purpose: str) -> DeviceError:
    with contextlib.suppress(OSError):
        what = f"{what}; it is of the user {user_name(path.lstat().st_uid)}"
    return DeviceError(
        f"{purpose}: {path}: {what}",
        fix=f"have it removed or made writable, name another directory in {LEASE_DIR_VARIABLE}, or set "
        f"{LEASE_DIR_VARIABLE}={NO_LEASES} to measure without leases, which every result then says",
    )


def user_name(number: int) -> str:
    """The name of a user, or the number where there is none."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def who_locks(path: Path) -> tuple[int, str] | None:
    """The process that has locked a file, and in words with its user, by /proc/locks (proc(5)); `None` if unknown."""
    with contextlib.suppress(OSError, ValueError):
        inode = str(path.lstat().st_ino)
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            words = line.split()
            if words[1] == "FLOCK" and words[5].rpartition(":")[2] == inode:
                pid = int(words[4])
                return pid, f"process {pid} of the user {user_name(Path(f'/proc/{pid}').stat().st_uid)}"
    return None


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
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as stream:
            regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
            data = parse_json(stream.read(MOST_FACTS_BYTES), path) if regular else None
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _printable(text: str) -> str:
    return visible(text[:LONGEST_TITLE]).replace("\n", " ")


@dataclass(frozen=True)
class Ticket:
    """Asks for `count` of the `candidates`, preferred first; in one `run`, lower `queue_position`s are served first."""

    number: int
    candidates: tuple[str, ...]
    count: int
    run: str | None = None
    queue_position: int | None = None


def turns(tickets: Sequence[Ticket]) -> list[Ticket]:
    """The order in which tickets are served: as they came, where a run's turns go to its tickets by queue position."""
    by_number = sorted(tickets, key=lambda ticket: ticket.number)
    by_run: dict[str | None, list[Ticket]] = {}
    for ticket in sorted(by_number, key=lambda ticket: ticket.queue_position or 0):
        by_run.setdefault(None if ticket.queue_position is None else ticket.run, []).append(ticket)
    next_of = {run: iter(own) for run, own in by_run.items()}
    return [
        ticket if ticket.run is None or ticket.queue_position is None else next(next_of[ticket.run])
        for ticket in by_number
    ]


def granted(mine: Ticket, tickets: Sequence[Ticket], is_free: Callable[[str], bool]) -> tuple[str, ...]:
    """What a ticket may take now; those before it set aside what they need, too few included: one day it is enough."""
    taken: set[str] = set()
    for ticket in turns([*tickets, mine]):
        free = [device for device in ticket.candidates if device not in taken and is_free(device)]
        if ticket == mine:
            return tuple(free[: mine.count]) if len(free) >= mine.count else ()
        taken.update(free[: ticket.count])
    return ()


@contextlib.contextmanager
def deciding() -> Iterator[None]:
    """Be the only process that takes devices, for a moment; `DeviceError` when another does not get done with it."""
    descriptor = open_shared(lease_dir() / DECISION, "no lease")
    try:
        deadline = time.monotonic() + DECIDE_LIMIT_S
        while not try_lock(descriptor):
            if time.monotonic() >= deadline:
                who = who_locks(lease_dir() / DECISION) or (0, "another process")
                raise DeviceError(
                    f"no lease: {who[1]} has kept {lease_dir() / DECISION} locked for {DECIDE_LIMIT_S:g} s",
                    fix=f"it may be suspended: continue or end it, or name another directory in {LEASE_DIR_VARIABLE}",
                )
            time.sleep(DECIDE_POLL_S)
        yield
    finally:
        os.close(descriptor)


class Waiting:
    """A ticket in the queue, for the length of a `with` block: a locked file that states what its process asks for.

    Who may take devices is decided under one lock, held for a moment, by going through the tickets in turn and setting
    aside what each needs of the free devices: an experiment that needs two GPUs gets them although others need one, and
    who wants other devices passes. Tickets of one run are served in its study's order, in the run's turns; one whose
    process died or was stopped does not count. Nothing is held while waiting, so there can be no deadlock. The queue is
    written by hand because the measured process must inherit the lock.
    """

    def __init__(self, candidates: Sequence[str], count: int, run: str | None, queue_position: int | None) -> None:
        with deciding():
            number = max((ticket.number for ticket in _tickets(None)), default=0) + 1
            self.ticket = Ticket(number, tuple(candidates), count, run, queue_position)
            self._path = lease_dir() / f"waiting-{number:012d}-{os.getpid()}-{secrets.token_hex(2)}.json"
            self._descriptor = open_shared(self._path, "no place in the queue for devices")
            try_lock(self._descriptor)
            facts = {"candidates": list(candidates), "count": count, "run": run, "place": queue_position}
            os.write(self._descriptor, json.dumps(facts).encode())
        self._last_sign_of_life = time.monotonic()

    def __enter__(self) -> Waiting:
        return self

    def __exit__(self, *_: object) -> None:
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def others(self) -> list[Ticket]:
        """The tickets of all other processes that wait; to be asked while `deciding`."""
        return _tickets(self._path)

    def alive(self) -> None:
        """Give a sign of life, at most once a second."""
        if time.monotonic() - self._last_sign_of_life >= SIGN_OF_LIFE_S:
            os.utime(self._descriptor)
            self._last_sign_of_life = time.monotonic()


def _tickets(own: Path | None) -> list[Ticket]:
    others = (path for path in lease_dir().glob("waiting-*.json") if path != own)
    return [ticket for path in others if (ticket := _ticket(path)) is not None]


def _ticket(path: Path) -> Ticket | None:
    """A ticket whose process waits; files of dead processes are removed where that is allowed."""
    try:
        descriptor = os.open(path, SHARED)
    except OSError:
        return None
    try:
        if try_lock(descriptor):
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        if time.time() - os.fstat(descriptor).st_mtime > STOPPED_AFTER_S:
            return None
    finally:
        os.close(descriptor)
    facts = read_object(path)
    number, candidates, count = path.name.split("-")[1], facts.get("candidates"), facts.get("count")
    run, queue_position = facts.get("run"), facts.get("place")
    if not number.isdecimal() or not isinstance(candidates, list) or not isinstance(count, int):
        return None
    return Ticket(
        int(number),
        tuple(str(device) for device in candidates),
        count,
        run if isinstance(run, str) else None,
        queue_position if isinstance(queue_position, int) else None,
    )
