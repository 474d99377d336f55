"""The queue for devices: whoever waits is served in turn, and no device idles needlessly.

`machine.leases` is its only user. Nothing is held while waiting, so that there can be no deadlock. It is written by
hand because the measured process must inherit the lock.

A waiting process keeps a ticket, a locked file of the lease directory that says what it asks for. Who may take devices
is decided under one lock that is held for a moment, by going through the tickets in turn and setting aside what each
needs of the free devices. So an experiment that needs two GPUs gets them although others need one, and who wants other
devices passes. Tickets of one run are served in the order of its study, in the turns that the run has. A ticket whose
process died or was stopped does not count.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_llem.errors import DeviceError
from pytest_llem.machine.lease_files import lease_dir, open_shared, read_object, try_lock

DECISION = "deciding.turn"
TICKET = "waiting-{number:012d}-{pid}-{unique}.json"
DECIDE_POLL_S = 0.005
"""Chosen: the lock is held for about a millisecond."""

DECIDE_LIMIT_S = 60.0
"""Chosen: long enough for hundreds of processes, short enough to say that one of them is suspended."""

SIGN_OF_LIFE_S = 1.0
"""Chosen: setting a file's time once a second costs nothing beside a cycle."""

STOPPED_AFTER_S = 10.0
"""Chosen: ten missed signs of life; a suspended process must not keep the others from free devices."""


@dataclass(frozen=True)
class Ticket:
    """What a waiting process asks for: `count` of the `candidates`, which are in the order of its preference.

    Tickets of the same `run` are served by their `queue_position` in it, lower ones first.
    """

    number: int
    candidates: tuple[str, ...]
    count: int
    run: str | None = None
    queue_position: int | None = None


def turns(tickets: Sequence[Ticket]) -> list[Ticket]:
    """The order in which tickets are served: as they came, where a run's turns go to its tickets by queue position."""
    come = sorted(tickets, key=lambda ticket: ticket.number)
    by_run: dict[str, list[Ticket]] = {}
    for ticket in come:
        if ticket.run is not None and ticket.queue_position is not None:
            by_run.setdefault(ticket.run, []).append(ticket)
    next_of = {run: iter(sorted(own, key=_order)) for run, own in by_run.items()}
    served = []
    for ticket in come:
        own = None if ticket.run is None or ticket.queue_position is None else next_of[ticket.run]
        served.append(ticket if own is None else next(own))
    return served


def _order(ticket: Ticket) -> tuple[int, int]:
    return (ticket.queue_position if ticket.queue_position is not None else 0, ticket.number)


def granted(mine: Ticket, tickets: Sequence[Ticket], is_free: Callable[[str], bool]) -> tuple[str, ...]:
    """The devices that a ticket may take now: none, or as many as it needs.

    `tickets` are all that wait. Those before it set aside what they need of the free devices, also while that is not
    enough for them yet: sooner or later it will be.
    """
    taken: set[str] = set()
    for ticket in turns([*tickets, mine]):
        free = [device for device in ticket.candidates if device not in taken and is_free(device)]
        if ticket == mine:
            return tuple(free[: mine.count]) if len(free) >= mine.count else ()
        taken.update(free[: ticket.count])
    return ()


@contextlib.contextmanager
def deciding() -> Iterator[None]:
    """Be the only process of the machine that takes devices, for a moment.

    Raises `DeviceError` when another process does not get done with it.
    """
    descriptor = open_shared(lease_dir() / DECISION, "no lease")
    try:
        deadline = time.monotonic() + DECIDE_LIMIT_S
        while not try_lock(descriptor):
            if time.monotonic() >= deadline:
                raise DeviceError(
                    f"no lease: another process has kept {lease_dir() / DECISION} locked for {DECIDE_LIMIT_S:g} s",
                    fix=f"find it with `fuser {lease_dir() / DECISION}`: it may be suspended",
                )
            time.sleep(DECIDE_POLL_S)
        yield
    finally:
        os.close(descriptor)


class Waiting:
    """A ticket in the queue, for the length of a `with` block."""

    def __init__(self, candidates: Sequence[str], count: int, run: str | None, queue_position: int | None) -> None:
        with deciding():
            number = max((ticket.number for ticket in _tickets(None)), default=0) + 1
            self.ticket = Ticket(number, tuple(candidates), count, run, queue_position)
            name = TICKET.format(number=number, pid=os.getpid(), unique=secrets.token_hex(2))
            self._path = lease_dir() / name
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


def _tickets(but: Path | None) -> list[Ticket]:
    tickets = []
    for path in lease_dir().glob("waiting-*.json"):
        if path != but:
            ticket = _read(path)
            tickets += [ticket] if ticket is not None else []
    return tickets


def _read(path: Path) -> Ticket | None:
    """A ticket whose process waits; files of dead processes are removed where that is allowed."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
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
    if not number.isdigit() or not isinstance(candidates, list) or not isinstance(count, int):
        return None
    return Ticket(
        int(number),
        tuple(str(device) for device in candidates),
        count,
        run if isinstance(run, str) else None,
        queue_position if isinstance(queue_position, int) else None,
    )
