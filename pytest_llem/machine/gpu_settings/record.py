"""What a GPU was set to before a cycle changed it, on disk before the first change: `settings-UUID.json`.

`change` and the guard write and remove it under the GPU's turn (`its_turn`), beside the leases; whoever leases the GPU
next, and `llem doctor`, look for what was left. Any user may write into that directory: a record counts if it is this
user's or root's, and names values only, which are held against what the board allows before they are set.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pytest_llem.errors import DeviceError, JsonValue
from pytest_llem.job.gpu_setting import SETTING_NAMES, SettingName
from pytest_llem.machine.gpu_settings.board import Target
from pytest_llem.machine.lease_files import lease_dir, open_shared, read_object, settings_file, try_lock, user_name
from pytest_llem.machine.processes import pid_scope

SCHEMA_VERSION = 1
"""Chosen: the first."""

TURN_LIMIT_S = 120.0
"""Chosen: longer than three ways take that do not answer (`ways.TIMEOUT_S`)."""

POLL_S = 0.01
"""Chosen: a set takes milliseconds."""


@dataclass(frozen=True)
class Record:
    """The previous values of one GPU, by setting, and who changed them when; `problem`: why they are not back."""

    gpu: str
    previous: Mapping[SettingName, Target]
    title: str = ""
    pid: int | None = None
    boot_id: str | None = None
    since: float | None = None
    problem: str | None = None

    def __str__(self) -> str:
        """Whose it is, in words."""
        return f"{self.title or 'another run'} (process {self.pid})"

    def write(self) -> None:
        """Have it on disk; `DeviceError` where that fails. Call it in the GPU's turn."""
        path = settings_file(self.gpu)
        values: dict[str, JsonValue] = dict(self.previous.items())
        facts: dict[str, JsonValue] = {"schema_version": SCHEMA_VERSION, **vars(self), "previous": values}
        new = path.with_suffix(".new")
        try:
            new.unlink(missing_ok=True)
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                json.dump(facts, stream)
                stream.flush()
                os.fsync(descriptor)
            new.replace(path)
            _sync(path.parent)
        except OSError as problem:
            raise DeviceError(
                f"{path}: what is set on {self.gpu} cannot be written down, so nothing is changed: {problem.strerror}",
                fix="make room there, or have the file removed by its owner",
            ) from None


def new_record(gpu: str, previous: Mapping[SettingName, Target], title: str) -> Record:
    """A record by this process."""
    return Record(gpu, previous, title, os.getpid(), pid_scope()[0], time.time())


def recorded_gpus() -> list[str]:
    """The GPUs that have a record, this user's or not."""
    return sorted(path.stem.removeprefix("settings-") for path in lease_dir().glob("settings-*.json"))


def read_record(gpu: str) -> Record | None:
    """The record of a GPU, `None` without one. `DeviceError` for one that must not be believed, or cannot be read."""
    path = settings_file(gpu)
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    if found.st_uid not in (0, os.getuid()) or not stat.S_ISREG(found.st_mode):
        owner = user_name(found.st_uid)
        raise DeviceError(
            f"{gpu}: a run of the user {owner} left settings on it ({path})",
            fix=f"have {owner} or root run `llem doctor --restore`, or remove the file once the GPU is as it should be",
        )
    data = read_object(path)
    previous = data.get("previous")
    if data.get("gpu") != gpu or not isinstance(previous, dict) or not all(map(_plausible, previous.items())):
        raise DeviceError(
            f"{path}: no record of a GPU's settings", fix="set the GPU as it should be, and remove the file"
        )
    facts = {name: data.get(name) for name in ("pid", "boot_id", "since", "problem")}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in previous.items()}
    return Record(gpu, values, str(data.get("title") or ""), **facts)  # type: ignore[arg-type]


def remove_record(gpu: str) -> None:
    """The GPU is as it was. Call it in the GPU's turn."""
    path = settings_file(gpu)
    try:
        path.unlink(missing_ok=True)
        _sync(path.parent)
    except OSError as problem:
        raise DeviceError(
            f"{path}: {gpu} is as it was, and the file cannot be removed: {problem.strerror}",
            fix="have it removed by its owner or root",
        ) from None


def note_problem(gpu: str, problem: str) -> None:
    """Keep with the record why the settings are not back."""
    with its_turn(gpu):
        record = read_record(gpu)
        if record is not None:
            replace(record, problem=problem).write()


@contextlib.contextmanager
def its_turn(gpu: str) -> Iterator[int]:
    """Be the only one who sets this GPU or puts it back, until the descriptor and all copies of it are closed."""
    path = settings_file(gpu).with_suffix(".turn")
    descriptor = open_shared(path, f"no turn to set {gpu}")
    try:
        deadline = time.monotonic() + TURN_LIMIT_S
        while not try_lock(descriptor):
            if time.monotonic() >= deadline:
                raise DeviceError(f"{path} has been locked for {TURN_LIMIT_S:g} s", fix="end whoever holds it")
            time.sleep(POLL_S)
        yield descriptor
    finally:
        os.close(descriptor)


def _plausible(entry: tuple[str, JsonValue]) -> bool:
    name, value = entry
    if name == "power_profile":
        return isinstance(value, list) and all(type(number) is int and 0 <= number < 256 for number in value)
    if name == "power_limit_w":
        return type(value) in (int, float)
    return name in SETTING_NAMES and value is None


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
