"""Expands a sweep into its points: enumerated in written order, filtered, named, and made unique.

The loader calls it. Almost nothing may be computed per point, or large sweeps get slow: settings are checked per
alternative, and what they do is found out once per combination of the axes that decide it (a `SettingsSlice`).
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from operator import itemgetter

from pytest_llem.engines import shipped_engines
from pytest_llem.study.canonical import (
    DECIDED_BY,
    INACTIVITY_RULES,
    Get,
    canonical,
    effective,
    getter,
    same,
    section_of,
)
from pytest_llem.study.fields import Clear, FlatSettings, apply, defaults, keyword, table
from pytest_llem.study.model import Keyword, OmittedPoint, SettingsSlice
from pytest_llem.study.naming import digest, shorten
from pytest_llem.study.problems import Location
from pytest_llem.study.rule import Rule
from pytest_llem.study.rules import RULES
from pytest_llem.study.search import ARRIVAL, CLIENT, SEARCH
from pytest_llem.study.sweep import Alternative, Axis, Exclusion
from pytest_llem.study.values import KeyPath

# Chosen: ten times the ten thousand points of tests/benchmarks/collection.py; above it a study is a mistake.
MAX_POINTS = 100_000

MAX_CHECKS = 10_000_000
"""Points times exclusions. Chosen: about three seconds."""

PINNED = -1
"""The index of an axis that has no effect for a point's engine."""

Index = tuple[int, ...]
Choices = Index | int
"""The choices on some axes; of one axis a plain number, which is a cheaper key than a tuple."""

Slices = tuple[SettingsSlice, ...]
_encode = json.JSONEncoder(separators=(",", ":")).encode


class TooManyPointsError(Exception):
    """The sweep has more than `MAX_POINTS` points, or too many exclusions for them."""


@dataclass
class Points:
    """The points of a study that run, those that do not, and the settings that do nothing."""

    kept: list[tuple[str, Slices]] = field(default_factory=list)
    excluded: list[OmittedPoint] = field(default_factory=list)
    invalid: list[OmittedPoint] = field(default_factory=list)
    duplicates: list[OmittedPoint] = field(default_factory=list)
    inactive: dict[tuple[str, str], tuple[KeyPath, str | None]] = field(default_factory=dict)
    """What does nothing and why, with where it was written first and the engine whose section it is in, if any."""

    def note_inactive(self, path: str, why: str, origin: KeyPath, axis: Axis | None = None) -> None:
        """Note that a setting does nothing, or the sweep of an axis, which is one engine's."""
        section = section_of(path) if axis is None else section_axis(axis)
        self.inactive.setdefault((f"the sweep of {axis.name}" if axis else path, why), (origin, section))


@dataclass(frozen=True)
class Cluster:
    """Axes whose settings may make each other inactive, with every path that any of them may change."""

    axes: Index
    paths: frozenset[str]


def section_axis(axis: Axis) -> str | None:
    """The engine that alone has this axis: by its name, or because its section holds all that the axis sets."""
    if axis.engine is not None:
        return axis.engine
    sections = {section_of(path) for path in axis.paths}
    return sections.pop() if len(sections) == 1 else None


def _touched(axis: Axis, shared: FlatSettings) -> frozenset[str]:
    """The settings that an axis may change: those it sets, and shared ones in a section that it clears."""
    cleared = {s.path for a in axis.alternatives for s in a.settings if isinstance(s.value, Clear)}
    sections = cleared | {path for path in axis.paths if path not in table()}
    below = {path for path in shared for section in sections if path.startswith(f"{section}.")}
    above = {path for path in shared for own in sections if own.startswith(f"{path}.")}
    return (axis.paths - cleared) | below | above


def clusters(axes: Sequence[Axis], shared: FlatSettings) -> list[Cluster]:
    """The axes in groups that share no inactivity rule; a group's paths include shared settings that it decides on."""
    paths = [_touched(axis, shared) for axis in axes]
    groups = [({index}, own, frozenset[str]()) for index, own in enumerate(paths)]
    all_linked = list(_linked(paths, shared))
    for linked in all_linked:
        joined = [group for group in groups if group[1] & linked]
        if joined:
            members, own, decided = zip(*joined, strict=True)
            groups = [group for group in groups if group not in joined]
            groups.append((set().union(*members), frozenset().union(*own), linked.union(*decided)))
    groups.sort(key=lambda group: min(group[0]))
    left = shared.keys() - frozenset().union(*(own | decided for _, own, decided in groups))
    return [
        Cluster(tuple(sorted(members)), _with_dependent(own | decided, all_linked, shared, left))
        for members, own, decided in groups
    ]


def _with_dependent(
    paths: frozenset[str], all_linked: Sequence[frozenset[str]], shared: FlatSettings, left: Set[str]
) -> frozenset[str]:
    """A group's paths, with those shared ones that would be `left` without what makes them do something."""
    while (
        more := frozenset().union(
            *(linked & shared.keys() for linked in all_linked if linked & left and linked & paths & shared.keys())
        )
        - paths
    ):
        paths |= more
    return paths


def _linked(paths: Sequence[frozenset[str]], shared: FlatSettings) -> Iterator[frozenset[str]]:
    """Sets of settings that must be looked at together."""
    written = shared.keys() | frozenset().union(*paths)
    # What nobody sets decides on nothing, and links no axes whose combinations would then be looked at one by one.
    decided = [{path, *deciders} for path, all_of in DECIDED_BY.items() if (deciders := written & {*all_of})]
    yield from (_joined(rule.fields + rule.controls, decided) for rule in INACTIVITY_RULES)
    yield from (_joined(one, decided) for one in decided)
    if "decoding.preset" in shared or any("decoding.preset" in own for own in paths):
        yield frozenset(path for path in defaults() if path.startswith("decoding."))
    if any(SEARCH in own for own in paths):
        yield frozenset({SEARCH, ARRIVAL, CLIENT})
    of_engines = {f"{engine}.dtype" for engine in shipped_engines()}
    if any(own & of_engines for own in (*paths, shared.keys())):
        yield frozenset({"dtype", *of_engines})


def _joined(paths: Iterable[str], decided: Sequence[set[str]]) -> frozenset[str]:
    """Settings with all whose defaults they decide on, and all that decide on theirs."""
    linked, before = set(paths), 0
    while len(linked) != before:
        before = len(linked)
        linked = linked.union(*(one for one in decided if linked & one))
    return frozenset(linked)


def make_slice(
    flat: FlatSettings, engine: str, chosen: Iterable[tuple[int, Alternative]] = ()
) -> tuple[SettingsSlice, dict[str, str]]:
    """The slice of some settings, and why those of them that do nothing do so; `chosen` made them, each by its axis."""
    kept, inactive = canonical(flat, engine)
    active = {path: value for path, value in effective(flat, engine).items() if path not in inactive}
    if "decoding.preset" in flat:
        active["decoding.preset"] = flat["decoding.preset"]
    labels = tuple(
        (axis, alternative.label)
        for axis, alternative in chosen
        if not alternative.settings or any(setting.path not in inactive for setting in alternative.settings)
    )
    return SettingsSlice(_encode(sorted(kept.items())), kept, _keywords(active), labels), inactive


def _keywords(active: FlatSettings) -> dict[str, Keyword]:
    """Marker keywords of scalar settings; floats as their text, nulls and nested values not at all."""
    named: dict[str, Keyword] = {}
    for path, value in active.items():
        name = keyword(path)
        if isinstance(value, (bool, int, float, str)) and name.isidentifier():
            named[name] = repr(value) if isinstance(value, float) else value
    return named


@dataclass
class Sweep:
    """A sweep over shared settings; `origins` and `locate` say where they were written, `name` is the study's."""

    shared: FlatSettings
    origins: dict[str, KeyPath]
    axes: Sequence[Axis]
    exclusions: Sequence[Exclusion]
    name: str
    locate: Callable[[KeyPath], Location]
    points: Points = field(default_factory=Points)

    def __post_init__(self) -> None:
        self.clusters = clusters(self.axes, self.shared)
        clustered: frozenset[str] = frozenset().union(*(cluster.paths for cluster in self.clusters))
        self.static = {path: value for path, value in self.shared.items() if path not in clustered}
        self.unused_exclusions = dict.fromkeys(exclusion.origin for exclusion in self.exclusions)
        self._in_order = all(len(cluster.axes) == 1 for cluster in self.clusters)

    def expand(self) -> None:
        """Enumerate into `points`. Raises `TooManyPointsError` before it begins."""
        blocks = self._blocks()
        rows = [row for block in blocks for row in block.rows()]
        if len(blocks) > 1:
            rows.sort(key=itemgetter(0))
        names: set[str] = set()
        seen: dict[tuple[str, ...], str] = {}
        for index, name, slices in rows:
            key = tuple([part.key for part in slices])
            if key in seen:
                last = max((axis for axis, choice in enumerate(index) if choice != PINNED), default=None)
                origin = ("sweep",) if last is None else self.axes[last].alternatives[index[last]].origin
                self.points.duplicates.append(OmittedPoint(name, f"does the same as {seen[key]}", self.locate(origin)))
                continue
            if name in names:
                name = f"{name}.{digest(list(key))}"
            names.add(name)
            seen[key] = name
            self.points.kept.append((name, slices))

    def _blocks(self) -> list[_Block]:
        """A block per engine that the axes choose; axes of other engines' sections are pinned in it."""
        sizes = [len(axis.alternatives) for axis in self.axes]
        deciders = [index for index, axis in enumerate(self.axes) if "engine" in axis.paths]
        self._limit(math.prod(sizes[index] for index in deciders))
        blocks: list[_Block] = []
        for combination in itertools.product(*(range(sizes[index]) for index in deciders)):
            fixed = dict(zip(deciders, combination, strict=True))
            flat: FlatSettings = {"engine": self.shared["engine"]}
            for _, alternative in self.chosen(deciders, combination):
                apply(flat, [setting for setting in alternative.settings if setting.path == "engine"])
            engine = str(flat["engine"])
            pinned = [index for index, axis in enumerate(self.axes) if section_axis(axis) not in (None, engine)]
            choices = [
                (PINNED,) if index in pinned else (fixed[index],) if index in fixed else range(size)
                for index, size in enumerate(sizes)
            ]
            blocks.append(_Block(self, engine, choices, [self.axes[index] for index in pinned]))
        self._limit(sum(math.prod(map(len, block.choices)) for block in blocks))
        return blocks

    def _limit(self, count: int) -> None:
        if count > MAX_POINTS:
            shape = " x ".join(f"{len(axis.alternatives):,} {axis.name}" for axis in self.axes)
            raise TooManyPointsError(f"the sweep has {count:,} points: {shape}")
        if count * len(self.exclusions) > MAX_CHECKS:
            raise TooManyPointsError(f"the sweep has {count:,} points with {len(self.exclusions):,} exclusions")

    def chosen(self, axes: Sequence[int], choices: Choices) -> Iterator[tuple[int, Alternative]]:
        """The alternatives of a combination of some axes, without those that are pinned."""
        choices = (choices,) if isinstance(choices, int) else choices
        for axis, choice in zip(axes, choices, strict=True):
            if choice != PINNED:
                yield axis, self.axes[axis].alternatives[choice]

    def name_of(self, slices: Slices) -> str:
        """The id of a point: the labels of its slices in the order of their axes."""
        if self._in_order:
            labels = [part.labels[0][1] for part in slices if part.labels]
        else:
            labels = [label for _, label in sorted(label for part in slices for label in part.labels)]
        return shorten("-".join(labels)) or self.name

    def origin_of(self, paths: Sequence[str], axes: Sequence[int], choices: Choices) -> KeyPath:
        """Where the first of `paths` that is set for this combination of axes was written."""
        for path in paths:
            for _, alternative in self.chosen(axes, choices):
                for setting in alternative.settings:
                    if setting.path == path:
                        return setting.origin
        return next((self.origins[path] for path in paths if path in self.origins), ("sweep",))


@dataclass
class _Filter:
    """A rule that reads `paths`, or an exclusion: its answer per combination of the axes that it depends on."""

    axes: Index
    answer: Callable[[Choices], str | None]
    paths: tuple[str, ...] = ()
    exclusion: Exclusion | None = None
    answers: dict[Choices, str | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pick = _pick(self.axes)


@dataclass
class _Block:
    """The points of a sweep that run one engine, with the choices on each axis and the axes that do nothing there."""

    sweep: Sweep
    engine: str
    choices: Sequence[Sequence[int]]
    pinned: Sequence[Axis]

    def rows(self) -> Iterator[tuple[Index, str, Slices]]:
        """The points that pass all filters, with their index, id and slices."""
        sweep = self.sweep
        for axis in self.pinned:
            sweep.points.note_inactive(axis.name, f"with engine {self.engine}", axis.origin, axis)
        static, inactive = make_slice(sweep.static, self.engine)
        for path, why in inactive.items():
            sweep.points.note_inactive(path, why, sweep.origins.get(path, ("sweep",)))
        made: list[tuple[Callable[[Index], Choices], Cluster, dict[Choices, SettingsSlice]]] = [
            (_pick(cluster.axes), cluster, {}) for cluster in sweep.clusters
        ]
        filters = [self._exclusion(exclusion) for exclusion in sweep.exclusions]
        filters += [self._rule(rule) for rule in RULES if rule.engine in (None, self.engine)]
        filters = [check for check in filters if check.axes or check.answer(()) is not None]
        for index in itertools.product(*self.choices):
            slices = [static]
            for pick, cluster, of_choices in made:
                choices = pick(index)
                part = of_choices.get(choices)
                if part is None:
                    part = of_choices[choices] = self._slice(cluster, choices)
                slices.append(part)
            point = tuple(slices)
            if not self._rejected(filters, index, point):
                yield index, sweep.name_of(point), point

    def _slice(self, cluster: Cluster, choices: Choices) -> SettingsSlice:
        shared = self.sweep.shared
        flat = {path: shared[path] for path in cluster.paths if path in shared}
        chosen = list(self.sweep.chosen(cluster.axes, choices))
        for _, alternative in chosen:
            apply(flat, alternative.settings)
        part, inactive = make_slice(flat, self.engine, chosen)
        for path, why in inactive.items():
            self.sweep.points.note_inactive(path, why, self.sweep.origin_of([path], cluster.axes, choices))
        return part

    def _rejected(self, filters: list[_Filter], index: Index, point: Slices) -> bool:
        sweep = self.sweep
        for check in filters:
            choices = check.pick(index)
            if choices in check.answers:
                reason = check.answers[choices]
            else:
                reason = check.answers[choices] = check.answer(choices)
            if reason is None:
                continue
            if check.exclusion is None:
                omitted, origin = sweep.points.invalid, sweep.origin_of(check.paths, range(len(index)), index)
            else:
                omitted, origin = sweep.points.excluded, check.exclusion.origin
                sweep.unused_exclusions.pop(origin, None)
            omitted.append(OmittedPoint(sweep.name_of(point), reason, sweep.locate(origin)))
            return True
        return False

    def _getter(self, axes: Index, choices: Choices) -> Get:
        flat = dict(self.sweep.shared)
        for _, alternative in self.sweep.chosen(axes, choices):
            apply(flat, alternative.settings)
        return getter(effective(flat, self.engine))

    def _axes_of(self, paths: Iterable[str]) -> Index:
        wanted = set(paths)
        if any(path.startswith("decoding.") for path in wanted):
            wanted.add("decoding.preset")
        if "dtype" in wanted:
            wanted.add(f"{self.engine}.dtype")
        for path, deciders in DECIDED_BY.items():
            if path in wanted:
                wanted.update(deciders)
        if wanted & {ARRIVAL, CLIENT}:
            wanted.add(SEARCH)
        wanted |= {path.rpartition(".")[0] for path in wanted}
        return tuple(index for index, axis in enumerate(self.sweep.axes) if axis.paths & wanted)

    def _exclusion(self, exclusion: Exclusion) -> _Filter:
        axes = self._axes_of(path for path, _ in exclusion.conditions)

        def answer(choices: Choices) -> str | None:
            get = self._getter(axes, choices)
            applies = all(any(same(get(path), value) for value in values) for path, values in exclusion.conditions)
            return "excluded" if applies else None

        return _Filter(axes, answer, exclusion=exclusion)

    def _rule(self, rule: Rule) -> _Filter:
        axes = self._axes_of(rule.paths)
        return _Filter(axes, lambda choices: rule.check(self._getter(axes, choices)), rule.paths)


def _pick(axes: Index) -> Callable[[Index], Choices]:
    """Reads the choices on some axes off the index of a point."""
    return itemgetter(*axes) if axes else lambda index: ()
