"""`run.json`: the plan of a run, its machine, and the state of each item.

The session writes it, in one process only (the controller under xdist), from the cycles' state files; baselines, the
commands and the report read it. The format is published: fields are added, never renamed.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from pytest_llem.errors import JsonValue, StoreError
from pytest_llem.job.files import write_json
from pytest_llem.job.wire import encode, read_versioned
from pytest_llem.results.axes import StudyAxes
from pytest_llem.results.layout import MANIFEST, CycleKey, confirming_directories, cycle_directories, runs_at
from pytest_llem.results.registration import Registration
from pytest_llem.results.state import Holder, StateName, now, read_state
from pytest_llem.study.model import SourceText, SweptAxis
from pytest_llem.study.report_settings import ReportSettings

RunState = Literal["running", "interrupted", "stopped", "failed", "complete", "unfinished"]
"""`stopped` came to its end with planned cycles that were not begun (`-x`, skipped by another plugin); `failed` has
cycles that failed. `unfinished` goes on, or was killed, on another host."""
MANIFEST_VERSION = 1
"""Raised when a field is renamed, removed or changes its meaning."""


@dataclass(frozen=True)
class PlannedCycle:
    """One item of a study, in the order of collection."""

    experiment_id: str
    config_hash: str
    cycle: int


@dataclass(frozen=True)
class SkippedPoint:
    """A point of a sweep that is not run, and the reason."""

    experiment_id: str
    reason: str


@dataclass(frozen=True)
class StudyPlan:
    """A study of the run: its file, its content's hash, its order and its items.

    `required_cycles` is how many cycles the study asks for per experiment; those beyond are optional (`target_ci`,
    or a race, which gives that many to all of its settings).
    `points` holds, by the id of an experiment, its value on each of the `axes` of the sweep, `None` where it has none;
    `settings` names what else experiments differ in.
    `text` is the file as it was read, `None` if it was too large to keep, and `bases` are the files below it. Secrets
    are redacted, so that `file_sha256`, that of the file itself, may be another than that of the text. `registration`
    is what lies beside the file (`llem preregister`); with one, `protocol` is how the study is run and judged.
    `optimize` says what its settings raced for, where they did.
    """

    name: str
    path: str | None
    sha256: str | None = None
    order: str | None = None
    cycles: tuple[PlannedCycle, ...] = ()
    left_out: tuple[SkippedPoint, ...] = ()
    required_cycles: int | None = None
    axes: tuple[SweptAxis, ...] = ()
    points: Mapping[str, tuple[JsonValue, ...]] = field(default_factory=dict)
    title: str | None = None
    headline: str | None = None
    text: str | None = None
    file_sha256: str | None = None
    bases: tuple[SourceText, ...] = ()
    settings: tuple[str, ...] = ()
    report: ReportSettings = field(default_factory=ReportSettings)
    protocol: Mapping[str, JsonValue] = field(default_factory=dict)
    registration: Registration | None = None
    optimize: str | None = None

    def cycle_keys(self) -> list[CycleKey]:
        """The planned cycles as keys."""
        return [CycleKey(self.name, **vars(item)) for item in self.cycles]

    def study_axes(self) -> StudyAxes:
        """The axes of the sweep, with the points on them."""
        return StudyAxes(self.axes, self.points, self.settings)


@dataclass(frozen=True)
class ManifestItem:
    """The state of one cycle. `pending` was planned and not started."""

    study: str
    experiment_id: str
    config_hash: str
    cycle: int
    state: StateName | Literal["pending"]
    attempts: tuple[StateName, ...]
    directory: str
    reasons: tuple[str, ...] = ()
    source_run: str | None = None
    not_reused: str | None = None
    confirms: bool = False

    @property
    def key(self) -> CycleKey:
        """Which cycle this is."""
        return CycleKey(self.study, self.experiment_id, self.config_hash, self.cycle, confirms=self.confirms)


@dataclass(frozen=True)
class Invocation:
    """How pytest was called: the command line with secrets redacted, where, the root directory, and the process."""

    command: tuple[str, ...]
    directory: str
    rootdir: str
    holder: Holder


@dataclass(frozen=True)
class Manifest:
    """`run.json`. `finished_at` is `None` while the run goes on, or if it was killed; `interrupted` as well.

    `interrupted` is whether Ctrl-C or the like ended the run; one that stops at a failure (`-x`) is not.
    `confirming` are cycles that were measured because a gate failed: they are that gate's alone, and not among `items`.
    """

    run_id: str
    started_at: str
    environment: Mapping[str, JsonValue]
    studies: tuple[StudyPlan, ...] = ()
    items: tuple[ManifestItem, ...] = ()
    finished_at: str | None = None
    facts: Mapping[str, JsonValue] = field(default_factory=dict)
    invocation: Invocation | None = None
    interrupted: bool | None = None
    confirming: tuple[ManifestItem, ...] = ()
    schema_version: int = MANIFEST_VERSION


def write_manifest(run_dir: Path, manifest: Manifest) -> None:
    """Write `run.json` atomically."""
    write_json(run_dir / MANIFEST, encode(manifest))


def read_manifest(path: Path) -> Manifest:
    """Read a `run.json`; `StoreError` when it is absent, broken or of a newer version."""
    return read_versioned(Manifest, path, MANIFEST_VERSION, "manifest")


def manifests_at(path: Path) -> list[Manifest]:
    """Those of the runs at a path, newest first; none where it has none."""
    return [read_manifest(run / MANIFEST) for run in runs_at(path)]


def current_manifest(run_dir: Path) -> Manifest:
    """A run's manifest; of one that has not come to its end, with the cycles as their state files tell of them."""
    manifest = read_manifest(run_dir / MANIFEST)
    return manifest if manifest.finished_at else replace(manifest, items=_items(run_dir, manifest.studies))


def run_state(manifest: Manifest) -> RunState:
    """What became of a run, by its current manifest. Whether it goes on is known on the host that runs it alone."""
    if manifest.finished_at is None:
        holder = manifest.invocation.holder if manifest.invocation else None
        if any(item.state == "running" for item in manifest.items) or (holder is not None and holder.lives()):
            return "running"
        return "unfinished" if holder is not None and holder.hostname != platform.node() else "interrupted"
    states = {item.state for item in manifest.items}
    if manifest.interrupted:
        return "interrupted"
    if "pending" in states:
        return "stopped"
    return "failed" if states & {"failed", "crashed", "interrupted"} else "complete"


@dataclass(frozen=True)
class ShardOf:
    """A shard's number, the number of shards, and each study's split (`session.sharding.Split.digest`)."""

    index: int
    count: int
    splits: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def shard_of(manifest: Manifest) -> ShardOf | None:
    """The shard that a run is, `None` for a whole one; `StoreError` when its manifest states it in another format."""
    shard = manifest.facts.get("shard")
    if shard is None:
        return None
    match shard:
        case {"index": int(index), "count": int(count), "splits": dict(splits)}:
            return ShardOf(index, count, {study: str(digest) for study, digest in splits.items()})
    raise StoreError(f"run {manifest.run_id}: run.json does not say which shard it is: {shard!r}")


def rebuild_manifest(
    run_dir: Path,
    *,
    studies: tuple[StudyPlan, ...] | None = None,
    finished: bool = False,
    interrupted: bool | None = None,
    invocation: Invocation | None = None,
    facts: Mapping[str, JsonValue] | None = None,
) -> Manifest:
    """Bring `run.json` up to date with the state files, and return it.

    `studies` replaces the plan (the store may be created before collection), `facts` are merged over the earlier ones.
    A cycle that is still `running` although its process is gone is listed as `crashed`.
    """
    manifest = read_manifest(run_dir / MANIFEST)
    studies = manifest.studies if studies is None else studies
    manifest = replace(
        manifest,
        studies=studies,
        items=_items(run_dir, studies),
        confirming=tuple(_begun(run_dir, confirming_directories(run_dir)).values()),
        facts={**manifest.facts, **(facts or {})},
        finished_at=now() if finished else manifest.finished_at,
        interrupted=manifest.interrupted if interrupted is None else interrupted,
        invocation=invocation or manifest.invocation,
    )
    write_manifest(run_dir, manifest)
    return manifest


def _items(run_dir: Path, studies: tuple[StudyPlan, ...]) -> tuple[ManifestItem, ...]:
    begun = _begun(run_dir, cycle_directories(run_dir))
    planned = [key for study in studies for key in study.cycle_keys()]
    return tuple(begun.get(key) or _pending(key) for key in dict.fromkeys([*planned, *begun]))


def _begun(run_dir: Path, directories: Iterable[Path]) -> dict[CycleKey, ManifestItem]:
    begun: dict[CycleKey, ManifestItem] = {}
    for directory in directories:
        state = read_state(directory)
        if state is None:
            continue
        crashed = state.state == "running" and not (state.holder and state.holder.lives())
        begun[state.key] = ManifestItem(
            **vars(state.key),
            state="crashed" if crashed else state.state,
            attempts=state.attempts,
            directory=directory.relative_to(run_dir).as_posix(),
            reasons=state.reasons,
            source_run=state.source_run,
            not_reused=state.not_reused,
        )
    return begun


def _pending(key: CycleKey) -> ManifestItem:
    return ManifestItem(**vars(key), state="pending", attempts=(), directory=key.directory.as_posix())
