"""Requests as rows: what `requests.parquet` says of each, its exports, and what becomes of it when a run resumes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from pytest_llem.cli import main
from pytest_llem.job.config import SloSettings
from pytest_llem.job.job import Job, JobDir
from pytest_llem.job.measurement import Measurement
from pytest_llem.job.report import RunReport
from pytest_llem.results.attempts import get_or_measure
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.reading import load
from pytest_llem.results.requests_table import requests_table, table_of
from pytest_llem.results.resume import Reuse
from pytest_llem.results.store import RunStore

if TYPE_CHECKING:
    from tests.unit.results.conftest import Bench, Worker

    MakeWorker = Callable[..., Worker]

MS = 1_000_000


@pytest.fixture
def served(bench: Bench) -> Measurement:
    """The bench's cycle as a client served it: one request streamed, one failed, the others without times."""
    first, second, *others = bench.measurement().requests
    start = first.start_ns
    streamed = replace(
        first, due_ns=start, sent_ns=start + MS, retries=1, session="chat", turn=2, cached_tokens=3, chunk_times_ns=None
    )
    lost = replace(second, output_tokens=0, finish_reason="error", token_times_ns=None, error="=1+1", failure="timeout")
    whole = [replace(each, token_times_ns=None, finish_reason="stop") for each in others]
    return replace(bench.measurement(), requests=(streamed, lost, *whole))


@pytest.fixture
def cycle(tmp_path: Path, key: CycleKey, worker: MakeWorker, served: Measurement) -> Path:
    store = RunStore.create(tmp_path / "out", "run-1", environment={})
    return get_or_measure(store, key, worker(key, served), retries=0).directory


def rows(table: pa.Table) -> list[dict[str, object]]:
    return [{name: value for name, value in row.items() if value is not None} for row in table.to_pylist()]


def test_a_row_says_of_a_request_what_its_result_counts(cycle: Path, served: Measurement) -> None:
    """Its latencies are those of the sections; one that failed has none, and what nobody knows is null."""
    streamed, lost, whole, *_ = rows(pq.read_table(JobDir(cycle).requests))
    start = served.requests[0].start_ns
    assert streamed == {
        "repeat": 0,
        "index": 0,
        "session": "chat",
        "turn": 2,
        "retries": 1,
        "finish_reason": "length",
        "due_ns": start,
        "sent_ns": start + MS,
        "start_ns": start,
        "end_ns": start + 130 * MS,
        "first_token_ns": start + 100 * MS,
        "last_token_ns": start + 130 * MS,
        "input_tokens": 8,
        "output_tokens": 4,
        "cached_tokens": 3,
        "ttft_s": 0.1,
        "tpot_s": 0.01,
        "e2el_s": 0.13,
    }
    assert (lost["failure"], lost["error"], lost["output_tokens"]) == ("timeout", "=1+1", 0)
    assert not lost.keys() & {"ttft_s", "tpot_s", "e2el_s", "first_token_ns", "last_token_ns"}
    assert whole.keys() & {"ttft_s", "tpot_s", "e2el_s", "last_token_ns"} == {"e2el_s"}


def test_the_latencies_of_all_rows_make_the_distributions_of_the_result(bench: Bench) -> None:
    """Two definitions of one name would differ some day."""
    table, latency = requests_table(bench.measurement().requests, SloSettings()), bench.result().latency
    for name in ("ttft_s", "tpot_s", "e2el_s"):
        values, found = table.column(name).to_pylist(), getattr(latency, name)
        assert (len(values), sum(values) / len(values)) == (found.n, pytest.approx(found.mean))


def test_the_file_says_units_and_clock(cycle: Path) -> None:
    schema = pq.read_schema(JobDir(cycle).requests)
    assert schema.metadata[b"clock"] == b"CLOCK_MONOTONIC of the worker"
    assert {schema.field(name).metadata[b"unit"] for name in schema.names if name.endswith("_ns")} == {b"ns"}
    assert {schema.field(name).metadata[b"unit"] for name in ("ttft_s", "tpot_s", "e2el_s")} == {b"s"}


READ = """\
import os, sys
from pathlib import Path
from pytest_llem.results.requests_table import read_requests
before = len(os.listdir("/proc/self/task"))
rows = read_requests(Path(sys.argv[1])).num_rows
print(rows > 0, len(os.listdir("/proc/self/task")) - before)
"""


def test_reading_starts_no_thread(cycle: Path) -> None:
    """An export that had just read its last file sometimes ended in `terminate called`, with its table written.

    A thread of Arrow held the Python file, and needed the interpreter to let go of it.
    """
    command = [sys.executable, "-c", READ, str(JobDir(cycle).requests)]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.split() == ["True", "0"]


SCHEMA = pa.schema([("i", pa.int64()), ("f", pa.float64()), ("s", pa.string()), ("b", pa.bool_())], {"unit": "J"})
VALUES = [(-(2**63), 5e-324, "\u2028\n\0", True), (None,) * 4, (2**53 + 1, 0.1 + 0.2, "ü", False), (7, 3, "", None)]


def test_a_table_holds_every_value_to_the_last_digit() -> None:
    table = table_of(VALUES, SCHEMA)
    assert [tuple(row.values()) for row in table.to_pylist()] == VALUES
    assert table.schema.equals(SCHEMA, check_metadata=True)


def test_a_whole_number_that_was_written_as_a_fraction_costs_no_cycle() -> None:
    """Meters of others write bytes as 300.0; half a byte is refused."""
    assert table_of([(300.0, 1, "", None)], SCHEMA)["i"].to_pylist() == [300]
    with pytest.raises(pa.ArrowInvalid):
        table_of([(300.5, 1, "", None)], SCHEMA)


WRITE = """\
import sys
from pytest_llem.results.requests_table import SCHEMA, table_of
assert table_of([[None] * len(SCHEMA)], SCHEMA).num_rows == 1
print("pandas" in sys.modules)
"""


def test_writing_imports_no_pandas() -> None:
    """It was imported wherever it is installed: a third of the time of a small run."""
    pytest.importorskip("pandas")
    assert subprocess.run([sys.executable, "-c", WRITE], check=True, capture_output=True, text=True).stdout == "False\n"


def test_a_row_says_whether_the_request_kept_the_slo(served: Measurement) -> None:
    """A failed one did not, nor one that broke a limit; null is what nobody can tell, and any without an SLO."""
    table = requests_table(served.requests, SloSettings(ttft_s=0.2))
    assert table.column("good").to_pylist() == [True, False, None, None, None, None]
    late = requests_table(served.requests, SloSettings(ttft_s=0.2, e2el_s=0.05))
    assert late.column("good").to_pylist() == [False] * 6
    assert requests_table(served.requests, SloSettings()).column("good").null_count == 6


def test_a_request_that_fits_no_column_costs_no_result(
    tmp_path: Path, key: CycleKey, worker: MakeWorker, bench: Bench
) -> None:
    """A count that a broken engine makes up fits JSON, and no 64 bits."""
    first, *others = bench.measurement().requests
    broken = replace(bench.measurement(), requests=(replace(first, retries=2**70), *others))
    store = RunStore.create(tmp_path, "run-1", environment={})
    outcome = get_or_measure(store, key, worker(key, broken))
    assert outcome.state == "valid"
    assert outcome.result is not None
    assert "requests_not_written" in [note.code for note in outcome.result.warnings]
    assert not JobDir(outcome.directory).requests.exists()


def never(attempt: int, job_dir: JobDir) -> tuple[Job, RunReport]:
    pytest.fail("measured again")


@pytest.fixture
def resumed(cycle: Path, key: CycleKey) -> Path:
    """A run that reused the cycle."""
    out = cycle.parents[3]
    (earlier,) = load(out)
    store = RunStore.create(out, "run-2", environment={})
    return get_or_measure(store, key, never, reuse=lambda: Reuse(earlier, None, cycle)).directory


def test_a_reused_result_has_its_requests_beside_it(cycle: Path, resumed: Path) -> None:
    assert JobDir(resumed).requests.read_bytes() == JobDir(cycle).requests.read_bytes()


@pytest.mark.parametrize("name", ["all.parquet", "all.csv"])
def test_requests_of_all_results_are_one_table_that_says_whose_each_is(
    cycle: Path, resumed: Path, tmp_path: Path, served: Measurement, name: str
) -> None:
    """A measurement that two runs hold is there once, and a server's text is no spreadsheet's formula."""
    assert main(["export", str(cycle.parents[3]), "--format", "requests", "-o", str(tmp_path / name)]) == 0
    table = (pq.read_table if name.endswith("parquet") else pa_csv.read_csv)(tmp_path / name)
    assert table.num_rows == len(served.requests)
    assert [*table.column_names][:8] == [
        *("run_id", "source_run", "study", "experiment", "config_hash", "cycle", "attempt", "valid")
    ]
    row = table.to_pylist()[1]
    assert (row["run_id"], row["source_run"], row["study"], row["cycle"]) == ("run-2", "run-1", "study", 1)
    assert (row["failure"], row["index"]) == ("timeout", 1)
    assert row["error"] == ("'=1+1" if name == "all.csv" else "=1+1")
    assert not [*tmp_path.glob(".*.partial")]


def test_the_settings_in_which_experiments_differ_are_columns(
    cycle: Path, key: CycleKey, worker: MakeWorker, bench: Bench, tmp_path: Path
) -> None:
    """Named as in the study, and as numbers: who plots latency against the load groups by them."""
    job = bench.job(replace(key, experiment_id="batch_size:8", config_hash="f" * 16))
    other = replace(job, config=replace(job.config, settings={"batch_size": 8}))

    def measure(attempt: int, job_dir: JobDir) -> tuple[Job, RunReport]:
        _, report = worker(key)(attempt, job_dir)
        return other, report

    store = RunStore.open(cycle.parents[2])
    get_or_measure(store, replace(key, experiment_id="batch_size:8", config_hash="f" * 16), measure)
    out = tmp_path / "all.parquet"
    assert main(["export", str(store.run_dir), "--format", "requests", "-o", str(out)]) == 0
    table = pq.read_table(out)
    assert table.column_names[-1] == "transformers.batch_size"
    assert table.column("transformers.batch_size").to_pylist() == [1] * 6 + [8] * 6
    assert pq.read_schema(out).field("due_ns").metadata[b"unit"] == b"ns"


def test_an_export_leaves_no_result_out_in_silence(
    cycle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    JobDir(cycle).requests.unlink()
    out = tmp_path / "all.parquet"
    assert main(["export", str(cycle.parents[3]), "--format", "requests", "-o", str(out)]) == 2
    assert f"{JobDir(cycle).requests}: not the requests of a cycle" in capsys.readouterr().err
    assert not out.exists()


def test_requests_are_exported_as_parquet_or_csv(
    cycle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(cycle.parents[3]), "--format", "requests", "-o", str(tmp_path / "all.json")]) == 2
    assert "end its name in .parquet or .csv" in capsys.readouterr().err
