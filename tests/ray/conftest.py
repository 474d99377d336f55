"""One cluster for all tests here. Without Ray they are skipped, or fail where LLEM_REQUIRE_RAY=1."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.ray.clusters import ENVIRONMENT, Machines, measured, run_command, until
from tests.simulated_nvml.plugin import simulated_nvml_library

__all__ = ["simulated_nvml_library"]

STUDY = """\
name: {name}
engine: faulty
model: {model}
workload: {{prompts: 2, {asked}, output_tokens: {tokens}}}
measurement: {{min_duration_s: 0.05, idle: {{duration_s: 0}}, warmup: {{max_repeats: 1}}}}
sweep: {{seed: {{range: [1, {experiments}, 1]}}}}
execution: {{cycles: {cycles}, order: sequential, retries: 0, timeout_s: 300, cooldown: 0}}
"""

Write = Callable[..., Path]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def machines(simulated_nvml_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """Four nodes: two with an H100, one with two, and one with an A100."""
    if find_spec("ray") is None:
        if os.environ.get("LLEM_REQUIRE_RAY") == "1":
            pytest.fail("LLEM_REQUIRE_RAY=1, and ray is not installed")
        pytest.skip("ray is not installed (the extra `dev` has it)")
    before = dict(os.environ)
    found = Machines(tmp_path_factory.mktemp("machines"), simulated_nvml_library)
    try:
        found.start()
        for name, gpus, model in (("n1", 1, "H100"), ("n2", 1, "H100"), ("n3", 2, "H100"), ("n4", 1, "A100")):
            found.add(name, gpus, model)
        found.wait()
        yield found
    finally:
        if found.cluster is not None:
            found.stop()
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No test leaves a measured process behind."""
    yield
    until(lambda: not measured(), "no measured process is left")


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a study of the engine that measures nothing but time, and returns its path."""

    def make(
        name: str = "small",
        *,
        experiments: int = 2,
        cycles: int = 1,
        model: str = "none",
        tokens: int = 4,
        asked: str = "input_tokens: 8",
        more: str = "",
    ) -> Path:
        path = tmp_path / f"{name}.yaml"
        values = {"name": name, "experiments": experiments, "cycles": cycles, "model": model}
        path.write_text(STUDY.format(**values, tokens=tokens, asked=asked) + more)
        return path

    return make


@pytest.fixture
def start(machines: Machines, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts a pytest run on the cluster, in a process of its own and in the test's directory."""

    def begin(study: Path, *arguments: str) -> subprocess.Popen[str]:
        command = [f"--llem-study={study}", "--llem-meter=none", *arguments]
        if not any(argument.startswith("--llem-runner") for argument in arguments):
            command.append(f"--llem-runner=ray:{machines.address}")
        names = {"COLUMNS": "200", "PYTEST_ADDOPTS": "", "RAY_ADDRESS": machines.address}
        environment = {**os.environ, **ENVIRONMENT, **names}
        return subprocess.Popen(
            run_command(command),
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return begin


@pytest.fixture
def run(start: Callable[..., subprocess.Popen[str]]) -> Run:
    """A pytest run on the cluster, to its end."""

    def complete(study: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        process = start(study, *arguments)
        output, _ = process.communicate(timeout=600)
        return subprocess.CompletedProcess(process.args, process.returncode, output)

    return complete


def results(directory: Path, run_dir: Path | None = None) -> list[dict[str, Any]]:
    """The results of the latest run (or of one), by experiment and cycle."""
    latest = run_dir or max(path.parent for path in directory.glob("llem-results/*/run.json"))
    return [json.loads(path.read_text()) for path in sorted(latest.glob("*/*/c*/result.json"))]


def states(directory: Path) -> list[dict[str, Any]]:
    """The states of the latest run's cycles."""
    latest = max(path.parent for path in directory.glob("llem-results/*/run.json"))
    return [json.loads(path.read_text()) for path in sorted(latest.glob("*/*/c*/state.json"))]
