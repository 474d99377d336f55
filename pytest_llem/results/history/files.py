"""Writes and reads a history's files: a file per study and run that was added, a line per experiment.

`adding` writes them; the commands, gates, comments and the page read all of a folder. No two runs share a file, so that
runners that add at once, on a disk or on branches that are merged, lose nothing.
"""

from __future__ import annotations

import gc
import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from itertools import accumulate, chain, groupby, pairwise
from math import isfinite, isnan, nan
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args

from pytest_llem.errors import JsonValue, StoreError
from pytest_llem.job.files import noted, open_regular, parse_json, slug
from pytest_llem.job.wire import decode, encode
from pytest_llem.results.gates import Status
from pytest_llem.results.history.record import HISTORY_VERSION, HistoryEntry, HistoryRun, MetricEntry, utc

T = TypeVar("T")
Conditions = Mapping[str, JsonValue]
NUMBERS = frozenset({int, float})
STATUSES = frozenset(get_args(Status))
RUN_FIELDS = frozenset(field.name for field in fields(HistoryRun))
METRICS = "metrics"


class Block(NamedTuple):
    """A run as its line has it, with the names of the metrics whose numbers the lines of its experiments hold."""

    run: HistoryRun
    columns: Mapping[str, int]


class MetricRows(Mapping[str, MetricEntry]):
    """The metrics of one experiment as its line has them: all numbers of a history are many, and few are asked for.

    The numbers of column n are those from `starts[n]` on; a bound that is absent is NaN.
    """

    def __init__(self, columns: Mapping[str, int], starts: Sequence[int], numbers: array[float], cycles: int) -> None:
        self._columns, self._starts, self._numbers, self._cycles = columns, starts, numbers, cycles

    def __getitem__(self, name: str) -> MetricEntry:
        column = self._columns[name]
        row = self._numbers[self._starts[column] : self._starts[column + 1]]
        if not row:
            raise KeyError(name)
        value, low, high, *cycles = row
        whole = cycles * (self._cycles or 1) if len(cycles) == 1 else cycles
        return MetricEntry(value, None if isnan(low) else low, None if isnan(high) else high, tuple(whole))

    def __iter__(self) -> Iterator[str]:
        return (name for name, (start, end) in zip(self._columns, pairwise(self._starts), strict=True) if end > start)

    def __len__(self) -> int:
        return sum(1 for _ in self)


@dataclass(frozen=True)
class History:
    """What a folder holds, in order of time; `problems` are sentences on what was skipped, each with file and line."""

    source: str
    entries: tuple[HistoryEntry, ...]
    problems: tuple[str, ...] = ()

    def of_study(self, study: str) -> tuple[HistoryEntry, ...]:
        """The entries of one study."""
        return tuple(entry for entry in self.entries if entry.run.study == study)


def history_file(directory: Path, study: str, run_id: str) -> Path:
    """The file of one study of a run."""
    return directory / _file_name(study) / f"{_file_name(run_id)}.jsonl"


def _file_name(text: str) -> str:
    """The text's slug, and where that loses something the digits that tell it from others of the same slug."""
    kept = slug(text)
    return kept if kept == text else f"{kept}-{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:8]}"


def read_history(directory: Path) -> History:
    """All that a folder holds; what cannot be read is skipped and said. Raises `StoreError` where it is no folder.

    Of entries that hold the same measurements, because a run took them over from another or was added as shards and
    as a whole, the one with most is kept, the newer if equal.
    """
    if not directory.is_dir():
        raise StoreError(f"{directory}: no such folder", fix="begin a history: llem history add RUN --to DIR")
    problems: list[str] = []
    entries: list[HistoryEntry] = []
    with _without_garbage_collection():
        for path in sorted(directory.glob("*/*.jsonl")):
            with noted(problems):
                entries += read_file(path, problems)
    entries.sort(key=lambda entry: (entry.run.at, entry.run.run_id))
    return History(str(directory), tuple(_each_once(entries)), tuple(problems))


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """All that is made stays, and to look through it again and again takes as long as reading."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _each_once(entries: Sequence[HistoryEntry]) -> Iterator[HistoryEntry]:
    held: dict[tuple[str, str, str], HistoryEntry] = {}
    dropped: set[int] = set()
    for entry in sorted(entries, key=lambda entry: len(entry.measurements)):  # stable: the newer of equals comes later
        for measurement in entry.measurements:
            key = (entry.run.study, entry.config_hash, measurement)
            if (smaller := held.get(key)) is not None:
                dropped.add(id(smaller))
            held[key] = entry
    return (entry for entry in entries if id(entry) not in dropped)


def read_file(path: Path, problems: list[str]) -> list[HistoryEntry]:
    """The entries of one file; a broken line is noted in `problems`, and costs those below it if it is a run's."""
    with open_regular(path) as stream:
        lines = stream.read().splitlines()
    entries: list[HistoryEntry] = []
    block: Block | None = None
    lost = 0  # experiments whose run could not be read
    for number, line in enumerate(lines or [b""], start=1):
        where = f"{path}:{number}"
        try:
            data = _line(line, where)
            if "experiment_id" not in data:
                block = None
                block = _block(data, where)
            elif block is None:
                lost += 1
            else:
                entries.append(_entry(data, block, where))
        except ValueError as problem:
            problems.append(f"{problem}: the line was skipped")
    if lost:
        problems.append(f"{path}: {lost} experiment{'s' * (lost > 1)} skipped, whose run could not be read")
    return entries


def written(entries: Iterable[HistoryEntry]) -> str:
    """The file's text: for each run, in the order of `entries`, what its experiments share, then each of them."""
    lines: list[JsonValue] = []
    for run, group in groupby(entries, key=lambda entry: entry.run):
        block = list(group)
        conditions = _common([entry.conditions for entry in block])
        settings = _common([entry.settings for entry in block])
        names = list(dict.fromkeys(name for entry in block for name in entry.metrics))
        head = encode(replace(run, conditions=conditions, settings=settings))
        assert isinstance(head, dict)
        lines.append({"schema_version": head.pop("schema_version"), **head, METRICS: encode(names)})
        lines += [_written(entry, conditions, settings, names) for entry in block]
    texts = [json.dumps(line, ensure_ascii=False, allow_nan=False, separators=(",", ":")) for line in lines]
    return "\n".join(texts) + "\n"


def _written(entry: HistoryEntry, conditions: Conditions, settings: Conditions, names: Sequence[str]) -> JsonValue:
    prefix = f"{entry.run.run_id}/"
    line: dict[str, JsonValue] = {
        "experiment_id": entry.experiment_id,
        "config_hash": entry.config_hash,
        "fingerprint": entry.fingerprint,
        "conditions": _own(entry.conditions, conditions),
        "settings": _own(entry.settings, settings),
        "gain_uncertainty_rel": entry.gain_uncertainty_rel,
        "measurements": [name.removeprefix(prefix) for name in entry.measurements],
        "scores": dict(entry.scores),
        "verdicts": dict(entry.verdicts),
        "regressed": [*entry.regressed],
        METRICS: [_numbers(entry.metrics.get(name), len(entry.measurements)) for name in names],
    }
    return {name: value for name, value in line.items() if value not in (None, {}, [])}


def _numbers(metric: MetricEntry | None, count: int) -> JsonValue:
    """Mean, bounds and cycles, these once where all have the same value; `None` for a metric that is absent."""
    if metric is None:
        return None
    equal = len(metric.cycles) == count and len(set(metric.cycles)) == 1
    return [metric.value, metric.low, metric.high, *(metric.cycles[:1] if equal else metric.cycles)]


def _common(each: Sequence[Conditions]) -> dict[str, JsonValue]:
    first = each[0]
    shared = {name: value for name, value in first.items() if value is not None}
    return {name: value for name, value in shared.items() if all(other.get(name) == value for other in each)}


def _own(values: Conditions, common: Conditions) -> dict[str, JsonValue]:
    return {name: value for name, value in values.items() if value is not None and name not in common}


def _line(text: bytes, where: str) -> dict[str, JsonValue]:
    # Finite numbers are seen to where they are taken: to look at each while it is parsed takes five times as long.
    data = parse_json(text, where, finite=False)
    if not isinstance(data, dict):
        raise ValueError(f"{where}: expected a JSON object")
    version = data.get("schema_version")
    if isinstance(version, int) and version > HISTORY_VERSION:
        raise ValueError(f"{where}: history format {version} is newer than {HISTORY_VERSION}, the newest that is read")
    return data


def _block(data: Mapping[str, JsonValue], where: str) -> Block:
    """What a later version has added is left out."""
    run = decode(HistoryRun, {name: value for name, value in data.items() if name in RUN_FIELDS}, where)
    for name, moment in (("started_at", run.started_at), ("committed_at", run.committed_at)):
        try:
            utc(moment or run.started_at)
        except ValueError as problem:
            raise ValueError(f"{where}.{name}: {problem}") from None
    names = data.get(METRICS)
    if not isinstance(names, list):
        raise ValueError(f"{where}.{METRICS}: expected the names of the metrics")
    return Block(run, {str(name): column for column, name in enumerate(names)})


def _entry(data: Mapping[str, JsonValue], block: Block, where: str) -> HistoryEntry:
    """By hand, in a fifth of the time that `wire.decode` takes: a history has tens of thousands of lines."""

    def of(kind: type[T], name: str, absent: T | None = None) -> T:
        value = data.get(name, absent)
        if not isinstance(value, kind):
            raise ValueError(f"{where}.{name}: {'missing' if name not in data else f'expected {kind.__name__}'}")
        return value

    run = block.run
    measurements = [str(each) for each in of(list, "measurements", [])]
    verdicts = of(dict, "verdicts", {})
    if not STATUSES.issuperset(verdicts.values()):
        raise ValueError(f"{where}.verdicts: expected each to be one of {', '.join(sorted(STATUSES))}")
    return HistoryEntry(
        run=run,
        experiment_id=of(str, "experiment_id"),
        config_hash=of(str, "config_hash"),
        fingerprint=of(str, "fingerprint") if "fingerprint" in data else None,
        conditions=_whole(run.conditions, of(dict, "conditions", {})),
        settings=_whole(run.settings, of(dict, "settings", {})),
        metrics=_metrics(of(list, METRICS), block.columns, len(measurements), where),
        gain_uncertainty_rel=of(float, "gain_uncertainty_rel") if "gain_uncertainty_rel" in data else None,
        measurements=tuple(name if name.count("/") > 1 else f"{run.run_id}/{name}" for name in measurements),
        scores={name: str(value) for name, value in of(dict, "scores", {}).items()},
        verdicts=verdicts,
        regressed=tuple(map(str, of(list, "regressed", []))),
    )


def _metrics(data: list[Any], columns: Mapping[str, int], cycles: int, where: str) -> MetricRows:
    """What looks at each number here runs at the speed of C."""
    with suppress(TypeError, OverflowError):
        rows = [row or () for row in data]
        numbers = [*chain.from_iterable(rows)]
        finite = isfinite(sum(filter(None, numbers)))
        if None in numbers:
            if any(row and (row[0] is None or None in row[3:]) for row in rows):
                raise TypeError
            numbers = [nan if number is None else number for number in numbers]
        complete = len(data) == len(columns) and min(map(len, filter(None, rows)), default=4) > 3
        if finite and complete and NUMBERS.issuperset(map(type, numbers)):
            return MetricRows(columns, [0, *accumulate(map(len, rows))], array("d", numbers), cycles)
    expected = f"expected {len(columns)} lists of finite numbers: the mean, both bounds or null, and the cycles"
    raise ValueError(f"{where}.{METRICS}: {expected}")


def _whole(shared: Conditions, own: Conditions) -> Conditions:
    return {**shared, **own} if own else shared
