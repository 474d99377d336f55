"""A loaded study and its experiments: what each does, their hashes, and the order in which they run.

`loader` makes them; the session, `runners`, `servers` and `machine.devices` read them. It must import nothing that
loading needs, because xdist's controller pickles studies for its workers; another hash needs a new `HASH_VERSION`.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llem.errors import JsonValue
from pytest_llem.job.percentiles import STANDARD
from pytest_llem.study.balanced import rows
from pytest_llem.study.limits import Budget, Comparison
from pytest_llem.study.model import (
    Execution,
    FlatSettings,
    Gates,
    Keyword,
    Notice,
    OmittedPoint,
    Order,
    SettingsSlice,
    SourceText,
    SweptAxis,
)
from pytest_llem.study.optimize import Optimize
from pytest_llem.study.problems import Locate, Location
from pytest_llem.study.report_settings import ReportSettings
from pytest_llem.study.search import SEARCH, Search

if TYPE_CHECKING:
    from pytest_llem.job.config import ExperimentConfig

# Chosen: the first; raised only when the same settings come to mean something else.
HASH_VERSION = 1


@dataclass(slots=True, eq=False)
class Experiment:
    """One experiment. What costs time (`config_hash`, `config`) is computed when it is read."""

    id: str
    _parts: tuple[SettingsSlice, ...] = field(repr=False)
    gates: Gates = field(repr=False)
    _directory: Path = field(repr=False)
    _hash: str | None = field(default=None, init=False, repr=False)

    def __reduce__(self) -> tuple[type[Experiment], tuple[str, tuple[SettingsSlice, ...], Gates, Path]]:
        return Experiment, (self.id, self._parts, self.gates, self._directory)

    @property
    def flat_settings(self) -> FlatSettings:
        """The settings that count and are not defaults, by dotted path."""
        merged: FlatSettings = {}
        for part in self._parts:
            merged.update(part.kept)
        return merged

    @property
    def labels(self) -> dict[int, str]:
        """The label of the chosen alternative by the index of its axis; none where the axis has no effect."""
        return {axis: label for part in self._parts for axis, label in part.labels}

    @property
    def key(self) -> tuple[str, ...]:
        """Equal for experiments of one study that would do the same."""
        return tuple(part.key for part in self._parts)

    @property
    def keywords(self) -> dict[str, Keyword]:
        """The keywords of the `llem` marker, without `cycle` and `id`."""
        merged: dict[str, Keyword] = {}
        for part in self._parts:
            merged.update(part.keywords)
        return merged

    def _keyword(self, name: str) -> Keyword:
        return next(part.keywords[name] for part in reversed(self._parts) if name in part.keywords)

    @property
    def config_hash(self) -> str:
        """SHA-256 (hex) over the settings that change the measurement, independent of their order."""
        if self._hash is None:
            flat = self.flat_settings
            searched = flat.get(SEARCH)
            if isinstance(searched, dict):  # with more windows a search goes on where it ended
                flat[SEARCH] = {name: value for name, value in searched.items() if name != "max_windows"}
            settings = {"v": HASH_VERSION, "set": flat}
            text = json.dumps(settings, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
            self._hash = hashlib.sha256(text.encode("ascii")).hexdigest()
        return self._hash

    @property
    def config(self) -> ExperimentConfig:
        """The resolved configuration, every default spelled out; computed at each access."""
        from pytest_llem.study.canonical import resolve

        return resolve(self.flat_settings, self._directory)

    @property
    def search(self) -> Search | None:
        """The search for a largest load that this experiment is; `None` for a plain one."""
        found = next((part.kept for part in self._parts if SEARCH in part.kept), None)
        return None if found is None else Search.of(found)

    def under(self, load: float, seed: int) -> Experiment:
        """This search as it is measured in one window: under a load, whose arrivals are drawn from `seed`."""
        assert self.search is not None
        chosen = SettingsSlice("", self.search.at(load, self.flat_settings, seed), {}, ())
        window = Experiment(self.id, (*self._parts, chosen), self.gates, self._directory)
        window._hash = self.config_hash
        return window

    @property
    def engine(self) -> str:
        """The engine's name."""
        return str(self._keyword("engine"))

    @property
    def model(self) -> str:
        """The model as the study writes it."""
        return str(self._keyword("model"))

    @property
    def expect(self) -> tuple[Budget, ...]:
        """Budgets that apply to this experiment."""
        return self.gates.expect

    @property
    def compare(self) -> Comparison | None:
        """The comparison that applies to this experiment, given a baseline; `None` without limits."""
        compare = self.gates.compare
        return compare if compare is not None and compare.fail_if else None

    @property
    def tags(self) -> tuple[str, ...]:
        """Words for `-k`: the study's and this experiment's."""
        return self.gates.tags


@dataclass(frozen=True)
class Study:
    """A study file, expanded: what runs, in which order, and what does not."""

    name: str
    path: Path
    title: str | None
    experiments: Sequence[Experiment]
    execution: Execution
    optimize: Optimize | None = None
    """The race over the experiments that the study asks for."""
    runners: Mapping[str, str] = field(default_factory=dict)
    docker: Mapping[str, JsonValue] = field(default_factory=dict)
    """The section `docker`, checked; what it leaves out has its default in `DockerSettings`."""
    ray: Mapping[str, JsonValue] = field(default_factory=dict)
    """The section `ray`, checked; what it leaves out has its default in `RaySettings`."""
    meter: str | None = None
    thresholds: Mapping[str, float] = field(default_factory=dict)
    """What the study sets of `job.config.Thresholds`, by name."""
    percentiles: tuple[float, ...] = STANDARD
    """Those of each latency that results state: chosen, or named by a gate or the headline."""
    report: ReportSettings = field(default_factory=ReportSettings)
    """What turns joules into grams and money where results are read; nothing that is measured depends on it."""
    tags: tuple[str, ...] = ()
    excluded: Sequence[OmittedPoint] = ()
    invalid: Sequence[OmittedPoint] = ()
    duplicates: Sequence[OmittedPoint] = ()
    skips_invalid: bool = False
    """Whether points that cannot run are left out (`on_invalid: skip`) instead of being an error."""
    notices: Sequence[Notice] = ()
    axes: Sequence[SweptAxis] = ()
    files: Sequence[SourceText] = ()
    """The file itself, then its bases."""
    locate: Locate = field(default=lambda path, value=None: Location(path), repr=False, compare=False)

    @property
    def last_cycle(self) -> int:
        """The number of the last cycle of an experiment that may be measured."""
        return self.execution.last_cycle if self.optimize is None else self.optimize.max_cycles

    def point(self, experiment: Experiment) -> tuple[JsonValue, ...]:
        """The value of an experiment on each of the `axes`; `None` where it has none."""
        labels = experiment.labels
        return tuple(
            values[labels[number]] if number in labels else None for number, values in enumerate(self._values_by_label)
        )

    @cached_property
    def _values_by_label(self) -> list[dict[str, JsonValue]]:
        return [dict(zip(axis.labels, axis.values, strict=True)) for axis in self.axes]

    @cached_property
    def study_hash(self) -> str:
        """SHA-256 (hex) over what the experiments do, in their order; names, gates and execution do not count."""
        digest = hashlib.sha256()
        known: dict[str, bytes] = {}
        for experiment in self.experiments:
            for part in experiment.key:
                if part not in known:
                    known[part] = hashlib.sha256(part.encode("utf-8")).digest()
                digest.update(known[part])
            digest.update(b"\n")
        return digest.hexdigest()

    def distinct(self, *settings: str) -> list[Experiment]:
        """One experiment for each combination of values of these settings (dotted paths), the first that has it."""
        values: dict[int, tuple[str, ...]] = {}  # of ten thousand points few parts hold them, which all share
        first: dict[tuple[str, ...], Experiment] = {}
        for experiment in self.experiments:
            key: tuple[str, ...] = ()
            for part in experiment._parts:
                if id(part) not in values:
                    values[id(part)] = tuple(f"{name} {part.kept[name]!r}" for name in settings if name in part.kept)
                key += values[id(part)]
            first.setdefault(key, experiment)
        return list(first.values())

    def schedule(
        self, cycles: int | None = None, order: Order | None = None, among: Container[str] | None = None
    ) -> list[tuple[Experiment, int]]:
        """Every experiment with every cycle (from 1), in the order to run.

        `sequential` finishes an experiment before the next; `interleaved` runs one cycle of each in turn; `shuffled`
        does that in an order drawn for each cycle, seeded by the study's hash and so the same anywhere; `balanced` in
        the rows of a design, whose letters are drawn likewise. Where not all run here, it balances those whose ids are
        `among` them; the others come after.
        """
        rounds = range(1, (cycles if cycles is not None else self.execution.cycles) + 1)
        order = order or self.execution.order
        if order == "sequential":
            return [(experiment, cycle) for experiment in self.experiments for cycle in rounds]
        if order == "interleaved":
            return [(experiment, cycle) for cycle in rounds for experiment in self.experiments]
        if order == "balanced":
            return self._balanced(len(rounds), among)
        return [(experiment, cycle) for cycle in rounds for experiment in self._shuffled(cycle)]

    def _balanced(self, cycles: int, among: Container[str] | None) -> list[tuple[Experiment, int]]:
        letters: dict[int, list[Experiment]] = {}
        found: list[tuple[Experiment, int]] = []
        others = [each for each in self.experiments if among is not None and each.id not in among]
        for cycle, (repetition, row) in enumerate(rows(len(self.experiments) - len(others), cycles), 1):
            if repetition not in letters:
                drawn = self._shuffled(repetition)
                letters[repetition] = [each for each in drawn if among is None or each.id in among]
            found += [(letters[repetition][place], cycle) for place in row]
        return [*found, *((each, cycle) for each in others for cycle in range(1, cycles + 1))]

    def _shuffled(self, number: int) -> list[Experiment]:
        # random() of a seeded generator is the one method whose sequence Python guarantees across versions.
        draw = random.Random(int(self.study_hash, 16) + number).random
        keys = [draw() for _ in self.experiments]
        return [self.experiments[index] for index in sorted(range(len(keys)), key=keys.__getitem__)]


@dataclass(frozen=True)
class Relocator:
    """Finds where a setting was written by reading the study again, for a process that did not load it."""

    path: Path

    def __call__(self, setting: str, value: JsonValue = None, /) -> Location:
        """See `Locate`; the study's beginning also where the file is not there."""
        return self._locate(setting, value)

    @cached_property
    def _locate(self) -> Locate:
        """Reads once: a run's gates may ask hundreds of times where their limits stand."""
        from pytest_llem.study.problems import UnreadableError
        from pytest_llem.study.sources import read_sources

        try:
            return read_sources(self.path, os.environ).locate_setting
        except UnreadableError:
            return lambda setting, value=None, /: Location(str(self.path))

    def __reduce__(self) -> tuple[type[Relocator], tuple[Path]]:
        return Relocator, (self.path,)
