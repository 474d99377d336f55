"""The parts of an experiment: which axes must be looked at together, and what each combination comes to."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pytest_llem.study.canonical import DORMANCIES, canonical, section_of, with_engine_dtype, written_out
from pytest_llem.study.engine_names import ENGINE_SECTIONS
from pytest_llem.study.fields import FlatSettings, defaults, keyword, table
from pytest_llem.study.flatten import Clear, apply
from pytest_llem.study.model import Keyword, SettingsSlice
from pytest_llem.study.sweep import Alternative, Axis

PINNED = -1

_encode = json.JSONEncoder(separators=(",", ":")).encode


@dataclass(frozen=True)
class Cluster:
    """Axes whose settings wake or still each other, with every path that any of them may touch."""

    axes: tuple[int, ...]
    paths: frozenset[str]


def section_axis(axis: Axis) -> str | None:
    """The engine whose section holds everything that this axis sets, or `None`."""
    sections = {section_of(path) for path in axis.paths}
    return sections.pop() if len(sections) == 1 else None


def touched(axis: Axis, shared: FlatSettings) -> frozenset[str]:
    """The leaves that an axis may change: those it sets, and shared ones in a section that it clears."""
    cleared = [s.path for a in axis.alternatives for s in a.settings if isinstance(s.value, Clear)]
    below = {path for path in shared for section in cleared if path.startswith(f"{section}.")}
    below |= {path for path in shared for own in axis.paths if own not in table() and _nested(path, own)}
    return (axis.paths - set(cleared)) | below


def _nested(one: str, other: str) -> bool:
    return one.startswith(f"{other}.") or other.startswith(f"{one}.")


def clusters(axes: Sequence[Axis], shared: FlatSettings) -> list[Cluster]:
    """The axes in groups that share no dormancy; a group's paths include shared leaves that it decides on."""
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
    found: list[Cluster] = []
    for target in sorted(set(group)):
        members = [index for index, current in enumerate(group) if current == target]
        own = frozenset().union(*(paths[index] for index in members))
        for linked, deciders in decided:
            if group[deciders[0]] == target:
                own |= linked
        found.append(Cluster(tuple(members), own))
    return found


def _linked(paths: Sequence[frozenset[str]], shared: FlatSettings) -> Iterator[frozenset[str]]:
    yield from (frozenset(rule.linked) for rule in DORMANCIES)
    if "decoding.preset" in shared or any("decoding.preset" in own for own in paths):
        yield frozenset(path for path in defaults() if path.startswith("decoding."))
    dtypes = frozenset(("dtype", *(f"{engine}.dtype" for engine in ENGINE_SECTIONS)))
    if any(path != "dtype" and path in dtypes for own in (*paths, frozenset(shared)) for path in own):
        yield dtypes


def view(kept: FlatSettings, spoken: FlatSettings, labels: tuple[tuple[int, str], ...]) -> SettingsSlice:
    """A view from its canonical leaves and the leaves to be keywords."""
    return SettingsSlice(_encode(sorted(kept.items())), kept, keywords(spoken), labels)


def keywords(spoken: FlatSettings) -> dict[str, Keyword]:
    """Marker keywords of scalar settings; floats as their text, nulls and nested values not at all."""
    found: dict[str, Keyword] = {}
    for path, value in spoken.items():
        if value is None or isinstance(value, (list, tuple, dict)):
            continue
        name = keyword(path)
        if name.isidentifier():
            found[name] = repr(value) if isinstance(value, float) else value  # type: ignore[assignment]
    return found


def shared_view(leaves: FlatSettings, engine: str) -> tuple[SettingsSlice, dict[str, str]]:
    """The view of settings that no axis touches, and those of them that do nothing."""
    kept, asleep = canonical(leaves, engine)
    return view(kept, _spoken(with_engine_dtype(leaves, engine), asleep), ()), asleep


def cluster_view(
    cluster: Cluster, chosen: Iterable[tuple[int, Alternative | None]], shared: FlatSettings, engine: str
) -> tuple[SettingsSlice, dict[str, str]]:
    """The view of one combination in a cluster, and the settings of it that do nothing."""
    picked = list(chosen)
    leaves = {path: shared[path] for path in cluster.paths if path in shared}
    for _, alternative in picked:
        if alternative is not None:
            apply(leaves, alternative.settings)
    kept, asleep = canonical(leaves, engine)
    labels = tuple(
        (axis, alternative.label)
        for axis, alternative in picked
        if alternative is not None and not _all_asleep(alternative, asleep)
    )
    return view(kept, _spoken(with_engine_dtype(leaves, engine), asleep), labels), asleep


def _spoken(leaves: FlatSettings, asleep: dict[str, str]) -> FlatSettings:
    merged = {**leaves, **written_out(leaves)} if "decoding.preset" in leaves else leaves
    return {path: value for path, value in merged.items() if path not in asleep}


def _all_asleep(alternative: Alternative, asleep: dict[str, str]) -> bool:
    return bool(asleep and alternative.settings) and all(setting.path in asleep for setting in alternative.settings)


def ordered_labels(parts: Iterable[SettingsSlice]) -> Iterator[str]:
    """The labels of several views in the order of their axes."""
    for _, label in sorted(label for part in parts for label in part.labels):
        yield label
