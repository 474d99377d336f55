"""What the sensors of a real GPU do, and how far short windows are from long plateaus of the same load.

Run with `pytest tests/gpu`; figures go to `tests/gpu/RESULTS.md` (or the file that LLEM_GPU_RESULTS names).
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from statistics import fmean, median, stdev

import pytest

from pytest_llem import energy
from pytest_llem.energy import doctor
from pytest_llem.energy.calibrate import calibrate
from pytest_llem.energy.calibration import Calibration
from pytest_llem.energy.nvml import NvmlMeter
from pytest_llem.energy.protocol import Window
from pytest_llem.energy.torch_load import MatmulLoad
from pytest_llem.job import DeviceSet, MeterSettings

pytestmark = pytest.mark.gpu

QUIET_S = 0.6
PLATEAU_S = 12.0
WINDOWS_S = (0.1, 0.3, 1.0, 3.0)
REPEATS = 15
DECODE_STEPS = 300
PAIRS = 25
MAX_SLOWDOWN = 0.005


@pytest.fixture(scope="module")
def calibrated(gpu_uuid: str, results: list[str], request: pytest.FixtureRequest) -> Calibration:
    """Before any load exists: calibration refuses a GPU that a process uses, this one included."""
    found = calibrate(gpu_uuid, lambda: request.getfixturevalue("load"))
    results.append("## Machine and sensor\n")
    results.extend(f"- {finding.level}: {finding.subject}: {finding.message}" for finding in doctor.describe())
    results.append(f"\n`{found}`\n")
    return found


def opened(gpu_uuid: str, out_dir: Path) -> NvmlMeter:
    meter = energy.open_meter(MeterSettings("nvml"), DeviceSet("cuda", (gpu_uuid,)), out_dir)
    assert isinstance(meter, NvmlMeter)
    meter.start()
    return meter


def test_the_counter_is_understood(calibrated: Calibration) -> None:
    assert calibrated.period_ns > 0
    assert calibrated.counter_type in ("accumulating", "part_time")
    assert calibrated.fast_polling_error_rel is not None


def test_short_windows_agree_with_long_plateaus(
    calibrated: Calibration, gpu_uuid: str, load: MatmulLoad, results: list[str], tmp_path: Path
) -> None:
    """The plateau's mean power is the reference: its own bound is a tenth of a percent. Heat makes power drift, so
    plateaus and short windows alternate, and a short window is compared with the plateaus around it."""
    meter = opened(gpu_uuid, tmp_path)
    windows: list[Window] = []
    rng = random.Random(11)

    def one(name: str, seconds: float) -> None:
        time.sleep(QUIET_S + rng.random() * calibrated.period_ns / 1e9)
        start, end = load.burst(seconds)
        time.sleep(QUIET_S)
        windows.append(Window(name, start, end, len(windows), QUIET_S, QUIET_S))

    for _ in range(REPEATS):
        one("plateau", PLATEAU_S / 3)
        for seconds in WINDOWS_S:
            one(f"{seconds} s", seconds)
    one("plateau", PLATEAU_S / 3)
    report = meter.stop(windows)

    powers: dict[str, list[float]] = {}
    covered: dict[str, list[bool]] = {}
    bounds: dict[str, list[float]] = {}
    reference = fmean(
        w.energy_j / ((w.end_ns - w.start_ns) / 1e9) for w in report.windows if w.energy_j and w.name == "plateau"
    )
    for window in report.windows:
        assert window.energy_j is not None
        assert window.uncertainty_j is not None
        seconds = (window.end_ns - window.start_ns) / 1e9
        error = window.energy_j / seconds / reference - 1
        powers.setdefault(window.name, []).append(error)
        bounds.setdefault(window.name, []).append(window.uncertainty_j / window.energy_j)
        covered.setdefault(window.name, []).append(abs(error) <= window.uncertainty_j / window.energy_j)
    results.append("## Short windows against plateaus\n")
    results.append("| window | mean error | scatter | median bound | within bound |\n|---|---|---|---|---|")
    for name, errors in powers.items():
        results.append(
            f"| {name} | {fmean(errors):+.2%} | {stdev(errors):.2%} | {median(bounds[name]):.2%} | "
            f"{fmean(covered[name]):.0%} |"
        )
    assert abs(fmean(powers["1.0 s"])) < 0.05, "beyond what boost and heat explain"


def test_the_sampler_does_not_slow_a_decode_loop(
    calibrated: Calibration, gpu_uuid: str, load: MatmulLoad, results: list[str], tmp_path: Path
) -> None:
    """A loop of small kernels, each waited for, as in token generation: bound by the CPU's launches."""
    import torch

    meter = opened(gpu_uuid, tmp_path)
    assert meter.sampler_pid is not None
    row = torch.randn(1, 2048, device="cuda", dtype=torch.float16)
    weight = torch.randn(2048, 2048, device="cuda", dtype=torch.float16)

    def decode_s() -> float:
        begin = time.monotonic()
        for _ in range(DECODE_STEPS):
            torch.matmul(row, weight)
            torch.cuda.synchronize()
        return time.monotonic() - begin

    decode_s()
    ratios: list[float] = []
    for _ in range(PAIRS):
        os.kill(meter.sampler_pid, signal.SIGSTOP)
        alone = decode_s()
        os.kill(meter.sampler_pid, signal.SIGCONT)
        ratios.append(decode_s() / alone)
    meter.stop([])

    slowdown = median(ratios) - 1
    results.append(
        f"## Overhead\n\nA decode loop beside the sampler takes {slowdown:+.2%} longer (median of {PAIRS}).\n"
    )
    assert slowdown < MAX_SLOWDOWN
