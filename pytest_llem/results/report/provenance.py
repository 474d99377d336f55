"""How each number was measured and where, as rows of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from pytest_llem.errors import JsonValue
from pytest_llem.results.loading import Results
from pytest_llem.results.schema import Result
from pytest_llem.results.sections.energy import MEASURE

Rows = list[Sequence[str]]
FACTS = ("hostname", "kernel", "python", "pytest_llem", "memory_total_bytes", "cpu", "gpus", "packages", "git")


def methods(results: Results) -> tuple[tuple[str, ...], Rows]:
    """Head and rows: a row per way in which energy was measured, with its typical relative uncertainty."""
    groups: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        energy = result.energy
        estimators = sorted({window.estimator or "none" for window in energy.windows if window.name == MEASURE})
        key = (
            energy.meter,
            "measured" if energy.measured else f"estimated: {energy.source}" if energy.source else "not measured",
            energy.scope or "–",
            energy.placement or "–",
            ", ".join(estimators) or "–",
            "–" if energy.gain_uncertainty_rel is None else f"{energy.gain_uncertainty_rel:.1%}",
        )
        groups.setdefault(key, []).append(result)
    rows: Rows = [(*key, _uncertainty(group), _samples(group), str(len(group))) for key, group in groups.items()]
    head = (
        "meter",
        "kind",
        "scope",
        "sampler",
        "estimator",
        "gain error, apart",
        "median uncertainty",
        "median samples",
        "cycles",
    )
    return head, rows


def settings_table(environments: Mapping[str, Mapping[str, JsonValue]]) -> tuple[tuple[str, ...], Rows]:
    """Head and rows: a row per fact, a column per run."""
    rows: Rows = []
    for fact in FACTS:
        cells = [_shown(environment.get(fact)) for environment in environments.values()]
        if any(cells):
            rows.append((fact, *cells))
    return ("fact", *environments), rows


def _uncertainty(group: Sequence[Result]) -> str:
    shares = [
        result.energy.uncertainty_j / result.energy.energy_j
        for result in group
        if result.energy.uncertainty_j is not None and result.energy.energy_j
    ]
    return f"{median(shares):.2%}" if shares else "–"


def _samples(group: Sequence[Result]) -> str:
    counts = [sum(w.samples for w in result.energy.windows if w.name == MEASURE) for result in group]
    return f"{median(counts):.0f}"


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_shown(entry)}" for key, entry in value.items() if entry is not None)
    if isinstance(value, (list, tuple)):
        return " | ".join(_shown(entry) for entry in value)
    return "" if value is None else str(value)
