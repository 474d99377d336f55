"""Reports on their way from a worker of pytest-xdist to its controller: none is lost for what it carries.

What cannot be carried (a numpy number among an item's `user_properties`, say) is an internal error of the worker, which
ends it and loses its items; on a fast machine the run would even succeed.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

import pytest

Data = dict[str, Any]
Carried = Generator[None, "Data | None", "Data | None"]


class Carrying:
    """Registered in a worker of xdist that has met a study: a report that cannot be carried fails, and says why."""

    def __init__(self) -> None:
        self._failed: set[str] = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_report_to_serializable(self, report: pytest.CollectReport | pytest.TestReport) -> Carried:
        """Take out what cannot be carried, and fail the report for it; once per item."""
        data = yield
        if data is None or _can_be_carried(data):
            return data
        taken_out, rest = _without_the_rest(data)
        if report.nodeid in self._failed:
            return rest
        self._failed.add(report.nodeid)
        said = str(report.longrepr) + "\n\n" if report.failed else ""
        return {
            **rest,
            "outcome": "failed",
            "longrepr": f"{said}{report.nodeid}: its report cannot be carried from worker to controller: "
            f"{'; '.join(taken_out)}\nfix: use plain str, int, float and bool there: float(value) for a numpy number",
        }


def _can_be_carried(value: object) -> bool:
    import execnet

    try:
        execnet.dumps(value)
    except execnet.DumpError:
        return False
    return True


def _without_the_rest(data: Mapping[str, Any]) -> tuple[list[str], Data]:
    """What was taken out, in words, and what is left."""
    taken_out: list[str] = []
    rest: Data = {}
    for name, value in data.items():
        if _can_be_carried(value):
            rest[name] = value
        elif name == "user_properties":
            rest[name] = [entry for entry in value if _can_be_carried(entry)]
            taken_out += [
                f"user_properties[{entry[0]!r}] is a {_type(entry[1])}" for entry in value if not _can_be_carried(entry)
            ]
        else:
            rest[name] = [] if isinstance(value, list) else None
            taken_out.append(f"{name} is or holds a {_type(value)}")
    return taken_out, rest


def _type(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
