"""The report's data for its script: charts with their rows as columns, power traces, and the names of experiments.

`page` embeds it and `assets/report.js` unpacks it. Ten thousand experiments must still open, so nothing stands twice:
texts are places in one list, and what follows from the experiment is kept once for all charts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pytest_llem.errors import JsonValue
from pytest_llem.results.report.charts import Chart, page_style, power_spec
from pytest_llem.results.report.content import Content

DIGITS = 6
"""Significant digits of a number. Chosen: far more than a screen has pixels, and half the size."""


def page_data(content: Content, charts: Sequence[Chart]) -> JsonValue:
    """Everything that the script needs, as JSON."""
    pack = _Pack([row.key for row in content.experiments])
    drawn: JsonValue = [
        {
            "id": chart.id,
            "description": chart.description,
            "spec": chart.spec,
            "step": chart.step,
            **pack.rows(chart.rows),
        }
        for chart in charts
    ]
    traces: JsonValue = {
        name: {
            "points": [[*map(_rounded, point)] for point in trace.points],
            "windows": [[*map(_rounded, window)] for window in trace.windows],
        }
        for name, trace in (content.traces.items() if charts else ())
    }
    return {
        "axes": [axis.title for of_study in content.axes.values() for axis in of_study.axes],
        "charts": drawn,
        "style": page_style(),
        "power": power_spec(),
        "traces": traces,
        **pack.shared(),
    }


class _Pack:
    """Rows of charts as columns, each text once, and once what is the same wherever an experiment is shown."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = {key: place for place, key in enumerate(keys)}
        self._texts: dict[str, int] = {}
        self._of_key: dict[str, dict[str, str]] = {}

    def rows(self, rows: Sequence[Mapping[str, JsonValue]]) -> dict[str, JsonValue]:
        """`keys`: which experiment each row is of; `columns`: the others; `shared`: those that are kept once."""
        keys = [str(row["key"]) for row in rows]
        names = dict.fromkeys(name for row in rows for name in row if name != "key")
        columns: dict[str, JsonValue] = {}
        shared: list[JsonValue] = []
        for name in names:
            cells = [row.get(name) for row in rows]
            if all(cell is None for cell in cells):
                continue
            if self._follows(name, keys, cells):
                shared.append(name)
            else:
                columns[name] = self._column(cells)
        return {"keys": [self._keys[key] for key in keys], "columns": columns, "shared": shared}

    def shared(self) -> dict[str, JsonValue]:
        """What all charts have in common, to be called last."""
        keys = self._column([*self._keys])
        of_key = {name: self._column([known.get(key) for key in self._keys]) for name, known in self._of_key.items()}
        return {"keys": keys, "shared": of_key, "texts": [*self._texts]}

    def _follows(self, name: str, keys: Sequence[str], cells: Sequence[JsonValue]) -> bool:
        """Whether a column of texts follows from the experiment, here and in the charts before."""
        known = dict(self._of_key.get(name, {}))
        for key, cell in zip(keys, cells, strict=True):
            if not isinstance(cell, str) or known.setdefault(key, cell) != cell:
                return False
        self._of_key[name] = known
        return True

    def _column(self, cells: Sequence[JsonValue]) -> JsonValue:
        if any(isinstance(cell, str) for cell in cells) and all(
            cell is None or isinstance(cell, str) for cell in cells
        ):
            places = [-1 if cell is None else self._texts.setdefault(str(cell), len(self._texts)) for cell in cells]
            return {"texts": [*places]}
        return [_rounded(cell) for cell in cells]


def _rounded(cell: JsonValue) -> JsonValue:
    return float(f"{cell:.{DIGITS}g}") if isinstance(cell, float) else cell
