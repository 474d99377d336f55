"""Measuring one cycle from the pytest side: runner, devices, lease, job, and what repeated failures teach."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llem.containers.errors import error_from_dict
from pytest_llem.engines import starts_server
from pytest_llem.errors import JsonValue, LlemError
from pytest_llem.job.files import read_json
from pytest_llem.job.job import Deadlines, DeviceSet, Job, JobDir, MeterSettings
from pytest_llem.job.redaction import redact_file, secrets_of
from pytest_llem.job.report import Note, RunnerSpec, RunReport
from pytest_llem.machine import idle_power_cache as idle_references
from pytest_llem.machine.concurrent_runs import ConcurrentRuns
from pytest_llem.machine.devices import Demand, demanded_devices, gpu_uuids, visible_devices, visible_gpus
from pytest_llem.machine.hold import HeldDevices, StaysLoaded
from pytest_llem.machine.leases import LeaseRequest
from pytest_llem.runners.breaker import Breaker
from pytest_llem.runners.protocol import KnowsImage, ParallelCycles, ReuseTarget, Runner, RunsMany
from pytest_llem.servers.runner import known_image
from pytest_llem.servers.spec import ServerSpec, residual_allowance
from pytest_llem.session.checks import Checks
from pytest_llem.session.run import RunOptions
from pytest_llem.session.runner_plan import RunnerPlans

if TYPE_CHECKING:
    from pytest_llem.session.experiment_cycle import ExperimentCycle
    from pytest_llem.study import Study

LEASE_TIMEOUT_S = 24 * 3600.0


class Measurer:
    """Runs cycles, one at a time, each under a lease of its devices."""

    def __init__(self, options: RunOptions, run_id: str, run_dir: Path) -> None:
        self._options = options
        self._run_id = run_id
        self._run_dir = run_dir
        self._runners: dict[str, Runner] = {}
        self._breaker = Breaker()
        self._checks = Checks(run_dir, skip=options.skip_preflight)
        self._devices = HeldDevices()
        self._lock = threading.Lock()
        self._say: Callable[[str | None], None] = lambda _: None
        self.placement = RunnerPlans(options)
        self.places: Mapping[tuple[str, str, int | None], int] = {}
        """Where each cycle (study, experiment, number) stands in this run's order, where several processes share it."""

    def runner_spec(self, engine: str, study: Study) -> RunnerSpec:
        """Where cycles of an engine run, and who said so."""
        return self.placement.spec(engine, study)

    def identities(self, point: ExperimentCycle, environment: Mapping[str, JsonValue]) -> list[dict[str, JsonValue]]:
        """What must be equal in an earlier result of a cycle for it to be reused: one for each place where it may run.

        That is this machine's `environment`, or each node of a cluster.
        """
        from pytest_llem.machine.environment import identity
        from pytest_llem.machine.inputs import input_facts

        config = point.experiment.config
        spec = self.runner_spec(point.experiment.engine, point.study)
        runner = self._runner(spec, point.study)
        if isinstance(runner, RunsMany):
            places = runner.places(config)
        else:
            devices = visible_devices(config)
            places = [
                ReuseTarget(
                    environment, input_facts(config), self._image(spec, point), devices.kind, len(devices.uuids)
                )
            ]
        return [
            identity(
                place.environment,
                engine=point.experiment.engine,
                runner=spec.name,
                image=place.image,
                device_kind=place.device_kind,
                device_count=place.device_count,
                meter=self._options.meter_of(point.study),
                inputs=place.inputs,
            )
            for place in places
        ]

    def _image(self, spec: RunnerSpec, point: ExperimentCycle) -> str | None:
        """What a container's image is known by: its digest where it lies here already, else its name."""
        if starts_server(point.experiment.config):
            image = point.experiment.config.settings.get("image")
            return known_image(str(image)) if image is not None else None
        runner = self._runner(spec, point.study)
        known = runner.known_image(point.experiment.engine) if isinstance(runner, KnowsImage) else None
        return known or spec.image

    def measure(self, point: ExperimentCycle, attempt: int, job_dir: JobDir) -> tuple[Job, RunReport]:
        """Run one attempt of a cycle; the job directory holds its measurement or its error afterwards.

        Raises `LlemError` when it cannot even be tried: no devices, no lease, or a cause that failed repeatedly.
        """
        from pytest_llem.machine.cooldown import cool_down
        from pytest_llem.runners.announcement import Announcement

        experiment, study = point.experiment, point.study
        spec = self.runner_spec(experiment.engine, study)
        if spec.name == "ray":
            return self._measure_on_cluster(point, spec, attempt, job_dir)
        demand = demanded_devices(experiment.config)
        refused = self._breaker.refuse(_dependencies(point, spec, demand)) if self._options.breaker else None
        if refused is not None:
            raise refused
        runner = self._runner(spec, study)
        if starts_server(experiment.config):
            runner = self._beside_server(runner, study)
        checked = self._checks.preflight(runner, point, demand.first())
        title = f"{study.name} {experiment.id} c{point.cycle}"
        place = self.places.get((study.name, experiment.id, point.cycle or 1))
        execution = study.execution
        dependencies = _dependencies(point, spec, demand)
        try:
            with (
                Announcement(self._run_dir, title, job_dir.events) as announcement,
                self._devices.hold_devices(
                    runner,
                    demand,
                    LeaseRequest(title, self._run_id, place),
                    partial(self._job, point, attempt, job_dir),
                    job_dir,
                    residual_bytes=residual_allowance(experiment.config, execution.residual_memory_bytes),
                    timeout_s=LEASE_TIMEOUT_S,
                    on_wait=announcement.say,
                ) as (hold, job),
            ):
                devices, concurrent_runs = job.devices, ConcurrentRuns(self._run_id)
                dependencies = _dependencies(point, spec, Demand.exactly(devices))
                self._say = announcement.say
                announcement.say("cooling down")
                loaded = isinstance(runner, StaysLoaded) and runner.loaded
                cooled = cool_down(execution.cooldown, devices, self._run_dir, loaded=loaded)
                announcement.say(None)
                unchecked = self._checks.settings(runner, point, devices)
                where = f"{spec.name}:{spec.image or spec.address or ''}"
                job = idle_references.lend(job, job_dir, self._run_dir, where)
                report = runner.run(job, job_dir, _ignore, hold.lease)
                concurrent = concurrent_runs.count()
        except LlemError as error:
            self._breaker.record(error, dependencies)
            raise
        idle_references.keep(job, job_dir, self._run_dir, where)
        redact_file(job_dir.log, secrets_of(os.environ).values())
        failed = error_from_dict(read_json(job_dir.error)) if job_dir.error.exists() else None
        self._breaker.record(failed, dependencies)
        notes = report.notes if unchecked is None else (*report.notes, Note("settings_unchecked", unchecked))
        facts = {
            **report.facts,
            **hold.facts,
            **cooled.facts,
            "preflight": checked,
            **self._shard(),
            "concurrent_workers": concurrent,
        }
        return job, replace(report, facts=facts, notes=notes if cooled.note is None else (*notes, cooled.note))

    def _measure_on_cluster(
        self, point: ExperimentCycle, spec: RunnerSpec, attempt: int, job_dir: JobDir
    ) -> tuple[Job, RunReport]:
        """As `measure`, by a runner whose nodes take the lease and see to their devices; several may call it.

        No failure keeps others from being tried: what one node lacks says nothing of the next.
        """
        anywhere = Demand("cpu", ("cpu",), 1)
        with self._lock:
            runner = self._runner(spec, point.study)
        checked = self._checks.preflight(runner, point, anywhere.first())
        unchecked = self._checks.settings(runner, point, anywhere.first())
        report = runner.run(self._job(point, attempt, job_dir, anywhere.first()), job_dir, _ignore)
        redact_file(job_dir.log, secrets_of(os.environ).values())
        notes = report.notes if unchecked is None else (*report.notes, Note("settings_unchecked", unchecked))
        return job_dir.read_job(), replace(
            report, facts={**report.facts, "preflight": checked, **self._shard()}, notes=notes
        )

    def room(self, points: Sequence[ExperimentCycle]) -> ParallelCycles | None:
        """How many cycles of these experiments, all on runners that have room for several, to measure at a time.

        `None` for no experiments, and where no place can be reached: each cycle says so itself.
        """
        first: dict[str, list[ExperimentCycle]] = {}
        for point in points:
            first.setdefault(f"{point.study.name} {point.experiment.engine}", []).append(point)
        rooms = []
        notices = []
        for group in first.values():
            configs = {point.experiment.id: point.experiment for point in group}
            try:
                runner = self._runner(self.runner_spec(group[0].experiment.engine, group[0].study), group[0].study)
                if isinstance(runner, RunsMany):
                    rooms.append(runner.room([experiment.config for experiment in configs.values()]))
                    notices += [f"{group[0].study.name}: {notice}" for notice in rooms[-1].notices]
            except LlemError:
                continue
        return ParallelCycles(max(room.cycles for room in rooms), tuple(dict.fromkeys(notices))) if rooms else None

    def interrupt(self) -> None:
        """End what other threads measure."""
        for runner in self._runners.values():
            if isinstance(runner, RunsMany):
                runner.interrupt()

    def _job(self, point: ExperimentCycle, attempt: int, job_dir: JobDir, devices: DeviceSet) -> Job:
        """The job of one attempt on these devices, as it is written down for the worker."""
        experiment, study = point.experiment, point.study
        job = Job(
            run_id=self._run_id,
            study=study.name,
            experiment_id=experiment.id,
            config_hash=experiment.config_hash,
            config=experiment.config,
            cycle=point.cycle or 1,
            attempt=attempt,
            devices=devices,
            meter=_meter_settings(self._options.meter_of(study), study),
            deadlines=Deadlines(study.execution.timeout_s, study.execution.load_timeout_s),
        )
        job_dir.write_job(job)
        return job

    def _runner(self, spec: RunnerSpec, study: Study) -> Runner:
        name = f"{spec.name}:{spec.image or spec.address or ''}:{study.name}"
        isolation = study.execution.isolation
        if name not in self._runners:
            from pytest_llem.cluster.settings import settings_of, terms_of
            from pytest_llem.runners import open_runner

            self._runners[name] = open_runner(
                spec, self._run_dir, isolation=isolation, docker=study.docker, ray=(settings_of(study), terms_of(study))
            )
        return self._runners[name]

    def _beside_server(self, runner: Runner, study: Study) -> Runner:
        """The runner of a study's cycles that need a server, which is started for them and kept while it is needed."""
        name = f"server:{study.name}"
        if name not in self._runners:
            from pytest_llem.servers.runner import ServingRunner, keeps_servers

            self._runners[name] = ServingRunner(
                runner, self._run_dir, study.docker, lambda text: self._say(text), keep=keeps_servers()
            )
        return self._runners[name]

    def _shard(self) -> dict[str, JsonValue]:
        return {} if self._options.shard is None else {"shard": str(self._options.shard)}

    def unload(self) -> None:
        """Unload an engine that is kept loaded. Raises `NotReleasedError` when something of it stays on its devices."""
        self._devices.leave()

    def close(self) -> None:
        """Release the runners, and what they keep."""
        with contextlib.suppress(LlemError):
            self._devices.leave()
        for runner in self._runners.values():
            runner.close()
        self._runners.clear()


def _dependencies(point: ExperimentCycle, spec: RunnerSpec, demand: Demand) -> dict[str, str | None]:
    """What a cycle needs that others may need too, by kind: see `runners.breaker.LASTING`."""
    config = point.experiment.config
    return {
        "engine": point.experiment.engine,
        "model": point.experiment.model,
        "dataset": point.experiment.config.workload.dataset,
        "image": spec.image or f"the default image of {point.experiment.engine}",
        "runner": spec.name,
        "machine": spec.address,
        "server": repr(ServerSpec.of(config, DeviceSet("cpu"))) if starts_server(config) else None,
        # Where there is a choice of devices, it may fall on others than those that failed.
        "device": " ".join(demand.candidates) if demand.forced else None,
    }


def _meter_settings(meter: str, study: Study) -> MeterSettings:
    if meter == "auto":
        return MeterSettings(meter, thresholds=study.thresholds)
    return MeterSettings(meter, explicit=True, thresholds=study.thresholds, uuids=visible_gpus() or gpu_uuids())


def _ignore(event: Mapping[str, JsonValue]) -> None:
    """Events are read from their file by the live status; a runner's own watch is enough here."""
