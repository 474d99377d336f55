"""What cannot run on a cluster is refused in words that name the node or the request, and the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_llem import __version__
from tests.ray.clusters import FAULTY, Machines
from tests.ray.conftest import Run, Write


def test_a_request_that_no_node_can_meet_is_refused_at_once(write: Write, run: Run) -> None:
    """Ray would let it wait for ever, without a word."""
    done = run(write(experiments=2, more="ray: {accelerator_type: B200, resources: {lab: 2}}\n"))

    assert "2 failed" in done.stdout, done.stdout
    assert "no node of the Ray cluster can run this: it asks for 1 CPU, 1 GPU, 2 lab, B200" in done.stdout
    assert "2 x (4 CPU, 1 GPU, H100)" in done.stdout
    assert "ray.wait_for_nodes_s" in done.stdout


def test_a_node_without_the_engine_is_named_before_anything_runs(write: Write, run: Run) -> None:
    study = write(experiments=1)
    study.write_text(study.read_text().replace("engine: faulty", "engine: tensorrt_llm"))

    done = run(study)

    assert "lacks tensorrt_llm, which the engine tensorrt_llm needs" in done.stdout, done.stdout
    assert "ray.runtime_env" in done.stdout


def test_a_node_with_another_version_is_refused(machines: Machines, write: Write, run: Run, tmp_path: Path) -> None:
    package = tmp_path / "old" / "pytest_llem"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('__version__ = "0.0.1"\n')
    machines.add("old", resources={"old": 1}, environment={"PYTHONPATH": f"{package.parent}:{FAULTY}"})
    machines.wait()

    done = run(write(experiments=1, more="ray: {resources: {old: 1}}\n"))

    machines.kill("old")
    assert f"has pytest-llem 0.0.1, this machine {__version__}: they must be equal" in done.stdout, done.stdout


def test_workers_of_xdist_beside_it_are_a_usage_error(write: Write, run: Run) -> None:
    done = run(write(), "-n2")

    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "the runner ray cannot be combined with -n" in done.stdout
