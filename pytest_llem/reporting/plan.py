"""The plan that `--collect-only` shows: what would run, what the study left out and why."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_llem.session import LlemSession
    from pytest_llem.study import Study

SHOWN = 10


def plan_lines(session: LlemSession) -> list[str]:
    """A paragraph per study."""
    return [line for study in session.studies for line in _study(session, study)]


def _study(session: LlemSession, study: Study) -> list[str]:
    count, cycles = len(study.experiments), study.execution.cycles
    lines = [
        f"study {study.name}: {count} experiments x {cycles} cycles = {count * cycles} cycles, {study.execution.order}"
    ]
    engines = Counter(experiment.engine for experiment in study.experiments)
    for engine, number in engines.items():
        spec = session.runner_spec(engine, study)
        image = f":{spec.image}" if spec.image else ""
        lines.append(f"  {engine}: {number} experiments, runner {spec.name}{image} ({spec.source})")
    for title, points in (("excluded", study.excluded), ("invalid", study.invalid), ("duplicate", study.duplicates)):
        lines += [f"  {title}: {point.id}: {point.reason}" for point in points[:SHOWN]]
        if len(points) > SHOWN:
            lines.append(f"  {title}: {len(points) - SHOWN} more")
    lines += [f"  note: {notice}" for notice in study.notices]
    return lines
