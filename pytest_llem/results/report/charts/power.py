"""The chart of power over time: the page fills it with the readings and windows of one cycle.

`page` embeds it. The data sets `table` and `windows` have the fields that `assets/report.js` gives them.
"""

from __future__ import annotations

from pytest_llem.results.report.charts.chart import PALETTE, Spec, tooltip
from pytest_llem.results.report.charts.scales import quantity


def power_spec() -> Spec:
    """Power over time by device, with the windows between whose edges energy is accounted."""
    return {
        "height": 260,
        "layer": [
            {
                "data": {"name": "windows"},
                "mark": {"type": "rect", "opacity": 0.18},
                "encoding": {
                    "x": quantity("start", "Seconds", {"zero": True}),
                    "x2": {"field": "end"},
                    "color": {"field": "name", "type": "nominal", "title": "Window", "scale": {"range": [*PALETTE]}},
                },
            },
            {
                "mark": {"type": "line", "strokeWidth": 1.5, "interpolate": "step-before"},
                "encoding": {
                    "x": quantity("t", "Seconds", {"zero": True}),
                    "y": quantity("w", "Watts", {"zero": True}),
                    "detail": {"field": "device"},
                    "tooltip": tooltip(t="seconds", w="watts", device="device"),
                },
            },
        ],
    }
