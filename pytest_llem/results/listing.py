"""The runs of a results folder, for `llem list`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_llem.errors import StoreError
from pytest_llem.results.layout import MANIFEST, run_directories
from pytest_llem.results.manifest import read_manifest
from pytest_llem.results.shards import shard_of
from pytest_llem.results.tables import table

HEAD = ("run", "started", "studies", "cycles", "valid", "reused", "other", "host", "state")


@dataclass(frozen=True)
class RunRow:
    """One run: `states` counts its cycles by state, `finished` says whether pytest came to its end."""

    run_id: str
    directory: str
    started_at: str
    studies: tuple[str, ...]
    states: dict[str, int]
    reused: int
    hostname: str | None
    finished: bool
    shard: str | None = None


def list_runs(out: Path) -> list[RunRow]:
    """The runs under `out` (or the run that `out` is), newest first; `StoreError` when there are none."""
    runs = [out] if (out / MANIFEST).exists() else run_directories(out)
    if not runs:
        raise StoreError(f"{out}: no runs here", fix="name the folder that --llem-out wrote to")
    return [_row(run) for run in runs]


def lines(rows: Sequence[RunRow]) -> list[str]:
    """The runs as a table."""
    body = [
        (
            row.run_id,
            row.started_at.replace("+00:00", "Z"),
            (", ".join(row.studies) or "-") + (f" (shard {row.shard})" if row.shard else ""),
            str(sum(row.states.values())),
            str(row.states.get("valid", 0)),
            str(row.reused),
            ", ".join(f"{count} {state}" for state, count in sorted(row.states.items()) if state != "valid") or "-",
            row.hostname or "-",
            "finished" if row.finished else "unfinished",
        )
        for row in rows
    ]
    return table(HEAD, body, left=3)


def _row(run: Path) -> RunRow:
    manifest = read_manifest(run / MANIFEST)
    hostname = manifest.environment.get("hostname")
    shard = shard_of(manifest)
    return RunRow(
        run_id=manifest.run_id,
        directory=str(run),
        started_at=manifest.started_at,
        studies=tuple(dict.fromkeys([*(study.name for study in manifest.studies), *(i.study for i in manifest.items)])),
        states=dict(Counter(item.state for item in manifest.items)),
        reused=sum(item.source_run is not None for item in manifest.items),
        hostname=hostname if isinstance(hostname, str) else None,
        finished=manifest.finished_at is not None,
        shard=None if shard is None else str(shard),
    )
