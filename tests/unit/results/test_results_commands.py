"""`llem compare`, `export` and `report` on stored runs, as a user calls them."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest

from pytest_llem.cli import main
from pytest_llem.errors import EngineError
from pytest_llem.job.report import Note
from pytest_llem.results.attempts import get_or_measure
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.manifest import rebuild_manifest
from pytest_llem.results.store import RunStore

if TYPE_CHECKING:
    from tests.unit.results.conftest import Bench, Worker

    MakeWorker = Callable[..., Worker]

NOISE = (1.00, 1.01, 0.99, 1.005, 0.995)


@pytest.fixture
def out(tmp_path: Path, bench: Bench, key: CycleKey, worker: MakeWorker, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two runs of two experiments, five cycles each; in `now` the first one draws 20 % more power."""
    second = CycleKey(key.study, "batch_size:2", "f" * 16, 1)
    for run, watts in (("before", 10.0), ("now", 12.0)):
        store = RunStore.create(tmp_path / "out", run, environment={"hostname": "here"})
        for each, level in ((key, watts), (second, 10.0)):
            for cycle, noise in enumerate(NOISE, 1):
                cell = replace(each, cycle=cycle)
                inner = worker(cell, bench.measurement(level * noise))
                inner.run_id = run
                get_or_measure(store, cell, inner)
        spoilt = replace(bench.measurement(), invalid=(Note("throttled", "2 s"),))
        throttled = worker(replace(key, cycle=6), spoilt)
        throttled.run_id = run
        get_or_measure(store, replace(key, cycle=6), throttled)
        get_or_measure(store, replace(key, cycle=7), worker(replace(key, cycle=7), EngineError("out of <memory>")))
        rebuild_manifest(store.run_dir, finished=run == "before")
    monkeypatch.chdir(tmp_path / "out")
    return tmp_path / "out"


@pytest.mark.parametrize("place", ["/dev/full", "before/run.json/x.csv"])
def test_an_export_that_cannot_be_written_names_its_file(
    out: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was said of standard output."""
    assert main(["export", str(out), "--format=csv", "-o", place]) == 2
    assert capsys.readouterr().err.startswith(f"llem: {place}: cannot be written: ")


def test_compare_exits_1_beyond_a_limit_only(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "before", "now"]) == 0
    text = capsys.readouterr().out
    assert "now against before" in text
    assert "+20.0 %" in text
    assert "higher" in text
    assert "not told apart" in text
    assert main(["compare", "before", "now", "--fail-if", "joules_per_output_token:5%"]) == 1
    assert main(["compare", "now", "before", "--fail-if", "joules_per_output_token:5%"]) == 0
    assert main(["compare", "before", "now", "--fail-if", "output_tokens_per_s:-5%"]) == 0


def test_compare_speaks_json_and_markdown(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["compare", "before", "now", "--format", "json", "--metric", "avg_power_w"])
    rows = json.loads(capsys.readouterr().out)
    verdicts = {row["experiment_id"]: (row["metric"], row["verdict"]) for row in rows}
    assert verdicts == {"batch_size:1": ("avg_power_w", "higher"), "batch_size:2": ("avg_power_w", "not told apart")}
    main(["compare", "before", "now", "--format", "markdown"])
    assert "| experiment | baseline | now | change | 90 % interval |  |" in capsys.readouterr().out


@pytest.mark.parametrize("limit", ["joules_per_output_token", "joules:5%", "joules_per_output_token:five"])
def test_wrong_limits_exit_2_with_a_remedy(out: Path, limit: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "before", "now", "--fail-if", limit]) == 2
    assert "fix: " in capsys.readouterr().err


def test_export_csv_and_parquet_agree(out: Path, tmp_path: Path) -> None:
    assert main(["export", "now", "--format", "csv", "-o", str(tmp_path / "all.csv")]) == 0
    assert main(["export", "now", "--format", "parquet", "-o", str(tmp_path / "all.parquet")]) == 0
    with (tmp_path / "all.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    table = pq.read_table(tmp_path / "all.parquet")
    assert [float(row["energy_j"]) for row in rows] == table["energy_j"].to_pylist()
    assert list(rows[0]) == table.column_names
    assert rows[5]["valid"] == "false"
    assert rows[0]["mfu"] == ""
    assert float(rows[0]["joules_per_output_token_uncertainty"]) == pytest.approx(0.3 / 24)


def test_export_vllm_bench_has_milliseconds_and_valid_results_only(out: Path, tmp_path: Path) -> None:
    main(["export", "now", "--format", "vllm-bench", "-o", str(tmp_path / "bench")])
    files = sorted((tmp_path / "bench").glob("*.json"))
    assert len(files) == 10
    assert files[0].name.startswith("study-batch_size-1-c1-")
    result = json.loads(files[0].read_text())
    assert (result["label"], result["study"], result["run"], result["cycle"]) == ("batch_size:1", "study", "now", 1)
    assert (result["transformers.batch_size"], result["dtype"], result["workload.prompts"]) == (1, "float32", 3)
    assert result["median_ttft_ms"] == pytest.approx(100.0)
    assert result["mean_tpot_ms"] == pytest.approx(10.0)
    assert (result["completed"], result["num_prompts"], result["request_rate"]) == (6, 6, None)
    assert result["output_throughput"] == pytest.approx(12.0)
    assert result["joules_per_output_token_uncertainty"] == pytest.approx(0.3 / 24)


def test_export_mlperf_marks_invalid_and_short_runs(out: Path, tmp_path: Path) -> None:
    main(["export", "now", "--format", "mlperf", "-o", str(tmp_path / "mlperf.json")])
    entries = json.loads((tmp_path / "mlperf.json").read_text())
    assert sorted(entry["Result is"] for entry in entries) == ["INVALID"] * 11
    assert {entry["Min duration satisfied"] for entry in entries} == {"NO"}
    assert entries[0]["50.00 percentile first token latency (ns)"] == pytest.approx(1e8)


def test_export_aienergyscore_lists_every_deviation(out: Path, tmp_path: Path) -> None:
    main(["export", "before", "--format", "aienergyscore", "-o", str(tmp_path / "score.json")])
    entry = json.loads((tmp_path / "score.json").read_text())[0]
    assert entry["wh_per_1000_queries"] == pytest.approx(20 / 6 * 1000 / 3600, rel=1e-3)
    by_sensor = 0.3 / 6 * 1000 / 3600
    assert by_sensor < entry["wh_per_1000_queries_uncertainty"] < 2 * by_sensor + 0.03 * entry["wh_per_1000_queries"]
    assert entry["coverage_factor"] >= 2
    assert "3 prompts, not 1000" in entry["deviations"]
    assert "energy of cpu_package, not of the GPU" in entry["deviations"]


def test_export_otel_is_one_metrics_object_a_line(out: Path, tmp_path: Path) -> None:
    main(["export", "before", "--format", "otel", "-o", str(tmp_path / "metrics.jsonl")])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 10
    metrics = {entry["name"]: entry for entry in lines[0]["resourceMetrics"][0]["scopeMetrics"][0]["metrics"]}
    (energy,) = metrics["hw.energy"]["sum"]["dataPoints"]
    assert energy["asDouble"] == 20.0
    assert int(energy["timeUnixNano"]) - int(energy["startTimeUnixNano"]) == 2_000_000_000
    assert len(metrics["gen_ai.server.time_to_first_token"]["gauge"]["dataPoints"]) == 2
    (uncertainty,) = metrics["llem.joules_per_output_token.uncertainty"]["gauge"]["dataPoints"]
    assert uncertainty["asDouble"] == pytest.approx(0.3 / 24)


def test_unknown_formats_and_empty_folders_exit_2(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "now", "--format", "xml", "-o", "x"]) == 2
    assert main(["list", str(out / "now" / "study")]) == 2
    assert capsys.readouterr().err.count("fix: ") == 2


@pytest.mark.parametrize("limits", [[], ["--fail-if", "joules_per_output_token:5%"]])
def test_runs_with_nothing_in_common_are_no_pass(
    out: Path, limits: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A CI job that compared a run with one of another study was green."""
    for path in Path("now").rglob("result.json"):
        path.write_text(path.read_text().replace('"study": "', '"study": "other '))
    assert main(["compare", "before", "now", *limits]) == 2
    printed = capsys.readouterr()
    assert "nothing was compared: no experiment has valid cycles" in printed.err
    assert "[batch_size:1], " in printed.err
    assert "valid in the others: other " in printed.err


def test_what_the_second_run_lacks_is_listed(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in Path("now").glob("*/batch_size-2-*"):
        shutil.rmtree(path)
    limit = ["--fail-if", "joules_per_output_token:5%"]
    assert main(["compare", "now", "before", *limit]) == 0
    assert main(["compare", "before", "now", *limit]) == 1
    assert "batch_size:2: joules_per_output_token: this run has no result of it" in capsys.readouterr().out


def test_a_place_that_cannot_be_written_is_one_line(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for arguments in (["export", "now", "--format=csv", "-o"], ["report", "now", "-o"]):
        assert main([*arguments, str(tmp_path / "file" / "below")]) == 2
        assert f"llem: {tmp_path / 'file'}" in capsys.readouterr().err
