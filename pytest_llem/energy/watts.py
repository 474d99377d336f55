"""Published power per hardware thread, by processor generation: what `estimate` multiplies CPU time with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

SOURCE = (
    "Cloud Carbon Footprint coefficients of 2026-03 (github.com/cloud-carbon-footprint/ccf-coefficients, "
    "output/coefficients-aws-use.csv, from SPECpower_ssj2008 results): watts per thread at full load"
)

MAX_WATTS_PER_THREAD: Mapping[str, float] = {
    "Broadwell": 3.685,
    "Cascade Lake": 4.063,
    "Coffee Lake": 5.422,
    "EPYC 1st Gen": 2.604,
    "EPYC 2nd Gen": 1.693,
    "EPYC 3rd Gen": 1.957,
    "EPYC 4th Gen": 2.282,
    "EPYC 5th Gen": 8.961,
    "Emerald Rapids": 4.482,
    "Granite Rapids": 2.527,
    "Graviton": 1.693,
    "Haswell": 5.595,
    "Ice Lake": 3.758,
    "Ivy Bridge": 5.557,
    "Sandy Bridge": 8.631,
    "Sapphire Rapids": 4.160,
    "Skylake": 4.104,
}

_INTEL_MODELS = {
    "Sandy Bridge": (42, 45),
    "Ivy Bridge": (58, 62),
    "Haswell": (60, 63, 69, 70),
    "Broadwell": (61, 71, 79, 86),
    "Skylake": (78, 85, 94),
    "Coffee Lake": (142, 158),
    "Ice Lake": (106, 108),
    "Sapphire Rapids": (143,),
    "Emerald Rapids": (207,),
    "Granite Rapids": (173, 174),
}
_ARM_PARTS = ("0xd0c", "0xd40", "0xd4f")
_CASCADE_LAKE_STEPPING = 5


@dataclass(frozen=True)
class ThreadPower:
    """Watts of one busy hardware thread, the processor's name, and the table's row it was taken from.

    `generation` is `None` for a processor that the table does not hold; `watts` is then the table's median.
    `low` and `high` are the bounds within which the truth is expected.
    """

    watts: float
    low: float
    high: float
    generation: str | None
    processor: str

    @property
    def source(self) -> str:
        """Where the watts come from, for the result."""
        row = f"row {self.generation!r}" if self.generation else "median of the table, as this processor is not in it"
        return f"{SOURCE}; {row}; processor: {self.processor}"


def thread_power(cpuinfo: Path = Path("/proc/cpuinfo")) -> ThreadPower:
    """The table's entry for this machine's processor.

    A published figure is that of whole servers at full load; a thread alone on its core draws up to twice as much and
    a server's fans and disks are not the processor's, hence bounds from half to twice the figure.
    """
    facts = _first_processor(cpuinfo)
    name = facts.get("model name") or facts.get("CPU part") or "unknown"
    generation = _generation(facts)
    if generation is None:
        values = sorted(MAX_WATTS_PER_THREAD.values())
        return ThreadPower(median(values), values[0] / 2, values[-1], None, name)
    watts = MAX_WATTS_PER_THREAD[generation]
    return ThreadPower(watts, watts / 2, watts * 2, generation, name)


def _first_processor(cpuinfo: Path) -> dict[str, str]:
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    facts: dict[str, str] = {}
    for line in text.split("\n\n")[0].splitlines():
        key, _, value = line.partition(":")
        facts[key.strip()] = value.strip()
    return facts


def _generation(facts: Mapping[str, str]) -> str | None:
    vendor, family, model = facts.get("vendor_id"), _number(facts.get("cpu family")), _number(facts.get("model"))
    if vendor == "AuthenticAMD":
        return _amd_generation(family, model)
    if vendor == "GenuineIntel" and family == 6:
        if model == 85 and _number(facts.get("stepping")) >= _CASCADE_LAKE_STEPPING:
            return "Cascade Lake"
        return next((name for name, models in _INTEL_MODELS.items() if model in models), None)
    return "Graviton" if facts.get("CPU part") in _ARM_PARTS else None


def _amd_generation(family: int, model: int) -> str | None:
    if family == 0x17:
        return "EPYC 2nd Gen" if model >= 0x30 else "EPYC 1st Gen"
    if family == 0x19:
        return "EPYC 3rd Gen" if model < 0x10 else "EPYC 4th Gen"
    return "EPYC 5th Gen" if family == 0x1A else None


def _number(text: str | None) -> int:
    return int(text) if text and text.isdigit() else -1
