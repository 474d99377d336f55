"""Writes a run into a history's folder, and reads all that is there.

The commands and gates call it. A file per run and study, written at once: two runners that add at the same time, on a
disk or on two branches that are merged, never write the same file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from statistics import fmean

from pytest_llem.errors import JsonValue, StoreError
from pytest_llem.job.files import noted, parse_object, slug, write_text
from pytest_llem.job.wire import decode, encode
from pytest_llem.results.baselines import baseline_run, required_cycles
from pytest_llem.results.comparability import compared_settings
from pytest_llem.results.gate_report import read_gates
from pytest_llem.results.gates import Status
from pytest_llem.results.history.record import HISTORY_VERSION, HistoryEntry, HistoryRun, MetricEntry
from pytest_llem.results.layout import started_at
from pytest_llem.results.reading import Results, load
from pytest_llem.results.statistics import mean_interval

DIGITS = 6
"""Significant digits of a bound, as of a value."""


@dataclass(frozen=True)
class History:
    """What a folder holds, in order of time; `problems` are sentences on what was skipped, each with file and line."""

    source: str
    entries: tuple[HistoryEntry, ...]
    problems: tuple[str, ...] = ()

    def of_study(self, study: str) -> tuple[HistoryEntry, ...]:
        """The entries of one study."""
        return tuple(entry for entry in self.entries if entry.run.study == study)


def add_run(run: Path, directory: Path) -> list[Path]:
    """Add a run, each of its studies to a file of its own; those files. What was added before is replaced.

    Only valid cycles count, and none that `target_ci` added. Raises `StoreError` where there is none.
    """
    results = required_cycles(run, load(run)).valid
    if not results:
        raise StoreError(f"{run}: no valid result", fix="name a run that measured something")
    verdicts = {
        (report.study, report.experiment_id): {row.metric: row.status for row in report.rows}
        for report in read_gates(run)
    }
    files = []
    for (run_id, study), group in _by_run_and_study(results).items():
        entries = list(_entries(run_id, study, group, verdicts))
        path = directory / slug(study) / f"{slug(run_id)}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, written(entries))
        files.append(path)
    return files


def read_history(directory: Path) -> History:
    """All that a folder holds; what cannot be read is skipped and said. Raises `StoreError` where it is no folder."""
    if not directory.is_dir():
        raise StoreError(f"{directory}: no such folder", fix="begin a history: llem history add RUN --to DIR")
    problems: list[str] = []
    entries: list[HistoryEntry] = []
    for path in sorted(directory.glob("*/*.jsonl")):
        with noted(problems):
            entries += read_file(path, problems)
    entries.sort(key=lambda entry: (entry.run.at, entry.run.run_id))
    return History(str(directory), tuple(entries), tuple(problems))


def read_file(path: Path, problems: list[str]) -> list[HistoryEntry]:
    """The entries of one file; a broken line is noted in `problems`, and a file without its first line is none."""
    lines = path.read_bytes().splitlines()
    try:
        run = decode(HistoryRun, _line(lines[0] if lines else b"", f"{path}:1"))
    except ValueError as problem:
        problems.append(f"{problem}: the file was skipped")
        return []
    entries = []
    for number, line in enumerate(lines[1:], start=2):
        try:
            data = _line(line, f"{path}:{number}")
            for shared in ("conditions", "settings"):
                own = data.get(shared)
                data[shared] = {**getattr(run, shared), **(own if isinstance(own, dict) else {})}
            entries.append(decode(HistoryEntry, {**data, "run": encode(run)}, f"{path}:{number}"))
        except ValueError as problem:
            problems.append(f"{problem}: the line was skipped")
    return entries


def written(entries: Sequence[HistoryEntry]) -> str:
    """The file of one run and study: the run with what all share, then a line per experiment."""
    shared = {
        name: _common([getattr(entry, name) for entry in entries if isinstance(getattr(entry, name), Mapping)])
        for name in ("conditions", "settings")
    }
    run = replace(entries[0].run, conditions=shared["conditions"], settings=shared["settings"])
    lines: list[JsonValue] = [encode(run)]
    for entry in entries:
        line = encode(replace(entry, run=run))
        assert isinstance(line, dict)
        del line["run"]
        for name, common in shared.items():
            own: Mapping[str, JsonValue] = getattr(entry, name)
            line[name] = {key: value for key, value in own.items() if key not in common}
        lines.append(line)
    texts = [json.dumps(line, ensure_ascii=False, allow_nan=False, separators=(",", ":")) for line in lines]
    return "\n".join(texts) + "\n"


def _line(text: bytes, where: str) -> dict[str, JsonValue]:
    data = parse_object(text, where)
    version = data.get("schema_version")
    if isinstance(version, int) and version > HISTORY_VERSION:
        raise ValueError(f"{where}: history format {version} is newer than {HISTORY_VERSION}, the newest that is read")
    return data


def _common(each: Sequence[Mapping[str, JsonValue]]) -> dict[str, JsonValue]:
    first = each[0]
    return {key: value for key, value in first.items() if all(key in other and other[key] == value for other in each)}


def _by_run_and_study(results: Results) -> dict[tuple[str, str], Results]:
    keys = dict.fromkeys((result.run_id, result.study) for result in results)
    return {key: results.where(lambda result, key=key: (result.run_id, result.study) == key) for key in keys}  # type: ignore[misc]


def _entries(
    run_id: str, study: str, results: Results, verdicts: Mapping[tuple[str, str], Mapping[str, Status]]
) -> Iterator[HistoryEntry]:
    first = results[0]
    git = first.environment.host.get("git")
    facts = git if isinstance(git, Mapping) else {}

    def text(value: object) -> str | None:
        return value if isinstance(value, str) else None

    dirty = facts.get("dirty")
    run = HistoryRun(
        run_id=run_id,
        study=study,
        started_at=started_at(run_id) or first.created_at or datetime.now(timezone.utc).isoformat(),
        commit=text(facts.get("commit")),
        committed_at=text(facts.get("committed_at")),
        dirty=dirty if isinstance(dirty, bool) else None,
        repository=text(facts.get("repository")),
        hostname=text(first.environment.host.get("hostname")),
        pytest_llem=text(first.environment.host.get("pytest_llem")),
    )
    for (_, experiment_id), group in results.by_experiment().items():
        kept = baseline_run(group.items)
        yield HistoryEntry(
            run=run,
            experiment_id=experiment_id,
            config_hash=group[0].experiment.config_hash,
            fingerprint=group[0].environment.fingerprint,
            conditions=kept.conditions,
            settings=compared_settings(group[0]),
            metrics={name: _metric(cycles) for name, cycles in kept.values.items()},
            gain_uncertainty_rel=kept.gain_uncertainty_rel,
            measurements=kept.measurements,
            scores=kept.scores,
            verdicts=verdicts.get((study, experiment_id), {}),
        )


def _metric(cycles: tuple[float, ...]) -> MetricEntry:
    if len(cycles) < 2 or min(cycles) <= 0:
        return MetricEntry(fmean(cycles), None, None, cycles)
    interval = mean_interval(cycles, 0.05)
    value, low, high = (float(f"{number:.{DIGITS}g}") for number in (interval.value, interval.low, interval.high))
    return MetricEntry(value, low, high, cycles)
