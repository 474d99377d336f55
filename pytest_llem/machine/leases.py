"""Device leases: the exclusive right of one cycle to its devices, as file locks that die with their holder.

`runners.measure_here` and `llem doctor` take them; `run_results` has containers removed after a crash. Runners pass the
locked descriptors on to the measured process: a lease must last until *it* is dead, even when pytest is killed. Several
devices are taken together or not at all, in turn: see `lease_files`.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pytest_llem.errors import DeviceError
from pytest_llem.job.job import DeviceSet
from pytest_llem.machine.devices import Demand
from pytest_llem.machine.lease_files import (
    LEASE_DIR_VARIABLE,
    LeaseFacts,
    Waiting,
    deciding,
    granted,
    holder,
    is_free,
    lease_dir,
    lease_file,
    leases_are_off,
    open_device,
    settings_file,
    try_lock,
    turns,
    who_locks,
)
from pytest_llem.machine.processes import owner_is_gone, process_facts

POLL_S = 0.1
"""Chosen: short beside a cycle, and a look at the lock files takes about a millisecond."""

ENDING_S = 10.0
"""Chosen: how long the worker of a dead pytest may take to end and to release its lease, its GPU memory included."""

SHOWN_HOLDERS = 3
"""Chosen: a message stays on one line of a terminal."""

FACTS_BYTES = 1024
"""Chosen: more than the facts take, so that every write has the same length."""

WORKER_COUNT_VARIABLE = "PYTEST_XDIST_WORKER_COUNT"
"""Set by pytest-xdist in its workers."""

CLOCK_STEP_NS = 20_000_000
"""A file's time of change comes from the kernel's coarse clock, which advances 100 to 1000 times a second
(CONFIG_HZ): twice the longest step."""

OnWait = Callable[[str], None]
RemoveContainers = Callable[[], None]
"""Removes the containers of dead sessions: `containers.remove_orphaned_containers`."""


@dataclass(frozen=True)
class LeaseRequest:
    """Who asks for devices: a title for those who wait, its run, and its position in the order of that run."""

    title: str | None = None
    run: str | None = None
    queue_position: int | None = None


class Lease:
    """A held lease of `devices`, released at the end of a `with` block at the latest.

    `descriptors`, for the measured process to inherit, and `names` are empty without leases (`LLEM_LEASE_DIR=none`).
    `previous` is what each lease file said before; `restored` says whose settings of a GPU had to be put back first.
    """

    def __init__(
        self,
        devices: DeviceSet,
        descriptors: Mapping[str, int],
        request: LeaseRequest,
        previous: Mapping[str, LeaseFacts],
    ) -> None:
        self.devices = devices
        self.names = tuple(descriptors)
        self.descriptors = tuple(descriptors.values())
        self.previous = {name: facts for name, facts in previous.items() if name in descriptors}
        self.restored: tuple[str, ...] = ()
        self._request = request
        self.occupied_by(pid=os.getpid())

    def occupied_by(self, *, pid: int, container: str | None = None, not_released: str | None = None) -> None:
        """Write down who uses the devices: for those who wait, and for whoever cleans up."""
        facts = replace(
            process_facts(pid),
            since=time.time(),
            title=self._request.title,
            run=self._request.run,
            container=container,
            not_released=not_released,
        )
        # In one write and padded, so that whoever reads meanwhile never finds half of it.
        text = json.dumps(facts.stated).encode().ljust(FACTS_BYTES)
        for descriptor in self.descriptors:
            os.pwrite(descriptor, text, 0)
            os.ftruncate(descriptor, len(text))

    def release(self) -> None:
        """Close this process's descriptors; the lock lives on while the measured process holds its own."""
        for descriptor in self.descriptors:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self.descriptors = ()

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def take_lease(
    wanted: DeviceSet | Demand,
    *,
    timeout_s: float,
    on_wait: OnWait | None = None,
    request: LeaseRequest | None = None,
    remove_containers: RemoveContainers | None = None,
) -> Lease:
    """Take these devices, or so many of those; `remove_containers` is called where a dead pytest left one there.

    Waits its turn while others hold them, telling `on_wait` for whom whenever that changes; `DeviceError` after
    `timeout_s` seconds, or when the lock files cannot be made.
    """
    demand = (Demand.exactly(wanted) if isinstance(wanted, DeviceSet) else wanted).whole()
    request = request or LeaseRequest()
    if leases_are_off():
        return Lease(demand.first(), {}, request, {})
    names = _in_order_of_choice(demand, request)
    with Waiting(names, demand.count, request.run, request.queue_position) as waiting:
        lease = _wait(waiting, demand, request, time.monotonic() + timeout_s, on_wait)
    try:
        if remove_containers is not None:
            _clean_up(lease.previous.values(), remove_containers)
        lease.restored = _put_back_left(lease.devices.uuids)
    except BaseException:
        lease.release()
        raise
    return lease


def _in_order_of_choice(demand: Demand, request: LeaseRequest) -> list[str]:
    """Preferred devices first, those of the run's other workers later, so that each keeps to its own, bad ones last."""

    def drawbacks(name: str) -> tuple[bool, bool]:
        facts = holder(name)
        of_another = request.run is not None and facts.run == request.run and name not in demand.preferred
        return facts.not_released is not None, of_another

    return sorted(demand.in_order_of_preference(), key=drawbacks)


def remove_orphans(remove_containers: RemoveContainers) -> None:
    """Remove containers of dead pytests, by `remove_containers`, where the lease of any device names one."""
    _clean_up(map(LeaseFacts.read, lease_dir().glob("*.lock")), remove_containers)


def _clean_up(left: Iterable[LeaseFacts], remove_containers: RemoveContainers) -> None:
    if any(facts.container and owner_is_gone(facts) for facts in left):
        remove_containers()


def _put_back_left(uuids: Sequence[str]) -> tuple[str, ...]:
    """Put back what a run has set on these GPUs whose guard was killed with it; `DeviceError` where that fails."""
    if not any(settings_file(uuid).exists() for uuid in uuids):
        return ()
    from pytest_llem.machine.gpu_settings.change import restore_left  # needs NVML, and is hardly ever needed

    return tuple(f"{record.gpu}: settings of {record}" for record in restore_left(uuids))


def _wait(waiting: Waiting, demand: Demand, request: LeaseRequest, deadline: float, on_wait: OnWait | None) -> Lease:
    last_reason: str | None = None
    ending = False
    while True:
        lease, busy, ahead = _look(waiting, demand, request)
        if lease is not None:
            return lease
        waiting.alive()
        names, count = waiting.ticket.candidates, demand.count
        reason = _reason(busy, ahead)
        if not ending and any(map(owner_is_gone, busy.values())):
            ending, deadline = True, max(deadline, time.monotonic() + ENDING_S)
        if (busy or ahead) and reason != last_reason and on_wait is not None:
            on_wait(f"waiting for {_wanted(names, count)}: {reason}")
            last_reason = reason
        if time.monotonic() >= deadline:
            raise DeviceError(
                f"no lease for {_wanted(names, count)} in time: {reason}",
                fix="wait for the other run, end the process that holds the device, or where it is a stranger's, name "
                f"another directory in {LEASE_DIR_VARIABLE}",
                details={"devices": list(names), "holders": {name: facts.stated for name, facts in busy.items()}},
            )
        time.sleep(POLL_S)


def _look(
    waiting: Waiting, demand: Demand, request: LeaseRequest
) -> tuple[Lease | None, Mapping[str, LeaseFacts], int]:
    """Take what it is this process's turn to take; the lease or `None`, who uses the devices, how many are ahead."""
    ticket = waiting.ticket
    with deciding():
        free = _lock_free(ticket.candidates)
        try:
            others = waiting.others()
            # What came free since it was looked at is not locked: it is for the next look.
            mine = granted(ticket, others, lambda name: name in free if name in ticket.candidates else is_free(name))
            previous = {name: holder(name) for name in ticket.candidates}
            lease = None
            if mine:
                lease = Lease(demand.of(mine), {name: free[name] for name in sorted(mine)}, request, previous)
                free = {name: descriptor for name, descriptor in free.items() if name not in mine}
            busy = {name: facts for name, facts in previous.items() if name not in free and name not in mine}
            return lease, busy, turns([*others, ticket]).index(ticket)
        finally:
            _close(free)


def _lock_free(names: Sequence[str]) -> dict[str, int]:
    free: dict[str, int] = {}
    try:
        for name in names:
            descriptor = free[name] = open_device(name)
            if not try_lock(descriptor):
                os.close(free.pop(name))
    except BaseException:
        _close(free)
        raise
    return free


def _close(held: Mapping[str, int]) -> None:
    for descriptor in held.values():
        os.close(descriptor)


def _wanted(names: Sequence[str], count: int) -> str:
    if len(names) == count:
        gpus = len(names) - 1
        return f"cpu and {gpus} GPU{'s' * (gpus > 1)} beside it" if gpus and "cpu" in names else " and ".join(names)
    return f"{count} of {len(names)} GPUs"


def _reason(busy: Mapping[str, LeaseFacts], ahead: int) -> str:
    """Why a process waits: who uses the devices, and how many are before it in line."""
    holders = list(dict.fromkeys(_holder(name, facts) for name, facts in busy.items()))
    more = f" and {len(holders) - SHOWN_HOLDERS} more" if len(holders) > SHOWN_HOLDERS else ""
    used = [f"in use by {', '.join(holders[:SHOWN_HOLDERS])}{more}"] if holders else []
    line = [f"{ahead} before it in line"] if ahead else []
    return "; ".join((*used, *line)) or "in use by another process"


def _holder(name: str, facts: LeaseFacts) -> str:
    """Who uses a device, by its lease file; by the kernel where the file names another process than holds the lock."""
    who = who_locks(lease_file(name))
    return str(facts) if who is None or who[0] in (facts.pid, facts.owner) else who[1]


class ConcurrentRuns:
    """Counts the pytest processes that may work on this machine between its making and `count`.

    All xdist workers of this run count, since they derive results and judge while they hold no lease, and so does every
    other run with a lease at some time between: a lease file is locked while its device is in use, and written when
    that is taken. Where there are no leases, only this run's workers are known.
    """

    def __init__(self, run_id: str | None) -> None:
        self._run_id = run_id
        self._since_ns = time.time_ns() - CLOCK_STEP_NS
        self._others = self._seen()

    def count(self) -> int:
        """How many there were, this process included."""
        workers = int(os.environ.get(WORKER_COUNT_VARIABLE, "1"))
        return workers + len(self._others | self._seen())

    def _seen(self) -> set[tuple[str | None, int]]:
        """The other users of devices, by run and process."""
        others: set[tuple[str | None, int]] = set()
        if leases_are_off():
            return others
        with deciding():
            for path in lease_dir().glob("*.lock"):
                facts = LeaseFacts.read(path)
                mine = facts.owner == os.getpid() if facts.run is None else facts.run == self._run_id
                if facts.owner is not None and not mine and _used_since(path, self._since_ns):
                    others.add((facts.run, facts.owner))
        return others


def _used_since(path: Path, since_ns: int) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return os.fstat(descriptor).st_mtime_ns >= since_ns or not try_lock(descriptor)
    finally:
        os.close(descriptor)
