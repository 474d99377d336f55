"""What is special to the vLLM engine."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pytest_llem.engines import open_engine
from pytest_llem.errors import EngineSettingError
from pytest_llem.job.config import Arrival, Decoding
from pytest_llem.job.job import DeviceSet
from pytest_llem.worker.steady import steady_span
from tests.engines.engine_cases import ConfigMaker, Start, generate, ids, requests_of

pytestmark = pytest.mark.engine
pytest.importorskip("vllm")


@pytest.fixture
def engine_name() -> str:
    return "vllm"


def test_the_prefix_cache_is_on_and_emptied_by_a_reset(start: Start) -> None:
    """A warm cache between repeats makes tokens look cheaper than they are (vllm#54227)."""
    engine = start({"block_size": 32})
    requests = requests_of(64, 80)
    assert not any(c.cached_tokens for c in generate(engine, requests))
    without_reset = engine.generate(requests, lambda _done, _total: None)
    assert all(completion.cached_tokens for completion in without_reset)
    assert engine.reset() == "cleared"
    assert not any(c.cached_tokens for c in generate(engine, requests))


def test_a_prefix_cache_that_is_off_needs_no_reset(start: Start) -> None:
    assert start({"enable_prefix_caching": False}).reset() == "disabled"


def test_requests_arrive_at_the_rate_asked_for(start: Start, make_config: ConfigMaker) -> None:
    workload = dataclasses.replace(make_config().workload, arrival=Arrival("constant", rate_per_s=20.0))
    completions = generate(start(workload=workload), requests_of(5, 5, 5, 5, output=4))
    gaps = [b.start_ns - a.start_ns for a, b in itertools.pairwise(completions)]
    assert gaps == pytest.approx([0.05e9] * 3, abs=2), (
        "latency counts from when a request was due, not from being taken in"
    )
    assert [completion.due_ns for completion in completions] == [completion.start_ns for completion in completions]
    assert all((c.due_ns or 0) <= (c.sent_ns or 0) <= (c.token_times_ns or (0,))[0] for c in completions)
    assert {len(output) for output in ids(completions)} == {4}


def test_one_request_at_a_time(start: Start, make_config: ConfigMaker) -> None:
    workload = dataclasses.replace(make_config().workload, arrival=Arrival("concurrency", concurrency=1))
    completions = generate(start(workload=workload), requests_of(5, 5, 5, output=4))
    assert all(a.end_ns <= b.start_ns for a, b in itertools.pairwise(completions))


def test_the_scheduler_tells_how_full_it_was(start: Start) -> None:
    engine = start({"max_num_seqs": 2})
    generate(engine, requests_of(9, 9))
    engine.reset_statistics()
    completions = generate(engine, requests_of(9, 10, 11, 12, 13, output=16))
    found = engine.statistics()
    assert (found["running_requests_max"], found["waiting_requests_max"], found["preemptions"]) == (2, 3, 0)
    assert found["prefix_cache_queried_tokens"] == sum(completion.input_tokens for completion in completions)
    assert found["prefix_cache_hit_tokens"] == 0
    assert "speculative" not in found


def test_a_cache_too_small_for_all_preempts_requests_and_says_so(start: Start) -> None:
    """Eight blocks of 32 tokens hold two or three answers: preempted ones are computed again, which costs energy."""
    engine = start({"num_gpu_blocks_override": 8, "block_size": 32, "max_model_len": 128})
    requests = requests_of(30, 31, 32, 33, 34, output=64)
    engine.reset_statistics()
    completions = generate(engine, requests)
    assert {len(output) for output in ids(completions)} == {64}
    found = engine.statistics()
    assert isinstance(found["preemptions"], int)
    assert found["preemptions"] > 0
    assert found["kv_cache_usage_max"] == 1.0
    assert engine.effective()["kv_cache_tokens"] == 8 * 32


def two_cores() -> str:
    """A core for each of two workers, which may be the same."""
    cores = sorted(os.sched_getaffinity(0))
    return f"{cores[0]}|{cores[-1]}"


def in_a_process(output_tokens: int, **settings: Any) -> dict[str, Any]:
    """What vLLM does with these settings in a process of its own."""
    command = [sys.executable, "-m", "tests.engines.vllm_process", json.dumps(settings), str(output_tokens)]
    environment = dict(os.environ)
    # Whether the engine core has a process of its own is to be the engine's choice here.
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    if "tensor_parallel_size" in settings:
        # Left to itself it wants a NUMA node per worker.
        environment["VLLM_CPU_OMP_THREADS_BIND"] = two_cores()
    root = Path(__file__).parents[2]
    run = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


def test_accepted_drafts_are_counted() -> None:
    """In a process of its own: n-gram drafting imports numba, after which vLLM's CPU build cannot load again."""
    drafting = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}
    found = in_a_process(64, speculative=drafting)
    speculation = found["statistics"]["speculative"]
    assert 0 < speculation["accepted_tokens"] <= speculation["draft_tokens"]
    assert speculation["acceptance_rate"] == speculation["accepted_tokens"] / speculation["draft_tokens"]
    assert found["processes"] == 0


def test_two_devices_do_the_same_work_and_leave_no_process(start: Start) -> None:
    """The engine core and a worker per device are processes then, which must end with the engine."""
    found = in_a_process(8, tensor_parallel_size=2, max_model_len=256)
    assert found["effective"]["tensor_parallel_size"] == 2
    assert found["ids"] == [list(one) for one in ids(generate(start(), requests_of(30, 31, 32)))]
    assert (found["cache"], found["quiesced"]) == ("cleared", "drained")
    assert found["statistics"]["steps"] >= 8
    assert (found["processes"] >= 3, found["left"]) == (True, [])


def test_more_devices_than_are_leased_are_refused(make_config: ConfigMaker) -> None:
    config = make_config({"tensor_parallel_size": 2, "pipeline_parallel_size": 2})
    with pytest.raises(EngineSettingError, match="4 devices, and 2 are leased"):
        open_engine("vllm").prepare(config, DeviceSet("cuda", ("GPU-0", "GPU-1")))


def test_eager_execution_compiles_nothing(start: Start) -> None:
    engine = start()
    assert engine.load_times() == {"compile_s": 0.0}


def test_more_requests_than_places_have_a_steady_state(start: Start) -> None:
    completions = generate(start({"max_num_seqs": 2}), requests_of(9, 10, 11, 12, 13, 14, output=16))
    span = steady_span(completions, 2)
    assert span is not None
    begin = min(completion.start_ns for completion in completions)
    end = max(completion.end_ns for completion in completions)
    assert begin < span[0] < span[1] <= end
    assert steady_span(completions, 6) is None


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"max_num_seq": 4}, "did you mean 'max_num_seqs'"),
        ({"sampling": {"presense_penalty": 1.0}}, "did you mean 'presence_penalty'"),
        ({"extra": {"no_such": 1}}, "vllm.extra.no_such"),
        ({"model": "other"}, "vllm.model"),
        ({"beam_search": {"beam_width": 4}}, "num_beams"),
        ({"sampling": {"n": 2}}, "one answer per prompt"),
        ({"data_parallel_size": 2}, "engine openai"),
    ],
)
def test_wrong_settings_are_explained(make_config: ConfigMaker, settings: dict[str, Any], part: str) -> None:
    with pytest.raises(EngineSettingError) as caught:
        open_engine("vllm").prepare(make_config(settings), DeviceSet("cpu"))
    assert part in str(caught.value)


def test_decoding_that_vllm_cannot_do_is_refused_before_loading(make_config: ConfigMaker) -> None:
    config = make_config(decoding=Decoding(do_sample=True, temperature=3.0))
    with pytest.raises(EngineSettingError, match="temperature"):
        open_engine("vllm").prepare(config, DeviceSet("cpu"))


def test_settings_reach_the_engine(start: Start) -> None:
    effective = start({"max_num_seqs": 3, "max_model_len": 512, "max_num_batched_tokens": 512}).effective()
    asked = {"max_num_seqs": 3, "max_model_len": 512, "max_num_batched_tokens": 512, "enforce_eager": True}
    assert {key: effective[key] for key in asked} == asked
