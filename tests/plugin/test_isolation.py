"""Engines that stay loaded: for the cycles of an experiment, or for all experiments that need no other load."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

STUDY = """\
name: kept
engine: faulty
model: none
workload: {{prompts: 2, input_tokens: 8, output_tokens: 4}}
measurement: {{min_duration_s: 0.05, idle: {{duration_s: 0.05}}, warmup: {{max_repeats: 1}}}}
sweep:
  {sweep}
execution: {{cycles: {cycles}, retries: 0, isolation: {isolation}, order: {order}}}
"""

Kept = Callable[..., None]


@pytest.fixture
def kept(pytester: pytest.Pytester) -> Kept:
    """Writes a study whose engine stays loaded."""

    def write(isolation: str, sweep: str, cycles: int = 2, order: str = "sequential") -> None:
        text = STUDY.format(isolation=isolation, sweep=sweep, cycles=cycles, order=order)
        (pytester.path / "kept.yaml").write_text(text)

    return write


def results(directory: Path) -> list[dict[str, Any]]:
    """The results of the one run, in the order of their making."""
    paths = sorted(directory.glob("llem-results/*/kept/*/c*/result.json"), key=lambda path: path.stat().st_mtime_ns)
    return [json.loads(path.read_text()) for path in paths]


def reused(directory: Path) -> list[bool]:
    return [result["runner"]["facts"]["engine_reused"] for result in results(directory)]


def workers(directory: Path) -> list[int]:
    """Resident workers that hold a file of this test open, or work in it."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        environment = process.info["environ"] or {}
        resident = any(word.startswith("--resident") for word in process.info["cmdline"] or ())
        if resident and str(directory) in environment.get("LLEM_LEASE_DIR", "") + environment.get("PWD", ""):
            found.append(process.pid)
    return found


def test_the_cycles_of_an_experiment_share_one_loaded_engine(pytester: pytest.Pytester, kept: Kept) -> None:
    kept("experiment", "dtype: [float32, bfloat16]", cycles=3)
    pytester.runpytest("--llem-study=kept.yaml").assert_outcomes(passed=6)

    found = results(pytester.path)
    assert reused(pytester.path) == [False, True, True] * 2
    assert {result["runner"]["isolation"] for result in found} == {"experiment"}
    assert [result["timing"]["load_s"] is None for result in found] == [False, True, True] * 2
    assert [result["timing"]["startup_s"] is None for result in found] == [False, True, True] * 2
    pids = [measurement(pytester.path, result)["worker"]["pid"] for result in found]
    assert len(set(pids[:3])) == len(set(pids[3:])) == 1
    assert pids[0] != pids[3]


def test_each_cycle_of_a_kept_engine_has_its_own_files_windows_and_warm_up(
    pytester: pytest.Pytester, kept: Kept
) -> None:
    kept("experiment", "dtype: [float32]")
    pytester.runpytest("--llem-study=kept.yaml").assert_outcomes(passed=2)

    for result in results(pytester.path):
        raw = measurement(pytester.path, result)
        assert [window["name"] for window in raw["windows"] if window["name"] != "load"] == [
            "idle",
            "warmup",
            "measure",
        ]
        assert raw["worker"]["isolation"] == "experiment"
    logs = sorted(pytester.path.glob("llem-results/*/kept/*/c*/worker.log"))
    assert ["about to do: none" in log.read_text() for log in logs] == [True, False]


def measurement(directory: Path, result: dict[str, Any]) -> dict[str, Any]:
    [path] = directory.glob(
        f"llem-results/*/kept/*{result['experiment']['config_hash'][:8]}/c{result['cycle']}/measurement.json"
    )
    data: dict[str, Any] = json.loads(path.read_text())
    return data


def test_a_loaded_engine_serves_what_it_need_not_load_again_for(pytester: pytest.Pytester, kept: Kept) -> None:
    """The faulty engine declares that workload and decoding need no reload; its dtype does."""
    kept("load", "dtype: [float32, bfloat16]\n  workload.output_tokens: [4, 8]", cycles=1)
    pytester.runpytest("--llem-study=kept.yaml").assert_outcomes(passed=4)

    assert reused(pytester.path) == [False, True, False, True]
    assert [result["workload"]["output_tokens"] for result in results(pytester.path)] == [8, 16, 8, 16]


def test_a_failed_cycle_ends_its_engine_and_the_next_one_loads_anew(pytester: pytest.Pytester, kept: Kept) -> None:
    kept("load", "model: [none, exception, kill, none]\n  workload.prompts: [2, 3]", cycles=1)
    pytester.runpytest("--llem-study=kept.yaml", "-k", "not exception-prompts:3").assert_outcomes(passed=2, failed=3)
    assert reused(pytester.path) == [False, True]


@pytest.mark.parametrize("isolation", ["experiment", "load"])
@pytest.mark.parametrize("order", ["interleaved", "shuffled"])
def test_another_order_is_a_usage_error_that_names_both_settings(
    pytester: pytest.Pytester, kept: Kept, isolation: str, order: str
) -> None:
    kept(isolation, "dtype: [float32]", order=order)
    result = pytester.runpytest("--llem-study=kept.yaml")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*kept.yaml:*execution.isolation: {isolation}*execution.order: {order}*", "*fix: *"])
    assert not (pytester.path / "llem-results").exists()


def test_an_order_from_the_command_line_is_refused_too(pytester: pytest.Pytester, kept: Kept) -> None:
    kept("experiment", "dtype: [float32]")
    result = pytester.runpytest("kept.yaml", "--llem-order=shuffled")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*execution.isolation: experiment*execution.order: shuffled*"])


def test_several_workers_are_a_usage_error_that_names_both_settings(pytester: pytest.Pytester, kept: Kept) -> None:
    kept("experiment", "dtype: [float32]")
    result = pytester.runpytest("--llem-study=kept.yaml", "-n2")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*execution.isolation: experiment*-n*"])


def test_a_container_cannot_keep_an_engine(pytester: pytest.Pytester, kept: Kept) -> None:
    kept("load", "dtype: [float32]")
    result = pytester.runpytest("--llem-study=kept.yaml", "--llem-runner=docker")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*execution.isolation: load*runner docker*"])


@pytest.mark.engine
def test_a_kept_engine_does_the_work_that_a_fresh_one_does(pytester: pytest.Pytester) -> None:
    """On the real engine: other batches, lengths and decoding on the loaded model, token for token."""
    text = (
        "name: kept\nmodel: builtin:tiny-llama\nengine: transformers\ndtype: float32\n"
        "workload: {prompts: 3, input_tokens: 8, output_tokens: 4}\n"
        "measurement: {min_duration_s: 0.05, idle: {duration_s: 0}, warmup: {max_repeats: 1}}\n"
        "transformers: {batch_size: 1}\n"
        "experiments: [{id: one}, {id: batch, transformers: {batch_size: 2}},"
        " {id: longer, workload: {output_tokens: 9}}, {id: sampled, decoding: {do_sample: true}}]\n"
        "execution: {cycles: 1, isolation: ISOLATION}\n"
    )
    made = {}
    for isolation in ("process", "load"):
        (pytester.path / "kept.yaml").write_text(text.replace("ISOLATION", isolation))
        run = pytester.runpytest("--llem-study=kept.yaml", f"--llem-out={isolation}")
        run.assert_outcomes(passed=4)
        paths = pytester.path.glob(f"{isolation}/*/kept/*/c1/result.json")
        found = [json.loads(path.read_text()) for path in paths]
        made[isolation] = {one["experiment"]["id"]: one["workload"]["outputs_hash"] for one in found}
        loads = [one["timing"]["load_s"] is not None for one in found]
        assert sum(loads) == (4 if isolation == "process" else 1)
        effective = {one["experiment"]["id"]: one["engine"]["effective"]["batch_size"] for one in found}
        assert effective == {"one": 1, "batch": 2, "longer": 1, "sampled": 1}
    assert made["load"] == made["process"]
    assert len(set(made["load"].values())) == 3
