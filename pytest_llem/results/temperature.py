"""Whether the cycles of an experiment were measured at the same temperature.

Leakage grows with temperature, so a warmer device draws more for the same work. That is no error of a measurement, and
so a warning; but cycles that drift apart are not repetitions of one condition.
"""

from __future__ import annotations

from collections.abc import Mapping

from pytest_llem.energy.validity import Thresholds
from pytest_llem.results.schema import Reason, Result


def with_temperature_drift(result: Result, siblings: Mapping[int, Result]) -> Result:
    """The result, with a warning for each device that was warmer or colder than in another valid cycle.

    `siblings` are the other cycles by number. The limit is `temperature_drift_c` of the validity's thresholds.
    """
    limit_c = result.validity.thresholds.get("temperature_drift_c", Thresholds.temperature_drift_c)
    warnings: list[Reason] = []
    for device in result.energy.devices:
        known = {
            cycle: other.temperature_c
            for cycle, sibling in siblings.items()
            for other in sibling.energy.devices
            if other.id == device.id and other.temperature_c is not None
        }
        here = device.temperature_c
        if here is None or not known:
            continue
        cycle, there = max(known.items(), key=lambda item: abs(item[1] - here))
        if abs(there - here) > limit_c:
            text = f"{device.id}: {here:.0f} C while measured, {there:.0f} C in cycle {cycle}"
            warnings.append(Reason(code="temperature_drift", message=text))
    return result.model_copy(update={"warnings": (*result.warnings, *warnings)}) if warnings else result
