"""Whose joules a whole run reports: a server's GPUs are leased and metered, and no other GPU is in a figure."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_llem.results.reading import read_result
from pytest_llem.results.schema import Result
from tests.engines.servers.scripted import Script, ScriptedServer, scripted
from tests.simulated_nvml.plugin import MakeSimulation, make_simulation, simulated_nvml_library
from tests.simulated_nvml.simulation import Simulation

__all__ = ["make_simulation", "simulated_nvml_library"]

STUDY = """\
name: attributed
model: builtin:tiny-llama
engine: openai
workload: {{prompts: 2, input_tokens: 8, output_tokens: 4}}
measurement:
  min_duration_s: 1.5
  idle: {{duration_s: 0.5}}
  warmup: {{max_repeats: 1}}
  validity: {{uncertainty_rel: 1}}          # as of a sensor that nobody calibrated
openai: {{base_url: "{url}", enable_prefix_caching: false}}
execution: {{cycles: 1, retries: 0, cooldown: 0}}
{more}
"""
BUSY_W = (130.0, 300.0, 400.0, 500.0)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    """It runs in this process, whose id the simulated driver shows."""
    with scripted(Script(piece_s=0.01)) as running:
        yield running


def run(board: Simulation, server: ScriptedServer, directory: Path, *options: str, more: str = "") -> Result:
    """The result of a study's one cycle, by a pytest of its own, with every GPU drawing another power."""
    for gpu, watts in zip(board.gpus, BUSY_W, strict=False):
        gpu.set_power(watts)
    (directory / "attributed.yaml").write_text(STUDY.format(url=server.url, more=more))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "attributed.yaml", *options],
        cwd=directory,
        env={**os.environ, "LLEM_LEASE_DIR": str(directory / "leases")},
        capture_output=True,
        text=True,
    )
    paths = list(directory.glob("llem-results/*/attributed/*/c1/result.json"))
    assert len(paths) == 1, done.stdout + done.stderr
    return read_result(paths[0])


@pytest.mark.parametrize(("options", "gpus"), [((), (1,)), (("--llem-meter=nvml",), (1, 2))])
def test_the_gpus_of_a_server_that_runs_already_are_leased_and_metered(
    make_simulation: MakeSimulation,
    server: ScriptedServer,
    tmp_path: Path,
    options: tuple[str, ...],
    gpus: tuple[int, ...],
) -> None:
    board = make_simulation(4)
    for index in gpus:
        board.gpus[index].set_pids(os.getpid())

    result = run(board, server, tmp_path, *options)

    names = [board.gpus[index].uuid.decode() for index in gpus]
    assert result.validity.reasons == ()
    assert list(result.runner.device_ids) == names
    assert [device.id for device in result.energy.devices if device.leased] == names
    assert len(result.energy.devices) == (4 if options else len(gpus))
    assert result.energy.avg_power_w == pytest.approx(sum(BUSY_W[index] for index in gpus), rel=0.02)
    assert result.energy.energy_j == pytest.approx(
        sum(device.energy_j or 0.0 for device in result.energy.devices if device.leased)
    )


def test_the_gpus_of_a_server_that_cannot_be_found_are_those_that_the_study_names(
    make_simulation: MakeSimulation, server: ScriptedServer, tmp_path: Path
) -> None:
    board = make_simulation(2)

    result = run(board, server, tmp_path, more="device: {gpus: [1]}")

    assert "server_gpu_unknown" not in {reason.code for reason in result.validity.reasons}
    assert "server_gpu_unknown" in {warning.code for warning in result.warnings}
    assert list(result.runner.device_ids) == [board.gpus[1].uuid.decode()]
    assert result.energy.avg_power_w == pytest.approx(BUSY_W[1], rel=0.02)
