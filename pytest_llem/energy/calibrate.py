"""Measures the properties of a GPU's energy sensors, once per GPU and driver: `llem doctor --calibrate`.

Only `llem doctor` calls it; meters and the sampler process read what it stores. Every bound of a calibrated GPU rests
on it: change no method and no constant without tests/unit/energy/test_calibrate.py (simulated sensors).
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import import_module
from itertools import pairwise
from math import sqrt
from pathlib import Path
from statistics import fmean, linear_regression, median, stdev
from typing import Any, Protocol

import pynvml

from pytest_llem.energy import nvml_devices
from pytest_llem.energy.calibration import Calibration, CounterType, path_of
from pytest_llem.energy.readings import read_samples
from pytest_llem.energy.sampler_client import SamplerProcess
from pytest_llem.energy.series import TickSeries, ticks_from
from pytest_llem.energy.ticks import DEFAULT_STEP_NS
from pytest_llem.errors import MeterError
from pytest_llem.job.files import write_json
from pytest_llem.job.measurement import Measured

FAST_STEP_NS = 500_000
"""Chosen: a quarter of the default step, which narrows brackets to 0.5 % of a 100 ms period."""

HARMLESS_REL = 0.005
"""Chosen: fast polling counts as harmless if it changes the counter's slope by less, a tenth of the board's gain
error."""

PART_TIME_SCATTER = 0.15
"""Chosen: an accumulating counter catches every burst whole, with a scatter of some percent from its brackets; one that
samples a quarter of the time catches half of the short bursts or fewer."""

LATENCY_READS = 100
"""Chosen: enough for a median, in a fifth of a second."""

IDLE_PERIODS = 30
"""Chosen: gives the period to 0.1 % at 0.5 ms of jitter, in three seconds."""

QUIET_PERIODS = 5
"""Chosen: idle time between bursts, as around a measured window (`worker.windows.IDLE_STEPS`)."""

QUIET_SEEN_PERIODS = 4.5
"""Chosen: the part of it that tells quiet power, half a period short of the next burst."""

SHORT_BURST_PERIODS = 0.5
"""Chosen: half a period, so that a part-time counter misses some bursts entirely."""

LONG_BURST_PERIODS = 4.0
"""Chosen: three whole intervals inside show the burst's power, and the ramp stays a visible share of it."""

SLOPE_PERIODS = 20
"""Chosen: two seconds give a slope to well below `HARMLESS_REL`."""

SETTLED_PERIODS = 0.2
"""Chosen: 20 ms at 100 ms, after which a ramp of some milliseconds is over."""

EDGE_NS = 100_000
"""Chosen: how closely a burst's synchronised edge agrees with the device's own, as `window_edges.EDGE_NS`."""

MATMUL_SIZE = 8192
"""Chosen: large enough to load every SM; three matrices take 0.4 GB in half precision."""


class Load(Protocol):
    """A steady load on one GPU."""

    def burst(self, seconds: float) -> tuple[int, int]:
        """Load the device, synchronised at both ends; returns start and end (CLOCK_MONOTONIC, nanoseconds)."""


@dataclass(frozen=True)
class _Burst:
    """One burst between quiet times: energy above the quiet power, in total and at each step inside."""

    start_ns: int
    end_ns: int
    total_j: float
    inside: tuple[tuple[float, float], ...]


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
        poll_step_ns = FAST_STEP_NS if fast_error < HARMLESS_REL else DEFAULT_STEP_NS
        bursts: list[_Burst] = []
        if load is not None:
            bursts = _bursts(device, load, period_ns, poll_step_ns, (short_bursts, long_bursts))
        counter_type, duty = _counter_type(bursts, period_ns)
        ramp = _ramp(bursts, period_ns) if counter_type == "accumulating" else None
        result = Calibration(
            uuid=device.uuid,
            driver=device.driver,
            period_ns=period_ns,
            jitter_ns=jitter_ns,
            call_latency_ns=latency_ns,
            poll_step_ns=poll_step_ns,
            ramp_ns=round(ramp.value) if ramp else None,
            ramp_uncertainty_ns=round(ramp.uncertainty) if ramp else None,
            counter_type=counter_type,
            duty=duty,
            fast_polling_error_rel=fast_error,
            idle_noise_w=stdev(idle.power_w(i) for i in range(len(idle) - 1)),
            made_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
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
        finally:
            problem = sampler.stop()
        ticks = ticks_from(read_samples(path), uuid)
    if problem is not None or len(ticks) < 10:
        raise MeterError(
            f"{uuid}: the energy counter does not advance ({len(ticks)} steps seen){f': {problem}' if problem else ''}",
            fix="run `nvidia-smi -q -d POWER`; without a working counter use --llem-meter=rapl or estimate",
        )
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
    return linear_regression(*zip(*steps, strict=True)).slope * 1e6


def _bursts(
    device: nvml_devices.Gpu, load: Load, period_ns: int, poll_step_ns: int, counts: tuple[int, int]
) -> list[_Burst]:
    period_s = period_ns / 1e9
    short, long = counts
    edges: list[tuple[int, int]] = []
    provisional = Calibration(device.uuid, device.driver, period_ns, 0, 0, poll_step_ns)

    def activity(_period_s: float, /) -> None:
        time.sleep(QUIET_PERIODS * period_s)
        for length in [SHORT_BURST_PERIODS] * short + [LONG_BURST_PERIODS] * long:
            edges.append(load.burst(length * period_s))
            # A random share of a period keeps the bursts from synchronising with the counter.
            time.sleep((QUIET_PERIODS + random.random()) * period_s)

    ticks = _sample(device.uuid, activity, provisional).closely_bracketed
    measured = [_extra(ticks, start, end, period_ns) for start, end in edges]
    return [burst for burst in measured if burst is not None]


def _extra(ticks: TickSeries, start_ns: int, end_ns: int, period_ns: int) -> _Burst | None:
    first, last = ticks.last_before(start_ns), ticks.first_after(end_ns + round(SETTLED_PERIODS * period_ns))
    # All of the quiet time tells its power, so that one step that was seen late has little weight.
    begin = ticks.first_after(start_ns - round(QUIET_SEEN_PERIODS * period_ns))
    finish = ticks.last_before(end_ns + round(QUIET_SEEN_PERIODS * period_ns))
    if first - begin < 2 or finish - last < 2:
        return None
    narrow_ns = 2 * median(ticks.half_width_ns(i) for i in range(len(ticks)))
    if max(ticks.half_width_ns(first), ticks.half_width_ns(last)) > narrow_ns:
        return None
    quiet_w = (_mean_w(ticks, begin, first) + _mean_w(ticks, last, finish)) / 2

    def above_quiet_j(index: int) -> float:
        elapsed_s = (ticks.mid_ns[index] - ticks.mid_ns[first]) / 1e9
        return ticks.energy_j[index] - ticks.energy_j[first] - quiet_w * elapsed_s

    inside = tuple(
        ((ticks.mid_ns[i] - start_ns) / 1e9, above_quiet_j(i))
        for i in range(first + 1, last)
        if start_ns + SETTLED_PERIODS * period_ns < ticks.mid_ns[i] < end_ns and ticks.half_width_ns(i) <= narrow_ns
    )
    return _Burst(start_ns, end_ns, above_quiet_j(last), inside)


def _mean_w(ticks: TickSeries, first: int, last: int) -> float:
    return (ticks.energy_j[last] - ticks.energy_j[first]) / (ticks.mid_ns[last] - ticks.mid_ns[first]) * 1e9


def _counter_type(bursts: Sequence[_Burst], period_ns: int) -> tuple[CounterType, float | None]:
    """The counter's type, and its duty if it is part-time, from bursts of half a period at random phase.

    An accumulating counter always catches them whole. One that samples a share `duty` of each period misses a burst of
    length D entirely with probability 1 - D / period - duty.
    """
    short = [b for b in bursts if b.end_ns - b.start_ns < period_ns]
    long = [b for b in bursts if b.end_ns - b.start_ns >= period_ns]
    if len(short) < 4 or not long:
        return "unknown", None
    step_w = fmean(b.total_j / ((b.end_ns - b.start_ns) / 1e9) for b in long)
    caught = [b.total_j / (step_w * (b.end_ns - b.start_ns) / 1e9) for b in short]
    if stdev(caught) < PART_TIME_SCATTER:
        return "accumulating", None
    missed = sum(share < 0.1 for share in caught) / len(caught)
    length = fmean(b.end_ns - b.start_ns for b in short) / period_ns
    return "part_time", min(1.0, max(0.05, 1 - length - missed))


def _ramp(bursts: Sequence[_Burst], period_ns: int) -> Measured | None:
    """Time constant of power's fall after load, in nanoseconds.

    Inside a burst the extra energy grows as step * (t - rise); its total is step * (length - rise + fall).
    """
    long = [b for b in bursts if b.end_ns - b.start_ns >= period_ns]
    points = [point for burst in long for point in burst.inside]
    if len(points) < 6 or len(long) < 3:
        return None
    step_w, intercept_j = linear_regression(*zip(*points, strict=True))
    if step_w <= 0:
        return None
    rise_s = -intercept_j / step_w
    falls = [b.total_j / step_w - (b.end_ns - b.start_ns) / 1e9 + rise_s for b in long]
    scatter = stdev(t - e / step_w for t, e in points)
    bound_s = 2 * sqrt(stdev(falls) ** 2 / len(falls) + scatter**2 / len(points)) + EDGE_NS / 1e9
    return Measured(max(0.0, fmean(falls)) * 1e9, bound_s * 1e9)
