"""The parts of the Ray runner that need no cluster."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import pytest

from pytest_llem.errors import (
    InterruptedCycleError,
    LlemError,
    NodeLostError,
    OutOfMemoryError,
    RunnerError,
    StudyError,
    WriteError,
)
from pytest_llem.job.job import JobDir
from pytest_llem.job.report import RunnerSpec
from pytest_llem.job.wire import decode
from pytest_llem.runners.announcement import Progress
from pytest_llem.runners.protocol import RunnerSettings
from pytest_llem.session.reporting.live import LiveStatus
from pytest_llem.study import load_study
from pytest_llem.study.declared import keys_of
from pytest_llem.study.runner_settings import RaySettings, RuntimeEnvironment

if os.environ.get("LLEM_REQUIRE_RAY") != "1":
    pytest.importorskip("ray")

from ray import exceptions as ray_errors

from pytest_llem.cluster.cluster import Node, RayCluster, ResourceRequest, connect, disconnect
from pytest_llem.cluster.node import run_directory, write_files
from pytest_llem.cluster.runner import RayRunner
from pytest_llem.cluster.tasks import translate_ray_error

H100 = Node("1", "a", {"CPU": 8.0, "GPU": 4.0, "accelerator_type:H100": 1.0, "memory": 1e9})
A100 = Node("2", "b", {"CPU": 16.0, "GPU": 2.0, "accelerator_type:A100": 1.0, "node:10.0.0.2": 1.0})
PLAIN = Node("3", "c", {"CPU": 64.0, "lab": 2.0})
HEAD = Node("4", "d", {"node:__internal_head__": 1.0})


def cluster(monkeypatch: pytest.MonkeyPatch, *nodes: Node) -> RayCluster:
    found = RayCluster("here", {}, own=False)
    monkeypatch.setattr(found, "nodes", lambda fresh=False: list(nodes))
    return found


def test_a_cycle_asks_for_its_gpus_where_the_nodes_have_any(monkeypatch: pytest.MonkeyPatch) -> None:
    found = cluster(monkeypatch, HEAD, PLAIN, H100, A100)

    request = found.request(RaySettings(), 2)

    assert request.amounts == {"CPU": 1.0, "GPU": 2.0}
    assert found.able(request) == [H100, A100]
    assert found.parallel_cycles(request) == 3


def test_only_h100_is_one_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    found = cluster(monkeypatch, H100, A100)

    request = found.request(RaySettings(accelerator_type="H100"), 2)

    assert found.able(request) == [H100]
    assert found.parallel_cycles(request) == 2


def test_a_measurement_of_the_cpu_takes_a_whole_node(monkeypatch: pytest.MonkeyPatch) -> None:
    found = cluster(monkeypatch, HEAD, PLAIN, H100)

    request = found.request(RaySettings(resources={"lab": 1.0}), 2)

    assert request.amounts == {"CPU": 64.0, "lab": 1.0}
    assert found.parallel_cycles(request) == 1


def test_the_kind_of_device_that_a_study_names_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a GPU anywhere in the cluster each cycle got one, and without any `cuda` would have been the CPU."""
    mixed, plain = cluster(monkeypatch, HEAD, PLAIN, H100), cluster(monkeypatch, PLAIN)

    assert mixed.request(RaySettings(), 2, "cpu").amounts == {"CPU": 8.0}
    assert mixed.request(RaySettings(), 2, "cuda").amounts == {"CPU": 1.0, "GPU": 2.0}
    assert plain.able(plain.request(RaySettings(), 1, "cuda")) == []
    assert plain.request(RaySettings(), 1, "auto").gpus == 0


def test_a_study_on_gpus_does_not_go_on_on_the_cpu_when_they_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    found = cluster(monkeypatch, PLAIN, H100)
    before = found.request(RaySettings(), 2)
    monkeypatch.setattr(found, "nodes", lambda fresh=False: [PLAIN])

    after = found.request(RaySettings(), 2)

    assert after == before
    assert found.able(after) == []
    assert not found.can_run(after)
    assert found.request(RaySettings(resources={"lab": 1.0}), 2).gpus == 0
    assert found.request(RaySettings(accelerator_type="H100"), 2).gpus == 2


def test_what_no_node_has_is_told_with_what_the_nodes_have(monkeypatch: pytest.MonkeyPatch) -> None:
    found = cluster(monkeypatch, H100, A100, A100)

    error = found.infeasible(ResourceRequest(8, 1.0, "H100"))

    assert "it asks for 1 CPU, 8 GPU, H100; there are: 1 x (8 CPU, 4 GPU, H100); 2 x (16 CPU, 2 GPU, A100)" in str(
        error
    )
    assert error.category == "infeasible"


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:1", "no Ray cluster can be used at 127.0.0.1:1: "),
        ("nowhere", "'nowhere' is not HOST:PORT"),
        ("ray://127.0.0.1:10001", "pytest cannot run as a Ray client"),
    ],
)
def test_an_address_where_nothing_answers_is_refused_at_once(address: str, said: str) -> None:
    """Ray itself would try for a quarter of an hour."""
    with pytest.raises(RunnerError) as raised:
        connect(address)
    disconnect()

    assert said in str(raised.value)
    assert raised.value.fix is not None


@pytest.mark.parametrize(
    ("problem", "kind", "said"),
    [
        (ray_errors.NodeDiedError("the node is dead"), NodeLostError, "the node is dead"),
        (ray_errors.WorkerCrashedError(), NodeLostError, "died unexpectedly"),
        (ray_errors.OutOfMemoryError("95 % used"), OutOfMemoryError, "running out of memory"),
        (ray_errors.TaskCancelledError(), InterruptedCycleError, "cancelled"),
        (ray_errors.RuntimeEnvSetupError("Traceback\n  x\nValueError: bad pip"), LlemError, "ValueError: bad pip"),
        (ModuleNotFoundError("No module named 'pytest_llem'"), LlemError, "cannot import"),
    ],
)
def test_errors_of_ray_become_errors_with_a_remedy(problem: Exception, kind: type[LlemError], said: str) -> None:
    error = translate_ray_error(problem, "study a c1")

    assert type(error) is kind or isinstance(error, kind)
    assert str(error).startswith("study a c1: ")
    assert said in str(error)


def test_the_section_has_the_names_and_defaults_of_the_runner() -> None:
    """A key that only one side knows would be refused, or never reach the cluster."""
    written_out = {name: key.default for name, key in keys_of(RaySettings).items() if key.section is None}

    assert decode(RaySettings, written_out) == RaySettings()


def test_a_study_says_what_its_cycles_ask_for(tmp_path: Path) -> None:
    (tmp_path / "modules").mkdir()
    path = tmp_path / "study.yaml"
    path.write_text(
        "model: m\nray: {accelerator_type: H100, resources: {lab: 2}, node_losses: 0, "
        "runtime_env: {py_modules: [modules], pip: [numpy]}}\n"
    )

    runner = RayRunner(RunnerSpec("ray", "study"), RunnerSettings(tmp_path, ray=load_study(path).ray))

    assert runner.settings == RaySettings(
        accelerator_type="H100",
        resources={"lab": 2.0},
        node_losses=0,
        runtime_env=RuntimeEnvironment(py_modules=(str(tmp_path / "modules"),), pip=("numpy",)),
    )


def test_a_wrong_key_is_told_where_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("model: m\nray:\n  acelerator_type: H100\n")

    with pytest.raises(StudyError, match=r"study\.yaml:3:3: unknown setting ray\.acelerator_type \(did you mean"):
        load_study(path)


def test_the_live_status_shows_pending_running_and_done_per_node(tmp_path: Path) -> None:
    progress = Progress(tmp_path)
    progress.outstanding(5)
    for _ in range(2):
        progress.running("alpha")
    progress.running("beta")
    progress.done("alpha")
    progress.outstanding(-1)
    progress.done("beta", again=True)

    assert progress.text() == ("3 pending, 1 running, 1 done (alpha 1 running, 1 done; beta 0 running, 0 done)")
    with (tmp_path / "terminal").open("w+") as stream:
        status = LiveStatus(tmp_path, stream, terminal=True, width=200)
        status.start()
        deadline = time.monotonic() + 120
        while "pending" not in (tmp_path / "terminal").read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        status.stop()
    assert progress.text() in (tmp_path / "terminal").read_text(), "the last change of several is told"
    progress.clear()
    assert not list(tmp_path.glob(".live/*"))


def test_processes_of_a_node_remove_old_runs_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that another has removed in between fails no cycle, and a run that goes on stays."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ours = run_directory("ours")
    for name in ("gone", "old"):
        (ours.parent / name).mkdir()
    for path in ours.parent.iterdir():
        os.utime(path, (0, 0))
    stale = [*ours.parent.iterdir(), ours.parent / "removed-meanwhile"]

    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", lambda path: iter(stale))
        run_directory("ours")

    assert list(ours.parent.iterdir()) == [ours]


def test_a_directory_of_runs_that_is_none_of_this_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"llem-runs-{os.getuid()}").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(RunnerError, match="is not a directory of this user"):
        run_directory("ours")


def test_a_file_that_cannot_be_written_down_leaves_nothing_half_written(tmp_path: Path) -> None:
    (tmp_path / "measurement.json").mkdir()

    with pytest.raises(WriteError, match=r"measurement\.json: cannot be written"):
        write_files({"measurement.json": b"{}", "log.txt": b"said"}, JobDir(tmp_path))

    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.txt", "measurement.json"]
