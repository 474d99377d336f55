"""Measures a command's run as the worker measures a cycle: lease, meter, idle window, the measure window, accounting.

`command` calls it. Meters, windows, padding and reasons against a measurement are those of a cycle: nothing is
accounted here. What a command has done before its end belongs to its window, also the loading of a model.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pytest_llem.energy.cpu_estimate_meter import EstimateMeter, ProcessTreeClock
from pytest_llem.energy.registry import open_meter, require_meter_of
from pytest_llem.errors import JsonValue
from pytest_llem.job.config import AskedKind, DeviceSettings, ExperimentConfig, IdleSettings, Thresholds
from pytest_llem.job.events import EventLog, clock_facts
from pytest_llem.job.job import DeviceSet, JobDir, MeterSettings
from pytest_llem.job.measurement import Capabilities, EngineFacts, Measurement, MemoryPeaks, WarmupOutcome, WorkerFacts
from pytest_llem.job.report import Note
from pytest_llem.machine.devices import Demand, demanded_devices, metered_gpus, visible_of
from pytest_llem.machine.leases import Lease, LeaseRequest, take_lease
from pytest_llem.machine.occupancy import released, require_free
from pytest_llem.results.attach.beside import Beside, Counted
from pytest_llem.results.attach.child import Exit, run, signals_held_back
from pytest_llem.results.sections.cpu import shared_by
from pytest_llem.results.sections.energy import IDLE, MEASURE
from pytest_llem.runners.measure_here import LEASE_TIMEOUT_S
from pytest_llem.worker.contention import machine_times
from pytest_llem.worker.convergence import settle
from pytest_llem.worker.servers import MeasuredServer, running_server
from pytest_llem.worker.windows import Metering, WindowRecorder, idle_padding_s

COMMAND = "command"
"""In place of an engine's name, where it is not known what computed."""

POLL_S = 0.5
"""Chosen: CPU time of a process tree is read so often; a reading takes a millisecond or two."""

NOT_LOADED = Note(
    "idle_before_command",
    "idle power is that of the devices before the command started: a model that it loaded may raise it",
)


@dataclass(frozen=True)
class Asked:
    """What is to be measured, and how; `gpus` are those of a server whose process is not seen here."""

    command: tuple[str, ...]
    meter: str
    idle_s: float
    device: AskedKind
    server: str | None = None
    gpus: tuple[int | str, ...] = ()


@dataclass(frozen=True)
class Metered:
    """A command's run: how it ended, what was measured, what the server counted, and what must be known of both."""

    ended: Exit
    devices: DeviceSet
    meter: MeterSettings
    measurement: Measurement
    counted: Counted
    facts: dict[str, JsonValue]


def meter_command(
    asked: Asked, server: Beside | None, job_dir: JobDir, lease: LeaseRequest, say: Callable[[str], None]
) -> Metered:
    """Run the command and measure it. Raises `LlemError` where it was not started: what fails later is a reason."""
    require_meter_of(asked.device, asked.meter)
    found = MeasuredServer() if asked.server is None else running_server(asked.server)
    demand = _demand(asked)
    names = metered_gpus(asked.meter, asked.device)
    settings = MeterSettings(asked.meter, asked.meter != "auto", uuids=names, named_gpus=bool(asked.gpus))
    started = time.monotonic()
    with _leased(demand, lease, say, of_server=server is not None) as held:
        devices, events = held.devices, EventLog(job_dir.events)
        absent = found.elsewhere is not None
        meter = None if absent else open_meter(settings, devices, job_dir.path, found.tree)
        metering = Metering(meter, job_dir.samples)
        roots = (os.getpid(), *((found.tree.pid,) if found.tree is not None and found.tree.pid is not None else ()))
        notes = [found.elsewhere] if found.elsewhere is not None and asked.meter != "none" else []
        timing: dict[str, float | None] = {}
        try:
            period_s = metering.period_s(devices, asked.meter)
            rest_s = idle_padding_s(period_s, metering.settle_s()) if period_s is not None else 0.0
            recorder = WindowRecorder(events, meter, rest_s)
            # An estimate of a process's CPU time says nothing of a device at rest.
            if asked.idle_s > 0 and meter is not None and not isinstance(meter, EstimateMeter):
                say(f"idle power, {asked.idle_s:g} s")
                if devices.on_gpu:
                    timing["settle_s"], settled = settle(metering.power_w, IdleSettings.max_wait_s)
                    if settled is False:
                        notes.append(
                            Note("idle_not_settled", f"power had not settled after {timing['settle_s']:.1f} s")
                        )
                with recorder.window(IDLE):
                    time.sleep(asked.idle_s)
                notes += [] if server is not None else [NOT_LOADED]
            polled = meter is not None and not meter.reads_machine
            clock = ProcessTreeClock(*roots)
            with signals_held_back() as mask:
                before_ns, busy_s = clock.read_ns(), _machine_busy_s()
                if server is not None:
                    server.begin()
                # Nobody knows whether a server rests; without one nothing runs before the command, and after it.
                with recorder.window(MEASURE, idle_padding=server is None):
                    ended = run(
                        asked.command, mask, held.lease.descriptors, POLL_S, metering.power_w if polled else _nothing
                    )
                counted = server.end(same_process=_still(found, asked.server)) if server is not None else Counted()
                ran_s, worked_s = (clock.read_ns() - before_ns) / 1e9, (_machine_busy_s() or 0.0) - (busy_s or 0.0)
                energy = metering.report(recorder)
                share = max(0.0, 1 - ran_s / worked_s) if busy_s is not None and worked_s > 0 else None
                others = None if energy is None else shared_by(energy, share)
                notes += [] if others is None else [others]
        finally:
            metering.abandon()
            events.close()
    timing["cycle_s"] = time.monotonic() - started
    invalid = [*counted.invalid]
    if ended.code:
        how = f"was ended by {ended.signal}" if ended.signal else f"ended with exit code {ended.code}"
        invalid.append(Note("command_failed", f"the command {how}: what it did may be another work"))
    measurement = Measurement(
        engine=EngineFacts(COMMAND, "unknown", {}, Capabilities()) if server is None else server.engine(counted),
        worker=WorkerFacts(os.getpid(), platform.node(), "command", "process" if server is None else "server"),
        clock=clock_facts(),
        windows=tuple(recorder.windows),
        repeats=(),
        requests=(),
        prompts_hash="",
        warmup=WarmupOutcome(0, 0.0, converged=False, reason="none", cv=None),
        memory=MemoryPeaks((), None, None),
        timing=timing,
        load_shape=COMMAND,
        energy=energy,
        warnings=(*notes, *counted.notes, *held.notes),
        invalid=tuple(invalid),
    )
    facts: dict[str, JsonValue] = {"lease": list(held.lease.names) or "none", "exit_code": ended.code}
    if ended.signal is not None:
        facts["signal"] = ended.signal
    return Metered(ended, devices, settings, measurement, counted, facts)


@dataclass
class _Held:
    lease: Lease
    notes: tuple[Note, ...] = ()

    @property
    def devices(self) -> DeviceSet:
        return self.lease.devices


@contextmanager
def _leased(demand: Demand, request: LeaseRequest, say: Callable[[str], None], *, of_server: bool) -> Iterator[_Held]:
    """The devices, empty of others' work unless a server works there, and whether the command gave them back."""
    with take_lease(demand, timeout_s=LEASE_TIMEOUT_S, on_wait=say, request=request) as lease:
        uuids = () if of_server else lease.devices.uuids
        before = require_free(uuids, int(Thresholds.residual_memory_bytes), {}) if uuids else ()
        held = _Held(lease)
        yield held
        problem = released(before, "the command") if before else None
        if problem is not None:
            lease.occupied_by(pid=os.getpid(), not_released=request.title)
            held.notes = (Note("not_released", problem.message),)


def _demand(asked: Asked) -> Demand:
    """The server's GPUs, all visible ones of a command, which may use any, or the CPU."""
    if asked.server is not None:
        device = DeviceSettings(kind=asked.device, gpus=asked.gpus)
        given = {"base_url": asked.server}
        return demanded_devices(ExperimentConfig(model="", engine="openai", settings=given, device=device))
    kind, gpus = visible_of(asked.device)
    return Demand(kind, gpus, len(gpus)) if gpus else Demand.of_cpu()


def _still(found: MeasuredServer, url: str | None) -> bool:
    """Whether the process that was found at the server's port listens there; true where it is not known."""
    pid = found.tree.pid if found.tree is not None else None
    if pid is None:
        return True
    now = running_server(url or "").tree
    return now.pid == pid if now is not None and now.pid is not None else Path(f"/proc/{pid}").exists()


def _machine_busy_s() -> float | None:
    try:
        return machine_times(Path("/proc/stat").read_text(encoding="utf-8"))[0]
    except OSError:
        return None


def _nothing() -> None:
    pass
