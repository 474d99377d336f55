"""The plan of a run: what its manifest says of its studies, and which of their cycles an item is about.

`run_results` writes it before the first cycle, and reads it again for what a process of xdist left behind when it died.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from pytest_llem.errors import JsonValue
from pytest_llem.job.redaction import redact, redact_arguments
from pytest_llem.results.axes import differing
from pytest_llem.results.layout import CycleKey, WindowKey
from pytest_llem.results.manifest import Invocation, PlannedCycle, SkippedPoint, StudyPlan, rebuild_manifest
from pytest_llem.results.registration import protocol_of, registration_of
from pytest_llem.results.state import Holder
from pytest_llem.results.store import LOCKS
from pytest_llem.session.experiment_cycle import ExperimentCycle
from pytest_llem.session.run import RunIdentity
from pytest_llem.study import Experiment, Study
from pytest_llem.study.optimize import MIN_CYCLES


def write_plan(
    run_dir: Path, run: RunIdentity, cycles: Iterable[ExperimentCycle], facts: Mapping[str, JsonValue] | None
) -> None:
    """Write what will run to the manifest, unless another worker of the run has: the plan is the same in all."""
    try:
        (run_dir / LOCKS / "planned").touch(exist_ok=False)
    except FileExistsError:
        return
    invocation = Invocation(tuple(redact_arguments(run.command)), run.directory, run.rootdir, Holder.of(run.pid))
    rebuild_manifest(run_dir, studies=study_plans(cycles), invocation=invocation, facts=facts)


def study_plans(cycles: Iterable[ExperimentCycle]) -> tuple[StudyPlan, ...]:
    """The plan for the run's manifest: the selected cycles in order, and the points that the studies left out."""
    studies: dict[str, Study] = {}
    planned: dict[str, dict[PlannedCycle, None]] = {}
    experiments: dict[str, dict[str, Experiment]] = {}
    for item in cycles:
        studies[item.study.name] = item.study
        of_study = planned.setdefault(item.study.name, {})
        experiments.setdefault(item.study.name, {})[item.experiment.id] = item.experiment
        for cycle in (each for each in (item.cycles() if item.cycle is None else (item,)) if not each.optional):
            of_study[PlannedCycle(cycle.experiment.id, cycle.experiment.config_hash, cycle.cycle or 1)] = None
    return tuple(_plan(study, tuple(planned[name]), experiments[name]) for name, study in studies.items())


def _plan(study: Study, cycles: tuple[PlannedCycle, ...], experiments: Mapping[str, Experiment]) -> StudyPlan:
    swept = {axis.name for axis in study.axes}
    differ = differing({id: experiment.flat_settings for id, experiment in experiments.items()})
    registration = registration_of(study.path)
    own, *bases = [replace(file, text=file.text and redact(file.text)) for file in study.files]
    return StudyPlan(
        name=study.name,
        path=str(study.path),
        sha256=study.study_hash,
        order=study.execution.order,
        cycles=cycles,
        required_cycles=study.execution.cycles if study.optimize is None else MIN_CYCLES,
        title=study.title,
        headline=study.execution.headline,
        report=study.report,
        text=own.text,
        file_sha256=own.sha256,
        bases=tuple(bases),
        axes=tuple(study.axes),
        points={id: study.point(experiment) for id, experiment in experiments.items()} if swept else {},
        settings=tuple(axis.name for axis in differ.axes if axis.name not in swept),
        protocol=protocol_of(study) if registration else {},
        registration=registration,
        optimize=None if study.optimize is None else study.optimize.told,
        left_out=tuple(
            SkippedPoint(point.id, point.reason) for point in (*study.excluded, *study.invalid, *study.duplicates)
        ),
    )


def cycle_of_item(nodeid: str, plans: Iterable[StudyPlan], rootpath: Path) -> Iterator[CycleKey]:
    """The cycle, or window of a search, that an item of a study file is about; nothing for gates and users' tests."""
    match = re.fullmatch(r"(?P<path>.+)::test_experiment\[(?P<id>.+)-c(?P<cycle>\d+)\]", nodeid)
    if match is None:
        return
    search_id, _, step = match["id"].rpartition("-")
    for plan in plans:
        if plan.path is not None and Path(plan.path) == rootpath / match["path"]:
            hashes = {cycle.experiment_id: cycle.config_hash for cycle in plan.cycles}
            if match["id"] in hashes:
                yield CycleKey(plan.name, match["id"], hashes[match["id"]], int(match["cycle"]))
            elif search_id in hashes and step.isdecimal():
                yield WindowKey(plan.name, search_id, hashes[search_id], int(match["cycle"]), int(step))
