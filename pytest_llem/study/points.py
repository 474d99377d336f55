"""Expands a sweep into its points: enumerated in written order, filtered, named, and made unique.

A sweep of many points costs little per point because almost nothing is computed per point: settings are checked per
alternative; inactive settings, exclusions and rules per combination of the axes that they concern. The loader calls it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from pytest_llem.study.canonical import getter, same, section_of, with_engine_dtype, written_out
from pytest_llem.study.document import KeyPath
from pytest_llem.study.fields import FlatSettings, apply
from pytest_llem.study.model import SettingsSlice
from pytest_llem.study.naming import digest, shorten
from pytest_llem.study.rules import RULES, Rule
from pytest_llem.study.slices import (
    PINNED,
    Cluster,
    cluster_slice,
    clusters,
    ordered_labels,
    section_axis,
    shared_slice,
)
from pytest_llem.study.sweep import Alternative, Axis, Exclusion

# Chosen: ten times the ten thousand points of tests/benchmarks/collection.py; above it a study is a mistake.
MAX_POINTS = 100_000

Index = tuple[int, ...]


class TooManyPointsError(Exception):
    """The sweep has more than `MAX_POINTS` points: `count`, the product of the axes in `shape`."""

    def __init__(self, count: int, shape: str) -> None:
        super().__init__(f"{count:,} points")
        self.count = count
        self.shape = shape


@dataclass(frozen=True)
class InactiveSetting:
    """Where a setting that does nothing was written, and the engine whose section it is in, if any."""

    origin: KeyPath
    section: str | None


@dataclass
class Points:
    """The expanded sweep. Rejected points carry their id, the reason, and the key path of the setting that decided."""

    kept: list[tuple[str, tuple[SettingsSlice, ...]]] = field(default_factory=list)
    excluded: list[tuple[str, str, KeyPath]] = field(default_factory=list)
    invalid: list[tuple[str, str, KeyPath]] = field(default_factory=list)
    duplicates: list[tuple[str, str, KeyPath]] = field(default_factory=list)
    inactive: dict[tuple[str, str], InactiveSetting] = field(default_factory=dict)
    unused_exclusions: list[Exclusion] = field(default_factory=list)


class Sweep:
    """A sweep over shared settings."""

    def __init__(
        self,
        shared: FlatSettings,
        origins: dict[str, KeyPath],
        axes: Sequence[Axis],
        exclusions: Sequence[Exclusion],
        name: str,
    ) -> None:
        self.shared = shared
        self.origins = origins
        self.axes = axes
        self.exclusions = exclusions
        self.name = name
        self.clusters = clusters(axes, shared)
        self._clustered: frozenset[str] = frozenset().union(*(cluster.paths for cluster in self.clusters))
        self._static = {path: value for path, value in shared.items() if path not in self._clustered}
        self._in_order = all(len(cluster.axes) == 1 for cluster in self.clusters)

    def points(self) -> Points:
        """Enumerate. Raises `TooManyPointsError` before it begins."""
        blocks = self._blocks()
        points = Points()
        rows: list[tuple[Index, str, tuple[SettingsSlice, ...]]] = []
        used: set[int] = set()
        for engine, pinned, fixed in blocks:
            rows.extend(_Block(self, engine, pinned, fixed, points, used).rows())
        if len(blocks) > 1:
            rows.sort(key=itemgetter(0))
        self._unique(rows, points)
        points.unused_exclusions = [e for index, e in enumerate(self.exclusions) if index not in used]
        return points

    def _blocks(self) -> list[tuple[str, frozenset[int], dict[int, int]]]:
        """Per engine that the axes choose: the axes of other engines' sections, which do nothing there."""
        deciders = [index for index, axis in enumerate(self.axes) if "engine" in axis.paths]
        choices = math.prod(len(self.axes[index].alternatives) for index in deciders)
        if choices > MAX_POINTS:
            raise TooManyPointsError(choices, self._shape(range(len(self.axes))))
        blocks: list[tuple[str, frozenset[int], dict[int, int]]] = []
        total = 0
        for combination in itertools.product(*(range(len(self.axes[index].alternatives)) for index in deciders)):
            fixed = dict(zip(deciders, combination, strict=True))
            flat = {"engine": self.shared["engine"]}
            for index, choice in fixed.items():
                apply(flat, tuple(s for s in self.axes[index].alternatives[choice].settings if s.path == "engine"))
            engine = str(flat["engine"])
            pinned = frozenset(i for i, axis in enumerate(self.axes) if section_axis(axis) not in (None, engine))
            free = [i for i in range(len(self.axes)) if i not in pinned and i not in fixed]
            total += math.prod(len(self.axes[i].alternatives) for i in free)
            blocks.append((engine, pinned, fixed))
        if total > MAX_POINTS:
            raise TooManyPointsError(total, self._shape(range(len(self.axes))))
        return blocks

    def _shape(self, indices: Sequence[int]) -> str:
        return " x ".join(f"{len(self.axes[i].alternatives):,} {self.axes[i].name}" for i in indices)

    def chosen(self, indices: Sequence[int], index: Index) -> Iterator[tuple[int, Alternative | None]]:
        """The alternatives of a combination of some axes."""
        for axis, choice in zip(indices, index, strict=True):
            yield axis, None if choice == PINNED else self.axes[axis].alternatives[choice]

    def name_of(self, parts: tuple[SettingsSlice, ...]) -> str:
        """The id of a point."""
        if self._in_order:
            labels: Iterator[str] = (part.labels[0][1] for part in parts if part.labels)
        else:
            labels = ordered_labels(parts)
        return shorten("-".join(labels)) or self.name

    def _unique(self, rows: list[tuple[Index, str, tuple[SettingsSlice, ...]]], points: Points) -> None:
        seen: dict[tuple[str, ...], str] = {}
        names: set[str] = set()
        for index, name, parts in rows:
            key = tuple([part.key for part in parts])
            if key in seen:
                points.duplicates.append((name, f"does the same as {seen[key]}", self._origin(index)))
                continue
            if name in names:
                name = f"{name}.{digest(list(key))}"
            names.add(name)
            seen[key] = name
            points.kept.append((name, parts))

    def _origin(self, index: Index) -> KeyPath:
        last = max((axis for axis, choice in enumerate(index) if choice != PINNED), default=None)
        return ("sweep",) if last is None else self.axes[last].alternatives[index[last]].origin

    def key_path_of(self, paths: Sequence[str], index: Index) -> KeyPath:
        """Where the first of `paths` that is set for this point was written."""
        for path in paths:
            for axis, choice in enumerate(index):
                if choice != PINNED:
                    for setting in self.axes[axis].alternatives[choice].settings:
                        if setting.path == path:
                            return setting.origin
        return next((self.origins[path] for path in paths if path in self.origins), ("sweep",))


@dataclass
class _Filter:
    """A check that depends on some axes alone: its answer per combination of them."""

    pick: Callable[[Any], Any]
    axes: Index
    answer: Callable[[Index], str | None]
    paths: tuple[str, ...]
    exclusion: int | None
    answers: dict[Any, str | None] = field(default_factory=dict)


class _Block:
    """The points of a sweep that run one engine."""

    def __init__(
        self, sweep: Sweep, engine: str, pinned: frozenset[int], fixed: dict[int, int], points: Points, used: set[int]
    ) -> None:
        self.sweep = sweep
        self.engine = engine
        self.points = points
        self.used = used
        self.choices = [
            (PINNED,) if i in pinned else (fixed[i],) if i in fixed else range(len(axis.alternatives))
            for i, axis in enumerate(sweep.axes)
        ]
        self.filters = [self._exclusion(index, e) for index, e in enumerate(sweep.exclusions)]
        self.filters += [self._rule(rule) for rule in RULES if rule.engine in (None, engine)]
        self._note_pinned(pinned)

    def rows(self) -> Iterator[tuple[Index, str, tuple[SettingsSlice, ...]]]:
        """Every point that passes the filters, with its index, id and parts."""
        sweep, engine = self.sweep, self.engine
        static, inactive = shared_slice(sweep._static, engine)
        for path, why in inactive.items():
            origin = sweep.origins.get(path, ("sweep",))
            self.points.inactive.setdefault((path, why), InactiveSetting(origin, section_of(path)))
        parts_of: list[tuple[Callable[[Any], Any], Cluster, dict[Any, SettingsSlice]]] = [
            (_pick(cluster.axes), cluster, {}) for cluster in sweep.clusters
        ]
        filters = [check for check in self.filters if check.axes or check.answer(()) is not None]
        for index in itertools.product(*self.choices):
            parts = [static]
            for pick, cluster, slices in parts_of:
                sub = pick(index)
                part = slices.get(sub)
                if part is None:
                    part = slices[sub] = self._slice(cluster, sub if isinstance(sub, tuple) else (sub,))
                parts.append(part)
            point = tuple(parts)
            if not self._rejected(filters, index, point):
                yield index, sweep.name_of(point), point

    def _slice(self, cluster: Cluster, sub: Index) -> SettingsSlice:
        part, inactive = cluster_slice(cluster, self.sweep.chosen(cluster.axes, sub), self.sweep.shared, self.engine)
        for path, why in inactive.items():
            if (path, why) not in self.points.inactive:
                index = [PINNED] * len(self.sweep.axes)
                for axis, choice in zip(cluster.axes, sub, strict=True):
                    index[axis] = choice
                origin = self.sweep.key_path_of([path], tuple(index))
                self.points.inactive[path, why] = InactiveSetting(origin, section_of(path))
        return part

    def _rejected(self, filters: list[_Filter], index: Index, point: tuple[SettingsSlice, ...]) -> bool:
        for check in filters:
            sub = check.pick(index)
            if sub in check.answers:
                reason = check.answers[sub]
            else:
                reason = check.answers[sub] = check.answer(sub if isinstance(sub, tuple) else (sub,))
            if reason is None:
                continue
            name = self.sweep.name_of(point)
            if check.exclusion is None:
                self.points.invalid.append((name, reason, self.sweep.key_path_of(check.paths, index)))
            else:
                self.used.add(check.exclusion)
                origin = self.sweep.exclusions[check.exclusion].origin
                self.points.excluded.append((name, reason, origin))
            return True
        return False

    def _flat_settings(self, axes: Index, sub: Index) -> FlatSettings:
        flat = dict(self.sweep.shared)
        for _, alternative in self.sweep.chosen(axes, sub):
            if alternative is not None:
                apply(flat, alternative.settings)
        return with_engine_dtype(written_out(flat), self.engine)

    def _axes_of(self, paths: Sequence[str]) -> Index:
        wanted = set(paths)
        if any(path.startswith("decoding.") for path in paths):
            wanted.add("decoding.preset")
        if "dtype" in wanted:
            wanted.add(f"{self.engine}.dtype")
        sections = {path.rpartition(".")[0] for path in wanted}
        return tuple(i for i, a in enumerate(self.sweep.axes) if a.paths & wanted or a.paths & sections)

    def _exclusion(self, number: int, exclusion: Exclusion) -> _Filter:
        axes = self._axes_of([path for path, _ in exclusion.conditions])

        def answer(sub: Index) -> str | None:
            get = getter(self._flat_settings(axes, sub))
            if all(any(same(get(path), value) for value in values) for path, values in exclusion.conditions):
                return "excluded"
            return None

        return _Filter(_pick(axes), axes, answer, (), number)

    def _rule(self, rule: Rule) -> _Filter:
        axes = self._axes_of(rule.paths)

        def answer(sub: Index) -> str | None:
            refusal = rule.check(getter(self._flat_settings(axes, sub)))
            return f"{refusal.text} ({refusal.fix})" if refusal else None

        return _Filter(_pick(axes), axes, answer, rule.paths, None)

    def _note_pinned(self, pinned: frozenset[int]) -> None:
        for index in pinned:
            axis = self.sweep.axes[index]
            why = f"with engine {self.engine}"
            self.points.inactive.setdefault(
                (f"the sweep of {axis.name}", why), InactiveSetting(axis.origin, section_axis(axis))
            )


def _pick(axes: Index) -> Callable[[Any], Any]:
    return itemgetter(*axes) if axes else lambda index: ()
