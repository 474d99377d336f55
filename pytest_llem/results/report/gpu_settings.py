"""What a report says of its GPUs' settings: which costs the least, and how each was asked, read back and observed.

`page` shows both where a study sets any. A setting has one row, however many cycles and GPUs have it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median

from pytest_llem.results.axes import numbers, written
from pytest_llem.results.device_axes import WORDS
from pytest_llem.results.device_optimum import optima, sentences
from pytest_llem.results.energy_schema import GpuSettingSection
from pytest_llem.results.reading import Results
from pytest_llem.results.report.charts.chart import PAGE
from pytest_llem.results.report.charts.points import Experiments
from pytest_llem.results.report.content import Content
from pytest_llem.results.report.markup import Tone, said, table, text

HEADS = ("asked", "before", "read back", "while measured", "held", "limit reached", "clocks held down by")


@dataclass
class _Asked:
    """One setting in all cycles and GPUs that were asked for it, with what held their clocks down meanwhile."""

    each: list[GpuSettingSection] = field(default_factory=list)
    events: dict[str, list[float]] = field(default_factory=dict)


def least_energy(content: Content) -> str:
    """The optimum of each study that sweeps settings of a GPU, a sentence per point on its other axes."""
    of = Experiments(content, PAGE)
    found = {
        study: optima(content.results.of_study(study), content.axes[study], of.headline([study]))
        for study in of.studies
    }
    lines = [
        line if len(of.studies) == 1 else f"{study}: {line}"
        for study, each in found.items()
        for line in sentences(each)
    ]
    return f"<ul>{''.join(f'<li>{text(line)}</li>' for line in lines)}</ul>" if lines else ""


def gpu_settings(results: Results) -> str:
    """A row per setting and value that was asked for; empty where none was."""
    asked: dict[tuple[str, str], _Asked] = {}
    for result in results:
        for gpu in result.device.gpus:
            for setting in gpu.settings:
                entry = asked.setdefault((setting.name, written(setting.requested)), _Asked())
                entry.each.append(setting)
                for name, share in gpu.clock_events.items():
                    entry.events.setdefault(name, []).append(share)
    in_order = sorted(asked.values(), key=lambda entry: _place(entry.each[0]))
    rows = [_row(entry) for entry in in_order]
    return table(HEADS, rows, "How the GPUs were set, over all cycles that asked for it") if rows else ""


def _place(setting: GpuSettingSection) -> tuple[str, float, str]:
    """By setting: words first, then numbers from the highest down."""
    number = next(iter(numbers([setting.requested])), None)
    return setting.name, -math.inf if number is None else -number, str(setting.requested)


def _row(entry: _Asked) -> tuple[str, ...]:
    each, name = entry.each, entry.each[0].name
    unit = f" {WORDS[name].unit}".rstrip()
    verdicts = {one.held for one in each}
    tone: Tone = "bad" if False in verdicts else "open" if None in verdicts else "good"
    held = sum(one.held is True for one in each)
    reached = [one.reached for one in each if one.reached is not None]
    events = [f"{event} up to {max(shares):.0%} of the time" for event, shares in entry.events.items()]
    return (
        text(f"{name} {_values([each[0].requested], unit)}"),
        text(_values((one.previous for one in each), unit)),
        text(_values((one.applied for one in each), unit)),
        text(_observed(each, unit)),
        said(tone, f"{held} of {len(each)}"),
        text(f"{sum(reached)} of {len(reached)}" if reached else "–"),
        text(", ".join(events) or "–"),
    )


def _values(values: Iterable[float | str | None], unit: str) -> str:
    """What was read, each value once; a driver that has no such reading tells nothing."""
    found = dict.fromkeys(value for value in values if value is not None)
    return ", ".join(f"{value:g}{unit}" if isinstance(value, (int, float)) else value for value in found) or "–"


def _observed(each: Sequence[GpuSettingSection], unit: str) -> str:
    """The median over the cycles with its range; of profiles those that were active."""
    read = numbers(one.observed for one in each)
    if not read:
        return _values((one.observed for one in each), unit)
    span = f" ({read[0]:.4g} to {read[-1]:.4g})" if f"{read[0]:.4g}" != f"{read[-1]:.4g}" else ""
    return f"{median(read):.4g}{unit}{span}"
