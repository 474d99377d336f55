"""A study on vLLM through pytest itself: a process that stays for all experiments, the real engine, the results."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed"),
    pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="the plugin is not installed with vllm"),
]

STUDY = """\
name: served
model: builtin:tiny-llama
engine: vllm
dtype: float32
workload: {prompts: 6, input_tokens: 16, output_tokens: 24}
vllm: {enforce_eager: true, max_num_seqs: 2}
measurement: {min_duration_s: 0.2, idle: {duration_s: 0.1}, warmup: {max_repeats: 1}}
experiments:
  - {id: offline}
  - {id: in-flight, workload: {arrival: {process: concurrency, concurrency: 1}}}
  - {id: sampled, workload: {prompts: 3, output_tokens: 8}, decoding: {do_sample: true, temperature: 2.0}}
  - {id: penalised, vllm: {sampling: {presence_penalty: 2.0}}}
execution: {cycles: 1, retries: 0, timeout_s: 300, isolation: load, order: sequential}
"""
TIMEOUT_S = 600


def results(directory: Path) -> dict[str, Any]:
    paths = sorted(directory.rglob("result.json"), key=lambda path: path.stat().st_mtime_ns)
    found = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    return {result["experiment"]["id"]: result for result in found}


def test_a_study_on_vllm_passes(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLEM_LEASE_DIR", str(tmp_path / "leases"))
    study = pytester.path / "served.yaml"
    study.write_text(STUDY, encoding="utf-8")
    arguments = (f"--llem-study={study}", "--llem-out=out", "--llem-meter=estimate", "-p", "no:cacheprovider")
    run = pytester.runpytest_subprocess(*arguments, timeout=TIMEOUT_S)
    run.assert_outcomes(passed=4)

    found = results(pytester.path / "out")
    assert list(found) == ["offline", "in-flight", "sampled", "penalised"]
    assert [result["runner"]["facts"]["engine_reused"] for result in found.values()] == [False, True, True, True]
    assert [result["timing"]["load_s"] is None for result in found.values()] == [False, True, True, True]
    for result in found.values():
        assert (result["validity"]["valid"], result["validity"]["reasons"]) == (True, [])
        assert (result["engine"]["name"], result["engine"]["cache_reset"]) == ("vllm", "cleared")
        assert result["tokens"]["cached_input"] == 0
        assert result["compute"]["flops"] > 0
        assert result["engine"]["statistics"]["preemptions"] == 0
        assert result["latency"]["ttft_s"]["p50"] > 0
        assert result["steady_state"]["duration_s"] > 0
        assert not result["steady_state"]["valid"]
    work = {
        name: (result["workload"]["input_tokens"], result["workload"]["output_tokens"])
        for name, result in found.items()
    }
    assert work == {"offline": (96, 144), "in-flight": (96, 144), "sampled": (48, 24), "penalised": (96, 144)}
    assert found["offline"]["timing"]["compile_s"] == 0.0
    assert found["offline"]["timing"]["load_s"] > 0
    assert len({found[name]["workload"]["outputs_hash"] for name in ("offline", "sampled", "penalised")}) == 3
    assert found["offline"]["engine"]["statistics"]["running_requests_max"] == 2
    assert found["in-flight"]["engine"]["statistics"]["running_requests_max"] == 1
    assert found["in-flight"]["workload"]["load_shape"] == "concurrency"
    assert [warning["code"] for warning in found["in-flight"]["warnings"]].count("steady_state_short") == 1
    assert found["offline"]["workload"]["outputs_hash"] == found["in-flight"]["workload"]["outputs_hash"]
