"""What the sensors of a real GPU do, and how far short windows are from long plateaus of the same load.

Run with `pytest tests/gpu`; figures are appended to `tests/gpu/RESULTS.md` (or the file that LLEM_GPU_RESULTS names).
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median, stdev

import pynvml
import pytest

from pytest_llem.energy import doctor, nvml_devices, registry
from pytest_llem.energy.calibrate import Load, calibrate, slope_w
from pytest_llem.energy.calibration import Calibration
from pytest_llem.energy.estimators import AVERAGING_S, from_power
from pytest_llem.energy.gpu_meter import NvmlMeter
from pytest_llem.energy.readings import read_sample_events, read_samples
from pytest_llem.job.job import DeviceSet, MeterSettings
from pytest_llem.job.measurement import Window, WindowEnergy

QUIET_S = 0.6
PLATEAU_S = 4.0
WINDOWS_S = (0.1, 0.3, 1.0, 3.0)
REPEATS = 8
POLL_STEPS_NS = (0, 500_000, 1_000_000, 2_000_000, 10_000_000)
POLL_ROUNDS = 5


@pytest.fixture(scope="module")
def calibrated(gpu_uuid: str, request: pytest.FixtureRequest) -> Calibration:
    """Before any load exists: calibration refuses a GPU that a process uses, this one included."""
    return calibrate(gpu_uuid, lambda: request.getfixturevalue("load"))


def opened(gpu_uuid: str, out_dir: Path) -> NvmlMeter:
    meter = registry.open_meter(MeterSettings("nvml"), DeviceSet("cuda", (gpu_uuid,)), out_dir)
    assert isinstance(meter, NvmlMeter)
    meter.start()
    return meter


@pytest.mark.gpu(takes_s=90)
def test_the_counter_is_understood(calibrated: Calibration, results: list[str]) -> None:
    results.append("### Sensor\n")
    results.extend(f"- {finding.level}: {finding.subject}: {finding.message}" for finding in doctor.describe())
    results.append("\n| property of the counter | value |\n|---|---|")
    results.extend(f"| {name} | {value} |" for name, value in calibrated._asdict().items())
    results.append("")
    assert calibrated.period_ns > 0
    assert calibrated.counter_type in ("accumulating", "part_time")
    assert calibrated.fast_polling_error_rel is not None


@pytest.mark.gpu(takes_s=120)
def test_short_windows_agree_with_long_plateaus(
    calibrated: Calibration, gpu_uuid: str, load: Load, results: list[str], tmp_path: Path
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
        one("plateau", PLATEAU_S)
        for seconds in WINDOWS_S:
            one(f"{seconds} s", seconds)
    one("plateau", PLATEAU_S)
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
    results.append("### Short windows against plateaus\n")
    results.append("| window | mean error | scatter | median bound | within bound |\n|---|---|---|---|---|")
    for name, errors in powers.items():
        results.append(
            f"| {name} | {fmean(errors):+.2%} | {stdev(errors):.2%} | {median(bounds[name]):.2%} | "
            f"{fmean(covered[name]):.0%} |"
        )
    results.append("")
    ratios = counter_over_power(report.windows, tmp_path / "samples.jsonl", gpu_uuid, results)
    assert abs(fmean(powers["1.0 s"])) < 0.05, "beyond what boost and heat explain"
    assert abs(fmean(ratios) - 1) < 0.05, "beyond what counts as agreement (`counter_disagrees`)"


def counter_over_power(windows: Sequence[WindowEnergy], path: Path, gpu_uuid: str, results: list[str]) -> list[float]:
    """The counter's energy over the integral of the board's power readings, in each plateau."""
    kind = next(str(event["power"]) for event in read_sample_events(path) if event["event"] == "sensor")
    samples = [sample for sample in read_samples(path) if sample.device == gpu_uuid]
    ratios: list[float] = []
    for window in windows:
        if window.name != "plateau" or window.energy_j is None:
            continue
        integral = from_power(samples, Window(window.name, window.start_ns, window.end_ns, 0), AVERAGING_S[kind])
        if integral is not None:
            ratios.append(window.energy_j / integral.energy_j)
    results.append(f"### Counter against power readings ({kind}, a mean over {AVERAGING_S[kind]:g} s)\n")
    results.append(f"Over {len(ratios)} plateaus: {fmean(ratios):.4f}, scatter {stdev(ratios):.4f}.\n")
    return ratios


@pytest.mark.gpu(takes_s=60)
def test_how_often_the_counter_is_read_does_not_change_it(
    calibrated: Calibration, gpu_uuid: str, results: list[str]
) -> None:
    """On an idle GPU, rates in turn; the gentlest is the reference. Calibration must have chosen a harmless one."""
    slopes: dict[int, list[float]] = {step_ns: [] for step_ns in POLL_STEPS_NS}
    pynvml.nvmlInit()
    try:
        handle = nvml_devices.by_uuid(gpu_uuid)
        for _ in range(POLL_ROUNDS):
            for step_ns, found in slopes.items():
                found.append(slope_w(handle, calibrated.period_ns, step_ns))
    finally:
        pynvml.nvmlShutdown()

    gentlest = median(slopes[max(POLL_STEPS_NS)])
    off = {step_ns: median(found) / gentlest - 1 for step_ns, found in slopes.items()}
    results.append("### Polling rate\n\n| pause between reads | counter's slope, idle |\n|---|---|")
    results.extend(f"| {step_ns / 1e6:g} ms | {rel:+.2%} |" for step_ns, rel in off.items())
    results.append("")
    assert abs(off[min(POLL_STEPS_NS, key=lambda step_ns: abs(step_ns - calibrated.poll_step_ns))]) < 0.01
