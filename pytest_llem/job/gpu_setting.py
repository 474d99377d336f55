"""What was asked of a GPU's power limit, clocks and power profile for one cycle, and what the driver made of it.

`machine` sets them before a cycle and puts them back after it; the job carries these records to the worker and to
`results`, which hold the readings against them. Fields are only added, with defaults.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

SettingName = Literal["power_limit_w", "sm_clock_mhz", "memory_clock_mhz", "power_profile"]
SETTING_NAMES: tuple[SettingName, ...] = get_args(SettingName)


@dataclass(frozen=True)
class GpuSetting:
    """One setting of one GPU (by UUID), in the unit that its name states.

    `requested` may be `default`. `applied` is what the driver reads back, `previous` what it read before; `None` where
    it has no such reading: NVML tells no clock lock.
    """

    gpu: str
    name: SettingName
    requested: float | str
    applied: float | str | None = None
    previous: float | str | None = None
