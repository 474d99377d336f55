"""What the pytest side does with cycles that a cluster measures; a stand-in for the runner meets the problems."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pytest_llem.errors import InfeasibleError, LlemError, ModelNotFoundError
from pytest_llem.job.job import Job, JobDir, load_job
from pytest_llem.job.report import RunnerSpec, RunReport
from pytest_llem.machine.leases import Lease
from pytest_llem.runners.protocol import OnEvent, ParallelCycles, Runner
from pytest_llem.session.experiment_cycle import ExperimentCycle
from pytest_llem.session.measuring import Measurer
from pytest_llem.session.run import RunOptions
from pytest_llem.session.runner_plan import RunnerPlans
from pytest_llem.study import load_study

SPEC = RunnerSpec("ray", "command line")


class StandIn(Runner):
    """A cluster's runner with room for some cycles, or the error that it meets instead."""

    def __init__(self, cycles: int | LlemError, failures: list[LlemError] | None = None) -> None:
        self.spec = SPEC
        self._cycles = cycles
        self._failures = failures or []

    distributed = True

    def parallel_cycles(self, configs: Any) -> ParallelCycles:
        if isinstance(self._cycles, LlemError):
            raise self._cycles
        return ParallelCycles(self._cycles, ("too little",))

    def run(self, job: Job, job_dir: JobDir, on_event: OnEvent, lease: Lease | None = None) -> RunReport:
        if self._failures:
            raise self._failures.pop()
        self.hand_over(job, job_dir)
        return RunReport("ray", "command line", "process")

    def close(self) -> None:
        """Nothing is kept."""


def measurer(monkeypatch: pytest.MonkeyPatch, run_dir: Path, runners: dict[str, StandIn]) -> Measurer:
    options = SimpleNamespace(breaker=True, skip_preflight=True, shard=None, meter_of=lambda study: "none")
    found = Measurer(cast("RunOptions", options), "run", run_dir, RunnerPlans(cast("RunOptions", options)))
    monkeypatch.setattr(found, "runner_spec", lambda engine, study: SPEC)
    monkeypatch.setattr(found, "_runner", lambda spec, study: runners[study.name])
    return found


def point(directory: Path, name: str = "one") -> ExperimentCycle:
    path = directory / f"{name}.yaml"
    path.write_text(f"name: {name}\nmodel: m\nengine: transformers\n")
    study = load_study(path)
    return ExperimentCycle(study, study.experiments[0], 1)


def test_what_one_node_lacks_keeps_no_cycle_from_being_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node without the model fails its cycles at once, and so the next ones come to it too."""
    lacking = ModelNotFoundError("node bad: no model m")
    found = measurer(monkeypatch, tmp_path, {"one": StandIn(1, [lacking] * 3)})
    one = point(tmp_path)

    for attempt in range(3):
        with pytest.raises(ModelNotFoundError, match=r"^node bad"):
            found.measure(one, attempt, JobDir(tmp_path / f"job{attempt}"))
        assert load_job(JobDir(tmp_path / f"job{attempt}").job).attempt == attempt
    _, report = found.measure(one, 3, JobDir(tmp_path / "job3"))

    assert report.name == "ray"


def test_a_study_whose_place_cannot_be_reached_leaves_the_others_their_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runners = {"one": StandIn(InfeasibleError("no such node")), "two": StandIn(7)}
    found = measurer(monkeypatch, tmp_path, runners)

    parallel = found.parallel_cycles([point(tmp_path, "one"), point(tmp_path, "two")])

    assert parallel == ParallelCycles(7, ("two: too little",))
    assert found.parallel_cycles([point(tmp_path, "one")]) is None
