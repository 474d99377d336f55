"""Measures one cycle from the pytest side: chooses runner and devices, makes the job, and remembers failures.

`run_results` calls it for each cycle that the store lacks; `prefetch` asks what can run in parallel. How a cycle is
measured on a machine belongs in `runners.measure_here`; nothing here may touch a device outside its lease.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from filelock import FileLock

from pytest_llem.containers import remove_orphaned_containers
from pytest_llem.energy.registry import require_meter_of
from pytest_llem.engines import starts_server
from pytest_llem.errors import JsonValue, LlemError, SettingsError, from_dict
from pytest_llem.job.config import ExperimentConfig
from pytest_llem.job.files import read_json, slug, write_json
from pytest_llem.job.job import Deadlines, DeviceSet, Job, JobDir, MeterSettings, load_job
from pytest_llem.job.redaction import redact_file
from pytest_llem.job.report import Note, RunnerSpec, RunReport
from pytest_llem.job.wire import encode
from pytest_llem.machine.devices import Demand, asked_kind, demanded_devices, metered_gpus, visible_devices
from pytest_llem.machine.environment import identity, input_facts
from pytest_llem.machine.leases import LeaseRequest
from pytest_llem.runners import open_runner
from pytest_llem.runners.announcement import Announcement
from pytest_llem.runners.breaker import Breaker
from pytest_llem.runners.measure_here import CycleRequest, HeldDevices, error_of, measure_here
from pytest_llem.runners.protocol import ParallelCycles, ReuseTarget, Runner, RunnerSettings
from pytest_llem.runners.settings_check import require_accepted_settings
from pytest_llem.servers.runner import ServingRunner, keeps_servers
from pytest_llem.servers.spec import ServerSpec, require_reachable, residual_allowance
from pytest_llem.session.experiment_cycle import ExperimentCycle
from pytest_llem.session.run import RunOptions
from pytest_llem.session.runner_plan import RunnerPlans
from pytest_llem.study import Study
from pytest_llem.workload.texts import texts_of_package


class Measurer:
    """Runs cycles, one at a time, each under a lease of its devices."""

    def __init__(self, options: RunOptions, run_id: str, run_dir: Path, runner_plans: RunnerPlans) -> None:
        self._options = options
        self._runner_plans = runner_plans
        self._run_id = run_id
        self._run_dir = run_dir
        self._runners: dict[str, Runner] = {}
        self._breaker = Breaker()
        self._checks = Checks(run_dir, skip=options.skip_preflight)
        self._devices = HeldDevices(remove_orphaned_containers)
        self._lock = threading.Lock()
        self._say: Callable[[str | None], None] = lambda _: None
        self.queue_positions: Mapping[tuple[str, str, int | None], int] = {}
        """Where each cycle (study, experiment, number) stands in this run's order, where several processes share it."""

    def runner_spec(self, engine: str, study: Study) -> RunnerSpec:
        """The runner chosen for an engine, and which setting chose it."""
        return self._runner_plans.spec(engine, study)

    def identities(self, cycle: ExperimentCycle, environment: Mapping[str, JsonValue]) -> list[dict[str, JsonValue]]:
        """What an earlier result must equal to be reused, one for each machine that the cycle may run on."""
        config = cycle.experiment.config
        runner = self._runner(cycle.experiment.engine, cycle.study)
        targets = runner.reuse_targets(config)
        if not runner.distributed:
            devices, image = visible_devices(config), self._image(runner, cycle)
            targets = [ReuseTarget(environment, input_facts(config), image, devices.kind, len(devices.uuids))]
        return [
            identity(
                target.environment,
                engine=cycle.experiment.engine,
                runner=runner.spec.name,
                image=target.image,
                device_kind=target.device_kind,
                device_count=target.device_count,
                meter=self._options.meter_of(cycle.study),
                inputs=target.inputs,
                power_limit=config.device.power_limit_w,
            )
            for target in targets
        ]

    def _image(self, runner: Runner, cycle: ExperimentCycle) -> str | None:
        """What a container's image is known by: its digest where it is present here already, else its name."""
        if starts_server(cycle.experiment.config):
            from pytest_llem.servers.container import known_image

            image = cycle.experiment.config.settings.get("image")
            return known_image(str(image)) if image is not None else None
        return runner.known_image(cycle.experiment.engine) or runner.spec.image

    def measure(self, cycle: ExperimentCycle, attempt: int, job_dir: JobDir) -> tuple[Job, RunReport]:
        """Run one attempt of a cycle into its job directory. Raises `LlemError` when it cannot even be tried."""
        experiment, study = cycle.experiment, cycle.study
        with self._lock:
            runner = self._runner(experiment.engine, study)
        if runner.distributed:
            return self._measure_elsewhere(runner, cycle, attempt, job_dir)
        demand = demanded_devices(experiment.config)
        dependencies = _dependencies(cycle, runner.spec, demand)
        refused = self._breaker.refuse(dependencies) if self._options.breaker else None
        if refused is not None:
            raise refused
        if starts_server(experiment.config):
            runner = self._beside_server(runner, study)
        preflight = self._checks.preflight(runner, cycle, demand.first())
        title = f"{study.name} {cycle.id} c{cycle.cycle}"

        def job_on(devices: DeviceSet) -> Job:
            nonlocal dependencies
            dependencies = _dependencies(cycle, runner.spec, Demand.exactly(devices))
            return self._job(cycle, attempt, devices)

        place = None if cycle.confirms else cycle.cycle or 1  # a gate stands in the queue without a number
        queue_position = self.queue_positions.get((study.name, cycle.id, place))
        request = CycleRequest(
            experiment.config,
            demand,
            LeaseRequest(title, self._run_id, queue_position),
            job_on,
            self._run_dir,
            residual_bytes=residual_allowance(experiment.config, study.execution.residual_memory_bytes),
            cooldown=study.execution.cooldown,
            before_run=partial(self._checks.settings, runner, cycle),
        )
        try:
            with Announcement(self._run_dir, title, job_dir.events, attempt) as announcement:
                self._say = announcement.say
                job, report = measure_here(runner, self._devices, request, job_dir, announcement.say)
        except LlemError as error:
            self._breaker.record(error, dependencies)
            raise
        self._breaker.record(error_of(job_dir), dependencies)
        return job, self._completed(report, preflight)

    def _measure_elsewhere(
        self, runner: Runner, cycle: ExperimentCycle, attempt: int, job_dir: JobDir
    ) -> tuple[Job, RunReport]:
        """As `measure`, by a runner whose machines take the lease; threads may call it, and no failure stops others."""
        if cycle.experiment.config.device.named:
            raise SettingsError(
                f"device.gpus cannot be combined with the runner {runner.spec.name}, which chooses the GPUs",
                fix="leave it out, or give their number; `ray: {resources: ...}` chooses nodes",
            )
        unknown = DeviceSet("cpu")
        preflight = self._checks.preflight(runner, cycle, unknown)
        note = self._checks.settings(runner, cycle, unknown)
        job_dir.path.mkdir(parents=True, exist_ok=True)
        job = self._job(cycle, attempt, unknown)
        try:
            report = runner.run(job, job_dir, lambda _: None)  # others read the events' file
        finally:
            if not job_dir.job.exists():
                runner.hand_over(job, job_dir)
            redact_file(job_dir.log)
        return load_job(job_dir.job), self._completed(report, preflight, note)

    def _completed(self, report: RunReport, preflight: str, note: Note | None = None) -> RunReport:
        facts: dict[str, JsonValue] = {**report.facts, "preflight": preflight}
        if self._options.shard is not None:
            facts["shard"] = str(self._options.shard)
        return replace(report, facts=facts, notes=report.notes if note is None else (*report.notes, note))

    def parallel_cycles(self, cycles: Sequence[ExperimentCycle]) -> ParallelCycles | None:
        """How many of these cycles distributed runners measure at a time; `None` for none, or without a cluster."""
        groups: dict[str, list[ExperimentCycle]] = {}
        for cycle in cycles:
            groups.setdefault(f"{cycle.study.name} {cycle.experiment.engine}", []).append(cycle)
        counts: list[int] = []
        notices: dict[str, None] = {}
        for group in groups.values():
            experiments = {each.experiment.id: each.experiment for each in group}
            study = group[0].study
            with contextlib.suppress(LlemError):
                runner = self._runner(group[0].experiment.engine, study)
                answer = runner.parallel_cycles([experiment.config for experiment in experiments.values()])
                counts.append(answer.cycles)
                notices |= {f"{study.name}: {notice}": None for notice in answer.notices}
        return ParallelCycles(max(counts), tuple(notices)) if counts else None

    def interrupt(self) -> None:
        """End what other threads measure."""
        for runner in self._runners.values():
            runner.interrupt()

    def _job(self, cycle: ExperimentCycle, attempt: int, devices: DeviceSet) -> Job:
        """The job of one attempt on these devices."""
        experiment, study = cycle.experiment, cycle.study
        return Job(
            run_id=self._run_id,
            study=study.name,
            experiment_id=cycle.id,
            config_hash=experiment.config_hash,
            config=experiment.config,
            cycle=cycle.cycle or 1,
            attempt=attempt,
            devices=devices,
            meter=_meter_settings(self._options.meter_of(study), study, experiment.config),
            deadlines=Deadlines(study.execution.timeout_s, study.execution.load_timeout_s),
            texts=texts_of_package(experiment.config.workload),
            percentiles=study.percentiles,
        )

    def _runner(self, engine: str, study: Study) -> Runner:
        spec = self.runner_spec(engine, study)
        name = f"{spec.name}:{spec.image or spec.address or ''}:{study.name}"
        execution = study.execution
        if name not in self._runners:
            settings = RunnerSettings(
                self._run_dir,
                execution.isolation,
                study.docker,
                study.ray,
                execution.residual_memory_bytes,
                execution.cooldown,
            )
            self._runners[name] = open_runner(spec, settings)
        return self._runners[name]

    def _beside_server(self, runner: Runner, study: Study) -> Runner:
        """The runner of a study's cycles that need a server, which is started for them and kept while it is needed."""
        name = f"server:{study.name}"
        if name not in self._runners:
            self._runners[name] = ServingRunner(
                runner, self._run_dir, study.docker, lambda text: self._say(text), keep=keeps_servers()
            )
        return self._runners[name]

    def unload(self) -> None:
        """Unload an engine that is kept loaded. Raises `NotReleasedError` when something of it stays on its devices."""
        self._devices.release()

    def close(self) -> None:
        """Release the runners, and what they keep."""
        with contextlib.suppress(LlemError):
            self._devices.release()
        for runner in self._runners.values():
            runner.close()
        self._runners.clear()


def _dependencies(cycle: ExperimentCycle, spec: RunnerSpec, demand: Demand) -> dict[str, str | None]:
    """What a cycle needs that others may need too, by kind: see `runners.breaker.LASTING`."""
    config = cycle.experiment.config
    return {
        "engine": cycle.experiment.engine,
        "model": cycle.experiment.model,
        "dataset": config.workload.task or config.workload.dataset,
        "image": spec.image or f"the default image of {cycle.experiment.engine}",
        "runner": spec.name,
        "machine": spec.address,
        "server": repr(ServerSpec.of(config, DeviceSet("cpu"))) if starts_server(config) else None,
        # Where there is a choice of devices, it may fall on others than those that failed.
        "device": " ".join(demand.candidates) if demand.forced else None,
    }


def _meter_settings(meter: str, study: Study, config: ExperimentConfig) -> MeterSettings:
    require_meter_of(config.device.kind, meter)
    read = metered_gpus(meter, config.device.kind)
    return MeterSettings(meter, meter != "auto", "worker", study.thresholds, read, bool(config.device.named))


class Checks:
    """Checks made once per engine and runner, whose answers xdist's workers share in the run's directory."""

    def __init__(self, run_dir: Path, *, skip: bool) -> None:
        self._directory = run_dir / ".preflight"
        self._skip = skip

    def preflight(self, runner: Runner, cycle: ExperimentCycle, devices: DeviceSet) -> str:
        """Raise what stands against every cycle of this engine there; else say how it was checked."""
        if self._skip:
            return "skipped"
        require_reachable(cycle.experiment.config)
        engine, study = cycle.experiment.engine, cycle.study
        kind = asked_kind(cycle.experiment)
        record = self._directory / f"{_name(runner, cycle)}{'' if kind == 'auto' else f'-{kind}'}.json"
        record.parent.mkdir(exist_ok=True)
        with FileLock(record.with_suffix(".lock")):
            if not record.exists():
                same = [other for other in study.experiments if other.engine == engine and asked_kind(other) == kind]
                configs = {other.model: other for other in same}
                report = runner.preflight(engine, [other.config for other in configs.values()], devices)
                if report is None:
                    return "none needed"
                write_json(
                    record,
                    {
                        "problems": [problem.to_dict() for problem in report.problems],
                        "notices": encode(report.notices),
                        "facts": encode(report.facts),
                    },
                )
        problems = read_json(record)["problems"]
        if isinstance(problems, list) and problems:
            raise _combined([from_dict(problem) for problem in problems if isinstance(problem, Mapping)])
        return "passed"

    def settings(self, runner: Runner, cycle: ExperimentCycle, devices: DeviceSet) -> Note | None:
        """Raise for settings that the engine refuses. Call it under the lease: the engine's import disturbs others."""
        if self._skip:
            return None
        directory = self._directory / _name(runner, cycle)
        unchecked = require_accepted_settings(runner, cycle.study, cycle.experiment, devices, directory)
        return None if unchecked is None else Note("settings_unchecked", unchecked)


def _name(runner: Runner, cycle: ExperimentCycle) -> str:
    spec = runner.spec
    engine = cycle.experiment.engine
    return slug(f"{cycle.study.name}-{engine}-{spec.name}-{spec.image or spec.address or 'default'}")


def _combined(problems: Sequence[LlemError]) -> LlemError:
    """All problems of a preflight in one error, of the first one's kind."""
    first = problems[0]
    if len(problems) == 1:
        return first
    also = "; ".join(problem.message for problem in problems[1:])
    fixes = "; ".join(dict.fromkeys(problem.fix for problem in problems if problem.fix))
    return from_dict({**first.to_dict(), "message": f"{first.message}; also: {also}", "fix": fixes or None})
