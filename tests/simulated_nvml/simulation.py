"""Driving the simulated GPUs: their true power, what their sensors make of it, and what goes wrong."""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

import pynvml

HERE = Path(__file__).parent
PATH_VARIABLE = "LLEM_SIMULATED_NVML"
MAX_GPUS = 4
MAX_SEGMENTS = 20000
MAX_PROCESSES = 16
ANYONE, ROOT, PRIVILEGED, NOBODY = range(4)
"""Who may set (`Gpu.permission`); `PRIVILEGED` is who has `ROOT_VARIABLE` in its environment."""
ROOT_VARIABLE = "LLEM_SIMULATED_NVML_ROOT"
LEAD_NS = 150_000


class Segment(ctypes.Structure):
    """Mirror of `Segment` in simulated_nvml.h."""

    _fields_ = (
        ("start_ns", ctypes.c_int64),
        ("from_w", ctypes.c_double),
        ("target_w", ctypes.c_double),
        ("ripple_w", ctypes.c_double),
        ("ripple_ns", ctypes.c_int64),
        ("extra_w", ctypes.c_double),
        ("extra_ns", ctypes.c_int64),
        ("energy_j", ctypes.c_double),
    )


class Gpu(ctypes.Structure):
    """Mirror of `Gpu` in simulated_nvml.h, with the true energy in closed form."""

    segments: int
    late_steps = 0

    _fields_ = (
        ("uuid", ctypes.c_char * 96),
        ("mig_uuid", ctypes.c_char * 96),
        ("name", ctypes.c_char * 96),
        ("epoch_ns", ctypes.c_int64),
        ("period_ns", ctypes.c_int64),
        ("jitter_ns", ctypes.c_int64),
        ("latency_ns", ctypes.c_int64),
        ("late_ns", ctypes.c_int64),
        ("late_every", ctypes.c_int64),
        ("ramp_ns", ctypes.c_int64),
        ("fall_ns", ctypes.c_int64),
        ("delay_ns", ctypes.c_int64),
        ("filter_ns", ctypes.c_int64),
        ("blind_ns", ctypes.c_int64),
        ("lost_share", ctypes.c_double),
        ("duty", ctypes.c_double),
        ("power_period_ns", ctypes.c_int64),
        ("average_ns", ctypes.c_int64),
        ("instant_ns", ctypes.c_int64),
        ("has_counter", ctypes.c_int32),
        ("has_instant", ctypes.c_int32),
        ("wraps", ctypes.c_int32),
        ("error", ctypes.c_int32),
        ("error_reads", ctypes.c_int32),
        ("mig", ctypes.c_int32),
        ("frozen_at_ns", ctypes.c_int64),
        ("counter_offset_mj", ctypes.c_int64),
        ("counter_gain", ctypes.c_double),
        ("disturb_below_ns", ctypes.c_int64),
        ("disturb_j", ctypes.c_double),
        ("disturbed_j", ctypes.c_double),
        ("throttle_power_ns", ctypes.c_uint64),
        ("throttle_thermal_ns", ctypes.c_uint64),
        ("memory_total", ctypes.c_uint64),
        ("memory_used", ctypes.c_uint64),
        ("temperature_c", ctypes.c_uint32),
        ("sm_clock_mhz", ctypes.c_uint32),
        ("utilisation_percent", ctypes.c_uint32),
        ("power_limit_mw", ctypes.c_uint32),
        ("persistence", ctypes.c_uint32),
        ("ecc", ctypes.c_uint32),
        ("processes", ctypes.c_uint32),
        ("pids", ctypes.c_uint32 * MAX_PROCESSES),
        ("counter_reads", ctypes.c_int64),
        ("default_limit_mw", ctypes.c_uint32),
        ("min_limit_mw", ctypes.c_uint32),
        ("max_limit_mw", ctypes.c_uint32),
        ("outer_limit_mw", ctypes.c_uint32),
        ("min_clock_mhz", ctypes.c_uint32),
        ("max_clock_mhz", ctypes.c_uint32),
        ("clock_step_mhz", ctypes.c_uint32),
        ("application_mhz", ctypes.c_uint32),
        ("own_application_mhz", ctypes.c_uint32),
        ("memory_clocks_mhz", ctypes.c_uint32 * 4),
        ("locked_low_mhz", ctypes.c_uint32),
        ("locked_high_mhz", ctypes.c_uint32),
        ("locked_memory_low_mhz", ctypes.c_uint32),
        ("locked_memory_high_mhz", ctypes.c_uint32),
        ("profiles", ctypes.c_uint32 * 8),
        ("requested_profiles", ctypes.c_uint32 * 8),
        ("unheld_profiles", ctypes.c_uint32 * 8),
        ("permission", ctypes.c_int32),
        ("vgpu", ctypes.c_int32),
        ("set_error", ctypes.c_int32),
        ("set_latency_ns", ctypes.c_int64),
        ("limit_ignored", ctypes.c_int32),
        ("limit_unheld", ctypes.c_int32),
        ("slowed_to_mhz", ctypes.c_uint32),
        ("slowed_reason", ctypes.c_uint64),
        ("limit_sets", ctypes.c_int64),
        ("clock_sets", ctypes.c_int64),
        ("clock_resets", ctypes.c_int64),
        ("memory_sets", ctypes.c_int64),
        ("memory_resets", ctypes.c_int64),
        ("profile_sets", ctypes.c_int64),
        ("refusals", ctypes.c_int64),
        ("load", ctypes.c_double),
        ("idle_w", ctypes.c_double),
        ("leakage_w", ctypes.c_double),
        ("switching_w", ctypes.c_double),
        ("low_v", ctypes.c_double),
        ("high_v", ctypes.c_double),
        ("knee_mhz", ctypes.c_uint32),
        ("compute_share", ctypes.c_double),
        ("capped_since_ns", ctypes.c_int64),
        ("segments", ctypes.c_int64),
        ("segment", Segment * MAX_SEGMENTS),
    )

    def set_power(
        self,
        watts: float,
        *,
        ripple_w: float = 0.0,
        ripple_s: float = 0.0,
        extra_w: float = 0.0,
        extra_s: float = 0.0,
        at_ns: int | None = None,
    ) -> int:
        """Let the load be `watts` from `at_ns` on (default: at once) and return that time, which has then passed.

        A sinusoidal ripple and a decaying extra come on top.

        The step is written shortly before it happens, so that no reading sees a past that changes. Where the machine
        keeps this process from running at that moment, one may: `late_steps` counts those.
        """
        late = True
        while late:
            start = at_ns if at_ns is not None else time.monotonic_ns() + LEAD_NS
            step = self._step(start, watts, ripple_w, ripple_s, extra_w, extra_s)
            late = at_ns is None and time.monotonic_ns() >= start
        self._publish(step)
        if at_ns is None and time.monotonic_ns() >= start:
            self.late_steps += 1
        while time.monotonic_ns() < start:
            pass
        return start

    def plan_power(
        self,
        at_ns: int,
        watts: float,
        *,
        ripple_w: float = 0.0,
        ripple_s: float = 0.0,
        extra_w: float = 0.0,
        extra_s: float = 0.0,
    ) -> None:
        """Let the load be `watts` from a time on that is later than every step so far, without waiting for it."""
        self._publish(self._step(at_ns, watts, ripple_w, ripple_s, extra_w, extra_s))

    def _step(
        self, at_ns: int, watts: float, ripple_w: float, ripple_s: float, extra_w: float, extra_s: float
    ) -> Segment:
        base_w = self._base_w(at_ns) if self.segments else watts
        ripple_ns, extra_ns = round(ripple_s * 1e9), round(extra_s * 1e9)
        return Segment(at_ns, base_w, watts, ripple_w, ripple_ns, extra_w, extra_ns, self.energy_j(at_ns))

    def _publish(self, step: Segment) -> None:
        count = int(self.segments)
        if count == MAX_SEGMENTS:
            raise RuntimeError("the simulation holds no more power steps")
        self.segment[count] = step
        self.segments = count + 1

    def energy_j(self, t_ns: int) -> float:
        """True energy since the simulation began."""
        segment = self._segment(t_ns)
        if segment is None:
            return 0.0
        dt = (t_ns - segment.start_ns) / 1e9
        ramp = self._ramp_ns(segment) / 1e9
        total = segment.energy_j + segment.target_w * dt
        if ramp:
            total += (segment.from_w - segment.target_w) * ramp * (1 - math.exp(-dt / ramp))
        if segment.extra_ns:
            decay_s = segment.extra_ns / 1e9
            total += segment.extra_w * decay_s * (1 - math.exp(-dt / decay_s))
        if segment.ripple_ns:
            omega = 2 * math.pi / (segment.ripple_ns / 1e9)
            total += segment.ripple_w / omega * (1 - math.cos(omega * dt))
        return float(total)

    def energy_between_j(self, start_ns: int, end_ns: int) -> float:
        """True energy between two times: what a perfect meter would read."""
        return self.energy_j(end_ns) - self.energy_j(start_ns)

    def set_pids(self, *pids: int) -> None:
        """Let these processes compute on the GPU."""
        self.processes = len(pids)
        for index, pid in enumerate(pids):
            self.pids[index] = pid

    @property
    def settings(self) -> tuple[int, ...]:
        """All that can be set: what a put-back has to bring back."""
        locks = (self.locked_low_mhz, self.locked_high_mhz, self.locked_memory_low_mhz, self.locked_memory_high_mhz)
        return (self.power_limit_mw, *locks, *self.requested_profiles)

    def offer_profiles(self, *profiles: int) -> None:
        """Let the board have these workload power profiles; an H100 has none."""
        for profile in profiles:
            self.profiles[profile // 32] |= 1 << profile % 32

    def _base_w(self, t_ns: int) -> float:
        segment = self._segment(t_ns)
        if segment is None:
            return 0.0
        ramp_ns = self._ramp_ns(segment)
        if not ramp_ns:
            return float(segment.target_w)
        decay = math.exp(-(t_ns - segment.start_ns) / ramp_ns)
        return float(segment.target_w + (segment.from_w - segment.target_w) * decay)

    def _ramp_ns(self, segment: Segment) -> int:
        falls = segment.target_w < segment.from_w
        return int(self.fall_ns if falls and self.fall_ns else self.ramp_ns)

    def _segment(self, t_ns: int) -> Segment | None:
        index = self.segments - 1
        while index >= 0 and self.segment[index].start_ns > t_ns:
            index -= 1
        return self.segment[index] if index >= 0 else None


class Machine(ctypes.Structure):
    """Mirror of `Machine` in simulated_nvml.h."""

    _fields_ = (
        ("driver", ctypes.c_char * 80),
        ("init_error", ctypes.c_int32),
        ("gpus", ctypes.c_int32),
        ("virtual_ns", ctypes.c_int64),
        ("gpu", Gpu * MAX_GPUS),
    )


class Simulation:
    """Simulated GPUs in a file; processes whose environment names it (`environment()`) see them through NVML."""

    def __init__(self, path: Path, library: Path, gpus: int = 1) -> None:
        self.path = path
        self.library = library
        with path.open("wb") as stream:
            stream.truncate(ctypes.sizeof(Machine))
        with path.open("r+b") as stream:
            self._memory = mmap.mmap(stream.fileno(), 0)
        self._machine = Machine.from_buffer(self._memory)
        self._machine.driver = b"580.65.06"
        self._machine.gpus = gpus
        self.gpus = [self._machine.gpu[index] for index in range(gpus)]
        for index, gpu in enumerate(self.gpus):
            _default_h100(gpu, index)

    @property
    def machine(self) -> Machine:
        """The whole of the shared memory."""
        return self._machine

    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to see these GPUs."""
        others = os.environ.get("LD_LIBRARY_PATH")
        directory = str(self.library.parent)
        return {
            PATH_VARIABLE: str(self.path),
            "LD_LIBRARY_PATH": f"{directory}:{others}" if others else directory,
            "PATH": f"{directory}:{os.environ['PATH']}",
        }


def _default_h100(gpu: Gpu, index: int) -> None:
    gpu.uuid = f"GPU-00000000-0000-0000-0000-{index:012d}".encode()
    gpu.mig_uuid = f"MIG-00000000-0000-0000-0000-{index:012d}".encode()
    gpu.name = b"NVIDIA H100 80GB HBM3"
    # Different phases, so that the steps of several GPUs do not coincide.
    gpu.epoch_ns = time.monotonic_ns() - 2_000_000_000 - index * 37_000_000
    gpu.period_ns = 100_000_000
    gpu.jitter_ns = 500_000
    gpu.latency_ns = 60_000
    gpu.ramp_ns = 1_500_000
    gpu.duty = 1.0
    gpu.power_period_ns = 100_000_000
    gpu.average_ns = 1_000_000_000
    gpu.instant_ns = 25_000_000
    gpu.has_counter = gpu.has_instant = 1
    gpu.memory_total = 80 * 2**30
    gpu.memory_used = 4 * 2**20
    gpu.temperature_c = 40
    gpu.sm_clock_mhz = 1980
    gpu.power_limit_mw = 700_000
    gpu.persistence = gpu.ecc = 1
    gpu.counter_offset_mj = 5_000_000
    gpu.counter_gain = 1.0
    gpu.default_limit_mw = gpu.max_limit_mw = gpu.power_limit_mw
    gpu.min_limit_mw = 200_000
    gpu.min_clock_mhz, gpu.max_clock_mhz, gpu.clock_step_mhz = 210, 1980, 15
    gpu.memory_clocks_mhz[:2] = (2619, 1593)
    gpu.slowed_reason = pynvml.nvmlClocksEventReasonSwThermalSlowdown
    gpu.idle_w, gpu.leakage_w, gpu.switching_w = 70.0, 110.0, 510.0
    gpu.low_v, gpu.high_v, gpu.knee_mhz = 0.70, 1.05, 1110
    gpu.compute_share = 0.7
    gpu.set_power(110.0, at_ns=gpu.epoch_ns)


def preload(library: Path) -> None:
    """Have this process's `pynvml` use the simulated library; its children find it through their environment."""
    pynvml.nvmlLib = ctypes.CDLL(str(library))
    pynvml._nvmlGetFunctionPointer_cache.clear()


def build_library(directory: Path) -> Path:
    """Compile the simulated `libnvidia-ml.so.1` into a directory; raises when the compiler fails."""
    library = directory / "libnvidia-ml.so.1"
    compiler = os.environ.get("CC", "cc")
    subprocess.run(
        [
            compiler,
            "-shared",
            "-fPIC",
            "-O2",
            "-Wl,-soname,libnvidia-ml.so.1",
            "-o",
            str(library),
            str(HERE / "simulated_nvml.c"),
            "-lm",
        ],
        check=True,
        capture_output=True,
    )
    # CodeCarbon takes a machine without this command for one without a GPU.
    command = directory / "nvidia-smi"
    command.write_text(f'#!/bin/sh\n[ $# = 0 ] || exec {sys.executable} {HERE / "nvidia_smi.py"} "$@"\n')
    command.chmod(0o755)
    return library
