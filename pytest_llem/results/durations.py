"""How long cycles took, from stored results: cheap to read in numbers, since a result is not validated for it."""

from __future__ import annotations

import json
from pathlib import Path

from pytest_llem.errors import StoreError
from pytest_llem.results.reading import result_files


def cycle_seconds(path: Path) -> tuple[str, float] | None:
    """The `config_hash` of a result and the seconds that its cycle took, starting included; `None` if it cannot say."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        timing, full = result["timing"], result["experiment"]["config_hash"]
        return str(full), float(timing["cycle_s"]) + float(timing.get("startup_s") or 0.0)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def recorded_durations(path: Path) -> dict[str, float]:
    """Mean seconds of a cycle by `config_hash`, over a run, a folder of runs or a result.

    Raises `StoreError` when there is nothing that tells a time.
    """
    found: dict[str, list[float]] = {}
    for file in result_files(path):
        known = cycle_seconds(file)
        if known is not None:
            found.setdefault(known[0], []).append(known[1])
    if not found:
        raise StoreError(f"{path}: no result here says how long its cycle took", fix="name runs that have ended")
    return {full: sum(times) / len(times) for full, times in found.items()}
