"""Makes experiments of the entries that a study lists, beside those of its sweep.

The loader reads the entries and calls it, as it does `points` for the sweep. An entry that does the same as another
experiment, or that its engine cannot run, must be noted in the same `Points`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_llem.study.canonical import effective, getter
from pytest_llem.study.experiments import Experiment
from pytest_llem.study.fields import Clear, FlatSettings, WrittenSetting, apply, keyword
from pytest_llem.study.model import Gates, OmittedPoint
from pytest_llem.study.naming import shorten, text_of
from pytest_llem.study.points import Points, make_slice
from pytest_llem.study.rules import RULES
from pytest_llem.study.sources import Sources
from pytest_llem.study.values import KeyPath


@dataclass
class Entry:
    """An entry of `experiments`, checked."""

    id: str | None
    settings: list[WrittenSetting]
    gates: Gates
    key_path: KeyPath


@dataclass
class Listed:
    """What the entries share: settings and where they were written, the study's name, and its directory."""

    shared: FlatSettings
    origins: dict[str, KeyPath]
    name: str
    directory: Path
    sources: Sources
    points: Points

    def experiments(self, entries: Sequence[Entry], before: Sequence[Experiment]) -> list[Experiment]:
        """Those of the entries, beside those of the sweep; problems go to the sources."""
        experiments: list[Experiment] = []
        ids = {experiment.id for experiment in before}
        id_of_hash = {experiment.config_hash: experiment.id for experiment in before} if entries else {}
        for entry in entries:
            flat = dict(self.shared)
            apply(flat, entry.settings)
            engine = str(flat["engine"])
            part, inactive = make_slice(flat, engine)
            own = {setting.path: setting.origin for setting in entry.settings}
            for path, why in ((p, why) for p, why in inactive.items() if flat.get(p, why) is not None):
                self.points.note_inactive(path, why, own.get(path) or self.origins.get(path, entry.key_path))
            name = entry.id or _label(entry) or self.name
            get = getter(effective(flat, engine))
            answers = ((rule.check(get), rule) for rule in RULES if rule.engine in (None, engine))
            refusal = next(((reason, rule) for reason, rule in answers if reason is not None), None)
            if refusal is not None:
                key_path = next((own[path] for path in refusal[1].paths if path in own), entry.key_path)
                self.points.invalid.append(OmittedPoint(name, refusal[0], self.sources.locate(key_path)))
                continue
            experiment = Experiment(name, (part,), entry.gates, self.directory)
            other = id_of_hash.get(experiment.config_hash)
            if other is not None:
                where = self.sources.locate(entry.key_path)
                self.points.duplicates.append(OmittedPoint(name, f"does the same as {other}", where))
                continue
            if name in ids:
                if entry.id is not None:
                    text = f"a second experiment with the id {name!r}"
                    self.sources.report((*entry.key_path, "id"), text, "rename one")
                experiment.id = name = f"{name}.{experiment.config_hash[:6]}"
            ids.add(name)
            id_of_hash[experiment.config_hash] = name
            experiments.append(experiment)
        return experiments


def _label(entry: Entry) -> str:
    labels = [f"{keyword(path)}:{text_of(None if isinstance(v, Clear) else v)}" for path, v, _ in entry.settings]
    return shorten("-".join(labels))
