"""One benchmark of another tool, in the words that all of them share, and how its file is read.

The readers of each tool make it, `command` takes it. A figure may be taken over only where its definition is that of
this project: latencies are derived anew from the times of single requests, and all else stays under its own name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pytest_llem.errors import JsonValue, StoreError
from pytest_llem.job.files import open_regular, parse_json, reason
from pytest_llem.job.measurement import RequestRecord
from pytest_llem.job.report import Note
from pytest_llem.results.attach.work import UNKNOWN_LATENCY
from pytest_llem.results.performance_schema import Distribution, Latency

Clock = Literal["realtime", "monotonic"]

NS = 1_000_000_000
"""Nanoseconds of a second."""

FIX = "name what `vllm bench serve --save-result`, GuideLLM (JSON) or AIPerf (JSON, JSONL) wrote"

LARGEST = 2.0**63
"""More than any count, and than nanoseconds of the day until the year 2262."""

FIRST_NS = 10**18
"""The time of day in September 2001: what states ns, or is taken to, and lies before it has another unit."""

LATE_NS = 1_000_000
"""Chosen: far above the rounding of a tool's times, and far below a request."""

LARGEST_BYTES = 2 << 30
"""Chosen: a detailed file of a million requests; a larger one would not fit into memory."""


@dataclass(frozen=True)
class Benchmark:
    """What a tool measured. Times are ns of `clock`: the time of day, or CLOCK_MONOTONIC of the machine it ran on.

    `start_ns` and `end_ns` are `None` where the file does not say when it ran to a millisecond; `requests` where it has
    no times of single requests, whose `latency` is then what its summary has under the same definition. `settings` is
    what was asked for, and `own` the tool's other figures under its own names.
    """

    tool: str
    version: str | None
    model: str | None
    name: str
    duration_s: float
    clock: Clock
    start_ns: int | None
    end_ns: int | None
    input_tokens: int | None
    output_tokens: int | None
    succeeded: int
    failed: int
    load_shape: str
    requests: tuple[RequestRecord, ...] | None = None
    latency: Latency = UNKNOWN_LATENCY
    settings: Mapping[str, JsonValue] = field(default_factory=dict)
    own: Mapping[str, JsonValue] = field(default_factory=dict)
    notes: tuple[Note, ...] = ()
    date: str | None = None

    def check(self, source: BenchmarkFile) -> None:
        """Raise `StoreError` for times that cannot be: each of them would have a plausible rate, or energy."""
        if not 0 < self.duration_s * NS < LARGEST:
            raise source.refused(f"{self.name}: it would have taken {self.duration_s:g} s")
        if not self.succeeded and (self.output_tokens or not self.failed):
            raise source.refused(
                f"{self.name}: {self.output_tokens or 0} tokens, and no request that succeeded or failed"
            )
        if self.clock == "realtime" and (self.start_ns or 0) < FIRST_NS:
            raise source.refused(f"{self.name}: its times are no times of day, or not in the unit that its tool has")
        for short, known in vars(self.latency).items():
            if isinstance(known, Distribution) and any((value or 0) < 0 for value in known.statistics.values()):
                raise source.refused(f"{self.name}: {short} would be negative")
        good = [each for each in self.requests or () if each.error is None]
        if self.requests is not None and len(good) != self.succeeded:
            raise source.refused(f"{self.name}: it counts {self.succeeded} requests, and lists {len(good)}")
        if self.requests is not None and self.output_tokens not in (
            None,
            summed([each.output_tokens for each in good]),
        ):
            raise source.refused(f"{self.name}: its requests do not add up to its {self.output_tokens} tokens")
        if good and self.start_ns is not None and self.end_ns is not None:
            early_ns = self.start_ns - min(each.start_ns for each in good)
            if max(early_ns, max(each.end_ns for each in good) - self.end_ns) > LATE_NS:
                raise source.refused(f"{self.name}: a request lies outside of its time")
        for each in self.requests or ():
            first_ns, pieces = each.first_token_ns, [*(each.chunk_times_ns or ())]
            in_order = each.start_ns <= (each.start_ns if first_ns is None else first_ns) <= each.end_ns
            if not in_order or pieces != sorted(pieces) or not 0 <= each.start_ns <= each.end_ns < LARGEST:
                raise source.refused(f"{self.name}: request {each.index}: it would have ended before it began")


@dataclass(frozen=True)
class BenchmarkFile:
    """The file: where it is, its SHA-256, and what it holds."""

    path: Path
    sha256: str
    text: str

    @classmethod
    def read(cls, path: Path) -> BenchmarkFile:
        """Read it; `StoreError` for what is no text, or too large."""
        try:
            if path.stat().st_size > LARGEST_BYTES:
                raise StoreError(f"{path}: larger than {LARGEST_BYTES >> 30} GiB", fix="import a summary, or a part")
            with open_regular(path) as stream:
                content = stream.read()
            return cls(path, hashlib.sha256(content).hexdigest(), content.decode("utf-8-sig"))
        except (OSError, UnicodeDecodeError) as problem:
            raise StoreError(f"{path}: {reason(problem)}", fix="name the JSON or JSONL file of a benchmark") from None

    def object(self) -> Mapping[str, Any]:
        """Its one JSON object. Raises `StoreError` where it is none."""
        try:
            found = parse_json(self.text, self.path, finite=False)
        except ValueError as problem:
            raise StoreError(str(problem), fix=FIX) from None
        if not isinstance(found, Mapping):
            raise self.refused("no JSON object")
        return found

    def lines(self) -> Iterator[Mapping[str, Any]]:
        """The JSON object of each line that is not blank."""
        for position, line in enumerate(self.text.splitlines(), 1):
            if not line.strip():
                continue
            try:
                found = parse_json(line, f"{self.path}:{position}", finite=False)
            except ValueError as problem:
                raise StoreError(str(problem), fix=FIX) from None
            if not isinstance(found, Mapping):
                raise self.refused(f"line {position}: no JSON object")
            yield found

    def refused(self, what: str, fix: str | None = None) -> StoreError:
        """The error of a file that cannot be taken."""
        return StoreError(f"{self.path}: {what}", fix=fix or FIX)


def number(value: object) -> float | None:
    """A number that a column of a table can hold; `None` for anything else."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST:
        return float(value)
    return None


def count(value: object) -> int | None:
    """A count; `None` for anything else."""
    stated = number(value)
    return int(stated) if stated is not None and stated >= 0 and stated == int(stated) else None


def text(value: object) -> str | None:
    """A text; `None` for anything else."""
    return value if isinstance(value, str) else None


def mapping(value: object) -> Mapping[str, Any]:
    """A mapping; an empty one for anything else."""
    return value if isinstance(value, Mapping) else {}


def summed(values: Sequence[int | None]) -> int | None:
    """The sum of counts; `None` where one of them is not known."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def plain(values: Mapping[str, Any]) -> dict[str, JsonValue]:
    """The numbers and short texts of a mapping, under their names."""
    return {
        name: value
        for name, value in values.items()
        if value is None or isinstance(value, (bool, str)) or number(value) is not None
    }
