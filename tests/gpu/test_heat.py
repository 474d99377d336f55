"""How far the energy of the same work on a cold die is from that on a settled one.

Run with `pytest tests/gpu`; figures are appended to `tests/gpu/RESULTS.md` (or the file that LLEM_GPU_RESULTS names).
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import fmean

import pytest

from pytest_llem.energy import registry
from pytest_llem.energy.calibrate import Load
from pytest_llem.energy.readings import read_samples
from pytest_llem.job.job import DeviceSet, MeterSettings
from pytest_llem.job.measurement import Window

BURST_S = 5.0
SPAN_S = 150.0
"""Temperature settles 90 to 190 s after power does on an A100 (docs/energy.md has the source): most of it is seen."""

COOL_S = 20.0


@pytest.mark.gpu(takes_s=SPAN_S + COOL_S + 10)
def test_a_cold_die_is_told_from_a_settled_one(
    gpu_uuid: str, load: Load, on_gpu: bool, results: list[str], tmp_path: Path
) -> None:
    """Bursts of the same number of products without a pause; the last minute's mean is the reference."""
    meter = registry.open_meter(MeterSettings("nvml"), DeviceSet("cuda", (gpu_uuid,)), tmp_path)
    assert meter is not None
    meter.start()
    time.sleep(COOL_S if on_gpu else 0.5)
    windows: list[Window] = []
    span_s, burst_s = (SPAN_S, BURST_S) if on_gpu else (5.0, 1.0)
    begin = time.monotonic()
    while time.monotonic() - begin < span_s:
        start, end = load.burst(burst_s)
        windows.append(Window("measure", start, end, len(windows)))
    report = meter.stop(windows)

    energies = [window.energy_j for window in report.windows]
    readings = [(s.t_ns, s.temperature_c) for s in read_samples(tmp_path / "samples.jsonl") if s.temperature_c]
    assert all(energy is not None and energy > 0 for energy in energies)
    joules = [energy for energy in energies if energy is not None]
    reference = fmean(joules[-max(1, len(joules) * 2 // 5) :])
    results.append(
        "### The same work from cold on\n\n| seconds | temperature | energy against the last minute | power |"
    )
    results.append("|---|---|---|---|")
    for window, energy in list(zip(windows, joules, strict=True))[:: max(1, len(joules) // 10)]:
        seen = [celsius for t_ns, celsius in readings if window.start_ns <= t_ns <= window.end_ns]
        at = (window.start_ns - windows[0].start_ns) / 1e9
        shown = f"{fmean(seen):.0f} C" if seen else "-"
        results.append(f"| {at:.0f} | {shown} | {energy / reference - 1:+.2%} | {energy / window.duration_s:.0f} W |")
    results.append("")
