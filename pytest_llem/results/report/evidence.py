"""Why to believe a report's figures, or not: what failed, reasons and warnings by code, meters, machines.

`page` shows it. A code has one row, however many cycles have it; which they are folds away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from pytest_llem.errors import JsonValue
from pytest_llem.results.manifest import Manifest
from pytest_llem.results.reading import Results
from pytest_llem.results.report.content import Content
from pytest_llem.results.report.markup import Tone, count, fold, said, table, text
from pytest_llem.results.schema import Result
from pytest_llem.results.sections.energy import MEASURE

FACTS = ("hostname", "kernel", "python", "pytest_llem", "memory_total", "cpu", "gpus", "packages")
"""Host facts that the page shows, in this order."""
MAX_LISTED = 100
"""Experiments that a code's row lists. Chosen: more are not read one by one; the results have them all."""

NOTHING = "<p>No cycle has a result.</p>"


@dataclass
class _Noted:
    """What was said under one code: the cycles by experiment, and the messages by how often they occur."""

    tone: Tone
    name: str
    cycles: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    messages: Counter[str] = field(default_factory=Counter)
    own: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, experiment: tuple[str, str], cycle: int, message: str) -> None:
        self.cycles.setdefault(experiment, []).append(cycle)
        self.messages[message] += 1
        self.own.setdefault(experiment, message)

    def row(self, several_studies: bool) -> tuple[str, str, str]:
        total = sum(map(len, self.cycles.values()))
        common, _ = self.messages.most_common(1)[0]
        lines = [self._line(key, several_studies) for key in [*self.cycles][:MAX_LISTED]]
        if len(self.cycles) > MAX_LISTED:
            lines.append(f"<li>and {len(self.cycles) - MAX_LISTED:,} more experiments</li>")
        which = fold("Which", f"<ul>{''.join(lines)}</ul>")
        example = "for example: " if len(self.messages) > 1 else ""
        return (
            said(self.tone, self.name),
            f"{count(total, 'cycle')} of {count(len(self.cycles), 'experiment')}",
            f"{example}{text(common)}{which}",
        )

    def _line(self, key: tuple[str, str], several_studies: bool) -> str:
        study, experiment = key
        cycles = ", ".join(f"c{cycle}" for cycle in self.cycles[key])
        name = f"{study}[{experiment}]" if several_studies else experiment
        own = f": {text(self.own[key])}" if len(self.messages) > 1 else ""
        return f"<li>{text(name)} {cycles}{own}</li>"


def validity(content: Content) -> str:
    """A row per reason and per warning: how many cycles of how many experiments, why, and which."""
    noted: dict[tuple[str, str], _Noted] = {}
    for item in content.problems:
        if item.state != "invalid":
            for reason in item.reasons or ("no reason is known",):
                entry = noted.setdefault((item.state, reason), _Noted("bad", item.state))
                entry.add((item.study, item.experiment_id), item.cycle, reason)
    kinds: tuple[tuple[str, Tone], ...] = (("invalid", "bad"), ("warning", "open"))
    for kind, tone in kinds:
        for result in content.results:
            for note in result.validity.reasons if kind == "invalid" else result.warnings:
                entry = noted.setdefault((kind, note.code), _Noted(tone, f"{kind}: {note.code}"))
                entry.add((result.study, result.experiment.id), result.cycle, note.message)
    if not noted and not content.results:
        return NOTHING
    if not noted:
        return f"<p>{said('good', 'Every cycle is valid, without warnings.')}</p>"
    several = len({study for entry in noted.values() for study, _ in entry.cycles}) > 1
    rows = [entry.row(several) for entry in noted.values()]
    return table(("what", "how often", "why"), rows, "Cycles that are not valid, and warnings")


def methods(results: Results) -> str:
    """A column per way in which energy was measured, with its typical relative uncertainty."""
    groups: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        energy = result.energy
        estimators = sorted({window.estimator or "none" for window in energy.windows if window.name == MEASURE})
        kind = "measured" if energy.measured else "estimated" if energy.source else "not measured"
        calibrated = [f"{each.id} of {(each.made_at or '?')[:10]}" for each in energy.calibrations]
        key = (
            energy.meter,
            kind + (f": {energy.source}" if energy.source else ""),
            energy.scope or "–",
            energy.placement or "–",
            ", ".join(estimators) or "–",
            ", ".join(calibrated) or "none",
            "not stated" if energy.gain_uncertainty_rel is None else f"{energy.gain_uncertainty_rel:.1%}",
        )
        groups.setdefault(key, []).append(result)
    names = ("meter", "kind", "scope", "sampler", "estimator", "calibration", "gain error, apart")
    facts = [*zip(names, *groups, strict=True)]
    facts.append(("median uncertainty of a cycle (k=2)", *map(_uncertainty, groups.values())))
    facts.append(("median readings of a cycle", *map(_samples, groups.values())))
    facts.append(("cycles", *(str(len(group)) for group in groups.values())))
    rows = [tuple(map(text, fact)) for fact in facts]
    return table(("", *facts[0][1:]), rows, "Meters, estimators and the sensor's uncertainty") if groups else ""


def environments(manifests: Mapping[str, Manifest]) -> str:
    """A row per fact, a column per run; runs with the same facts share one."""
    shown: dict[tuple[str, ...], list[str]] = {}
    for name, manifest in manifests.items():
        facts = {**manifest.environment, "memory_total": _memory(manifest.environment.get("memory_total_bytes"))}
        shown.setdefault(tuple(_shown(facts.get(fact)) for fact in FACTS), []).append(name)
    heads = [names[0] if len(names) == 1 else count(len(names), "run") for names in shown.values()]
    rows = [
        (fact.replace("_", " "), *map(text, cells)) for fact, *cells in zip(FACTS, *shown, strict=True) if any(cells)
    ]
    return table(("fact", *heads), rows, "Machine and software of each run") if rows else ""


def _uncertainty(group: Sequence[Result]) -> str:
    energies = [result.energy for result in group]
    shares = [e.uncertainty_j / e.energy_j for e in energies if e.uncertainty_j is not None and e.energy_j]
    return f"{median(shares):.2%}" if shares else "–"


def _samples(group: Sequence[Result]) -> str:
    counts = [sum(w.samples for w in result.energy.windows if w.name == MEASURE) for result in group]
    return f"{median(counts):.0f}"


def _memory(size: JsonValue) -> str | None:
    return f"{size / 2**30:.1f} GiB" if isinstance(size, int) else None


def _shown(value: JsonValue | Iterable[JsonValue] | None) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_shown(entry)}" for key, entry in value.items() if entry is not None)
    if isinstance(value, (list, tuple)):
        return " | ".join(_shown(entry) for entry in value)
    return "" if value in (None, ()) else str(value)
