"""Whether a GPU takes a power limit, a clock and a profile, keeps them under load, and is as it was afterwards.

Run with `pytest tests/gpu/test_device_settings.py`; skipped where no way to set is open (docs/device.md, "Who may
set"). Within two minutes; figures are appended to `tests/gpu/RESULTS.md` (or the file that LLEM_GPU_RESULTS names).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median

import pynvml
import pytest

from pytest_llem.energy.calibrate import Load
from pytest_llem.energy.nvml_devices import nvml
from pytest_llem.errors import DeviceSettingsError
from pytest_llem.job.gpu_setting import SettingName
from pytest_llem.job.job import DeviceSet
from pytest_llem.machine.gpu_settings.board import ORDER, Board, profile_name
from pytest_llem.machine.gpu_settings.change import settings_made
from pytest_llem.machine.gpu_settings.record import recorded_gpus
from pytest_llem.machine.gpu_settings.ways import require_way
from pytest_llem.machine.leases import take_lease
from tests.simulated_nvml.loads import run_load
from tests.simulated_nvml.simulation import Simulation

BURST_S = 6.0
SETTLED_S = 2.0
"""How much of a burst's beginning is left out: the driver's control settles in less than a second."""

STEP_MHZ = 15
"""What a clock may be off: boards have one every 15 MHz."""

ABOVE_LIMIT = 1.05
"""What mean power may be of the limit: readings err by 5 % (NVML documentation)."""

HOLDER = """
import sys
from pytest_llem.job.job import DeviceSet
from pytest_llem.machine.gpu_settings.change import settings_made
from pytest_llem.machine.leases import take_lease
uuid, name, value = sys.argv[1:]
with take_lease(DeviceSet("cuda", (uuid,)), timeout_s=10) as lease:
    with settings_made({name: float(value)}, (uuid,), lease.descriptors, "a check"):
        print("set", flush=True)
        input()
"""


@dataclass
class Seen:
    """What was read under load, once settled."""

    power_w: list[float] = field(default_factory=list)
    sm_clock_mhz: list[int] = field(default_factory=list)
    memory_clock_mhz: list[int] = field(default_factory=list)


@pytest.fixture
def board(gpu_uuid: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Board]:
    monkeypatch.setenv("LLEM_LEASE_DIR", os.environ.get("LLEM_LEASE_DIR", str(tmp_path / "leases")))
    with nvml():
        found = Board(gpu_uuid)
        try:
            for name, value in values(found).items():
                require_way(found, name, found.target(name, value))
        except DeviceSettingsError as problem:
            pytest.skip(f"{problem.message}; {problem.fix}")
        yield found


def values(board: Board) -> dict[SettingName, float | str]:
    """A value of each setting that this board has, well below what it does by itself."""
    low, high = (value / 1e3 for value in pynvml.nvmlDeviceGetPowerManagementLimitConstraints(board.handle))
    memory = pynvml.nvmlDeviceGetSupportedMemoryClocks(board.handle)
    clocks = pynvml.nvmlDeviceGetSupportedGraphicsClocks(board.handle, max(memory))
    asked: dict[SettingName, float | str] = {
        "power_limit_w": float(round(max(low, 0.6 * high))),
        "sm_clock_mhz": min(clocks, key=lambda clock: abs(clock - 0.6 * max(clocks))),
        "memory_clock_mhz": max(memory),
    }
    with contextlib.suppress(pynvml.NVMLError):
        if board.known_profiles():
            asked["power_profile"] = profile_name(board.known_profiles()[0])
    return asked


@pytest.fixture
def busy(load: Load, rehearsal: Simulation | None) -> Callable[[Board], Seen]:
    """A burst of load, and what is read meanwhile."""

    def simulated(seconds: float) -> None:
        assert rehearsal is not None
        run_load(rehearsal.gpus[0])
        time.sleep(seconds)
        run_load(rehearsal.gpus[0], 0.0)

    def measure(board: Board) -> Seen:
        seen = Seen()
        ended = threading.Event()

        def read() -> None:
            handle = board.handle
            while not ended.wait(0.1):
                seen.power_w.append(pynvml.nvmlDeviceGetPowerUsage(handle) / 1e3)
                seen.sm_clock_mhz.append(pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM))
                seen.memory_clock_mhz.append(pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM))

        reader = threading.Timer(SETTLED_S, read)
        reader.start()
        (simulated if rehearsal is not None else load.burst)(BURST_S)
        ended.set()
        reader.join()
        return seen

    return measure


@pytest.mark.gpu(takes_s=60)
def test_settings_hold_under_load_and_are_put_back(
    board: Board, busy: Callable[[Board], Seen], results: list[str]
) -> None:
    before = {name: board.current(name) for name in values(board)}
    free = busy(board)
    rows = [
        "### Settings, one at a time, under load\n",
        "| setting | asked | power | SM clock | memory clock |",
        "|---|---|---|---|---|",
    ]
    rows.append(_row("none", "", free))
    try:
        for name in (name for name in ORDER if name in before):
            asked = values(board)[name]
            with take_lease(DeviceSet("cuda", (board.uuid,)), timeout_s=10) as lease:
                with settings_made({name: asked}, (board.uuid,), lease.descriptors, "a check"):
                    seen = busy(board)
                rows.append(_row(name, str(asked), seen))
            if name == "power_limit_w":
                assert fmean(seen.power_w) <= float(asked) * ABOVE_LIMIT
            if name == "sm_clock_mhz":
                assert median(seen.sm_clock_mhz) <= float(asked) + STEP_MHZ
            if name == "memory_clock_mhz":
                assert abs(median(seen.memory_clock_mhz) - float(asked)) <= STEP_MHZ
            assert {name: board.current(name) for name in before} == before
        again = busy(board)
        rows.append(_row("none again", "", again))
        assert median(again.sm_clock_mhz) >= median(free.sm_clock_mhz) - 4 * STEP_MHZ
    finally:
        results += [*rows, ""]
    assert recorded_gpus() == []


@pytest.mark.gpu(takes_s=10)
@pytest.mark.parametrize("name", ["power_limit_w", "sm_clock_mhz"])
def test_a_kill_leaves_nothing_set(
    board: Board, busy: Callable[[Board], Seen], results: list[str], name: SettingName
) -> None:
    """SIGKILL to the process that has set it: the guard puts it back before the lease is free."""
    before, asked = board.current(name), values(board)[name]
    command = [sys.executable, "-c", HOLDER, board.uuid, name, str(asked)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"set\n"
    if name == "power_limit_w":
        assert board.current(name) == asked
    holder.kill()
    killed_s = time.monotonic()
    holder.wait()
    with take_lease(DeviceSet("cuda", (board.uuid,)), timeout_s=30) as lease:
        results.append(f"After SIGKILL the GPU ({name}) was free again after {time.monotonic() - killed_s:.2f} s.\n")
        assert lease.restored == ()
        assert board.current(name) == before
    if name == "sm_clock_mhz":
        assert median(busy(board).sm_clock_mhz) > float(asked) + STEP_MHZ


def _row(name: str, asked: str, seen: Seen) -> str:
    clocks = f"{median(seen.sm_clock_mhz):.0f} MHz | {median(seen.memory_clock_mhz):.0f} MHz"
    return f"| {name} | {asked} | {fmean(seen.power_w):.0f} W | {clocks} |"
