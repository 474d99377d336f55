"""Makes a history's entries of a run's results, and adds them to the folder.

`llem history add` calls it. A run is never changed, and what a history already holds is never lost to less of the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal

from pytest_llem.errors import StoreError
from pytest_llem.job.files import read_json, write_text
from pytest_llem.results.baselines import baseline_run, required_cycles
from pytest_llem.results.comparability import CORRELATED, compared_settings
from pytest_llem.results.gate_report import GateRow, read_gates
from pytest_llem.results.gates import Status
from pytest_llem.results.history.files import history_file, read_file, written
from pytest_llem.results.history.record import HistoryEntry, HistoryRun, MetricEntry, utc
from pytest_llem.results.layout import MANIFEST, runs_at, started_at
from pytest_llem.results.manifest import Manifest, read_manifest, shard_of
from pytest_llem.results.reading import Results, load_rows
from pytest_llem.results.schema import Result
from pytest_llem.results.statistics import mean_interval
from pytest_llem.results.whole_runs import whole_runs

DIGITS = 6
"""Significant digits of a bound, as of a value in a baseline."""
ALPHA = 0.05
"""Of each bound, as a gate's by default."""
WORSE: tuple[Status, ...] = ("pass", "inconclusive", "not_comparable", "fail")


@dataclass(frozen=True)
class Added:
    """What became of one study of a run: its file, and how many experiments it has.

    `kept`: the file there holds measurements that the run lacks, as one of all shards does, and was left as it was.
    """

    path: Path
    study: str
    run_id: str
    experiments: int
    outcome: Literal["added", "already there", "replaced", "kept"]


def add_run(path: Path, directory: Path) -> list[Added]:
    """Add the run at `path`, or the runs in it, to a history. Raises `StoreError` where one has no valid result."""
    return [added for run in whole_runs_at(path) for added in add_whole_run(run, directory)]


def whole_runs_at(path: Path) -> list[list[Path]]:
    """The runs at a path, oldest first, each with the directories of its shards.

    Shards of one split make one run, also where some of them are missing.
    """
    directories = runs_at(path)
    manifests: dict[int, tuple[Manifest, Path]] = {}
    by_split: dict[str, list[Manifest]] = {}
    broken = []
    for directory in directories:
        try:
            manifest = read_manifest(directory / MANIFEST)
            shard = shard_of(manifest)
        except StoreError:
            broken.append([directory])  # said when it is added
        else:
            manifests[id(manifest)] = (manifest, directory)
            split = "" if shard is None else f"{shard.count} {sorted(shard.splits.items())}"
            by_split.setdefault(split, []).append(manifest)
    groups = [group for split in by_split.values() for group in whole_runs(split)]
    groups.sort(key=lambda group: group[0].run_id)
    return [*broken, *([manifests[id(each)][1] for each in group] for group in groups)] if directories else [[path]]


def add_whole_run(shards: Sequence[Path], directory: Path) -> list[Added]:
    """Add one run, each of its studies to a file of its own.

    Only valid cycles count, and none that `target_ci` added. Cycles that `--llem-resume` took over count for this run
    if it was started on the commit that they measured, else for the run that measured them. Raises `StoreError` where
    there is none.
    """
    rows = [(result, shard) for shard in shards for result in required_cycles(shard, load_rows(shard)).valid]
    if not rows:
        raise StoreError(
            f"{', '.join(map(str, shards))}: no valid cycle, so that there is nothing to add",
            fix="see llem list for what became of the run",
        )
    own = {shard: _own_commit(shard) for shard in shards}
    gates = _gates(shards)
    run_id = min(result.run_id for result, _ in rows)
    groups: dict[str, dict[str, list[Result]]] = {}
    for result, shard in rows:
        of_own_commit = own[shard] in (None, _commit(result))
        measured_by = run_id if result.source_run is None or of_own_commit else result.source_run
        groups.setdefault(result.study, {}).setdefault(measured_by, []).append(result)
    added = []
    for study, by_run in groups.items():
        entries = [
            entry
            for name, results in sorted(by_run.items(), key=lambda item: item[0] != run_id)
            for entry in _entries(name, study, results, gates if name == run_id else {})
        ]
        path = history_file(directory, study, run_id)
        added.append(Added(path, study, run_id, len(entries), _put(path, entries)))
    return added


def _put(path: Path, entries: Sequence[HistoryEntry]) -> Literal["added", "already there", "replaced", "kept"]:
    text = written(entries)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
        return "added"
    if path.read_bytes() == text.encode(errors="replace"):
        return "already there"
    if _measurements(read_file(path, [])) - _measurements(entries):
        return "kept"
    write_text(path, text)
    return "replaced"


def _measurements(entries: Sequence[HistoryEntry]) -> set[tuple[str, str]]:
    return {(entry.config_hash, each) for entry in entries for each in entry.measurements}


def _entries(
    run_id: str, study: str, results: Sequence[Result], gates: Mapping[tuple[str, str], Sequence[GateRow]]
) -> Iterator[HistoryEntry]:
    run = _run(run_id, study, results)
    for (_, experiment_id), group in Results(tuple(results)).by_experiment().items():
        kept = baseline_run(group.items)
        correlated = group[0].runner.isolation in CORRELATED
        rows = gates.get((study, experiment_id), ())
        yield HistoryEntry(
            run=run,
            experiment_id=experiment_id,
            config_hash=group[0].experiment.config_hash,
            fingerprint=group[0].environment.fingerprint,
            conditions=kept.conditions,
            settings=compared_settings(group[0]),
            metrics={name: metric_entry(cycles, correlated=correlated) for name, cycles in kept.values.items()},
            gain_uncertainty_rel=kept.gain_uncertainty_rel,
            measurements=kept.measurements,
            scores=kept.scores,
            verdicts=_worst(rows),
            regressed=tuple(
                dict.fromkeys(row.metric for row in rows if row.kind == "comparison" and row.status == "fail")
            ),
        )


def _run(run_id: str, study: str, results: Sequence[Result]) -> HistoryRun:
    git, dirty = _git(results[0]), _git(results[0]).get("dirty")
    hosts = sorted({name for result in results if (name := _text(result.environment.host.get("hostname")))})
    committed_at = None
    with suppress(ValueError):
        committed_at = utc(_text(git.get("committed_at")) or "")
    return HistoryRun(
        run_id=run_id,
        study=study,
        started_at=utc(started_at(run_id) or min(result.measured_from or result.created_at for result in results)),
        commit=_commit(results[0]),
        committed_at=committed_at,
        dirty=any(_git(result).get("dirty") for result in results) if isinstance(dirty, bool) else None,
        repository=_text(git.get("repository")),
        hostname=" and ".join(hosts) or None,
        pytest_llem=_text(results[0].environment.host.get("pytest_llem")),
    )


def _own_commit(run_dir: Path) -> str | None:
    """The commit that a run was started on."""
    with suppress(StoreError):
        environment = read_json(run_dir / MANIFEST).get("environment")
        git = environment.get("git") if isinstance(environment, dict) else None
        return _text(git.get("commit")) if isinstance(git, dict) else None
    return None


def _git(result: Result) -> Mapping[str, object]:
    git = result.environment.host.get("git")
    return git if isinstance(git, dict) else {}


def _commit(result: Result) -> str | None:
    return _text(_git(result).get("commit"))


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _gates(shards: Sequence[Path]) -> dict[tuple[str, str], list[GateRow]]:
    """What the run's own gates said, by study and experiment."""
    gates: dict[tuple[str, str], list[GateRow]] = {}
    for shard in shards:
        for report in read_gates(shard):
            gates.setdefault((report.study, report.experiment_id), []).extend(report.rows)
    return gates


def _worst(rows: Sequence[GateRow]) -> dict[str, Status]:
    """The worst verdict by metric."""
    verdicts: dict[str, Status] = {}
    for row in rows:
        verdicts[row.metric] = max(row.status, verdicts.get(row.metric, "pass"), key=WORSE.index)
    return verdicts


def metric_entry(cycles: tuple[float, ...], *, correlated: bool) -> MetricEntry:
    """A metric of one run; `correlated` where its cycles shared one loaded engine."""
    if len(cycles) < 2 or min(cycles) <= 0:
        return MetricEntry(_rounded(fmean(cycles)), None, None, cycles)
    interval = mean_interval(cycles, ALPHA, correlated=correlated)
    return MetricEntry(_rounded(interval.value), _rounded(interval.low), _rounded(interval.high), cycles)


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
