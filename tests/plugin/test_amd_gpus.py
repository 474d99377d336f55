"""A study on AMD GPUs: two of four are leased, shown to the engine, metered and given back. On a simulated library."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.simulated_nvml import amd
from tests.timed import on_a_clock

pytestmark = pytest.mark.skipif(find_spec("amdsmi") is None, reason="amdsmi is not installed")

ROOT = Path(__file__).parents[2]
STUDY = """\
name: amd
engine: parallel
model: none
parallel: {seconds: 0.37, tensor_parallel_size: 2}
workload: {prompts: 2, input_tokens: 8, output_tokens: 4}
measurement:
  min_duration_s: 2
  idle: {duration_s: 0}
  warmup: {max_repeats: 1}
  validity: {uncertainty_rel: 0.6}  # a load that keeps in step with the sensor is not what is asked here
sweep:
  where: [{device.kind: auto}, {device.kind: rocm, device.gpus: [1, 3]}, {device.kind: cpu}]
execution: {cycles: 1, retries: 0}
"""


@on_a_clock
def test_two_of_four_gpus_are_leased_shown_metered_and_told_apart(tmp_path: Path) -> None:
    """HIP's numbers of the GPUs are not amdsmi's: the engine would run on two, and two others would be metered."""
    shutil.rmtree(tmp_path / "llem-results", ignore_errors=True)  # of another try in the same folder
    if not (tmp_path / "rocm").exists():
        amd.build_amd_library(tmp_path / "rocm")
    (tmp_path / "processes").mkdir(exist_ok=True)
    (tmp_path / "amd.yaml").write_text(STUDY)
    path = os.pathsep.join([os.environ["PYTHONPATH"], str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--llem-study=amd.yaml", f"--confcutdir={tmp_path}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **amd.environment(tmp_path / "rocm", 4, tmp_path / "processes"), "PYTHONPATH": path},
    )
    assert "3 passed" in done.stdout, done.stdout
    assert done.stdout.count("never tried on hardware") == 1
    named, auto, cpu = (
        json.loads(next(tmp_path.glob(f"llem-results/*/amd/{name}*/c1/result.json")).read_text())
        for name in ("kind-rocm", "kind-auto", "kind-cpu")
    )

    for result, gpus in ((named, (1, 3)), (auto, (0, 1))):
        assert result["runner"]["facts"]["lease"] == [amd.uuid(index) for index in gpus]
        assert (
            result["engine"]["effective"]["hip_visible"]
            == result["engine"]["effective"]["visible"]
            == ",".join(map(str, gpus))
        )
        assert result["energy"]["meter"] == "amdsmi"
        assert result["device"]["kind"] == "rocm"
        assert result["energy"]["avg_power_w"] == pytest.approx(
            sum(amd.POWER_W + amd.STEP_W * index for index in gpus), rel=0.1
        )
        assert result["status"] == "valid", result["validity"]
        assert "device_not_verified" in [note["code"] for note in result["warnings"]]
    assert cpu["engine"]["effective"]["hip_visible"] == "-1"
    assert len({result["experiment"]["config_hash"] for result in (named, auto, cpu)}) == 3
