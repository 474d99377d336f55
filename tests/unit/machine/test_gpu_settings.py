"""Settings of a simulated GPU: how they are made, what refuses them, and what is believed of what was left."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import socketserver
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psutil
import pynvml
import pytest

from pytest_llem import doctor
from pytest_llem.energy.nvml_devices import nvml
from pytest_llem.errors import DeviceError, DeviceSettingsError, PowerLimitNotAppliedError
from pytest_llem.job.config import DeviceSettings, ExperimentConfig
from pytest_llem.job.gpu_setting import SETTING_NAMES, GpuSetting, SettingName
from pytest_llem.job.job import Deadlines, DeviceSet, Job, MeterSettings
from pytest_llem.machine.gpu_settings import guard, record, standing, ways
from pytest_llem.machine.gpu_settings.board import Board, Target
from pytest_llem.machine.gpu_settings.change import settings_made
from pytest_llem.machine.gpu_settings.checks import require_settable
from pytest_llem.machine.leases import take_lease
from pytest_llem.machine.occupancy import occupancy
from tests.set_board import ASKED, write_sudo
from tests.simulated_nvml.loads import run_load
from tests.simulated_nvml.plugin import make_simulation, simulated_nvml_library, simulation
from tests.simulated_nvml.simulation import NOBODY, PRIVILEGED, Gpu, Simulation

__all__ = ["make_simulation", "simulated_nvml_library", "simulation"]

UUID = "GPU-00000000-0000-0000-0000-000000000000"
GPU = DeviceSet("cuda", (UUID,))


@pytest.fixture
def gpu(simulation: Simulation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """A GPU that stands off its defaults, as somebody wanted it."""
    monkeypatch.setenv("LLEM_LEASE_DIR", str(tmp_path / "leases"))
    monkeypatch.setenv("ZEUSD_SOCK_PATH", str(tmp_path / "zeusd.sock"))
    board: Gpu = simulation.gpus[0]
    board.offer_profiles(1, 6)
    board.power_limit_mw, board.requested_profiles[0] = 650_000, 1 << 1
    return board


def made(asked: dict[SettingName, float | str]) -> tuple[GpuSetting, ...]:
    """What a cycle that asks for it is told."""
    with take_lease(GPU, timeout_s=5) as lease, settings_made(asked, (UUID,), lease.descriptors, "a cycle") as told:
        return told


def job(**device: float | str) -> Job:
    settings = DeviceSettings(**device)  # type: ignore[arg-type]
    config = ExperimentConfig(model="none", engine="transformers", device=settings)
    return Job("run", "study", "e", "0", config, 1, 1, GPU, MeterSettings(), Deadlines(60.0))


def test_settings_hold_for_the_block_and_are_stated(gpu: Gpu) -> None:
    before = gpu.settings
    with take_lease(GPU, timeout_s=5) as lease, settings_made(ASKED, (UUID,), lease.descriptors, "a cycle") as told:
        assert gpu.settings[:5] == (400_000, 1410, 1410, 1593, 1593)
        assert gpu.requested_profiles[0] == 1 << 6
        left = json.loads((Path(os.environ["LLEM_LEASE_DIR"]) / f"settings-{UUID}.json").read_text())
        assert left["previous"]["power_limit_w"] == 650.0
        assert (left["pid"], left["title"]) == (os.getpid(), "a cycle")
    assert gpu.settings == before
    assert {setting.name: (setting.applied, setting.previous) for setting in told} == {
        "memory_clock_mhz": (None, None),
        "sm_clock_mhz": (None, None),
        "power_limit_w": (400.0, 650.0),
        "power_profile": ("llm_inference", "max_q"),
    }
    assert [setting.name for setting in told][:2] == ["memory_clock_mhz", "sm_clock_mhz"]


def test_what_was_set_is_on_the_disk_before_the_driver_is_called(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that a power failure leaves empty, or without its name, puts nothing back. Its end comes last."""
    synced: list[tuple[bool, int]] = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append((stat.S_ISDIR(os.fstat(file).st_mode), gpu.limit_sets)))
    made({"power_limit_w": 400.0})
    assert synced == [(False, 0), (True, 0), (True, 2)]


def test_default_is_the_boards_own(gpu: Gpu) -> None:
    gpu.locked_low_mhz = gpu.locked_high_mhz = 1200
    with take_lease(GPU, timeout_s=5) as lease:
        asked: dict[SettingName, float | str] = {"power_limit_w": "default", "sm_clock_mhz": "default"}
        with settings_made({**asked, "power_profile": "default"}, (UUID,), lease.descriptors, "a cycle") as told:
            assert gpu.settings[:3] == (700_000, 0, 0)
            assert gpu.requested_profiles[0] == 0
        assert told[1].applied == 700.0
    assert gpu.power_limit_mw == 650_000


def test_a_set_that_fails_half_way_leaves_nothing_set(gpu: Gpu) -> None:
    before = gpu.settings
    gpu.limit_ignored = 1  # the limit comes after the clocks
    with pytest.raises(PowerLimitNotAppliedError, match="asked for a power limit of 400 W, 650 W is in force"):
        made({"sm_clock_mhz": 1410, "power_limit_w": 400.0})
    assert (gpu.settings, gpu.clock_sets) == (before, 1)
    assert record.recorded_gpus() == []


def test_a_limit_that_something_else_undercuts_is_an_error_before_any_measuring(gpu: Gpu) -> None:
    """A rack's cap of 300 W would make two points of a sweep, 400 W and 500 W, the same."""
    gpu.outer_limit_mw = 300_000
    with pytest.raises(PowerLimitNotAppliedError, match="400 W, 300 W is in force") as caught:
        made({"power_limit_w": 400.0})
    assert caught.value.category == "power_limit_not_applied"
    assert gpu.power_limit_mw == 650_000


def test_a_default_that_something_undercuts_is_told_before_any_measuring(gpu: Gpu) -> None:
    """Each cycle would be measured, found invalid, and measured again."""
    gpu.outer_limit_mw = 300_000
    with pytest.raises(PowerLimitNotAppliedError, match="700 W, 300 W is in force"):
        made({"power_limit_w": "default"})


def test_a_sudo_that_does_not_end_is_not_waited_for(
    gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """It is root's: it cannot be killed, and a driver that hangs would have pytest hang as well, without a word."""

    def root_s(process: subprocess.Popen[str]) -> None:
        request.addfinalizer(partial(os.kill, process.pid, signal.SIGKILL))
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(subprocess.Popen, "kill", root_s)
    monkeypatch.setattr(ways, "TIMEOUT_S", 0.2)
    sudo = tmp_path / "sudo"
    sudo.write_text("#!/bin/sh\nexec sleep 60\n")
    sudo.chmod(0o755)
    gpu.permission = NOBODY
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    begun = time.monotonic()
    with nvml(), pytest.raises(DeviceSettingsError, match=r"sudo had no end after 0\.2 s"):
        ways.require_way(Board(UUID), "power_limit_w", 400.0)
    assert time.monotonic() - begun < 30


def test_sudo_sets_with_these_very_commands(gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule of sudoers names commands exactly: another option, or a shell, and none of it is allowed."""
    before = gpu.settings
    gpu.permission = PRIVILEGED
    calls = write_sudo(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    told = made({"power_limit_w": 412.5, "sm_clock_mhz": 1410, "memory_clock_mhz": 1593})
    assert told[-1].applied == 412.5
    assert gpu.settings == before
    smi = f"sudo -n nvidia-smi -i {UUID}"
    assert calls.read_text().splitlines() == [
        *(f"{smi} -lmc 1593", f"{smi} -lgc 1410", f"{smi} -pl 412.5"),
        *(f"{smi} -pl 650", f"{smi} -rgc", f"{smi} -rmc"),
    ]


def test_without_permission_nothing_changes_and_the_line_to_add_is_named(
    gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = gpu.settings
    gpu.permission = NOBODY
    write_sudo(tmp_path / "bin", allows=False)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    with pytest.raises(DeviceSettingsError, match=r"NVML does not permit.*no zeusd.*password is required") as caught:
        made({"power_limit_w": 400.0})
    assert caught.value.fix is not None
    assert "NOPASSWD: " in caught.value.fix
    assert "nvidia-smi ^-i GPU-[0-9a-f-]+ -(pl [0-9.]+|lgc [0-9]+|lmc [0-9]+|rgc|rmc)$" in caught.value.fix
    with nvml(), pytest.raises(DeviceSettingsError, match="sudo does not allow"):
        ways.require_way(Board(UUID), "power_limit_w", 400.0)
    assert (gpu.settings, gpu.limit_sets) == (before, 0)
    assert record.recorded_gpus() == []


def test_a_board_that_tells_no_clocks_is_refused_in_words(gpu: Gpu) -> None:
    """A driver that lists none ended the collection with `max() arg is an empty sequence`."""
    gpu.memory_clocks_mhz[:] = (0, 0, 0, 0)
    with nvml():
        for name in SETTING_NAMES[1:3]:
            refusal = Board(UUID).refusal(name, 1410, {name: 1410})
            assert refusal is not None
            assert refusal.text == f"{UUID} tells no clocks that it can be locked to"
            assert refusal.fix == f"leave device.{name} out"


def test_a_record_that_somebody_removes_meanwhile_is_not_needed(gpu: Gpu) -> None:
    """A cleaner of temporary files would leave a GPU set, and nobody would be told."""
    before = gpu.settings
    with take_lease(GPU, timeout_s=5) as lease, settings_made(ASKED, (UUID,), lease.descriptors, "a cycle"):
        shutil.rmtree(os.environ["LLEM_LEASE_DIR"])
        assert gpu.settings != before
    assert gpu.settings == before


def test_a_limit_that_could_not_be_put_back_is_not_changed(gpu: Gpu) -> None:
    gpu.power_limit_mw = 150_000  # below what the board takes
    with pytest.raises(DeviceSettingsError, match="its power limit of 150 W could not be put back"):
        made({"power_limit_w": 400.0})
    assert (gpu.power_limit_mw, gpu.limit_sets) == (150_000, 0)
    assert record.recorded_gpus() == []


def test_a_guard_that_hangs_is_given_up(gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it had forked kept its standard error open: pytest waited for that without end."""
    hanging = tmp_path / "python"
    hanging.write_text("#!/bin/sh\nsleep 60 &\n")
    hanging.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(hanging))
    monkeypatch.setattr(guard, "START_LIMIT_S", 0.2)
    begun = time.monotonic()
    with pytest.raises(DeviceSettingsError, match="no guard for the settings"):
        made({"power_limit_w": 400.0})
    assert time.monotonic() - begun < 30
    assert (gpu.limit_sets, record.recorded_gpus()) == (0, [])


def test_a_guard_waits_on_any_descriptor(
    gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """select() takes none from 1024 on: the guard died after it had said that it was ready."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2000:
        pytest.skip("this user may not have so many open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (2000, hard))
    request.addfinalizer(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard)))
    with contextlib.ExitStack() as many:
        for _ in range(1100):
            many.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        with take_lease(GPU, timeout_s=5) as lease, settings_made(ASKED, (UUID,), lease.descriptors, "a cycle"):
            time.sleep(0.2)
            guards = [each for each in psutil.process_iter(["cmdline"]) if guard.MODULE in (each.info["cmdline"] or ())]
            assert any(UUID in each.info["cmdline"] for each in guards)


class Zeusd(socketserver.ThreadingUnixStreamServer):
    """Speaks what zeusd's own client asks for, and sets the simulated GPU."""

    def __init__(self, path: str, gpu: Gpu, found: dict[str, object]) -> None:
        super().__init__(path, Handler)
        self.gpu, self.found = gpu, found
        self.asked: list[str] = []


class Handler(BaseHTTPRequestHandler):
    server: Zeusd

    def do_GET(self) -> None:
        self._answer(json.dumps(self.server.found) if self.path == "/discover" else "")

    def do_POST(self) -> None:
        self.server.asked.append(self.path)
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        gpu, low, high = self.server.gpu, query.get("min_clock_mhz", "0"), query.get("max_clock_mhz", "0")
        if parts.path == "/gpu/set_power_limit":
            gpu.power_limit_mw = int(query["power_limit_mw"])
        elif parts.path in ("/gpu/set_gpu_locked_clocks", "/gpu/reset_gpu_locked_clocks"):
            gpu.locked_low_mhz, gpu.locked_high_mhz = int(low), int(high)
        elif parts.path in ("/gpu/set_mem_locked_clocks", "/gpu/reset_mem_locked_clocks"):
            gpu.locked_memory_low_mhz, gpu.locked_memory_high_mhz = int(low), int(high)
        self._answer("")

    def _answer(self, body: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def zeusd(gpu: Gpu) -> Iterator[Zeusd]:
    gpu.permission = NOBODY
    found = {"gpu_ids": [0], "enabled_api_groups": ["gpu-control", "gpu-read"], "auth_required": False}
    with Zeusd(os.environ["ZEUSD_SOCK_PATH"], gpu, found) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def test_zeusd_sets_where_this_process_may_not(gpu: Gpu, zeusd: Zeusd) -> None:
    before = gpu.settings
    told = made({"power_limit_w": 400.0, "sm_clock_mhz": 1410, "memory_clock_mhz": 1593})
    assert told[-1].applied == 400.0
    assert gpu.settings == before
    clocks = "min_clock_mhz=1410&max_clock_mhz=1410"
    assert zeusd.asked[1:4] == [
        f"/gpu/set_gpu_locked_clocks?gpu_ids=0&{clocks}&block=true",
        "/gpu/set_power_limit?gpu_ids=0&power_limit_mw=400000&block=true",
        "/gpu/set_power_limit?gpu_ids=0&power_limit_mw=650000&block=true",
    ]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"gpu_ids": [0, 1]}, "counts other GPUs"),
        ({"enabled_api_groups": ["gpu-read"]}, "does not control GPUs"),
        ({"auth_required": True}, "wants a token"),
    ],
)
def test_a_zeusd_that_might_set_another_gpu_is_not_asked(
    gpu: Gpu, zeusd: Zeusd, change: dict[str, object], why: str
) -> None:
    """It knows GPUs by number: in a container with some of a machine's GPUs, number 0 is another one."""
    zeusd.found.update(change)
    with pytest.raises(DeviceSettingsError, match=why):
        made({"power_limit_w": 400.0})
    assert zeusd.asked == []


@pytest.mark.parametrize(
    ("device", "why", "fix"),
    [
        ({"power_limit_w": 900.0}, "limits from 200 to 700 W", "choose from 200 to 700"),
        ({"sm_clock_mhz": 1411}, "no such SM clock at a memory clock of 2619 MHz", "choose 1410 or 1425"),
        ({"memory_clock_mhz": 1600}, "no such memory clock", "choose 1593 or 2619"),
        ({"power_profile": "training"}, "no such power profile", "choose from: max_q, llm_inference"),
    ],
)
def test_a_value_that_the_board_does_not_have_is_refused(
    gpu: Gpu, device: dict[str, float | str], why: str, fix: str
) -> None:
    with pytest.raises(DeviceSettingsError, match=why) as caught:
        require_settable(job(**device), [UUID], ())
    assert caught.value.fix == fix


def test_shared_and_divided_gpus_are_refused(gpu: Gpu) -> None:
    wanted = job(power_limit_w=400.0)
    require_settable(wanted, [UUID], occupancy([UUID]))
    gpu.set_pids(os.getpid())
    with pytest.raises(DeviceSettingsError, match=f"is shared: process {os.getpid()}"):
        require_settable(wanted, [UUID], occupancy([UUID]))
    with pytest.raises(DeviceSettingsError, match="no NVIDIA GPU was leased"):
        require_settable(wanted, [], ())
    gpu.mig = 1
    with pytest.raises(DeviceSettingsError, match="divided by MIG"):
        require_settable(wanted, [UUID], ())


def test_clocks_that_somebody_holds_are_left_alone(gpu: Gpu) -> None:
    """No driver tells a lock, so it could not be put back: nightly runs would undo what an administrator has set."""
    gpu.slowed_to_mhz, gpu.slowed_reason = 900, pynvml.nvmlClocksEventReasonApplicationsClocksSetting
    run_load(gpu)
    require_settable(job(power_limit_w=400.0), [UUID], ())
    with pytest.raises(DeviceSettingsError, match="somebody's setting holds the clocks") as caught:
        require_settable(job(sm_clock_mhz=1410), [UUID], ())
    assert f"sudo nvidia-smi -i {UUID} -rgc" in str(caught.value.fix)


def test_application_clocks_that_somebody_set_are_named_and_left_alone(gpu: Gpu) -> None:
    """`default` would be measured at another clock than the board's own; an idle GPU gives no reason for its clock."""
    gpu.application_mhz = 1305
    require_settable(job(power_limit_w=400.0), [UUID], ())
    with pytest.raises(DeviceSettingsError, match="graphics application clock is 1305 MHz, by default 1980") as caught:
        require_settable(job(sm_clock_mhz="default"), [UUID], ())
    assert caught.value.fix == f"sudo nvidia-smi -i {UUID} -rac"
    (stands,) = standing.describe()
    assert "its graphics application clock is 1305 MHz" in stands.message
    assert "-rac" in str(stands.fix)


def test_a_board_at_its_own_application_clock_is_not_refused(gpu: Gpu) -> None:
    """The driver gives this reason for it as well: no command would take it away."""
    gpu.own_application_mhz = gpu.slowed_to_mhz = 1095
    gpu.slowed_reason = pynvml.nvmlClocksEventReasonApplicationsClocksSetting
    run_load(gpu)
    require_settable(job(sm_clock_mhz=1410), [UUID], ())
    gpu.slowed_to_mhz = 900
    with pytest.raises(DeviceSettingsError, match="somebody's setting holds the clocks"):
        require_settable(job(sm_clock_mhz=1410), [UUID], ())


def leave(previous: dict[SettingName, Target]) -> Path:
    """A record that a dead run has left."""
    with take_lease(GPU, timeout_s=5):
        record.new_record(UUID, previous, "nightly/e1 cycle 2").write()
    return Path(os.environ["LLEM_LEASE_DIR"]) / f"settings-{UUID}.json"


def test_what_a_run_left_is_put_back_by_the_next_lease_and_named_by_the_doctor(gpu: Gpu) -> None:
    path = leave({"power_limit_w": 650.0, "sm_clock_mhz": None})
    gpu.power_limit_mw, gpu.locked_low_mhz, gpu.locked_high_mhz = 400_000, 1410, 1410
    found = list(standing.describe())
    assert "its power limit is 400 W, by default 700 W" in found[0].message
    assert found[0].fix is None, "what the record says is to be put back, not the board's default"
    assert (found[1].level, found[1].fix) == ("problem", "llem doctor --restore")
    assert "nightly/e1 cycle 2" in found[1].message
    doctor.restore_settings()
    assert gpu.settings[:3] == (650_000, 0, 0)
    assert not path.exists()


def test_one_value_that_cannot_be_put_back_keeps_no_other(gpu: Gpu) -> None:
    leave({"power_limit_w": 650.0, "sm_clock_mhz": None, "power_profile": (1,)})
    gpu.power_limit_mw, gpu.locked_low_mhz, gpu.locked_high_mhz, gpu.profiles[0] = 400_000, 1410, 1410, 0
    with pytest.raises(DeviceError, match=r"device\.power_profile: NVML: Not Supported"):
        take_lease(GPU, timeout_s=5)
    assert gpu.settings[:3] == (650_000, 0, 0)


def test_a_gpu_that_is_gone_keeps_no_other_from_being_put_back(gpu: Gpu) -> None:
    gone = "GPU-0"
    path = leave({"power_limit_w": 650.0})
    record.new_record(gone, {"power_limit_w": 300.0}, "nightly/e1 cycle 2").write()
    gpu.power_limit_mw = 400_000
    with pytest.raises(DeviceError, match="GPU-0: NVML: Not Found") as caught:
        doctor.restore_settings()
    assert caught.value.fix == f"if it has left this machine, remove {path.with_name('settings-GPU-0.json')}"
    assert (gpu.power_limit_mw, path.exists()) == (650_000, False)


def test_a_record_that_cannot_be_removed_is_an_error_with_a_remedy(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root's, in a directory where only its owner may: the next run of a user ended with a traceback."""
    leave({"power_limit_w": 650.0})

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        with pytest.raises(DeviceError, match="is as it was, and the file cannot be removed"):
            record.remove_record(UUID)


@pytest.mark.parametrize(
    "text", ['{"gpu": "GPU-other", "previous": {}}', "[]", "", '{"previous": {"power_limit_w": "1"}}']
)
def test_a_record_that_cannot_be_read_stops_the_next_lease(gpu: Gpu, text: str) -> None:
    """The GPU stands as nobody knows: a number taken on it would be one of other settings."""
    leave({"power_limit_w": 650.0}).write_text(text)
    with pytest.raises(DeviceError, match="no record of a GPU's settings"):
        take_lease(GPU, timeout_s=5)


def test_a_record_names_values_that_the_board_must_allow(gpu: Gpu) -> None:
    path = leave({"power_limit_w": 9000.0})
    with pytest.raises(DeviceError, match=r"names 9000 as device.power_limit_w"):
        take_lease(GPU, timeout_s=5)
    assert (gpu.power_limit_mw, path.exists()) == (650_000, True)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make another user's file")
def test_a_record_of_another_user_is_not_believed(gpu: Gpu) -> None:
    """Any user may write into the directory of leases: root would set what a stranger says."""
    path = leave({"power_limit_w": 200.0})
    os.chown(path, 12345, 12345)
    with pytest.raises(DeviceError, match="a run of the user 12345 left settings"):
        take_lease(GPU, timeout_s=5)
    assert gpu.power_limit_mw == 650_000


def test_a_lease_without_records_asks_no_driver(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pynvml, "nvmlInit", None)
    with take_lease(GPU, timeout_s=5):
        pass
