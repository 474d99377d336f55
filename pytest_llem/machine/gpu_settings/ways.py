"""Ways to set a GPU, tried in turn: NVML by this process, a `zeusd` that runs, `sudo -n nvidia-smi`.

`change` makes settings and puts them back by them, `checks` asks beforehand which would do. zeusd's interface is that
of its own Python client (github.com/ml-energy/zeus, zeus/utils/zeusd.py); nvidia-smi's options are in its manual.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from urllib.parse import urlencode

import pynvml

from pytest_llem.energy.nvml_devices import remedy
from pytest_llem.errors import DeviceSettingsError
from pytest_llem.job.gpu_setting import SettingName
from pytest_llem.machine.gpu_settings.board import Board, Target
from pytest_llem.machine.lease_files import user_name

ZEUSD_VARIABLE = "ZEUSD_SOCK_PATH"
ZEUSD_TOKEN_VARIABLE = "ZEUSD_TOKEN"
ZEUSD_SOCKET = "/var/run/zeusd.sock"
"""Where zeusd listens unless told otherwise (its `--socket-path`)."""

TIMEOUT_S = 30.0
"""Chosen: setting takes milliseconds, and a driver that has to wake a GPU up seconds."""

CAP_SYS_ADMIN = 21
"""Linux, include/uapi/linux/capability.h"""

NO_LIMIT_MW = 1
"""Chosen: no board takes a limit of a milliwatt: asking for it changes nothing, and still asks for permission."""

SMI_OPTIONS: Mapping[SettingName, tuple[str, str | None]] = {
    "power_limit_w": ("-pl", None),
    "sm_clock_mhz": ("-lgc", "-rgc"),
    "memory_clock_mhz": ("-lmc", "-rmc"),
}
"""The options of nvidia-smi that set, and that reset."""

SUDOERS = "{user} ALL=(root) NOPASSWD: {smi} ^-i GPU-[0-9a-f-]+ -(pl [0-9.]+|lgc [0-9]+|lmc [0-9]+|rgc|rmc)$"
"""The rule for exactly these commands; sudo takes regular expressions from version 1.9.10 on (sudoers(5))."""

Way = Callable[[Board, SettingName, Target], "str | None"]
"""Sets it, or looks whether it could: why not, or `None`."""


def apply(board: Board, name: SettingName, target: Target, turn: int) -> None:
    """Set it in the first way that can. Raises `DeviceSettingsError` where none can, or the GPU does not take it.

    `turn` is the descriptor of the GPU's turn: a command that outlives this process keeps it.
    """
    _first(board, name, target, (_by_nvml, _by_zeusd, partial(_by_sudo, turn)))


def require_way(board: Board, name: SettingName, target: Target) -> None:
    """Raise `DeviceSettingsError`, with the exact remedy, where no way seems to be open. Changes nothing."""
    _first(board, name, target, (_nvml_obstacle, _zeusd_obstacle, _sudo_obstacle))


def _first(board: Board, name: SettingName, target: Target, ways: Sequence[Way]) -> None:
    obstacles: list[str] = []
    for way in ways:
        obstacle = way(board, name, target)
        if obstacle is None:
            return
        obstacles.append(obstacle)
    raise DeviceSettingsError(
        f"nothing here may set device.{name} of {board.uuid}: {'; '.join(obstacles)}",
        fix=remedies(name),
        details={"gpu": board.uuid, "setting": name, "obstacles": tuple(obstacles)},
    )


def remedies(name: SettingName) -> str:
    """What opens a way to this user."""
    as_root = "run pytest as root (or with CAP_SYS_ADMIN)"
    if name not in SMI_OPTIONS:
        return as_root
    rule = SUDOERS.format(user=user_name(os.getuid()), smi=shutil.which("nvidia-smi") or "/usr/bin/nvidia-smi")
    return (
        f"add this line with `sudo visudo -f /etc/sudoers.d/pytest-llem`: {rule}; or start zeusd (sudo zeusd serve "
        f"--socket-path {ZEUSD_SOCKET}); or {as_root}"
    )


# NVML


def _by_nvml(board: Board, name: SettingName, target: Target) -> str | None:
    handle = board.handle
    try:
        if name == "power_limit_w":
            pynvml.nvmlDeviceSetPowerManagementLimit(handle, round(_number(target) * 1e3))
        elif name == "power_profile":
            _request_profiles(board, target if isinstance(target, tuple) else ())
        elif name == "sm_clock_mhz":
            if target is None:
                pynvml.nvmlDeviceResetGpuLockedClocks(handle)
            else:
                pynvml.nvmlDeviceSetGpuLockedClocks(handle, int(_number(target)), int(_number(target)))
        elif target is None:
            pynvml.nvmlDeviceResetMemoryLockedClocks(handle)
        else:
            pynvml.nvmlDeviceSetMemoryLockedClocks(handle, int(_number(target)), int(_number(target)))
    except pynvml.NVMLError_NoPermission:
        return "NVML does not permit it to this process"
    except pynvml.NVMLError as problem:
        raise DeviceSettingsError(
            f"{board.uuid}: device.{name}: the driver does not take it: {problem}",
            fix=f"leave device.{name} out" if problem.value == pynvml.NVML_ERROR_NOT_SUPPORTED else remedy(problem),
        ) from None
    return None


def _request_profiles(board: Board, wanted: tuple[int, ...]) -> None:
    """Let these profiles be requested and no others; in two calls that older drivers have as well."""
    now = board.profiles()
    for call, numbers in (
        (pynvml.nvmlDeviceWorkloadPowerProfileClearRequestedProfiles, set(now) - set(wanted)),
        (pynvml.nvmlDeviceWorkloadPowerProfileSetRequestedProfiles, set(wanted) - set(now)),
    ):
        if numbers:
            asked = pynvml.c_nvmlWorkloadPowerProfileRequestedProfiles_v1_t()
            for number in numbers:
                asked.requestedProfilesMask.mask[number // 32] |= 1 << number % 32
            call(board.handle, ctypes.byref(asked))


def _nvml_obstacle(board: Board, name: SettingName, target: Target) -> str | None:
    """Whether this process has the capability, and the driver says nothing to the contrary."""
    refused = "this process is neither root nor has CAP_SYS_ADMIN"
    if not _capable():
        return refused
    try:
        pynvml.nvmlDeviceSetPowerManagementLimit(board.handle, NO_LIMIT_MW)
    except pynvml.NVMLError_NoPermission:
        return "NVML does not permit it to this process"
    except pynvml.NVMLError:
        pass  # it looked at the limit first, or has none to set: the capability decides
    return None


def _capable() -> bool:
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
        return bool(int(effective, 16) >> CAP_SYS_ADMIN & 1)
    except (OSError, StopIteration, ValueError):
        return os.geteuid() == 0


# zeusd


def _by_zeusd(board: Board, name: SettingName, target: Target) -> str | None:
    obstacle = _zeusd_obstacle(board, name, target)
    if obstacle is not None:
        return obstacle
    index = str(pynvml.nvmlDeviceGetIndex(board.handle))
    verb, values = {
        "power_limit_w": ("set_power_limit", {"power_limit_mw": round(_number(target) * 1e3)} if target else {}),
        "sm_clock_mhz": _clock_request("gpu", target),
        "memory_clock_mhz": _clock_request("mem", target),
    }[name]
    query = urlencode({"gpu_ids": index, **values, "block": "true"})
    try:
        code, answer = _zeusd("POST", f"/gpu/{verb}?{query}")
    except (OSError, ValueError) as problem:
        return f"zeusd did not answer ({problem})"
    return None if code == 200 else f"zeusd refused ({code}: {answer[:200]})"


def _clock_request(domain: str, target: Target) -> tuple[str, dict[str, int]]:
    if target is None:
        return f"reset_{domain}_locked_clocks", {}
    clock = int(_number(target))
    return f"set_{domain}_locked_clocks", {"min_clock_mhz": clock, "max_clock_mhz": clock}


def _zeusd_obstacle(board: Board, name: SettingName, target: Target) -> str | None:
    """Whether a zeusd runs that controls GPUs, and counts them as NVML does here: it knows them by number only."""
    if name not in SMI_OPTIONS:
        return "zeusd cannot set it"
    if not _zeusd_socket().exists():
        return f"no zeusd listens at {_zeusd_socket()}"
    try:
        code, answer = _zeusd("GET", "/discover")
        found = json.loads(answer) if code == 200 else {}
    except (OSError, ValueError) as problem:
        return f"zeusd at {_zeusd_socket()} does not answer ({problem})"
    if not isinstance(found, dict) or "gpu-control" not in found.get("enabled_api_groups", ()):
        return f"zeusd at {_zeusd_socket()} does not control GPUs"
    if found.get("auth_required") and not os.environ.get(ZEUSD_TOKEN_VARIABLE):
        return f"zeusd at {_zeusd_socket()} wants a token ({ZEUSD_TOKEN_VARIABLE})"
    if found.get("gpu_ids") != list(range(pynvml.nvmlDeviceGetCount())):
        return f"zeusd at {_zeusd_socket()} counts other GPUs than there are here"
    return None


def _zeusd_socket() -> Path:
    return Path(os.environ.get(ZEUSD_VARIABLE) or ZEUSD_SOCKET)


def _zeusd(method: str, path: str) -> tuple[int, str]:
    """A request over zeusd's socket: status and body."""
    import socket
    from http.client import HTTPConnection, HTTPException

    token = os.environ.get(ZEUSD_TOKEN_VARIABLE)
    connection = HTTPConnection("localhost", timeout=TIMEOUT_S)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.sock.settimeout(TIMEOUT_S)
        connection.sock.connect(str(_zeusd_socket()))
        connection.request(method, path, headers={"Authorization": f"Bearer {token}"} if token else {})
        response = connection.getresponse()
        return response.status, response.read().decode(errors="replace")
    except HTTPException as problem:
        raise ValueError(str(problem) or type(problem).__name__) from None
    finally:
        connection.close()


# sudo


def _by_sudo(turn: int, board: Board, name: SettingName, target: Target) -> str | None:
    if name not in SMI_OPTIONS:
        return "nvidia-smi is not used for it"
    # Its standard input, which it does not read, is what sudo leaves open: the turn lasts as long as the command.
    done = _run(["sudo", "-n", *smi_command(board.uuid, name, target)], turn)
    if isinstance(done, str):
        return done
    return None if done.returncode == 0 else f"sudo -n nvidia-smi: {_last_line(done)}"


def _sudo_obstacle(board: Board, name: SettingName, target: Target) -> str | None:
    if name not in SMI_OPTIONS:
        return "nvidia-smi is not used for it"
    done = _run(["sudo", "-n", "-l", *smi_command(board.uuid, name, target)])
    if isinstance(done, str):
        return done
    return None if done.returncode == 0 else "sudo does not allow nvidia-smi to this user without a password"


def smi_command(uuid: str, name: SettingName, target: Target) -> list[str]:
    """The command that sets or resets; a single clock stands for the range from it to it."""
    set_option, reset_option = SMI_OPTIONS[name]
    if target is None and reset_option is not None:
        return ["nvidia-smi", "-i", uuid, reset_option]
    value = f"{_number(target):.3f}".rstrip("0").rstrip(".")
    return ["nvidia-smi", "-i", uuid, set_option, value]


def _run(command: Sequence[str], standard_input: int = subprocess.DEVNULL) -> subprocess.CompletedProcess[str] | str:
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(command, stdin=standard_input, stdout=pipe, stderr=pipe, text=True, errors="replace")
    except FileNotFoundError:
        return f"there is no {command[0]} here"
    except OSError as problem:
        return f"{command[0]}: {problem.strerror}"
    try:
        output = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        # A sudo is root's: nobody else may kill it, and waiting for its end would be waiting for the driver's.
        with suppress(PermissionError):
            process.kill()
        return f"{command[0]} had no end after {TIMEOUT_S:g} s"
    return subprocess.CompletedProcess(command, process.returncode, *output)


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stderr or done.stdout).strip().splitlines()
    return lines[-1] if lines else f"exit code {done.returncode}"


def _number(target: Target) -> float:
    assert isinstance(target, (int, float))
    return target
