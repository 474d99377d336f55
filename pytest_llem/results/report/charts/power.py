"""The chart of power over time: the readings and windows of one cycle.

`page` draws the first cycle and embeds the specification, into whose data sets `table` and `windows` the script puts
others: their fields must be those of `assets/report.js`.
"""

from __future__ import annotations

from pytest_llem.errors import JsonValue
from pytest_llem.results.report.charts.chart import PALETTE, Chart, Rows, Spec, tooltip
from pytest_llem.results.report.charts.scales import quantity
from pytest_llem.results.report.traces import PowerTrace


def power_chart(cycle: str, trace: PowerTrace) -> Chart:
    """One cycle's power, to be drawn without the script."""
    shaded: JsonValue = [{"name": name, "start": start, "end": end} for name, start, end in trace.windows]
    rows: Rows = [{"key": cycle, "t": t, "w": w, "device": device} for t, w, device in trace.points]
    return Chart("power", "Power over time", f"Power over time of {cycle}", power_spec({"values": shaded}), rows)


def power_spec(windows: Spec | None = None) -> Spec:
    """Power over time by device, with the windows between whose edges energy is accounted."""
    return {
        "height": 260,
        "layer": [
            {
                "data": windows or {"name": "windows"},
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
