"""How this machine's GPUs stand: off their defaults, or as a run left them that is gone. `llem doctor` shows it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pynvml

from pytest_llem.energy.doctor import Finding
from pytest_llem.energy.nvml_devices import all_gpus, nvml
from pytest_llem.errors import DeviceError
from pytest_llem.machine.gpu_settings.board import LIMIT_STEP_W, Board, profiles_text
from pytest_llem.machine.gpu_settings.record import read_record, recorded_gpus
from pytest_llem.machine.lease_files import is_free

RESTORE = "llem doctor --restore"


def describe() -> Iterator[Finding]:
    """A finding for each GPU, and one for each record of settings."""
    recorded = recorded_gpus()
    with suppress(pynvml.NVMLError), nvml():
        for gpu in all_gpus():
            yield _standing(Board(gpu.uuid), of_a_run=gpu.uuid in recorded)
    for uuid in recorded:
        yield _recorded(uuid)


def _standing(board: Board, *, of_a_run: bool) -> Finding:
    """How one GPU stands; `of_a_run` has put it so, and puts it back: whoever did it by hand would spoil its cycle."""
    off, fixes = [], []
    with suppress(pynvml.NVMLError):
        limit, default, enforced = board.limit_w(), board.default_limit_w, board.enforced_limit_w()
        if abs(limit - default) > LIMIT_STEP_W:
            off.append(f"its power limit is {limit:g} W, by default {default:g} W")
            fixes.append(f"-pl {default:g}")
        if limit - enforced > LIMIT_STEP_W:
            off.append(f"{enforced:g} W are in force, by something beside the driver")
    with suppress(pynvml.NVMLError):
        if profiles := board.profiles():
            off.append(f"the power profile {profiles_text(profiles)} is requested")
    if clocks := board.application_clocks():
        off.append(clocks)
        fixes.append("-rac")
    elif board.lock_shows():
        off.append("its clocks are held by a setting, which no driver tells")
        fixes += ["-rgc", "-rmc"]
    if not off:
        return Finding("ok", board.uuid, "stands at its defaults, as far as the driver tells")
    fix = "; ".join(f"sudo nvidia-smi -i {board.uuid} {option}" for option in fixes)
    return Finding(
        "warn", board.uuid, "; ".join(off), f"where that is not meant: {fix}" if fix and not of_a_run else None
    )


def _recorded(uuid: str) -> Finding:
    try:
        record = read_record(uuid)
        if record is None:
            return Finding("ok", uuid, "was put back just now")
        if not is_free(uuid):
            return Finding("ok", uuid, f"is set by {record}, which holds its lease")
    except DeviceError as error:
        return Finding("problem", uuid, error.message, error.fix)
    why = f": {record.problem}" if record.problem else ""
    return Finding("problem", uuid, f"stands as {record} has set it, and was not put back{why}", RESTORE)
