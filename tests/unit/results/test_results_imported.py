"""`llem import`: real files of three benchmarks, as results, and joined with the energy of their own time."""

from __future__ import annotations

import json
import os
import sys
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from pytest_llem.cli import main
from pytest_llem.job.job import JobDir
from pytest_llem.machine.lease_files import LEASE_DIR_VARIABLE
from pytest_llem.results.layout import run_directories
from pytest_llem.results.publish.prose import methods
from pytest_llem.results.reading import load
from pytest_llem.results.report.content import gather_content
from pytest_llem.results.schema import Result
from tests.timed import on_a_clock

FILES = Path(__file__).parent / "imported"
"""Written by `vllm bench serve` of vLLM 0.32, GuideLLM 0.8.1 and AIPerf 0.13 against one server; what no reader takes
is left out."""
VLLM, GUIDELLM, AIPERF = FILES / "vllm-0.32.json", FILES / "guidellm-0.8.1.json", FILES / "aiperf"


def imported(tmp_path: Path, file: Path, *arguments: str) -> Result:
    out = tmp_path / "imported"
    assert main(["import", str(file), "-o", str(out), *arguments]) == 0
    return next(iter(load(run_directories(out)[0])))


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_latencies_of_vllms_requests_are_those_of_its_own_summary(tmp_path: Path) -> None:
    """A wrong definition shows as another mean than the tool states of the same requests."""
    said, result = read(VLLM), imported(tmp_path, VLLM)
    latency = result.latency
    for ours, theirs in (("ttft_s", "ttft"), ("tpot_s", "tpot"), ("itl_chunk_s", "itl"), ("e2el_s", "e2el")):
        found = getattr(latency, ours)
        assert found.mean == pytest.approx(said[f"mean_{theirs}_ms"] / 1e3, rel=1e-6)
        assert found.std == pytest.approx(said[f"std_{theirs}_ms"] / 1e3, rel=1e-6)
        assert found.p50 == pytest.approx(said[f"median_{theirs}_ms"] / 1e3, rel=1e-6)
    assert latency.ttft_s is not None
    assert latency.ttft_s.p99 is None  # of twelve values
    assert latency.itl_s is None  # vLLM times pieces, which may hold several tokens
    assert result.throughput.output_tokens_per_s == pytest.approx(said["output_throughput"])
    assert (result.tokens.output, result.workload.requests, result.workload.load_shape) == (192, 12, "concurrency")
    assert result.energy.energy_j is None
    assert result.runner.facts["imported"]["sha256"]  # type: ignore[index,call-overload]
    # A summary states the same under the same definitions.
    summary = tmp_path / "summary.json"
    details = ("input_lens", "output_lens", "start_times", "ttfts", "itls", "errors")
    summary.write_text(json.dumps({name: value for name, value in said.items() if name not in details}))
    of_summary = imported(tmp_path, summary, "--name", "summary").latency
    assert of_summary.tpot_s is not None
    assert latency.tpot_s is not None
    assert of_summary.tpot_s.mean == pytest.approx(latency.tpot_s.mean)
    assert of_summary.tpot_s.p99 is None


def test_guidellms_time_per_output_token_is_not_taken_for_this_projects(tmp_path: Path) -> None:
    """Its figure of that name has the first token in it, here over ten times as much."""
    (said,) = read(GUIDELLM)["benchmarks"]
    result = imported(tmp_path, GUIDELLM)
    ttft, tpot = result.latency.ttft_s, result.latency.tpot_s
    assert ttft is not None
    assert tpot is not None
    assert ttft.mean == pytest.approx(said["metrics"]["time_to_first_token_ms"]["successful"]["mean"] / 1e3, rel=1e-5)
    of_requests = fmean(each["inter_token_latency_ms"] for each in said["requests"]["successful"])
    assert tpot.mean == pytest.approx(of_requests / 1e3, rel=1e-4)
    assert tpot.mean < said["metrics"]["time_per_output_token_ms"]["successful"]["mean"] / 1e3 / 2
    assert (result.tokens.output, result.experiment.config["model"]) == (192, "test")
    assert result.tokens.input == 183  # which it states as 182.99999999999997
    assert result.runner.facts["imported"]["version"] == "0.8.1"  # type: ignore[index,call-overload]


@pytest.mark.parametrize("file", ["profile_export_aiperf.json", "profile_export.jsonl"])
def test_aiperfs_records_are_read_whichever_of_its_files_is_named(tmp_path: Path, file: str) -> None:
    """The summary alone has percentiles that may hold failed requests."""
    said, result = read(AIPERF / "profile_export_aiperf.json"), imported(tmp_path, AIPERF / file)
    latency = result.latency
    for ours, theirs in (
        (latency.ttft_s, "time_to_first_token"),
        (latency.tpot_s, "inter_token_latency"),
        (latency.itl_chunk_s, "inter_chunk_latency"),
        (latency.e2el_s, "request_latency"),
    ):
        assert ours is not None
        assert ours.mean == pytest.approx(said[theirs]["avg"] / 1e3, rel=1e-6)
    assert (result.tokens.output, result.workload.load_shape) == (said["total_osl"]["avg"], "concurrency")


def test_a_papers_methods_say_nothing_of_a_benchmark_that_its_file_does_not(tmp_path: Path) -> None:
    """They stated greedy decoding and a data set, which are defaults of studies."""
    imported(tmp_path, VLLM)
    (run,) = run_directories(tmp_path / "imported")
    content = gather_content([run], baseline_dir=tmp_path, progress=lambda items, doing: items)
    said = " ".join(each for paragraph in methods(content, tmp_path) for each in paragraph.sentences)
    assert "sent, counted and timed by vllm bench serve" in said
    for word in ("ecoding", "data set", "hat template", "Warm-up", "Prompts"):
        assert word not in said


def test_failed_requests_make_a_benchmark_invalid_and_are_in_no_latency(tmp_path: Path) -> None:
    """A server that refused half of the requests passed for an economical one."""
    said = read(VLLM)
    said["errors"][0], said["ttfts"][0], said["itls"][0], said["output_lens"][0] = "refused", 0.0, [], 0
    said |= {"completed": 11, "failed": 1, "total_output_tokens": 192 - 16}
    (tmp_path / "failed.json").write_text(json.dumps(said))
    result = imported(tmp_path, tmp_path / "failed.json")
    assert [reason.code for reason in result.validity.reasons] == ["failed_requests"]
    assert result.latency.ttft_s is not None
    assert (result.latency.ttft_s.n, result.workload.failed_requests) == (11, 1)


SUMMARY = {
    name: value for name, value in read(VLLM).items() if not isinstance(value, list)
}  # without its single requests


def changed(file: Path, *place: Any) -> str:
    """GuideLLM's file with another value at a place in its benchmark."""
    data = read(file)
    inner = data["benchmarks"][0]
    *path, last, value = place
    for step in path:
        inner = inner[step]
    inner[last] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "a,b\n"),
        ("a.json", "{"),
        ("b.json", "[]"),
        ("c.json", '{"mine": 1}'),
        ("d.jsonl", '{"mine": 1}\n'),
        ("e.json", json.dumps({**read(VLLM), "energy_meter": "nvml"})),
        ("f.json", json.dumps({**read(VLLM), "total_output_tokens": 7})),
        ("g.json", json.dumps({"aiperf_version": "0.13.0"})),
        ("h.json", json.dumps({"metadata": {"guidellm_version": "0.8.1"}, "benchmarks": []})),
        ("i.json", json.dumps({**read(VLLM), "duration": -5.0})),
        ("j.json", json.dumps({**read(VLLM), "duration": 0.01})),
        ("k.json", json.dumps({**read(VLLM), "duration": 1e308})),
        ("l.json", json.dumps({**read(VLLM), "completed": 10**400})),
        ("m.json", json.dumps({**read(VLLM), "itls": 7})),
        ("n.json", json.dumps({**read(VLLM), "ttfts": [-1.0] * 12})),
        ("o.json", json.dumps({**read(VLLM), "completed": 3})),
        ("p.json", json.dumps({**SUMMARY, "total_output_tokens": -5})),
        ("q.json", json.dumps({**SUMMARY, "total_output_tokens": "192"})),
        ("r.json", json.dumps({**SUMMARY, "completed": 0})),
        ("s.json", json.dumps({**SUMMARY, "failed": -1})),
        ("t.json", json.dumps({**SUMMARY, "mean_ttft_ms": -4.0})),
        ("u.json", changed(GUIDELLM, "metrics", "output_token_count", "successful", "total_sum", -3)),
        ("v.json", changed(GUIDELLM, "metrics", "request_totals", "errored", None)),
        ("w.json", changed(GUIDELLM, "requests", "successful", 0, "output_tokens", 900)),
        ("x.json", changed(GUIDELLM, "requests", "successful", 0, "info", "timings", "request_start", 1796036118.0)),
        (
            "profile_export.jsonl",
            (AIPERF / "profile_export.jsonl")
            .read_text()
            .replace('"request_start_ns": 179603', '"request_start_ns": ', 1),
        ),
        ("profile_export.jsonl", (AIPERF / "profile_export.jsonl").read_text().replace('"value":', '"value":-', 3)),
    ],
)
def test_what_is_no_result_of_a_known_tool_is_refused(tmp_path: Path, name: str, text: str) -> None:
    """A file that did not add up became a result, one of impossible times a plausible one, or a traceback."""
    (tmp_path / name).write_text(text)
    assert main(["import", str(tmp_path / name), "-o", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()


def test_a_pipe_is_no_file_of_a_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It was waited for without end."""
    os.mkfifo(tmp_path / "bench.json")
    assert main(["import", str(tmp_path / "bench.json"), "-o", str(tmp_path / "out")]) == 2
    assert "bench.json: not a regular file" in capsys.readouterr().err


def test_benchmarks_of_one_configuration_are_its_cycles_and_others_get_numbers(tmp_path: Path) -> None:
    """vLLM appends each run to one file: all but the last of each configuration were overwritten."""
    lines = [SUMMARY, {**SUMMARY, "request_rate": 5.0}, {**SUMMARY, "total_output_tokens": 180}]
    file = tmp_path / "bench.jsonl"
    file.write_text("\N{BYTE ORDER MARK}" + "".join(json.dumps(line) + "\n" for line in lines) + "\n")
    assert main(["import", str(file), "-o", str(tmp_path / "out")]) == 0
    results = load(run_directories(tmp_path / "out")[0])
    found = sorted((each.experiment.id, each.cycle, each.tokens.output) for each in results)
    assert found == [("vllm-bench-serve-1", 1, 192), ("vllm-bench-serve-1", 2, 180), ("vllm-bench-serve-2", 1, 192)]


def test_a_summary_beside_records_of_another_run_is_refused(tmp_path: Path) -> None:
    """Records that were cut at the end of a line passed for all of the benchmark, and its settings for theirs."""
    for file in AIPERF.iterdir():
        (tmp_path / file.name).write_text(file.read_text())
    records = tmp_path / "profile_export.jsonl"
    records.write_text("".join(records.read_text().splitlines(keepends=True)[:-3]))
    assert main(["import", str(records), "-o", str(tmp_path / "out")]) == 2


BENCHMARK = """
import json, sys, time
from datetime import datetime
time.sleep(0.7)
start, ran = time.perf_counter(), time.process_time()
while time.process_time() - ran < 0.5: pass
end = time.perf_counter()
used = time.process_time() - ran
date = datetime.now().strftime("%Y%m%d-%H%M%S")
json.dump({
    "date": date, "backend": "vllm", "num_prompts": 1, "completed": 1, "failed": 0, "duration": end - start,
    "total_input_tokens": 8, "total_output_tokens": 3, "model_id": "m", "request_rate": "inf", "cpu_s": used,
    "input_lens": [8], "output_lens": [3], "start_times": [start], "ttfts": [(end - start) / 2],
    "itls": [[(end - start) / 4, (end - start) / 4]], "errors": [""],
}, open(sys.argv[1], "w"))
ran = time.process_time()
while time.process_time() - ran < 0.5: pass
time.sleep(0.7)
"""


@on_a_clock
def test_energy_is_that_of_the_benchmarks_own_time_and_nothing_else_is_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The energy of loading and writing, here as much again, was divided by the benchmark's tokens."""
    monkeypatch.setenv(LEASE_DIR_VARIABLE, str(tmp_path / "leases"))
    file, attached = tmp_path / "bench.json", tmp_path / "attached"
    command = [sys.executable, "-c", BENCHMARK, str(file)]
    assert main(["attach", "-o", str(attached), "--meter", "estimate", "--", *command]) == 0
    (run,) = run_directories(attached)
    (whole,) = load(run)
    result = imported(tmp_path, file, "--power", str(run))
    energy = result.energy
    (cycle,) = run.glob("*/*/c1")
    watts = read(JobDir(cycle).measurement)["energy"]["facts"]["watts_per_thread"]
    expected = read(file)["cpu_s"] * watts
    assert energy.energy_j is not None
    assert whole.energy.energy_j is not None
    assert abs(energy.energy_j - expected) <= energy.windows[-1].terms["edges"] + 0.05 * expected
    assert whole.energy.energy_j > 1.5 * expected
    assert energy.joules_per_output_token == pytest.approx(energy.energy_j / 3)
    assert not energy.measured
    assert result.runner.facts["power"] == whole.run_id
    assert result.validity.valid

    def refused(changed: dict[str, Any], said: str) -> None:
        (tmp_path / "other.json").write_text(json.dumps({**read(file), **changed}))
        out = tmp_path / "refused"
        assert main(["import", str(tmp_path / "other.json"), "--power", str(run), "-o", str(out)]) == 2
        assert said in capsys.readouterr().err
        assert not out.exists()

    start = read(file)["start_times"][0]
    refused({"start_times": [start + 10_000.0]}, "cannot be tied")  # another boot, of a machine that may be young
    date = datetime.strptime(read(file)["date"], "%Y%m%d-%H%M%S").timestamp() + 300
    later = datetime.fromtimestamp(date).strftime("%Y%m%d-%H%M%S")
    refused({"start_times": [start + 300], "date": later}, "and llem attach measured from")
    refused({"start_times": []}, "--save-detailed")
    assert main(["import", str(GUIDELLM), "--power", str(run), "-o", str(tmp_path / "no")]) == 2
    assert main(["import", str(file), "--power", str(tmp_path / "imported"), "-o", str(tmp_path / "no")]) == 2
