"""A machine with GPUs measures its CPU: whole runs with a real engine, on simulated GPUs that must not be touched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pytest_llem.job.job import load_job
from pytest_llem.study import load_study
from tests.simulated_nvml.plugin import MakeSimulation, make_simulation, simulated_nvml_library

__all__ = ["make_simulation", "simulated_nvml_library"]

pytestmark = pytest.mark.engine

FIRST = min(os.sched_getaffinity(0))
STUDY = f"""\
name: chosen
model: builtin:tiny-llama
engine: transformers
workload: {{prompts: 1, input_tokens: 8, output_tokens: 4}}
measurement: {{min_duration_s: 0.2, idle: {{duration_s: 0.1}}, warmup: {{max_repeats: 1}}}}
experiments:
  - {{id: open, device: {{cpus: "{FIRST}"}}}}
  - {{id: gpu, device: {{kind: cuda}}}}
execution: {{cycles: 1, retries: 0, cooldown: 0}}
"""


@dataclass(frozen=True)
class Chosen:
    output: str
    returncode: int
    directory: Path
    cycle: Path

    @property
    def result(self) -> Any:
        return json.loads((self.cycle / "result.json").read_text())


@pytest.fixture
def chosen(make_simulation: MakeSimulation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Chosen:
    make_simulation(2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    study = tmp_path / "chosen.yaml"
    study.write_text(STUDY)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", "chosen.yaml", "--llem-device=cpu"]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "COLUMNS": "200"}, capture_output=True, text=True)
    jobs = list(tmp_path.glob("llem-results/*/chosen/*/c1/job.json"))
    assert len(jobs) == 1, done.stdout + done.stderr
    return Chosen(done.stdout, done.returncode, tmp_path, jobs[0].parent)


def test_the_cpu_of_a_machine_with_gpus_is_measured_alone_pinned_and_by_its_own_meter(chosen: Chosen) -> None:
    """A GPU was leased, its energy counted, and the cycle failed because this torch has no CUDA."""
    result = chosen.result
    assert result["runner"]["device_kind"] == "cpu"
    assert result["runner"]["device_ids"] == []
    assert len(result["runner"]["facts"]["lease"]) == 3
    assert result["energy"]["meter"] in ("rapl", "estimate")
    assert "gpu" not in {device["kind"] for device in result["energy"]["devices"]}
    worker = result["environment"]["worker"]
    hidden = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "-1"}
    assert hidden.items() <= worker["variables"].items()
    assert worker["cpus_allowed"] == 1
    assert result["engine"]["effective"]["threads"] == 1, "torch was imported before, and had counted all CPUs"

    said = chosen.directory / "said.yaml"
    said.write_text(STUDY.replace("device: {cpus", "device: {kind: cpu, cpus"))
    assert load_job(chosen.cycle / "job.json").config_hash == load_study(said).experiments[0].config_hash

    assert "SKIPPED [1]" in chosen.output
    assert "device.kind cuda, and this run is for --llem-device=cpu" in chosen.output
