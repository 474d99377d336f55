"""What this machine's devices cannot run of a study, said at collection and at the place of the setting.

The session asks once per study. It must stay cheap for ten thousand experiments: each combination of the settings that
decide is looked at once.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_llem.energy.registry import require_meter_of
from pytest_llem.engines import engine_info
from pytest_llem.engines.info import PARALLEL_SIZES
from pytest_llem.errors import DeviceError, JsonValue, MeterError
from pytest_llem.job.config import AskedKind, DeviceKind
from pytest_llem.machine.devices import (
    KIND,
    VARIABLE_OF,
    asked_kind,
    gpu_kind,
    gpus_needed,
    named_gpus,
    names_gpus,
    parallel_sizes,
    serves_already,
    visible_of,
)
from pytest_llem.worker.pinning import pinned_cpus
from pytest_llem.worker.probe import torch_build

if TYPE_CHECKING:
    from pytest_llem.study import Experiment, Study

GPUS, CPUS, NODE = "device.gpus", "device.cpus", "device.numa_node"


@dataclass(frozen=True)
class Place:
    """Where a study's experiments of one engine run: `here` in this environment, `elsewhere` on other machines.

    `kind` is that of `--llem-device`, `None` where the run names none.
    """

    meter: str
    here: Collection[str] = ()
    elsewhere: Collection[str] = ()
    kind: AskedKind | None = None


@dataclass(frozen=True)
class Obstacle:
    """Why an experiment cannot run here: `path` is the setting to change, whose `value` finds its place in a sweep."""

    path: str
    text: str
    fix: str
    value: JsonValue = None
    needed: int | None = None
    visible: int | None = None


def experiments_beyond(study: Study, place: Place) -> dict[str, str]:
    """Experiments (by id) that ask for devices that this machine lacks, with the reason to skip them.

    Raises `DeviceError`, at the place of the setting, unless the study skips what cannot run.
    """
    sizes = [f"{engine}.{name}" for engine in {each.engine for each in study.experiments} for name in PARALLEL_SIZES]
    deciding = ("engine", KIND, GPUS, CPUS, NODE, "openai.base_url", "openai.image", *sizes)
    if not any(_obstacle(experiment, place) for experiment in study.distinct(*deciding)):
        return {}
    found = {each.id: obstacle for each in study.experiments if (obstacle := _obstacle(each, place)) is not None}
    if not study.skips_invalid:
        first, obstacle = next(iter(found.items()))
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        option = f", or leave --llem-device={place.kind} out" if place.kind and obstacle.path == KIND else ""
        needed = [each.needed for each in found.values() if each.needed is not None]
        raise DeviceError(
            f"{study.locate(obstacle.path, obstacle.value)}: {first}{more}: {obstacle.text}",
            fix=f"{obstacle.fix}{option}, or set on_invalid: skip",
            details={"needed": max(needed, default=None), "visible": obstacle.visible},
        )
    return {id: obstacle.text for id, obstacle in found.items()}


def _obstacle(experiment: Experiment, place: Place) -> Obstacle | None:
    asked, settings = asked_kind(experiment), experiment.flat_settings
    if experiment.engine in place.elsewhere:
        if isinstance(settings.get(GPUS), (list, tuple)):
            fix = "leave it out, or give their number; `ray: {resources: ...}` chooses nodes"
            return Obstacle(GPUS, f"{GPUS} cannot be combined with the runner ray, which chooses the GPUs", fix)
        return None
    try:
        kind, gpus = (gpu_kind(asked), ()) if names_gpus(experiment) else visible_of(asked)
        require_meter_of(asked, place.meter)
    except (DeviceError, MeterError) as problem:
        return Obstacle(KIND, problem.message, str(problem.fix), asked)
    path = next((path for path in (CPUS, NODE) if path in settings), None)
    if path is not None:
        if kind != "cpu":
            text = f"{path} pins an experiment on the CPU, and {len(gpus)} GPU{'s' * (len(gpus) > 1)} would be taken"
            return Obstacle(path, text, f"write {KIND}: cpu beside it", settings[path])
        try:
            pinned_cpus(experiment.config.device)
        except DeviceError as problem:
            return Obstacle(path, problem.message, str(problem.fix), settings[path])
    if kind == "rocm" and (experiment.engine not in place.here or "openai.image" in settings):
        fix = f"let it run in this environment (--llem-runner={experiment.engine}=local), or write {KIND}: cpu"
        return Obstacle(KIND, "AMD GPUs cannot be given to containers", fix, asked)
    build = _other_build(experiment, asked, kind) if experiment.engine in place.here else None
    if build is not None:
        return build
    config = experiment.config if GPUS in settings else None
    if config is not None and config.device.named:
        try:
            gpus = named_gpus(config)
        except DeviceError as problem:
            return Obstacle(GPUS, problem.message, str(problem.fix), settings[GPUS])
        if serves_already(config):
            return None
    needed, counted = gpus_needed(experiment), isinstance(settings.get(GPUS), int)
    if needed <= len(gpus) or not (gpus or counted):
        return None  # some engines run their parallel parts on the CPU
    path = next((f"{experiment.engine}.{name}" for name in parallel_sizes(experiment)), GPUS)
    if counted:
        path = GPUS
    named = config is not None and config.device.named
    there = f"{len(gpus)} {'is' if len(gpus) == 1 else 'are'} {'named' if named else 'visible'}"
    fix = f"{'lower it' if needed > 1 else 'leave it out'}, make more GPUs visible ({VARIABLE_OF[kind]})"
    return Obstacle(path, f"{path} needs {needed} GPU{'s' * (needed > 1)}, {there}", fix, None, needed, len(gpus))


def _other_build(experiment: Experiment, asked: AskedKind, kind: DeviceKind) -> Obstacle | None:
    """An engine whose torch was built for another kind of device: it would fail in each cycle, with a GPU leased."""
    info = engine_info(experiment.engine)
    build = torch_build()
    if info.runs_on(kind, build):
        return None
    path, value = (KIND, asked) if asked != "auto" else ("engine", info.name)
    text = f"engine {info.name} would run on {kind}, and its torch was built for {build} here"
    if kind == "cpu":
        return Obstacle(path, text, f"install the build of {info.title} for the CPU (docs/engines.md)", value)
    fix = (
        f"write {KIND}: cpu (or give --llem-device=cpu) to measure the CPU, or install a torch that is built for {kind}"
    )
    return Obstacle(path, text, fix, value)
