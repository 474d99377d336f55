"""The calibration of one GPU's sensors, stored per UUID and driver in the user's data directory.

`calibrate` writes it; meters, the sampler process and `llem doctor` read it. Cheap to import (no dataclasses), because
the sampler process does. Fields are added with a default; another meaning needs a new `VERSION`, which discards files.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Literal, NamedTuple

from pytest_llem.errors import JsonValue, StoreError
from pytest_llem.job.files import expanded

CounterType = Literal["accumulating", "part_time", "lossy", "unknown"]
DIRECTORY_VARIABLE = "LLEM_CALIBRATION_DIR"
VERSION = 1
"""Version of the stored file; another one is ignored."""

VALID_DAYS = 365
"""Chosen: a year, after which a sensor is worth the minute that calibrating it anew takes."""


class Calibration(NamedTuple):
    """One GPU's sensors under one driver.

    `period_ns` and `jitter_ns` (standard deviation) describe the counter's steps, `call_latency_ns` is the median
    duration of one read. `ramp_ns` (with its k=2 uncertainty) and `rise_ns` are by how much the counter is late at the
    end and at the start of load, sensor's lag and power's own ramp together; from `settle_ns` after the end on it shows
    idle power alone. `step_w` is the power above idle at which that was found. `None`: no load was run, or an older
    version made it. A part-time counter samples a share `duty` of each period and extrapolates to the whole (arXiv
    2312.02741); a lossy one loses energy. `poll_step_ns` is the shortest distance of two reads found not to disturb
    the counter. `idle_noise_w` is the standard deviation of the power between steps while idle.
    """

    uuid: str
    driver: str
    period_ns: int
    jitter_ns: int
    call_latency_ns: int
    poll_step_ns: int
    ramp_ns: int | None = None
    ramp_uncertainty_ns: int | None = None
    counter_type: CounterType = "unknown"
    duty: float | None = None
    fast_polling_error_rel: float | None = None
    idle_noise_w: float | None = None
    made_at: str | None = None
    version: int = VERSION
    conditions: dict[str, JsonValue] | None = None
    rise_ns: int | None = None
    settle_ns: int | None = None
    step_w: float | None = None

    @property
    def id(self) -> str:
        """The GPU and when it was calibrated: unique, and readable."""
        return f"{self.uuid}@{self.made_at or 'unknown'}"

    @property
    def hash(self) -> str:
        """SHA-256 over all that was found, whichever fields later versions may add."""
        from hashlib import sha256

        found = {name: value for name, value in self._asdict().items() if value is not None}
        return sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()

    @property
    def valid_until(self) -> str | None:
        """ISO 8601; `None` for a calibration without a date."""
        from datetime import datetime, timedelta

        if self.made_at is None:
            return None
        return (datetime.fromisoformat(self.made_at) + timedelta(days=VALID_DAYS)).isoformat(timespec="seconds")

    @property
    def expired(self) -> bool:
        """Whether it is past its validity, or has no date."""
        from datetime import datetime, timezone

        return self.valid_until is None or datetime.fromisoformat(self.valid_until) < datetime.now(timezone.utc)

    def trace(self) -> dict[str, JsonValue]:
        """What a result states of it."""
        dates: dict[str, JsonValue] = {"made_at": self.made_at, "valid_until": self.valid_until}
        about: dict[str, JsonValue] = {"expired": self.expired, "conditions": self.conditions or {}}
        return {"device": self.uuid, "id": self.id, "hash": self.hash, **dates, **about}


def default_directory() -> Path:
    """Where calibrations are stored: `LLEM_CALIBRATION_DIR`, else `llem/calibration` in the user's data directory."""
    given = os.environ.get(DIRECTORY_VARIABLE)
    if given:
        return Path(given)
    if sys.platform == "darwin":
        return expanded("~/Library/Application Support/llem/calibration")
    return expanded(os.environ.get("XDG_DATA_HOME") or "~/.local/share") / "llem" / "calibration"


def load(uuid: str, driver: str, directory: Path | None = None) -> Calibration | None:
    """The calibration of this GPU under this driver; `None` if there is none or it has another version."""
    stored = _stored(path_of(uuid, driver, directory))
    return stored if stored is not None and (stored.uuid, stored.driver) == (uuid, driver) else None


def foreign(uuid: str, driver: str, directory: Path | None = None) -> Calibration | None:
    """What lies in the place of this GPU's calibration but belongs to another GPU or driver: it is not used."""
    stored = _stored(path_of(uuid, driver, directory))
    return None if load(uuid, driver, directory) else stored


def _stored(path: Path) -> Calibration | None:
    # Not at the top, because they import dataclasses.
    from pytest_llem.job.files import read_json
    from pytest_llem.job.wire import decode_value, type_hints

    try:
        hints = type_hints(Calibration)
        data = {name: decode_value(hints[name], value, name) for name, value in read_json(path).items()}
        stored = Calibration(**data)  # type: ignore[arg-type]  # checked above
        _ = stored.expired
    except (StoreError, ValueError, TypeError, KeyError, OverflowError):
        return None
    return stored if stored.version == VERSION else None


def path_of(uuid: str, driver: str, directory: Path | None = None) -> Path:
    """The file for a GPU's calibration under a driver, whether it exists or not."""
    name = "".join(character if character.isalnum() or character in ".-" else "_" for character in f"{uuid}-{driver}")
    return (directory or default_directory()) / f"{name}.json"
