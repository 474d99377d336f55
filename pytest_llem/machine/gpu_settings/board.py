"""One NVIDIA GPU as NVML shows it: what may be set on it, and what is set. NVML must be initialised.

`change`, `ways`, `checks` and the guard ask it. A lock of clocks can be set and reset by NVML, not read.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import pynvml

from pytest_llem.energy.nvml_devices import POWER_PROFILES, by_uuid
from pytest_llem.job.gpu_setting import SettingName

Target = float | int | tuple[int, ...] | None
"""What a setting is set to: watts, MHz, profiles by number; for a clock `None` is no lock."""

DEFAULT = "default"

ORDER: tuple[SettingName, ...] = ("memory_clock_mhz", "sm_clock_mhz", "power_limit_w", "power_profile")
"""In which settings are made: which SM clocks there are follows the memory clock."""

LIMIT_STEP_W = 0.5
"""Chosen: a driver may keep whole watts."""

NEAREST = 2
"""How many values a refusal names. Chosen: one on either side."""

PROFILES: Mapping[str, int] = {name: number for number, name in POWER_PROFILES.items()}
"""NVML's workload power profiles by name, as far as this `pynvml` knows them."""


@dataclass(frozen=True)
class Refusal:
    """Why a GPU cannot have a value, and what the user can do about it."""

    text: str
    fix: str


class Board:
    """A GPU by UUID. Raises `NVMLError` where NVML does not know it."""

    def __init__(self, uuid: str) -> None:
        self.uuid = uuid
        self.handle = by_uuid(uuid)

    def target(self, name: SettingName, requested: float | str) -> Target:
        """What a study's value comes to on this board."""
        if requested != DEFAULT:
            return (PROFILES[str(requested)],) if name == "power_profile" else float(requested)
        return self.default_limit_w if name == "power_limit_w" else () if name == "power_profile" else None

    def current(self, name: SettingName) -> Target:
        """What is set now. A lock of clocks cannot be read: `None`."""
        if name == "power_limit_w":
            return self.limit_w()
        return self.profiles() if name == "power_profile" else None

    def limit_w(self) -> float:
        """The limit that was set, which something beside the driver may undercut."""
        return int(pynvml.nvmlDeviceGetPowerManagementLimit(self.handle)) / 1e3

    def enforced_limit_w(self) -> float:
        """The limit that is in force: the least of the driver's and of those that a BMC or a rack sets."""
        return int(pynvml.nvmlDeviceGetEnforcedPowerLimit(self.handle)) / 1e3

    @property
    def default_limit_w(self) -> float:
        """The board's own."""
        return int(pynvml.nvmlDeviceGetPowerManagementDefaultLimit(self.handle)) / 1e3

    def profiles(self) -> tuple[int, ...]:
        """The workload power profiles that are requested now."""
        found = pynvml.c_nvmlWorkloadPowerProfileCurrentProfiles_v1_t()
        pynvml.nvmlDeviceWorkloadPowerProfileGetCurrentProfiles(self.handle, ctypes.byref(found))
        return _numbers(found.requestedProfilesMask)

    def known_profiles(self) -> tuple[int, ...]:
        """The workload power profiles that this board has."""
        found = pynvml.c_nvmlWorkloadPowerProfileCurrentProfiles_v1_t()
        pynvml.nvmlDeviceWorkloadPowerProfileGetCurrentProfiles(self.handle, ctypes.byref(found))
        return _numbers(found.perfProfilesMask)

    def application_clocks(self) -> str | None:
        """Application clocks that somebody has set, in words; a lock supersedes them, its reset may reset them too."""
        stated = []
        for domain, number in (("graphics", pynvml.NVML_CLOCK_GRAPHICS), ("memory", pynvml.NVML_CLOCK_MEM)):
            with suppress(pynvml.NVMLError):  # newer boards and drivers have none
                own = int(pynvml.nvmlDeviceGetDefaultApplicationsClock(self.handle, number))
                if (now := int(pynvml.nvmlDeviceGetApplicationsClock(self.handle, number))) != own:
                    stated.append(f"its {domain} application clock is {now} MHz, by default {own} MHz")
        return "; ".join(stated) or None

    def lock_shows(self) -> bool:
        """Whether the driver says that set clocks hold this GPU: all that can be seen of a lock.

        Older boards say so at their own application clock as well, which lies below the maximum.
        """
        try:
            reasons = int(pynvml.nvmlDeviceGetCurrentClocksEventReasons(self.handle))
        except pynvml.NVMLError:
            return False
        if not reasons & pynvml.nvmlClocksEventReasonApplicationsClocksSetting:
            return False
        graphics = pynvml.NVML_CLOCK_GRAPHICS
        try:
            own = int(pynvml.nvmlDeviceGetDefaultApplicationsClock(self.handle, graphics))
            return int(pynvml.nvmlDeviceGetClockInfo(self.handle, graphics)) != own
        except pynvml.NVMLError:
            return True

    def mig(self) -> bool:
        """Whether it is divided, or a part of one that is."""
        try:
            if pynvml.nvmlDeviceIsMigDeviceHandle(self.handle):
                return True
            return bool(pynvml.nvmlDeviceGetMigMode(self.handle)[0])
        except pynvml.NVMLError:
            return False

    def refusal(
        self, name: SettingName, requested: float | str, asked: Mapping[SettingName, float | str]
    ) -> Refusal | None:
        """Why this board cannot have a value among those `asked`, or `None`."""
        try:
            if name == "power_limit_w":
                return self._limit_refusal(requested)
            if name == "power_profile":
                return self._profile_refusal(str(requested))
            return self._clock_refusal(name, requested, asked.get("memory_clock_mhz"))
        except pynvml.NVMLError as problem:
            return Refusal(f"{self.uuid} has no such setting ({problem})", f"leave device.{name} out")

    def _limit_refusal(self, requested: float | str) -> Refusal | None:
        low, high = (value / 1e3 for value in pynvml.nvmlDeviceGetPowerManagementLimitConstraints(self.handle))
        if requested == DEFAULT or low <= float(requested) <= high:
            return None
        return Refusal(f"{self.uuid} takes limits from {low:g} to {high:g} W", f"choose from {low:g} to {high:g}")

    def _clock_refusal(self, name: SettingName, requested: float | str, memory: float | str | None) -> Refusal | None:
        memory_clocks = [int(clock) for clock in pynvml.nvmlDeviceGetSupportedMemoryClocks(self.handle)]
        clocks, kind, beside = memory_clocks, "memory clock", ""
        silent = Refusal(f"{self.uuid} tells no clocks that it can be locked to", f"leave device.{name} out")
        if not memory_clocks:
            return silent
        if name == "sm_clock_mhz":
            at = max(memory_clocks) if memory is None or memory == DEFAULT else int(memory)
            if at not in memory_clocks:
                return None  # the memory clock is refused
            clocks = [int(clock) for clock in pynvml.nvmlDeviceGetSupportedGraphicsClocks(self.handle, at)]
            kind, beside = "SM clock", f" at a memory clock of {at} MHz"
        if not clocks:
            return silent
        if requested == DEFAULT or int(requested) in clocks:
            return None
        near = sorted(sorted(clocks, key=lambda clock: abs(clock - int(requested)))[:NEAREST])
        nearest = " or ".join(map(str, near))
        span = f"from {min(clocks)} to {max(clocks)} MHz"
        return Refusal(f"{self.uuid} has no such {kind}{beside} (it has {len(clocks)}, {span})", f"choose {nearest}")

    def _profile_refusal(self, requested: str) -> Refusal | None:
        try:
            known = self.known_profiles()
        except pynvml.NVMLError:
            known = ()
        if known and (requested == DEFAULT or PROFILES.get(requested) in known):
            return None
        if not known:
            return Refusal(f"{self.uuid} has no workload power profiles", "leave device.power_profile out")
        return Refusal(f"{self.uuid} has no such power profile", f"choose from: {', '.join(map(profile_name, known))}")


def profile_name(number: int) -> str:
    """A profile's name, or its number where this `pynvml` does not know it."""
    return next((name for name, known in PROFILES.items() if known == number), str(number))


def profiles_text(numbers: Sequence[int]) -> str:
    """Profiles in words; `default` for none."""
    return ", ".join(map(profile_name, numbers)) or DEFAULT


def _numbers(mask: object) -> tuple[int, ...]:
    words: Sequence[int] = mask.mask  # type: ignore[attr-defined]
    return tuple(32 * index + bit for index, word in enumerate(words) for bit in range(32) if word >> bit & 1)
