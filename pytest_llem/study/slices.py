"""Slices of experiments: which axes of a sweep decide together, and the settings of each of their combinations.

`points` joins one slice per cluster to a point, so that equal combinations are computed once and share memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pytest_llem.engines import shipped_engines
from pytest_llem.study.canonical import INACTIVITY_RULES, canonical, section_of, with_engine_dtype, written_out
from pytest_llem.study.fields import Clear, FlatSettings, apply, defaults, keyword, table
from pytest_llem.study.model import Keyword, SettingsSlice
from pytest_llem.study.sweep import Alternative, Axis

PINNED = -1
"""The index of an axis that has no effect for a point's engine."""

_encode = json.JSONEncoder(separators=(",", ":")).encode


@dataclass(frozen=True)
class Cluster:
    """Axes whose settings may make each other inactive, with every path that any of them may change."""

    axes: tuple[int, ...]
    paths: frozenset[str]


def section_axis(axis: Axis) -> str | None:
    """The engine whose section holds everything that this axis sets, or `None`."""
    sections = {section_of(path) for path in axis.paths}
    return sections.pop() if len(sections) == 1 else None


def touched(axis: Axis, shared: FlatSettings) -> frozenset[str]:
    """The settings that an axis may change: those it sets, and shared ones in a section that it clears."""
    cleared = [s.path for a in axis.alternatives for s in a.settings if isinstance(s.value, Clear)]
    below = {path for path in shared for section in cleared if path.startswith(f"{section}.")}
    below |= {path for path in shared for own in axis.paths if own not in table() and _nested(path, own)}
    return (axis.paths - set(cleared)) | below


def _nested(one: str, other: str) -> bool:
    return one.startswith(f"{other}.") or other.startswith(f"{one}.")


def clusters(axes: Sequence[Axis], shared: FlatSettings) -> list[Cluster]:
    """The axes in groups that share no inactivity rule; a group's paths include shared settings that it decides on."""
    paths = [touched(axis, shared) for axis in axes]
    group = list(range(len(axes)))

    def join(members: Iterable[int]) -> None:
        ids = {group[member] for member in members}
        target = min(ids, default=0)
        for index, current in enumerate(group):
            if current in ids:
                group[index] = target

    decided: list[tuple[frozenset[str], list[int]]] = []
    for linked in _linked(paths, shared):
        members = [index for index, own in enumerate(paths) if own & linked]
        join(members)
        if members:
            decided.append((linked, members))
    joined: list[Cluster] = []
    for target in sorted(set(group)):
        members = [index for index, current in enumerate(group) if current == target]
        own = frozenset().union(*(paths[index] for index in members))
        for linked, deciders in decided:
            if group[deciders[0]] == target:
                own |= linked
        joined.append(Cluster(tuple(members), own))
    return joined


def _linked(paths: Sequence[frozenset[str]], shared: FlatSettings) -> Iterator[frozenset[str]]:
    yield from (frozenset(rule.linked) for rule in INACTIVITY_RULES)
    if "decoding.preset" in shared or any("decoding.preset" in own for own in paths):
        yield frozenset(path for path in defaults() if path.startswith("decoding."))
    dtypes = frozenset(("dtype", *(f"{engine}.dtype" for engine in shipped_engines())))
    if any(path != "dtype" and path in dtypes for own in (*paths, frozenset(shared)) for path in own):
        yield dtypes


def settings_slice(kept: FlatSettings, active: FlatSettings, labels: tuple[tuple[int, str], ...]) -> SettingsSlice:
    """A slice from its canonical settings, the active ones that become keywords, and its labels."""
    return SettingsSlice(_encode(sorted(kept.items())), kept, keywords(active), labels)


def keywords(active: FlatSettings) -> dict[str, Keyword]:
    """Marker keywords of scalar settings; floats as their text, nulls and nested values not at all."""
    named: dict[str, Keyword] = {}
    for path, value in active.items():
        if value is None or isinstance(value, (list, tuple, dict)):
            continue
        name = keyword(path)
        if name.isidentifier():
            named[name] = repr(value) if isinstance(value, float) else value  # type: ignore[assignment]
    return named


def shared_slice(flat: FlatSettings, engine: str) -> tuple[SettingsSlice, dict[str, str]]:
    """The slice of settings that no axis changes, and those of them that do nothing."""
    kept, inactive = canonical(flat, engine)
    return settings_slice(kept, _active(with_engine_dtype(flat, engine), inactive), ()), inactive


def cluster_slice(
    cluster: Cluster, chosen: Iterable[tuple[int, Alternative | None]], shared: FlatSettings, engine: str
) -> tuple[SettingsSlice, dict[str, str]]:
    """The slice of one combination in a cluster, and the settings of it that do nothing."""
    picked = list(chosen)
    flat = {path: shared[path] for path in cluster.paths if path in shared}
    for _, alternative in picked:
        if alternative is not None:
            apply(flat, alternative.settings)
    kept, inactive = canonical(flat, engine)
    labels = tuple(
        (axis, alternative.label)
        for axis, alternative in picked
        if alternative is not None and not _all_inactive(alternative, inactive)
    )
    return settings_slice(kept, _active(with_engine_dtype(flat, engine), inactive), labels), inactive


def _active(flat: FlatSettings, inactive: dict[str, str]) -> FlatSettings:
    merged = {**flat, **written_out(flat)} if "decoding.preset" in flat else flat
    return {path: value for path, value in merged.items() if path not in inactive}


def _all_inactive(alternative: Alternative, inactive: dict[str, str]) -> bool:
    return bool(inactive and alternative.settings) and all(setting.path in inactive for setting in alternative.settings)


def ordered_labels(parts: Iterable[SettingsSlice]) -> Iterator[str]:
    """The labels of several slices in the order of their axes."""
    for _, label in sorted(label for part in parts for label in part.labels):
        yield label
