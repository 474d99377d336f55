"""What is special to the vLLM engine."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest

from pytest_llem.engines import open_engine
from pytest_llem.errors import EngineSettingError
from pytest_llem.job import Arrival, DeviceSet
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
    assert sum(gaps) / 1e9 >= 3 / 20.0 - 0.02
    assert {len(output) for output in ids(completions)} == {4}


def test_one_request_at_a_time(start: Start, make_config: ConfigMaker) -> None:
    workload = dataclasses.replace(make_config().workload, arrival=Arrival("concurrency", concurrency=1))
    completions = generate(start(workload=workload), requests_of(5, 5, 5, output=4))
    assert all(a.end_ns <= b.start_ns for a, b in itertools.pairwise(completions))


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"max_num_seq": 4}, "did you mean 'max_num_seqs'"),
        ({"sampling": {"presense_penalty": 1.0}}, "did you mean 'presence_penalty'"),
        ({"extra": {"no_such": 1}}, "vllm.extra.no_such"),
        ({"model": "other"}, "vllm.model"),
        ({"beam_search": {"beam_width": 4}}, "num_beams"),
        ({"sampling": {"n": 2}}, "one answer per prompt"),
    ],
)
def test_wrong_settings_are_explained(make_config: ConfigMaker, settings: dict[str, Any], part: str) -> None:
    with pytest.raises(EngineSettingError) as caught:
        open_engine("vllm").prepare(make_config(settings), DeviceSet("cpu"))
    assert part in str(caught.value)


def test_settings_reach_the_engine(start: Start) -> None:
    effective = start({"max_num_seqs": 3, "max_model_len": 512, "max_num_batched_tokens": 512}).effective()
    asked = {"max_num_seqs": 3, "max_model_len": 512, "max_num_batched_tokens": 512, "enforce_eager": True}
    assert {key: effective[key] for key in asked} == asked
