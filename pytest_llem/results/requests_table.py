"""`requests.parquet`: a row per request of a cycle, with its times, counts and latencies.

`attempts` writes it beside `power.parquet`, whose clock it has, and the export of requests reads it. Columns may be
added, and keep their name, unit and meaning. What was not measured is null.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import json as pa_json

from pytest_llem.errors import StoreError
from pytest_llem.job.config import SloSettings
from pytest_llem.job.files import open_regular, write_bytes
from pytest_llem.job.measurement import RequestRecord
from pytest_llem.results.sections.performance import RequestLatency, first_and_last_token_ns
from pytest_llem.results.sections.slo import is_good

CLOCK = {"clock": "CLOCK_MONOTONIC of the worker"}
"""Metadata of a schema whose times are of this clock, which `power.parquet` has as well."""

BLOCK_BYTES = 1 << 24
"""Chosen: far more than a row; Arrow parses so much at once."""


def _column(name: str, kind: pa.DataType, description: str) -> pa.Field:
    unit = "ns" if name.endswith("_ns") else "s" if name.endswith("_s") else None
    return pa.field(name, kind, metadata={"description": description, **({} if unit is None else {"unit": unit})})


SCHEMA = pa.schema(
    [
        _column("repeat", pa.int64(), "repeat of the workload, from 0"),
        _column("index", pa.int64(), "the request's place in the workload"),
        _column("session", pa.string(), "the conversation that it is a turn of"),
        _column("turn", pa.int64(), "its place in the session, from 1"),
        _column("due_ns", pa.int64(), "when it arrived by a schedule or its session; null without one"),
        _column("sent_ns", pa.int64(), "when the client sent it; null where none does"),
        _column("start_ns", pa.int64(), "where its latencies begin: due or sent, the earlier"),
        _column("first_token_ns", pa.int64(), "when its first token came"),
        _column("last_token_ns", pa.int64(), "when its last token came"),
        _column("end_ns", pa.int64(), "when it was done, or failed"),
        _column("input_tokens", pa.int64(), "tokens of the prompt"),
        _column("output_tokens", pa.int64(), "tokens generated"),
        _column("cached_tokens", pa.int64(), "tokens of the prompt that came from a cache"),
        _column("finish_reason", pa.string(), "why it ended: length, stop, error, ..."),
        _column("failure", pa.string(), "class of its failure: timeout, http_429, ..."),
        _column("error", pa.string(), "what went wrong, in words"),
        _column("retries", pa.int64(), "how often it was sent again"),
        _column("ttft_s", pa.float64(), "time to first token"),
        _column("tpot_s", pa.float64(), "time per output token after the first"),
        _column("e2el_s", pa.float64(), "end-to-end latency"),
        _column("good", pa.bool_(), "whether it kept all limits of the SLO; null without one"),
    ],
    metadata=CLOCK,
)


def requests_table(requests: Sequence[RequestRecord], slo: SloSettings) -> pa.Table:
    """The rows of a cycle's requests, in the order of the records. `StoreError` for a value that no column can hold."""
    times = [first_and_last_token_ns(request) for request in requests]
    # One that failed has no latency.
    latencies = [None if request.error is not None else RequestLatency.of(request) for request in requests]
    columns: dict[str, Sequence[object]] = {
        "first_token_ns": [first for first, _ in times],
        "last_token_ns": [last for _, last in times],
        "ttft_s": [each and each.ttft_s for each in latencies],
        "tpot_s": [each and each.tpot_s for each in latencies],
        "e2el_s": [each and each.e2el_s for each in latencies],
        "good": [is_good(slo, request) for request in requests],
    }
    columns |= {name: [getattr(each, name) for each in requests] for name in SCHEMA.names if name not in columns}
    try:
        return table_of(zip(*(columns[name] for name in SCHEMA.names), strict=True), SCHEMA)
    except (ValueError, TypeError, pa.ArrowException) as problem:
        raise StoreError(f"requests cannot be written as a table: {problem}") from None


def table_of(rows: Iterable[Sequence[object]], schema: pa.Schema) -> pa.Table:
    """A table of rows by way of JSON: `pyarrow.array` imports pandas where it is installed, most of a second of CPU.

    `ValueError`, `TypeError` or `ArrowException` for a value that its column cannot hold.
    """
    columns = [(field.name, pa.types.is_integer(field.type)) for field in schema]
    text = "".join(
        json.dumps(
            {name: _whole(value) if integer else value for (name, integer), value in zip(columns, row, strict=True)}
        )
        + "\n"
        for row in rows
    ).encode()
    if not text:
        return schema.empty_table()
    reading = pa_json.ReadOptions(use_threads=False, block_size=BLOCK_BYTES)
    found = pa_json.read_json(pa.BufferReader(text), reading, pa_json.ParseOptions(explicit_schema=schema))
    return pa.Table.from_arrays(found.columns, schema=schema)


def _whole(value: object) -> object:
    """`300.0`, as a meter of others may write bytes, as the integer that it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def read_requests(path: Path) -> pa.Table:
    """A cycle's `requests.parquet`. `StoreError` where it is absent or something else.

    It is read in this thread: threads of Arrow that hold a Python file abort a process that ends meanwhile.
    """
    try:
        with open_regular(path) as stream:
            return pq.ParquetFile(stream, pre_buffer=False).read(use_threads=False).select(SCHEMA.names).cast(SCHEMA)
    except (OSError, KeyError, ValueError, pa.ArrowException) as problem:
        raise StoreError(
            f"{path}: not the requests of a cycle: {problem}", fix="restore it, or name results that have it"
        ) from None


def write_parquet(path: Path, table: pa.Table) -> None:
    """Write a table of a cycle, whole or not at all. Nobody waits for the disk: other files hold the same, raw."""
    stream = pa.BufferOutputStream()
    pq.write_table(table, stream)
    write_bytes(path, stream.getvalue().to_pybytes(), durable=False)
