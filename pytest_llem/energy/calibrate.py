"""Measures the properties of a GPU's energy sensors, once per GPU and driver: `llem doctor --calibrate`.

Only `llem doctor` calls it; meters and the sampler process read what it stores. Every bound of a calibrated GPU rests
on it: change no method and no constant without tests/unit/energy/test_calibrate.py (simulated sensors).
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timezone
from importlib import import_module
from itertools import pairwise
from math import sqrt
from pathlib import Path
from statistics import fmean, linear_regression, median, stdev
from typing import Any, Protocol

import pynvml

from pytest_llem import __version__
from pytest_llem.energy import bursts, nvml_devices
from pytest_llem.energy.calibration import Calibration, path_of
from pytest_llem.energy.readings import read_samples
from pytest_llem.energy.sampler_client import SamplerProcess
from pytest_llem.energy.series import TickSeries, ticks_from
from pytest_llem.energy.ticks import DEFAULT_STEP_NS
from pytest_llem.errors import JsonValue, MeterError
from pytest_llem.job.files import write_json

FAST_STEP_NS = 500_000
"""Chosen: a quarter of the default step, which narrows brackets to 0.5 % of a 100 ms period."""

HARMLESS_REL = 0.005
"""Chosen: fast polling counts as harmless if it changes the counter's slope by less, a tenth of the board's gain
error."""

LATENCY_READS = 100
"""Chosen: enough for a median, in a fifth of a second."""

IDLE_PERIODS = 30
"""Chosen: gives the period to 0.1 % at 0.5 ms of jitter, in three seconds."""

NO_COUNTER = "run `nvidia-smi -q -d POWER`; without a working counter use --llem-meter=rapl or estimate"

STILL_PERIODS = 10
"""Chosen: a loaded machine makes the sampler miss some steps, and a counter that works makes up for them."""

SLOPE_PERIODS = 20
"""Chosen: two seconds give a slope to well below `HARMLESS_REL`."""

MATMUL_SIZE = 8192
"""Chosen: large enough to load every SM; three matrices take 0.4 GB in half precision."""


class Load(Protocol):
    """A steady load on one GPU."""

    def burst(self, seconds: float) -> tuple[int, int]:
        """Load the device, synchronised at both ends; returns start and end (CLOCK_MONOTONIC, nanoseconds)."""


def calibrate(
    uuid: str,
    make_load: Callable[[], Load] | None = None,
    *,
    short_bursts: int = 16,
    long_bursts: int = 8,
    directory: Path | None = None,
) -> Calibration:
    """Measure one idle GPU's sensors and store the result; takes about a minute, which `llem doctor` announces.

    `make_load` is called once the GPU is known to be idle. Without it, ramp time and counter type stay unknown, and
    bounds stay wide. Raises `MeterError` if the GPU has no energy counter or a process uses it.
    """
    pynvml.nvmlInit()
    try:
        device = nvml_devices.find([uuid], None)[0]
        _require_idle(device)
        # A load makes this process one that uses the GPU: it must not exist before the check.
        load = make_load() if make_load is not None else None
        latency_ns = _latency_ns(device.handle)
        idle = _sample(device.uuid, lambda period: time.sleep(IDLE_PERIODS * period))
        period_ns, jitter_ns = _period(idle)
        fast_error = _fast_polling_error(device.handle, period_ns, load)
        result = Calibration(
            uuid=device.uuid,
            driver=device.driver,
            period_ns=period_ns,
            jitter_ns=jitter_ns,
            call_latency_ns=latency_ns,
            poll_step_ns=FAST_STEP_NS if fast_error < HARMLESS_REL else DEFAULT_STEP_NS,
            fast_polling_error_rel=fast_error,
            idle_noise_w=stdev(idle.power_w(i) for i in range(len(idle) - 1)),
            made_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            conditions=_conditions(device, load),
        )
        if load is not None:
            result = _with_bursts(result, load, (short_bursts, long_bursts))
    except pynvml.NVMLError as problem:
        raise MeterError(f"{uuid}: NVML: {problem}", fix=nvml_devices.remedy(problem)) from None
    finally:
        pynvml.nvmlShutdown()
    save(result, directory)
    return result


def save(calibration: Calibration, directory: Path | None = None) -> Path:
    """Store a calibration, replacing an older one of the same GPU and driver; returns its file."""
    path = path_of(calibration.uuid, calibration.driver, directory)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, calibration._asdict())
    return path


class MatmulLoad:
    """Half-precision matrix products with torch, back to back, on the CUDA device with this UUID."""

    def __init__(self, uuid: str, size: int = MATMUL_SIZE) -> None:
        """Allocate the matrices and time a product. Raises `MeterError` without torch, CUDA or that device."""
        try:
            torch: Any = import_module("torch")
        except ImportError:
            raise MeterError(
                "calibration under load needs torch",
                fix="pip install 'pytest-llem[transformers]', or: llem doctor --calibrate --without-load (wide bounds)",
            ) from None
        if not torch.cuda.is_available():
            raise MeterError(
                "torch sees no CUDA device",
                fix="install a CUDA build of torch, or: llem doctor --calibrate --without-load (wide bounds)",
            )
        wanted = uuid.removeprefix("GPU-")
        indices = [
            index
            for index in range(torch.cuda.device_count())
            if str(torch.cuda.get_device_properties(index).uuid).removeprefix("GPU-") == wanted
        ]
        if not indices:
            raise MeterError(f"torch does not see {uuid}", fix="check CUDA_VISIBLE_DEVICES")
        self._torch = torch
        self._device = torch.device("cuda", indices[0])
        self._a = torch.randn(size, size, device=self._device, dtype=torch.float16)
        self._b = torch.randn(size, size, device=self._device, dtype=torch.float16)
        self._multiply(3)
        start_ns, end_ns = self._multiply(10)
        self._product_s = (end_ns - start_ns) / 10 / 1e9

    def burst(self, seconds: float) -> tuple[int, int]:
        """Run for about this long, synchronised at both ends; at most two products are queued ahead."""
        return self._multiply(max(1, round(seconds / self._product_s)))

    def _multiply(self, count: int) -> tuple[int, int]:
        torch = self._torch
        torch.cuda.synchronize(self._device)
        start_ns = time.monotonic_ns()
        events: list[Any] = []
        for _ in range(count):
            torch.matmul(self._a, self._b)
            event = torch.cuda.Event()
            event.record()
            events.append(event)
            if len(events) > 2:
                events.pop(0).synchronize()
        torch.cuda.synchronize(self._device)
        return start_ns, time.monotonic_ns()


def _require_idle(device: nvml_devices.Gpu) -> None:
    try:
        pynvml.nvmlDeviceGetTotalEnergyConsumption(device.handle)
    except pynvml.NVMLError_NotSupported:
        raise MeterError(
            f"{device.uuid} ({device.name}) has no energy counter: there is nothing to calibrate",
            fix="its energy is integrated from power readings instead; nothing needs to be done",
        ) from None
    others = [process.pid for process in pynvml.nvmlDeviceGetComputeRunningProcesses(device.handle)]
    if others:
        raise MeterError(
            f"{device.uuid}: other processes use this GPU (pid {', '.join(map(str, others[:5]))})",
            fix="calibrate while the GPU is idle",
        )


def _latency_ns(handle: object) -> int:
    lengths: list[int] = []
    for _ in range(LATENCY_READS):
        begin = time.monotonic_ns()
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        lengths.append(time.monotonic_ns() - begin)
        time.sleep(DEFAULT_STEP_NS / 1e9)
    return round(median(lengths))


def _period(ticks: TickSeries) -> tuple[int, int]:
    """The mean interval between two steps and its standard deviation, in nanoseconds, even if single steps were missed.

    The lower quartile of the intervals is one period unless most steps were missed; longer ones count as multiples of
    it.
    """
    gaps = [b - a for a, b in pairwise(ticks.closely_bracketed.mid_ns)]
    shortest_ns = sorted(gaps)[len(gaps) // 4]
    counts = [max(1, round(gap / shortest_ns)) for gap in gaps]
    period_ns = sum(gaps) / sum(counts)
    single = [gap for gap, count in zip(gaps, counts, strict=True) if count == 1]
    return round(period_ns), round(sqrt(fmean((gap - period_ns) ** 2 for gap in single)))


def _sample(uuid: str, activity: Callable[[float], None], provisional: Calibration | None = None) -> TickSeries:
    """Run something while the sampler process reads the sensors, and return the counter's steps."""
    with tempfile.TemporaryDirectory(prefix="llem-calibrate-") as name:
        directory = Path(name)
        if provisional is not None:
            save(provisional, directory)
        path = directory / "samples.jsonl"
        sampler = SamplerProcess(path, [uuid], calibration_dir=directory)
        try:
            activity(provisional.period_ns / 1e9 if provisional else 0.1)
            ended_ns = time.monotonic_ns()
        finally:
            problem = sampler.stop()
        ticks = ticks_from(read_samples(path), uuid)
    if problem is not None or len(ticks) < 10:
        raise MeterError(
            f"{uuid}: the energy counter does not advance ({len(ticks)} steps seen){f': {problem}' if problem else ''}",
            fix=NO_COUNTER,
        )
    if ticks.resets_ns or ended_ns - ticks.mid_ns[-1] > STILL_PERIODS * (ticks.period_ns or 0.0):
        raise MeterError(f"{uuid}: the energy counter stopped or jumped while it was calibrated", fix=NO_COUNTER)
    return ticks


def _fast_polling_error(handle: object, period_ns: int, load: Load | None) -> float:
    """Relative change of the counter's slope under fast reads against slow ones, at equal power."""
    slopes: dict[int, list[float]] = {FAST_STEP_NS: [], 5 * DEFAULT_STEP_NS: []}
    for _ in range(2):
        for step_ns, watts in slopes.items():
            if load is not None:
                load.burst(2 * period_ns / 1e9)
                time.sleep(period_ns / 1e9)
            watts.append(slope_w(handle, period_ns, step_ns))
    fast, gentle = (fmean(values) for values in slopes.values())
    return abs(fast - gentle) / gentle


def slope_w(handle: object, period_ns: int, step_ns: int) -> float:
    """The counter's slope in watts over `SLOPE_PERIODS`, with a pause of `step_ns` after each read."""
    end_ns = time.monotonic_ns() + SLOPE_PERIODS * period_ns
    steps: list[tuple[int, int]] = []
    previous = None
    before = time.monotonic_ns()
    while before < end_ns:
        value = int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
        now = time.monotonic_ns()
        if previous is not None and value != previous[1]:
            steps.append(((previous[0] + now) // 2, value))
        previous = (before, value)
        time.sleep(step_ns / 1e9)
        before = time.monotonic_ns()
    slope = linear_regression(*zip(*steps, strict=True)).slope * 1e6 if len(steps) > 1 else 0.0
    if slope <= 0:
        raise MeterError("the energy counter stopped or jumped back while it was calibrated", fix=NO_COUNTER)
    return slope


def _with_bursts(known: Calibration, load: Load, counts: tuple[int, int]) -> Calibration:
    edges: list[tuple[int, int]] = []

    def activity(period_s: float, /) -> None:
        time.sleep(bursts.QUIET_PERIODS * period_s)
        for length_s, quiet_s in bursts.plan(*counts, period_s, random.Random()):
            edges.append(load.burst(length_s))
            time.sleep(quiet_s)

    return bursts.evaluate(_sample(known.uuid, activity, known), edges, known)


def _conditions(device: nvml_devices.Gpu, load: Load | None) -> dict[str, JsonValue]:
    """What the sensor was calibrated under, as far as the board says."""
    readings: dict[str, Callable[[Any], int]] = {
        "temperature_c": lambda handle: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
        "sm_clock_mhz": lambda handle: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
        "power_limit_mw": pynvml.nvmlDeviceGetEnforcedPowerLimit,
    }
    found: dict[str, JsonValue] = {"board": device.name, "load": type(load).__name__ if load else None}
    for name, read in readings.items():
        with suppress(pynvml.NVMLError):
            found[name] = read(device.handle)
    return {**found, "pytest_llem": __version__}
