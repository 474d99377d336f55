"""Shards of one run (`--llem-shard=K/N`), each a run directory of its own, read as the one run that they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_llem.errors import StoreError
from pytest_llem.results.layout import MANIFEST, run_directories
from pytest_llem.results.loading import Results
from pytest_llem.results.manifest import Manifest, read_manifest


@dataclass(frozen=True)
class ShardOf:
    """Which part of how many a run is, and of which split of each study (see `session.sharding.Split.digest`)."""

    index: int
    count: int
    splits: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def shard_of(manifest: Manifest) -> ShardOf | None:
    """The shard that a run is, `None` for a whole one. `StoreError` when its manifest says it in no way known here."""
    said = manifest.facts.get("shard")
    if said is None:
        return None
    match said:
        case {"index": int(index), "count": int(count), "splits": dict(splits)}:
            return ShardOf(index, count, {study: str(digest) for study, digest in splits.items()})
    raise StoreError(f"run {manifest.run_id}: run.json does not say which shard it is: {said!r}")


def whole_runs(manifests: Sequence[Manifest]) -> list[list[Manifest]]:
    """Runs with the shards of one run put together, in the order of the first of each.

    Shards belong together when they have the same split of the same studies; where a shard is there twice, because
    a study was run again, the older ones make up a run and the newer ones another. Raises `StoreError` for shards of
    the same studies and count that were split differently: together they lack experiments, and have others twice.
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
            others = [found for found in map(shard_of, group) if found is not None]
            together = all((other.splits, other.count) == (shard.splits, shard.count) for other in others)
            if others and together and all(other.index != shard.index for other in others):
                group.append(manifest)
                break
        else:
            groups.append([manifest])
    return groups


def by_whole_run(path: Path, results: Results) -> list[tuple[str, Results]]:
    """The results that `path` stands for, run by run; the shards of a run are one, named after its first.

    A run of which only some shards are there says so in its name.
    """
    root = path.parent if path.name == MANIFEST else path
    directories = [root] if (root / MANIFEST).exists() else run_directories(root) if root.is_dir() else []
    manifests = [read_manifest(directory / MANIFEST) for directory in directories]
    found: list[tuple[str, Results]] = []
    covered: set[str] = set()
    for group in whole_runs(manifests):
        ids = {manifest.run_id for manifest in group}
        covered |= ids
        part = results.where(lambda result, ids=ids: result.run_id in ids)  # type: ignore[misc]
        if part:
            found.append((_name(group), part))
    rest = dict.fromkeys(result.run_id for result in results if result.run_id not in covered)
    return found + [(run, results.of_run(run)) for run in rest]


def _name(group: Sequence[Manifest]) -> str:
    shard = shard_of(group[0])
    if shard is None:
        return group[0].run_id
    here = sorted(found.index for found in map(shard_of, group) if found is not None)
    if len(here) == shard.count:
        return f"{group[0].run_id} (all of {shard.count} shards)"
    return f"{group[0].run_id} (shard{'s' if len(here) > 1 else ''} {', '.join(map(str, here))} of {shard.count})"
