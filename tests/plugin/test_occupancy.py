"""Leased GPUs are free before a cycle and after it: on simulated GPUs, with real runs in real processes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.simulated_nvml.plugin import MakeSimulation, make_simulation, simulated_nvml_library, simulation
from tests.simulated_nvml.simulation import Gpu, Simulation

__all__ = ["make_simulation", "simulated_nvml_library", "simulation"]

ROOT = Path(__file__).parents[2]
STUDY = """\
name: gpus
engine: occupying
workload: {{prompts: 2, input_tokens: 8, output_tokens: 4}}
measurement: {{min_duration_s: 0.05, idle: {{duration_s: 0}}, warmup: {{max_repeats: 1}}}}
sweep: {{model: [{models}]}}
execution: {{cycles: {cycles}, retries: 0, {execution}}}
"""
IMPATIENT = "import pytest_llem.machine.occupancy as o\no.RELEASE_WAIT_S, o.RESIDUAL_WAIT_S = {release}, 0.2\n"


@pytest.fixture(autouse=True)
def engine_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.environ["PYTHONPATH"], str(ROOT)]))


def run(
    directory: Path, *models: str, cycles: int = 1, release_wait_s: float = 20.0, execution: str = "cooldown: auto"
) -> subprocess.CompletedProcess[str]:
    """A pytest run over these models, in a process of its own."""
    text = STUDY.format(models=", ".join(models), cycles=cycles, execution=execution)
    (directory / "gpus.yaml").write_text(text)
    (directory / "conftest.py").write_text(IMPATIENT.format(release=release_wait_s))
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--llem-study=gpus.yaml", "--llem-meter=none"]
    return subprocess.run(
        [*command, f"--confcutdir={directory}", "-p", "conftest"],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "1000"},
    )


def outcomes(done: subprocess.CompletedProcess[str]) -> dict[str, int]:
    """How many passed, failed and had errors."""
    last = done.stdout.splitlines()[-1]
    return {word: int(count) for count, word in re.findall(r"(\d+) (passed|failed|error)", last)}


def error(directory: Path, model: str) -> dict[str, Any]:
    [path] = directory.glob(f"llem-results/*/gpus/model-{model}-*/c1/error.json")
    data: dict[str, Any] = json.loads(path.read_text())
    return data


def facts(directory: Path) -> list[dict[str, Any]]:
    paths = sorted(directory.glob("llem-results/*/gpus/*/c*/result.json"), key=lambda path: path.stat().st_mtime_ns)
    return [json.loads(path.read_text())["runner"]["facts"] for path in paths]


@contextmanager
def driver(gpu: Gpu, delay_s: float = 1.0) -> Iterator[None]:
    """Frees what a process had taken, a while after its end, as a GPU's driver does."""
    before = gpu.memory_used
    ended = threading.Event()

    def free() -> None:
        while not ended.wait(0.05):
            pids = gpu.pids[: gpu.processes]
            if gpu.memory_used > before and pids and not any(map(psutil.pid_exists, pids)):
                ended.wait(delay_s)
                gpu.memory_used = before
                gpu.set_pids()

    thread = threading.Thread(target=free)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_a_free_device_is_leased_looked_at_and_found_free_again(tmp_path: Path, simulation: Simulation) -> None:
    done = run(tmp_path, "tidy", cycles=2)
    assert outcomes(done) == {"passed": 2}, done.stdout
    uuid = simulation.gpus[0].uuid.decode()
    found = facts(tmp_path)
    assert all(one["lease"] == [uuid] for one in found)
    assert all(one["residual_memory_bytes"] == {uuid: simulation.gpus[0].memory_used} for one in found)
    assert [one["cooldown_ended"] for one in found] == ["first cycle", "idle"]


def test_memory_in_use_before_a_cycle_names_the_foreign_process(tmp_path: Path, simulation: Simulation) -> None:
    simulation.gpus[0].memory_used = 5 * 10**9
    simulation.gpus[0].set_pids(os.getpid())
    done = run(tmp_path, "tidy")
    assert outcomes(done) == {"failed": 1}
    name = psutil.Process().name()
    uuid = simulation.gpus[0].uuid.decode()
    assert f"{uuid}: 5,000 MB in use before the cycle (process {os.getpid()} {name}: 1,074 MB)" in done.stdout
    problem = error(tmp_path, "tidy")
    assert problem["category"] == "residual_memory"
    [device] = problem["details"]["devices"]
    assert device["processes"] == [{"pid": os.getpid(), "name": name, "bytes": 1 << 30}]


def test_how_much_may_be_in_use_is_a_setting(tmp_path: Path, simulation: Simulation) -> None:
    simulation.gpus[0].memory_used = 150_000_000
    assert outcomes(run(tmp_path, "tidy")) == {"failed": 1}
    assert outcomes(run(tmp_path, "tidy", execution="residual_memory_bytes: 200_000_000")) == {"passed": 1}


def test_devices_that_are_not_leased_do_not_matter(tmp_path: Path, make_simulation: MakeSimulation) -> None:
    simulation = make_simulation(2)
    simulation.gpus[1].memory_used = 70 * 10**9
    assert outcomes(run(tmp_path, "tidy")) == {"passed": 1}


def test_a_cycle_that_keeps_memory_fails_and_later_items_are_told(tmp_path: Path, simulation: Simulation) -> None:
    done = run(tmp_path, "leak", "tidy", release_wait_s=0.3)
    assert outcomes(done) == {"failed": 2}
    assert error(tmp_path, "leak")["category"] == "not_released"
    assert "gpus/model:leak cycle 1 did not release its devices within 0.3 s" in done.stdout
    told = error(tmp_path, "tidy")
    assert told["category"] == "residual_memory"
    assert "gpus/model:leak cycle 1 did not release it" in told["message"]


def test_a_process_that_an_engine_leaves_ends_with_its_cycle_and_frees_the_device(
    tmp_path: Path, simulation: Simulation
) -> None:
    """It once stayed, and the cycle failed; what the driver frees a second later counts as released."""
    with driver(simulation.gpus[0]):
        done = run(tmp_path, "leave", "tidy")
    assert outcomes(done) == {"passed": 2}, done.stdout
    assert not [
        one for one in psutil.process_iter(["cmdline"]) if "import time; time.sleep(60)" in (one.info["cmdline"] or ())
    ]


def test_a_process_that_holds_memory_afterwards_is_named(tmp_path: Path, simulation: Simulation) -> None:
    done = run(tmp_path, "other", release_wait_s=0.3)
    assert outcomes(done) == {"failed": 1}
    problem = error(tmp_path, "other")
    assert problem["category"] == "not_released"
    [left] = problem["details"]["devices"][0]["processes"]
    assert left["name"] is not None
    assert f"process {left['pid']} {left['name']}" in done.stdout


def test_a_kept_engine_is_checked_when_it_is_unloaded(tmp_path: Path, simulation: Simulation) -> None:
    """Its cycles pass; the run does not, because the last test's teardown finds the device in use."""
    tidy = run(tmp_path, "tidy", cycles=3, execution="isolation: experiment")
    assert outcomes(tidy) == {"passed": 3}, tidy.stdout
    assert [one["engine_reused"] for one in facts(tmp_path)] == [False, True, True]

    leaky = run(tmp_path, "leak", cycles=2, release_wait_s=0.3, execution="isolation: experiment")
    assert outcomes(leaky) == {"passed": 2, "error": 1}
    assert leaky.returncode == pytest.ExitCode.TESTS_FAILED
    assert "the engine of gpus/model:leak cycle 2 did not release its devices" in leaky.stdout


def test_cooling_down_waits_for_power_and_temperature_within_a_limit(tmp_path: Path, simulation: Simulation) -> None:
    from pytest_llem.job.job import DeviceSet
    from pytest_llem.machine.cooldown import cool_down

    gpu, devices = simulation.gpus[0], DeviceSet("cuda", (simulation.gpus[0].uuid.decode(),))
    assert cool_down("auto", devices, tmp_path).reason == "first cycle"
    assert cool_down("auto", devices, tmp_path).reason == "idle"

    gpu.temperature_c = 70
    hot = cool_down("auto", devices, tmp_path, limit_s=0.3)
    assert hot.reason == "limit"
    assert hot.note is not None
    assert "70 °C, idle is up to 45 °C" in hot.note.message

    gpu.temperature_c = 40
    gpu.average_ns = 100_000_000
    gpu.set_power(500.0)
    time.sleep(0.3)
    busy = cool_down("auto", devices, tmp_path, limit_s=0.5)
    assert (busy.reason, busy.seconds >= 0.5) == ("limit", True)
    gpu.set_power(110.0)
    assert cool_down("auto", devices, tmp_path, limit_s=10.0).reason == "idle"


def test_seconds_are_waited_between_cycles_and_recorded(tmp_path: Path, simulation: Simulation) -> None:
    assert outcomes(run(tmp_path, "tidy", cycles=2, execution="cooldown: 0.3")) == {"passed": 2}
    assert [one["cooldown_s"] for one in facts(tmp_path)] == [0.0, 0.3]
