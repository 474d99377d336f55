"""Measures one cycle on this machine: holds its devices, cools down, runs it, and collects what the result must say.

The session calls it for its own cycles, a cluster's node for those that Ray gives it. The order of the steps is part of
the method: everything between the lease and the end of the run happens while nobody else measures on the devices.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pytest_llem.energy.idle_power import reference_from
from pytest_llem.engines import engine_info
from pytest_llem.engines.builtin import builtin_path, is_builtin
from pytest_llem.errors import JsonValue, LlemError, ModelNotFoundError, NotReleasedError, from_dict
from pytest_llem.job.config import ExperimentConfig
from pytest_llem.job.files import read_json, write_json
from pytest_llem.job.gpu_setting import GpuSetting
from pytest_llem.job.job import DeviceSet, IdleReference, Job, JobDir
from pytest_llem.job.measurement import read_measurement
from pytest_llem.job.redaction import redact_file
from pytest_llem.job.report import Note, RunReport
from pytest_llem.job.wire import decode, encode
from pytest_llem.machine.cooldown import Setting as Cooldown
from pytest_llem.machine.cooldown import cool_down
from pytest_llem.machine.devices import Demand
from pytest_llem.machine.leases import ConcurrentRuns, LeaseRequest, OnWait, RemoveContainers, take_lease
from pytest_llem.machine.occupancy import occupancy, released, require_free
from pytest_llem.machine.parquet import parquet_texts
from pytest_llem.runners.protocol import Runner

LEASE_TIMEOUT_S = 24 * 3600.0
"""Chosen: a day is longer than any other run should hold a device, and ends a wait that nobody looks at."""

IDLE_POWER_DIRECTORY = ".idle-power"

NOT_LOADED = ("workload", "decoding", "measurement", "seed")
"""Sections of a configuration that do not change what is loaded."""


@dataclass(frozen=True)
class CycleRequest:
    """One cycle: what it needs, and the limits it is held to.

    `job_on` makes the job for the devices that it gets. `lease.run` tells its cycles from those of other runs;
    `run_dir` is what the run's processes share on this machine (idle states, idle power). `before_run` is called with
    the devices once they are cool; it may raise an `LlemError`, and returns a note for the result or `None`.
    """

    config: ExperimentConfig
    demand: Demand
    lease: LeaseRequest
    job_on: Callable[[DeviceSet], Job]
    run_dir: Path
    residual_bytes: int
    cooldown: Cooldown
    before_run: Callable[[DeviceSet], Note | None] = lambda devices: None


def measure_here(
    runner: Runner,
    held: HeldDevices,
    request: CycleRequest,
    job_dir: JobDir,
    say: Callable[[str | None], None] = lambda text: None,
) -> tuple[Job, RunReport]:
    """Run one cycle; `job_dir` holds its measurement or its error afterwards. Returns the job and what was done.

    `say` gets what it waits for, `None` once it runs. `LlemError`: it cannot be tried, or left something on a device.
    """
    job_dir.path.mkdir(parents=True, exist_ok=True)
    where = f"{runner.spec.name}:{runner.spec.image or runner.spec.address or ''}"
    try:
        make_model(request.config, say)
        with held.hold_devices(runner, request, job_dir, say) as (hold, job):
            concurrent_runs = ConcurrentRuns(request.lease.run)
            say("cooling down")
            cooled = cool_down(request.cooldown, job.devices, request.run_dir, loaded=runner.loaded)
            say(None)
            try:
                note = request.before_run(job.devices)
                job = replace(job, texts=job.texts or parquet_texts(job.config.workload))
                with _gpus_set(runner, hold, job) as settings:
                    job = load_idle_power(replace(job, gpu_settings=settings), request.run_dir, where)
                    report = runner.run(job, job_dir, lambda event: None, hold.lease)
            finally:
                if not job_dir.job.exists():
                    # No worker was started (settings, image, server): whoever looks into that wants to see the job too.
                    runner.hand_over(job, job_dir)
            concurrent = concurrent_runs.count()
        store_idle_power(job, job_dir, request.run_dir, where)
    finally:
        redact_file(job_dir.log)
    notes = tuple(note for note in (note, cooled.note) if note is not None)
    facts: dict[str, JsonValue] = {**report.facts, **hold.facts, **cooled.facts, "concurrent_workers": concurrent}
    return job, replace(report, notes=(*report.notes, *notes), facts=facts)


@contextmanager
def _gpus_set(runner: Runner, hold: DeviceHold, job: Job) -> Iterator[tuple[GpuSetting, ...]]:
    """The GPUs set as the cycle asks, after the wait for idle, whose band is that of a GPU left alone.

    They are put back after each cycle, also of an engine that stays loaded: what waits is not to be limited.
    """
    asked = job.config.device.gpu_settings
    if not asked:
        yield ()
        return
    from pytest_llem.machine.gpu_settings.change import settings_made
    from pytest_llem.machine.gpu_settings.checks import require_settable

    require_settable(job, hold.lease.names, hold.before if runner.loaded else occupancy(job.devices.uuids))
    title = f"{job.study}/{job.experiment_id} cycle {job.cycle}"
    with settings_made(asked, job.devices.uuids, hold.lease.descriptors, title) as settings:
        yield settings


def make_model(config: ExperimentConfig, say: Callable[[str], None]) -> None:
    """Make a built-in model before a device is held for it, and outside of the times that a cycle is held to."""
    if not is_builtin(config.model):
        return
    served = engine_info(config.engine).serves_over_http
    if served and importlib.util.find_spec("transformers") is None:
        return  # nobody here takes the tokenizer from it
    try:
        builtin_path(config.model, say)
    except ModelNotFoundError:
        if not served:
            raise  # a server may have it otherwise, and its own tokenizer


class DeviceHold:
    """Devices from taking them to giving them back: for one cycle, or for as long as an engine is kept loaded.

    `DeviceError` without a lease in time; `ResidualMemoryError` for more than `request.residual_bytes` in use on a GPU.
    """

    def __init__(
        self, demand: Demand, request: CycleRequest, on_wait: OnWait, remove_containers: RemoveContainers | None
    ) -> None:
        self.lease = take_lease(
            demand,
            timeout_s=LEASE_TIMEOUT_S,
            on_wait=on_wait,
            request=request.lease,
            remove_containers=remove_containers,
        )
        self.devices = self.lease.devices
        uuids = self.devices.uuids
        left_by = {name: facts.not_released for name, facts in self.lease.previous.items() if facts.not_released}
        try:
            self.before = require_free(uuids, request.residual_bytes, left_by) if uuids else ()
        except BaseException:
            if left_by:
                self.lease.occupied_by(pid=os.getpid(), not_released=next(iter(left_by.values())))
            self.lease.release()
            raise

    @property
    def facts(self) -> dict[str, JsonValue]:
        """For the result's `runner.facts`: the leased devices, or `none`, and the memory found in use on them."""
        used: dict[str, JsonValue] = {gpu.uuid: gpu.used_bytes for gpu in self.before}
        facts: dict[str, JsonValue] = {"lease": list(self.lease.names) or "none"}
        if self.lease.restored:
            facts["settings_put_back"] = list(self.lease.restored)
        return {**facts, **({"residual_memory_bytes": used} if used else {})}

    def end(self, title: str) -> NotReleasedError | None:
        """Give the devices back; the error when `title` left something on them, which the next holder reads as well."""
        try:
            problem = released(self.before, title) if self.before else None
            if problem is not None:
                self.lease.occupied_by(pid=os.getpid(), not_released=title)
        finally:
            self.lease.release()
        return problem


@dataclass(frozen=True)
class Kept:
    """A hold that outlives its cycle, because the runner keeps something loaded on the devices."""

    runner: Runner
    hold: DeviceHold
    title: str


class HeldDevices:
    """At most one hold at a time for one pytest process; `remove_containers` removes what a dead pytest left there."""

    def __init__(self, remove_containers: RemoveContainers | None = None) -> None:
        self._remove_containers = remove_containers
        self._kept: Kept | None = None
        self._last: tuple[str, ...] = ()

    @contextmanager
    def hold_devices(
        self, runner: Runner, request: CycleRequest, job_dir: JobDir, on_wait: OnWait
    ) -> Iterator[tuple[DeviceHold, Job]]:
        """The devices for the cycle that the body runs, and the cycle's job on them (`request.job_on`).

        An engine that is loaded and can serve the cycle keeps its hold; otherwise it is unloaded first. Of several free
        devices those of the last cycle come first: so the cycles of one device follow the study's order. Raises what
        `DeviceHold` raises, and `NotReleasedError` when the devices are not free afterwards and the cycle has no error
        of its own.
        """
        hold, job = self._served_by_kept(runner, request) or (None, None)
        if hold is None or job is None:
            self.release()
            demand = replace(request.demand, preferred=self._last)
            hold = DeviceHold(demand, request, on_wait, self._remove_containers)
            self._last = hold.devices.uuids
            try:
                job = request.job_on(hold.devices)
            except BaseException:
                hold.lease.release()
                raise
        title = f"{job.study}/{job.experiment_id} cycle {job.cycle}"
        self._kept = None
        try:
            yield hold, job
        except BaseException:
            # The run is being interrupted: the devices go back without a look at them.
            try:
                runner.unload()
            finally:
                hold.lease.release()
            raise
        if runner.loaded:
            self._kept = Kept(runner, hold, f"the engine of {title}")
            return
        problem = hold.end(title)
        if problem is not None and not job_dir.error.exists():
            raise problem

    def _served_by_kept(self, runner: Runner, request: CycleRequest) -> tuple[DeviceHold, Job] | None:
        """The hold of the engine that is kept, if that can run this cycle, and the cycle's job on its devices."""
        kept = self._kept
        if kept is None or kept.runner is not runner or not request.demand.met_by(kept.hold.devices):
            return None
        job = request.job_on(kept.hold.devices)
        return (kept.hold, job) if kept.runner.can_serve(job) else None

    def release(self) -> None:
        """Unload the engine that is kept, if any. Raises `NotReleasedError` when something of it stays behind."""
        kept, self._kept = self._kept, None
        if kept is None:
            return
        try:
            kept.runner.unload()
        except BaseException:
            kept.hold.lease.release()
            raise
        problem = kept.hold.end(kept.title)
        if problem is not None:
            raise problem


def error_of(job_dir: JobDir) -> LlemError | None:
    """Why a cycle that was run has no measurement; `None` where it has one."""
    return from_dict(read_json(job_dir.error)) if job_dir.error.exists() else None


def load_idle_power(job: Job, run_dir: Path, runner: str) -> Job:
    """The job with an earlier cycle's idle power, if reused and known; `runner` names the runner and where it runs."""
    if not _reuses_idle_power(job) or not (entry := _idle_power_entry(job, run_dir, runner)).exists():
        return job
    return replace(job, idle_reference=decode(IdleReference, read_json(entry)))


def store_idle_power(job: Job, job_dir: JobDir, run_dir: Path, runner: str) -> None:
    """Store a valid cycle's idle power for later ones, replacing an older entry."""
    if not _reuses_idle_power(job) or not job_dir.measurement.exists():
        return
    measurement = read_measurement(job_dir.measurement)
    if measurement.energy is None or measurement.invalid or measurement.energy.invalid:
        return
    origin = f"{job.study}/{job.experiment_id} cycle {job.cycle}, attempt {job.attempt}"
    reference = reference_from(measurement.energy, origin)
    if reference is not None:
        entry = _idle_power_entry(job, run_dir, runner)
        entry.parent.mkdir(exist_ok=True)
        write_json(entry, encode(reference))


def _reuses_idle_power(job: Job) -> bool:
    idle = job.config.measurement.idle
    return idle.reuse == "matching" and idle.duration_s > 0 and job.devices.on_gpu


def _idle_power_entry(job: Job, run_dir: Path, runner: str) -> Path:
    config = encode(job.config)
    assert isinstance(config, dict)
    loaded = {name: value for name, value in config.items() if name not in NOT_LOADED}
    key = [runner, job.meter.name, encode(job.devices), encode(job.environment), loaded]
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return run_dir / IDLE_POWER_DIRECTORY / f"{digest[:16]}.json"
