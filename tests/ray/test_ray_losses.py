"""Nodes that die, drivers that are killed, runs that are ended: nothing hangs, is lost, or is left behind."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.ray.clusters import Machines, measured, until
from tests.ray.conftest import Run, Write, results, states

Start = Callable[..., "subprocess.Popen[str]"]
LONG = 60_000
"""Tokens of a cycle that nobody waits for: two minutes."""


def test_a_cycle_whose_node_dies_is_measured_on_another(
    machines: Machines, write: Write, start: Start, tmp_path: Path
) -> None:
    for name in ("pool1", "pool2"):
        machines.add(name, resources={"pool": 1})
    machines.wait()
    study = write(experiments=1, tokens=1500, more="ray: {resources: {pool: 1}}\n")

    process = start(study)
    (worker,) = until(lambda: measured("pool1") or measured("pool2"), "the cycle runs")
    lost = worker.environ()["MACHINE"]
    machines.kill(lost)
    until(lambda: not worker.is_running(), "the measured process ended with its node")
    output, _ = process.communicate(timeout=300)

    assert process.returncode == 0, output
    (state,) = states(tmp_path)
    assert state["attempts"] == ["valid"]
    (result,) = results(tmp_path)
    (other,) = {"pool1", "pool2"} - {lost}
    assert result["runner"]["device_ids"] == [f"GPU-{other}-0"]
    (loss,) = result["runner"]["facts"]["node_losses"]
    assert loss["id"] != result["runner"]["facts"]["node"]["id"]
    assert loss["error"] in ("NodeDiedError", "WorkerCrashedError")
    assert "node_lost" in [warning["code"] for warning in result["warnings"]]
    machines.kill(other)


def test_a_cycle_that_kills_its_node_again_and_again_is_given_up(
    machines: Machines, write: Write, start: Start, tmp_path: Path
) -> None:
    """Ray's process on the node stands for the node: it dies with every try, and Ray itself tries nothing again."""
    study = write(experiments=1, tokens=LONG, more="ray: {accelerator_type: A100, node_losses: 1}\n")

    process = start(study)
    for _ in range(2):
        (worker,) = until(lambda: measured("n4"), "the cycle runs")
        worker.parents()[1].kill()  # the parent of its fork server
        until(lambda worker=worker: not worker.is_running(), "the measured process ended with Ray's")
    output, _ = process.communicate(timeout=300)

    assert process.returncode == 1, output
    assert "lost with its node 2 times" in output
    error = json.loads(next(tmp_path.glob("llem-results/*/*/*/c1/error.json")).read_text())
    assert error["category"] == "node_lost"
    assert [loss["error"] for loss in error["details"]["losses"]] == ["WorkerCrashedError"] * 2


def test_a_killed_driver_leaves_no_process_and_no_file_on_a_node(
    machines: Machines, write: Write, start: Start
) -> None:
    process = start(write(experiments=5, tokens=LONG))
    until(lambda: len(measured()) == 5, "all GPUs are in use")

    process.kill()
    process.communicate(timeout=120)

    until(lambda: not measured(), "the measured processes ended")
    until(lambda: not list(machines.scratch.glob("llem-node-*")), "the nodes' directories are gone")


def test_a_terminated_run_cancels_what_it_submitted(write: Write, start: Start, tmp_path: Path) -> None:
    """SIGTERM ends a run as Ctrl-C does; Ray would have it end the process at once."""
    process = start(write(experiments=8, tokens=LONG))
    until(lambda: len(measured()) == 5, "all GPUs are in use")

    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)

    assert process.returncode == pytest.ExitCode.INTERRUPTED, output
    assert not measured()
    assert {state["state"] for state in states(tmp_path)} == {"interrupted"}
    manifest = json.loads(next(tmp_path.glob("llem-results/*/run.json")).read_text())
    assert len(manifest["items"]) == 8


def test_the_first_failure_ends_the_run_and_keeps_what_was_measured(write: Write, run: Run, tmp_path: Path) -> None:
    """With -x the items after the failure do not run; what a node had finished for them by then is kept."""
    study = write(experiments=1, tokens=LONG)
    text = study.read_text().replace("sweep: {seed: {range: [1, 1, 1]}}", "sweep: {model: [exception, none]}")
    study.write_text(text)

    done = run(study, "-x", "--llem-runner=ray")

    assert "1 failed" in done.stdout, done.stdout
    assert "the faulty engine raised this" in done.stdout
    assert sorted(state["state"] for state in states(tmp_path)) == ["failed", "interrupted"]
