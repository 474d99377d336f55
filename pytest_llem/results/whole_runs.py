"""Joins the shards of one run (`--llem-shard=K/N`), so that a comparison sees runs as the user started them.

`compare_command` calls it. Shards that do not fit together are refused: together they lack experiments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pytest_llem.errors import StoreError
from pytest_llem.results.manifest import Manifest, manifests_at, shard_of
from pytest_llem.results.reading import Results


def whole_runs(manifests: Sequence[Manifest]) -> list[list[Manifest]]:
    """Runs with the shards of one run joined, in the order of the first of each.

    Shards belong together when they have the same split of the same studies. If a shard occurs twice, because a study
    was run again, the older ones form one run and the newer ones another. Raises `StoreError` for shards of the same
    studies and count that were split differently: together they lack experiments and repeat others.
    """
    groups: list[list[Manifest]] = []
    splits: dict[tuple[int, tuple[str, ...]], Mapping[str, str]] = {}
    for manifest in sorted(manifests, key=lambda manifest: manifest.run_id):
        shard = shard_of(manifest)
        if shard is None:
            groups.append([manifest])
            continue
        kind = (shard.count, tuple(sorted(shard.splits)))
        if splits.setdefault(kind, shard.splits) != shard.splits:
            raise StoreError(
                f"run {manifest.run_id} is shard {shard}, and was split in another way than the other shards of "
                f"{', '.join(kind[1])}",
                fix="run all shards of the same study file, with the same --llem-shard-times or without",
            )
        for group in groups:
            first, present = shard_of(group[0]), _indices(group)
            if first and (first.splits, first.count) == (shard.splits, shard.count) and shard.index not in present:
                group.append(manifest)
                break
        else:
            groups.append([manifest])
    return groups


def by_whole_run(path: Path, results: Results) -> list[tuple[str, Results]]:
    """The rows at `path` by run, shards joined and named after the first; an incomplete run lists its shards."""
    manifests = manifests_at(path)
    named: list[tuple[str, Results]] = []
    covered: set[str] = set()
    for group in whole_runs(manifests):
        ids = {manifest.run_id for manifest in group}
        covered |= ids
        part = results.of_run(*ids)
        if part:
            named.append((_name(group), part))
    rest = dict.fromkeys(result.run_id for result in results if result.run_id not in covered)
    return named + [(run, results.of_run(run)) for run in rest]


def _indices(group: Sequence[Manifest]) -> list[int]:
    return sorted(shard.index for shard in map(shard_of, group) if shard is not None)


def _name(group: Sequence[Manifest]) -> str:
    first, present = shard_of(group[0]), _indices(group)
    if first is None:
        return group[0].run_id
    if len(present) == first.count:
        return f"{group[0].run_id} (all of {first.count} shards)"
    return f"{group[0].run_id} (shard{'s' * (len(present) > 1)} {', '.join(map(str, present))} of {first.count})"
