"""Sets a cycle's GPUs and puts them back: the record first, a guard beside it, every value read back.

`runners.measure_here` sets for the length of a cycle; the guard, `machine.leases` and `llem doctor --restore` put back
what is left. Setting and putting back may both be done again at any point: they bring about values, not changes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import pynvml

from pytest_llem.energy.nvml_devices import nvml, remedy
from pytest_llem.errors import DeviceError, DeviceSettingsError, NotReleasedError, PowerLimitNotAppliedError
from pytest_llem.job.gpu_setting import GpuSetting, SettingName
from pytest_llem.machine.gpu_settings.board import LIMIT_STEP_W, ORDER, Board, Target, profiles_text
from pytest_llem.machine.gpu_settings.guard import Guard
from pytest_llem.machine.gpu_settings.record import (
    Record,
    its_turn,
    new_record,
    read_record,
    remove_record,
)
from pytest_llem.machine.gpu_settings.ways import apply
from pytest_llem.machine.lease_files import settings_file

Asked = Mapping[SettingName, "float | str"]


@contextmanager
def settings_made(
    asked: Asked, uuids: Sequence[str], descriptors: Sequence[int], title: str
) -> Iterator[tuple[GpuSetting, ...]]:
    """Leased GPUs set as `asked` for the length of the block, and what the driver made of it; put back afterwards.

    `checks.require_settable` comes first. The guard inherits the `descriptors` of the lease. Raises
    `DeviceSettingsError` when a GPU does not take it, all being put back by then; `NotReleasedError` when they could
    not be put back: the guard goes on trying.
    """
    try:
        # For as long: without persistence mode a driver that nobody uses forgets what was set.
        with nvml():
            boards = [Board(uuid) for uuid in uuids]
            names = [name for name in ORDER if name in asked]
            guard, before = Guard(uuids, descriptors), dict[str, Record]()
            try:
                for board in boards:
                    before[board.uuid] = _written_down(board, names, title)
                yield tuple(_set(board, name, asked[name], before[board.uuid]) for board in boards for name in names)
            finally:
                try:
                    _put_all_back(before, title)
                finally:
                    guard.end()
    except pynvml.NVMLError as problem:
        raise DeviceSettingsError(f"the NVIDIA driver does not answer: {problem}", fix=remedy(problem)) from None


def _written_down(board: Board, names: Sequence[SettingName], title: str) -> Record:
    with its_turn(board.uuid):
        left = read_record(board.uuid)
        now = {name: board.current(name) for name in names}
        limit_w = now.get("power_limit_w")
        refusal = board.refusal("power_limit_w", limit_w, {}) if isinstance(limit_w, float) else None
        if refusal is not None:
            raise DeviceSettingsError(
                f"{board.uuid}: its power limit of {limit_w:g} W could not be put back: {refusal.text}",
                fix="leave device.power_limit_w out",
            )
        record = new_record(board.uuid, {**now, **(left.previous if left else {})}, title)
        record.write()
    return record


def _set(board: Board, name: SettingName, requested: float | str, before: Record) -> GpuSetting:
    """Set one value, and read back what can be read."""
    target = board.target(name, requested)
    with its_turn(board.uuid) as turn:
        apply(board, name, target, turn)
    applied = _require_applied(board, name, requested, target)
    return GpuSetting(board.uuid, name, requested, applied, _stated(before.previous[name]))


def _require_applied(board: Board, name: SettingName, requested: float | str, target: Target) -> float | str | None:
    found = board.current(name)
    if name == "power_limit_w":
        assert isinstance(found, (int, float))
        assert isinstance(target, (int, float))
        enforced = board.enforced_limit_w()
        if max(abs(found - target), abs(enforced - target)) > LIMIT_STEP_W:
            in_force = min(found, enforced)
            raise PowerLimitNotAppliedError(
                f"{board.uuid}: asked for a power limit of {target:g} W, {in_force:g} W is in force",
                fix="look for what else limits the GPU: `nvidia-smi -q -d POWER`, a BMC, a rack's power cap",
                details={"gpu": board.uuid, "requested_w": target, "applied_w": in_force},
            )
        return enforced
    if name == "power_profile" and found != target:
        raise DeviceSettingsError(
            f"{board.uuid}: asked for the power profile {requested}, {_stated(found)} is requested now",
            fix="see which profiles exclude each other: `nvidia-smi power-profiles`, or leave device.power_profile out",
        )
    return _stated(found)


def _stated(value: Target) -> float | str | None:
    """A value as a result states it."""
    return profiles_text(value) if isinstance(value, tuple) else value


def _put_all_back(before: Mapping[str, Record], title: str) -> None:
    problems: list[DeviceError] = []
    for uuid, record in before.items():
        try:
            put_back(uuid, record)
        except DeviceError as problem:
            problems.append(problem)
    if problems:
        raise NotReleasedError(
            f"{title}: settings are not back: {'; '.join(problem.message for problem in problems)}",
            fix=f"llem doctor --restore; {problems[0].fix}" if problems[0].fix else "llem doctor --restore",
            details={"devices": list(before)},
        )


def put_back(uuid: str, known: Record | None = None) -> Record | None:
    """Set a GPU to what its record says, and remove the record; that record, `None` where there was none.

    Whoever has set the GPU has the record `known`, and needs no file that something may have removed meanwhile. Only
    whoever holds the GPU's lease may call it. `DeviceError` when the GPU is not as it was: the record stays.
    """
    if known is None and not os.path.lexists(settings_file(uuid)):
        return None
    with its_turn(uuid) as turn:
        record = known or read_record(uuid)
        if record is None:
            return None
        try:
            with nvml():
                _put_back(Board(uuid), record, turn)
        except pynvml.NVMLError as problem:
            gone = problem.value == pynvml.NVML_ERROR_NOT_FOUND
            fix = f"if it has left this machine, remove {settings_file(uuid)}" if gone else remedy(problem)
            raise DeviceSettingsError(f"{uuid}: NVML: {problem}", fix=fix) from None
        remove_record(uuid)
    return record


def _put_back(board: Board, record: Record, turn: int) -> None:
    problems: list[DeviceError] = []
    for name in reversed(ORDER):
        if name in record.previous:
            try:
                _put_value_back(board, name, record.previous[name], turn)
            except DeviceError as problem:
                problems.append(problem)
            except pynvml.NVMLError as problem:
                text = f"{board.uuid}: device.{name}: NVML: {problem}"
                problems.append(DeviceSettingsError(text, fix=remedy(problem)))
    if problems:
        raise DeviceSettingsError("; ".join(problem.message for problem in problems), fix=problems[0].fix)


def _put_value_back(board: Board, name: SettingName, previous: Target, turn: int) -> None:
    if isinstance(previous, (int, float)):
        refusal = board.refusal(name, previous, {})
        if refusal is not None:
            raise DeviceSettingsError(
                f"{settings_file(board.uuid)} names {previous:g} as device.{name}: {refusal.text}",
                fix="set the GPU as it should be, and remove the file",
            )
    if board.current(name) == previous and previous is not None:
        return
    apply(board, name, previous, turn)
    found = board.current(name)
    if found != previous:
        raise DeviceSettingsError(
            f"{board.uuid}: device.{name} is {_stated(found)}, and was {_stated(previous)}",
            fix=f"set it by hand, and remove {settings_file(board.uuid)}",
        )


def restore_left(uuids: Sequence[str]) -> list[Record]:
    """Put back what a run left on leased GPUs that is gone with its guard. `DeviceError` where that fails."""
    try:
        return [record for uuid in uuids if (record := put_back(uuid)) is not None]
    except DeviceError as problem:
        raise DeviceError(
            f"a GPU stands as an earlier run has set it, and could not be put back: {problem.message}", fix=problem.fix
        ) from None
