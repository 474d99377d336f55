"""The trend page's data for its script: numbers as whole multiples of a step, each as the difference to the one before.

`page` embeds it and `assets/trend.js` unpacks it; both must change together. A value keeps five significant digits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from pytest_llem.errors import JsonValue
from pytest_llem.results.history.links import commit_pages
from pytest_llem.results.history.page.trends import Panel, Trends, moment
from pytest_llem.results.history.record import MetricEntry
from pytest_llem.results.history.series import Segment

DIGITS = 5
"""Of the smallest value of a panel. Chosen: one more than is shown."""
WIDEST = 1e-6
"""Of the largest value, the smallest that keeps all its digits: a value near zero must not lengthen all others."""


def trend_data(trends: Trends) -> JsonValue:
    """Everything that the script needs, as JSON."""
    texts, lists = _Shared(), _Shared()
    places = {key: place for place, key in enumerate(trends.runs)}
    seconds: list[int] = []
    for run in trends.runs.values():
        at = moment(run)
        seconds.append(int(at.timestamp()) if at else seconds[-1] if seconds else 0)
    runs = [*trends.runs.values()]
    panels: dict[str, JsonValue] = {}
    for panel in trends.panels:
        step = _step(
            [entry.metrics[panel.measure.name].value for each in panel.series.segments for entry in each.entries]
        )
        panels[panel.id] = {
            "step": float(f"{step * panel.unit.factor:.6g}"),
            "scale": [float(f"{end * panel.unit.factor:.6g}") for end in (panel.scale.low, panel.scale.high)],
            "segments": [_segment(panel, each, step, places, lists) for each in panel.series.segments],
        }
    return {
        "runs": {
            "id": [run.run_id for run in runs],
            "at": [*_differences(seconds)],
            "study": [texts.place(run.study) for run in runs],
            "commit": [run.commit for run in runs],
            "dirty": [place for place, run in enumerate(runs) if run.dirty],
            "host": [texts.place(run.hostname) for run in runs],
            "pages": [texts.place(commit_pages(run.repository)) for run in runs],
        },
        "panels": panels,
        "lists": lists.entries,
        "texts": texts.entries,
    }


def _segment(
    panel: Panel, segment: Segment, step: float, places: dict[tuple[str, str], int], lists: _Shared
) -> dict[str, JsonValue]:
    metric = panel.measure.name
    entries = [entry.metrics[metric] for entry in segment.entries]
    runs = [places[entry.run.study, entry.run.run_id] for entry in segment.entries]
    values = [round(each.value / step) for each in entries]

    def off(ends: Iterable[float | None], sign: int) -> list[JsonValue]:
        pairs = zip(values, ends, strict=True)
        return [-1 if end is None else max(0, sign * (round(end / step) - value)) for value, end in pairs]

    return {
        "number": segment.number,
        "runs": lists.place([*_differences(runs)]),
        "values": [*_differences(values)],
        "low": None if all(_is_even(each, step) for each in entries) else off((each.low for each in entries), -1),
        "high": off((each.high for each in entries), 1),
        "starts": [change.first for change in segment.changes],
        "failed": [place for place, each in enumerate(segment.entries) if each.verdicts.get(metric) == "fail"],
    }


def _is_even(entry: MetricEntry, step: float) -> bool:
    """Whether the value lies in the middle of its bounds by ratio, as a geometric mean does: one follows from two."""
    if entry.low is None or entry.high is None:
        return entry.low is entry.high
    return entry.high > 0 and abs(entry.value**2 / entry.high - entry.low) < step


def _step(values: Sequence[float]) -> float:
    """The power of ten in which the smallest value has so many digits."""
    sizes = [abs(value) for value in values if value]
    smallest = max(min(sizes), max(sizes) * WIDEST) if sizes else 1.0
    return float(f"1e{math.floor(math.log10(smallest)) - DIGITS + 1}")


def _differences(numbers: Sequence[int]) -> Iterable[int]:
    return (now - before for before, now in zip([0, *numbers], numbers, strict=False))


class _Shared:
    """Entries that many refer to by their place, each kept once."""

    def __init__(self) -> None:
        self.entries: list[JsonValue] = []
        self._places: dict[str, int] = {}

    def place(self, entry: JsonValue) -> int:
        place = self._places.setdefault(repr(entry), len(self.entries))
        if place == len(self.entries):
            self.entries.append(entry)
        return place
