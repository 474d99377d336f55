"""A whole study over power limits on a simulated GPU whose load follows them, as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from pytest_llem.results.reading import load
from tests.simulated_nvml.plugin import make_simulation, simulated_nvml_library, simulation
from tests.simulated_nvml.simulation import Simulation

__all__ = ["make_simulation", "simulated_nvml_library", "simulation"]

ROOT = Path(__file__).parents[2]
STUDY = """\
name: limits
model: none
engine: loading
workload: {prompts: 2, input_tokens: 8, output_tokens: 8}
device: {kind: cuda}
measurement: {min_duration_s: 1.2, idle: {duration_s: 0}, warmup: {max_repeats: 1}, validity: {uncertainty_rel: 1}}
sweep: {device.power_limit_w: [default, 300]}
execution: {cycles: 1, retries: 0, cooldown: 0}
"""


def test_each_limit_is_set_verified_and_put_back_and_the_lower_one_costs_less(
    simulation: Simulation, tmp_path: Path
) -> None:
    """Joules of 700 W under the name of 300 W would be the worst figure of all: one that looks right."""
    gpu = simulation.gpus[0]
    (tmp_path / "limits.yaml").write_text(STUDY)
    path = os.pathsep.join([os.environ["PYTHONPATH"], str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "limits.yaml"],
        cwd=tmp_path,
        env={**os.environ, "LLEM_LEASE_DIR": str(tmp_path / "leases"), "PYTHONPATH": path, "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )

    results = load(tmp_path / "llem-results")
    assert [(result.status, result.validity.reasons) for result in results] == [("valid", ())] * 2, done.stdout
    own, capped = sorted(results, key=lambda result: result.experiment.id, reverse=True)
    for result, asked, applied in ((own, "default", 700.0), (capped, 300.0, 300.0)):
        (setting,) = result.device.gpus[0].settings
        assert (setting.requested, setting.previous, setting.applied, setting.held) == (asked, 700.0, applied, True)
    assert capped.device.gpus[0].clock_events == {"sw_power_cap": 1.0}
    assert capped.energy.joules_per_output_token is not None
    assert own.energy.joules_per_output_token is not None
    assert capped.energy.joules_per_output_token < 0.75 * own.energy.joules_per_output_token
    assert capped.throughput.output_tokens_per_s is not None
    assert own.throughput.output_tokens_per_s is not None
    assert capped.throughput.output_tokens_per_s < 0.9 * own.throughput.output_tokens_per_s
    assert (gpu.power_limit_mw, gpu.limit_sets > 0) == (700_000, True)
    summary = json.loads(next(tmp_path.glob("llem-results/*/summary.json")).read_text())
    assert [optimum["best"] for optimum in summary["optima"]] == [{"device.power_limit_w": 300}]
