"""Checks before anything runs: are the engine's modules here, and are there enough GPUs for an experiment?

Runner plans and the session ask. Nothing is imported or started for an answer.
"""

from __future__ import annotations

from collections.abc import Collection
from importlib.util import find_spec
from typing import TYPE_CHECKING

from pytest_llem.engines import engine_info
from pytest_llem.errors import DeviceError, JsonValue
from pytest_llem.machine.devices import PARALLEL_SIZES, parallel_product, visible_gpus

if TYPE_CHECKING:
    from pytest_llem.study import Experiment, Study


def missing_modules(engine: str) -> tuple[str, ...]:
    """The engine's Python packages that this interpreter cannot find; nothing is imported."""
    return tuple(name for name in engine_info(engine).modules if find_spec(name) is None)


def experiments_beyond(study: Study, elsewhere: Collection[str] = ()) -> dict[str, str]:
    """Experiments (by id) whose parallel sizes need more GPUs than are visible, with the reason to skip them.

    Engines in `elsewhere` run on other machines. Where there is no GPU at all nothing is known: some engines run their
    parallel parts on the CPU. Raises `DeviceError`, at the place of the setting, unless the study skips what cannot
    run.
    """
    there = len(visible_gpus())
    if not there:
        return {}
    wanted: dict[str, tuple[int, str]] = {}
    for experiment in study.experiments:
        if experiment.engine in elsewhere:
            continue
        sizes = _parallel_sizes(experiment)
        needed = parallel_product(sizes.get)
        if needed > there:
            wanted[experiment.id] = needed, f"{experiment.engine}.{next(iter(sizes))}"
    if wanted and not study.skips_invalid:
        first, (needed, path) = next(iter(wanted.items()))
        more = f" and {len(wanted) - 1} more" if len(wanted) > 1 else ""
        raise DeviceError(
            f"{study.locate(path)}: {first}{more}: {path} needs {needed} GPUs, {there} are visible",
            fix="lower it, make more GPUs visible (CUDA_VISIBLE_DEVICES), or set on_invalid: skip",
            details={"needed": max(needed for needed, _ in wanted.values()), "visible": there},
        )
    return {id: f"{path} needs {needed} GPUs, {there} are visible" for id, (needed, path) in wanted.items()}


def gpus_needed(experiment: Experiment) -> int:
    """How many GPUs an experiment asks for where there are any; cheaper than its whole configuration."""
    return parallel_product(_parallel_sizes(experiment).get)


def _parallel_sizes(experiment: Experiment) -> dict[str, JsonValue]:
    leaves, engine = experiment.flat_settings, experiment.engine
    return {name: leaves[path] for name in PARALLEL_SIZES if (path := f"{engine}.{name}") in leaves}
