"""A cycle on a cluster waits no longer than there is something to wait for; a stand-in for Ray tells nothing."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_llem.errors import InfeasibleError, InterruptedCycleError, ModelNotFoundError
from pytest_llem.job.job import Deadlines, DeviceSet, Job, JobDir, MeterSettings
from pytest_llem.job.report import RunnerSpec, RunReport
from pytest_llem.job.wire import encode
from pytest_llem.runners.protocol import RunnerSettings
from pytest_llem.study import load_study
from pytest_llem.study.runner_settings import RaySettings

if os.environ.get("LLEM_REQUIRE_RAY") != "1":
    pytest.importorskip("ray")

from pytest_llem.cluster import runner as ray_runner
from pytest_llem.cluster import tasks as questions
from pytest_llem.cluster.cluster import Node, RayCluster
from pytest_llem.cluster.node import NodeFacts, NodeResult
from pytest_llem.cluster.runner import RayRunner

PLAIN = Node("1" * 56, "a", {"CPU": 8.0})
H100 = Node("2" * 56, "b", {"CPU": 8.0, "GPU": 1.0, "accelerator_type:H100": 1.0})
LARGE = Node("3" * 56, "c", {"CPU": 64.0})
REPORT = RunReport("ray", "command line", "process")


def ray_settings(run_dir: Path, settings: RaySettings) -> RunnerSettings:
    written = encode(settings)
    assert isinstance(written, dict)
    return RunnerSettings(run_dir, ray=written)


def nothing_ready(tasks: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
    return [], tasks


class Silent:
    """Stands for the remote function and its tasks, which never begin."""

    def __init__(self, submitted: Callable[[], None] = lambda: None) -> None:
        self._submitted = submitted

    def options(self, **_: object) -> Silent:
        return self

    def remote(self, *_: object) -> str:
        self._submitted()
        return "task"


def job(directory: Path) -> Job:
    path = directory / "study.yaml"
    path.write_text("model: m\nengine: transformers\n")
    experiment = load_study(path).experiments[0]
    return Job(
        run_id="run",
        study="study",
        experiment_id=experiment.id,
        config_hash=experiment.config_hash,
        config=experiment.config,
        cycle=1,
        attempt=1,
        devices=DeviceSet("cpu"),
        meter=MeterSettings("none"),
        deadlines=Deadlines(60.0, 60.0),
    )


def test_a_cycle_whose_nodes_are_all_gone_before_it_begins_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray would let its task wait for ever."""
    nodes = [PLAIN, H100]
    found = RayCluster("here", {}, own=False)
    monkeypatch.setattr(found, "nodes", lambda fresh=False: nodes)
    ended: list[str] = []
    monkeypatch.setattr(ray_runner, "CHECK_S", 0.0)
    monkeypatch.setattr(ray_runner, "connect", lambda address, environment: found)
    monkeypatch.setattr(ray_runner, "measuring_task", lambda: Silent(lambda: nodes.remove(H100)))
    monkeypatch.setattr(ray_runner, "end_task", ended.append)
    monkeypatch.setattr(ray_runner, "ray", SimpleNamespace(wait=nothing_ready))
    runner = RayRunner(RunnerSpec("ray", "command line"), RunnerSettings(tmp_path))

    with pytest.raises(InfeasibleError, match="asks for 1 CPU, 1 GPU; there are: 1 x"):
        runner.run(job(tmp_path), JobDir(tmp_path / "job"), lambda event: None)

    assert ended == ["task"]


@pytest.mark.parametrize(
    ("settings", "nodes", "cycles", "said"),
    [
        pytest.param(RaySettings(), [H100] * 3, 6, "", id="all slots and one to follow in each"),
        pytest.param(RaySettings(wait_for_nodes_s=60.0), [H100] * 3, 512, "", id="a cluster that may grow"),
        pytest.param(RaySettings(), [H100] * 600, 512, "set ray.max_in_flight", id="more slots than are used"),
        pytest.param(RaySettings(max_in_flight=600), [H100] * 600, 600, "", id="as many as the user says"),
        pytest.param(RaySettings(), [PLAIN, LARGE], 2 * 9, "only equal nodes have", id="CPU nodes of two sizes"),
        pytest.param(RaySettings(), [PLAIN, PLAIN], 4, "", id="CPU nodes of one size"),
    ],
)
def test_as_many_cycles_are_submitted_as_the_cluster_runs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: RaySettings,
    nodes: list[Node],
    cycles: int,
    said: str,
) -> None:
    found = RayCluster("here", {}, own=False)
    monkeypatch.setattr(found, "nodes", lambda fresh=False: nodes)
    monkeypatch.setattr(ray_runner, "connect", lambda address, environment: found)
    runner = RayRunner(RunnerSpec("ray", "command line"), ray_settings(tmp_path, settings))

    parallel = runner.parallel_cycles([job(tmp_path).config])

    assert parallel.cycles == cycles
    assert bool(parallel.notices) == bool(said)
    assert said in "".join(parallel.notices)


@pytest.mark.parametrize("beside", [True, False], ids=["told by the runner", "in error.json"])
def test_what_a_node_lacks_is_looked_for_on_one_other_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: bool
) -> None:
    found = RayCluster("here", {}, own=False)
    monkeypatch.setattr(found, "nodes", lambda fresh=False: [PLAIN, LARGE])
    submitted: list[dict[str, Any]] = []
    monkeypatch.setattr(ray_runner, "connect", lambda address, environment: found)
    monkeypatch.setattr(ray_runner, "measuring_task", lambda: SimpleNamespace(options=options))

    def options(**given: Any) -> Silent:
        submitted.append(given)
        return Silent()

    def run(*deliveries: NodeResult) -> RunReport:
        told = [told for node, delivery in zip(nodes, deliveries, strict=False) for told in (node, delivery)]
        runner = RayRunner(RunnerSpec("ray", "command line"), RunnerSettings(tmp_path))
        monkeypatch.setattr(runner, "_begins", lambda *_: True)
        monkeypatch.setattr(runner, "_next", lambda *_: told.pop(0))
        job_dir = JobDir(tmp_path / f"job{len(submitted)}")
        job_dir.path.mkdir()
        return runner.run(job(tmp_path), job_dir, lambda event: None)

    nodes = [NodeFacts(node.id, node.hostname, "10.0.0.1") for node in (PLAIN, LARGE)]
    error = ModelNotFoundError("no model m").to_dict()
    lacking = NodeResult(error=error) if beside else NodeResult({"error.json": json.dumps(error).encode()}, REPORT)

    report = run(lacking, NodeResult({}, REPORT))

    assert report.facts["node"] == {"id": LARGE.id, "hostname": "c", "address": "10.0.0.1"}
    assert [(note.code, note.message) for note in report.notes] == [
        ("node_lacking", "tried again elsewhere after a: no model m")
    ]
    assert [given.get("label_selector") for given in submitted] == [None, {"ray.io/node-id": f"!in({PLAIN.id})"}]
    if beside:
        with pytest.raises(ModelNotFoundError):
            run(lacking, lacking)


def test_a_question_to_a_silent_node_ends_with_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node may take a quarter of an hour to install what a question needs; Ctrl-C does not wait for it."""
    ended = threading.Event()
    cancelled: list[str] = []

    def wait(tasks: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        ended.set()
        return [], tasks

    stand_in = SimpleNamespace(
        remote=lambda **_: lambda question: Silent(),
        wait=wait,
        cancel=lambda task, force: cancelled.append(task),
    )
    monkeypatch.setattr(questions, "ray", stand_in)

    with pytest.raises(InterruptedCycleError, match="the run ended before it answered"):
        list(questions.ask_nodes(print, [PLAIN, H100], ended=ended))

    assert cancelled == ["task", "task"]
