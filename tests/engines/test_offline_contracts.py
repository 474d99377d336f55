"""SGLang and TensorRT-LLM against what their documentation says of requests and results: they have not run here."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_llem.engines import open_engine, shipped_engines
from pytest_llem.engines.protocol import Engine, Request
from pytest_llem.engines.sglang import engine as sglang
from pytest_llem.engines.sglang.settings import SGLangSettings
from pytest_llem.engines.streamed import StreamedAnswer
from pytest_llem.engines.tensorrt_llm import engine as tensorrt_llm
from pytest_llem.engines.tensorrt_llm.settings import TensorRTLLMSettings
from pytest_llem.engines.vllm import engine as vllm
from pytest_llem.errors import EngineNotInstalledError, EngineSettingError, LlemError, OutOfMemoryError
from pytest_llem.job.config import Decoding, ExperimentConfig
from pytest_llem.job.job import DeviceSet
from tests.engines import stand_ins
from tests.engines.engine_cases import ConfigMaker, generate, ids, requests_of

ONE_GPU = DeviceSet("cuda", ("GPU-0",))
SAMPLING = Decoding(do_sample=True, temperature=0.7, top_k=0, top_p=0.9, repetition_penalty=1.1)
REQUEST = Request(3, (5, 6, 7), 8, ignore_eos=False)
SGLANG_ARGUMENTS = vars(stand_ins.ServerArgs("")).keys()
TRT_ARGUMENTS = vars(stand_ins.TorchLlmArgs("")).keys()
MAKERS: dict[str, Callable[..., Any]] = dict.fromkeys(tensorrt_llm.SECTIONS, dict)

Begin = Callable[..., Engine]


@pytest.fixture(params=[info.name for info in shipped_engines().values() if not info.verified])
def engine_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def begin(engine_name: str, make_config: ConfigMaker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Begin]:
    """The engine over its stand-in, prepared and loaded on a GPU that nobody asks."""
    pytest.importorskip("transformers")
    modules = stand_ins.sglang_modules() if engine_name == "sglang" else stand_ins.tensorrt_llm_modules()
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    running: list[Engine] = []

    def start(settings: dict[str, Any] | None = None, **changes: Any) -> Engine:
        engine = open_engine(engine_name)
        running.append(engine)
        engine.prepare(make_config(settings, **changes), ONE_GPU)
        engine.load()
        return engine

    yield start
    for engine in running:
        engine.shutdown()


def made(engine_name: str) -> Any:
    """The stand-in that was made last."""
    return stand_ins.SGLangEngine.made[-1] if engine_name == "sglang" else stand_ins.LLM.made[-1]


@pytest.mark.parametrize("name", ["vllm", "sglang", "tensorrt_llm"])
def test_a_prompt_that_the_engine_cut_has_the_length_that_the_engine_counts(name: str) -> None:
    """By the field in which each of them says so; a study may have set what truncates prompts."""
    answer = StreamedAnswer(Request(0, (1, 2, 3, 4), 1))
    part = SimpleNamespace(token_ids=[7], finish_reason="length")
    output: Any = SimpleNamespace(outputs=[part], prompt_token_ids=[3, 4], num_cached_tokens=0, finished=True)
    if name == "sglang":
        facts = {"completion_tokens": 1, "prompt_tokens": 2, "finish_reason": {"type": "length"}}
        sglang.take_chunk(answer, {"output_ids": [7], "meta_info": facts}, 5)
    else:
        (tensorrt_llm.take_output if name == "tensorrt_llm" else vllm.take_output)(answer, output, 5)
    assert answer.completion(name, "length", 5).input_tokens == 2


def test_answers_have_their_tokens_times_and_ends(begin: Begin) -> None:
    engine = begin()
    requests = [*requests_of(5, 9, output=5), Request(2, (1, 2), 8, ignore_eos=False)]
    seen: list[tuple[int, int]] = []
    engine.reset()
    completions = engine.generate(requests, lambda done, total: seen.append((done, total)))
    assert ids(completions) == [(10, 11, 12, 13, 14)] * 2 + [(10, 11, 12)]
    assert [completion.finish_reason for completion in completions] == ["length", "length", "stop"]
    assert [completion.input_tokens for completion in completions] == [5, 9, 2]
    assert all(completion.error is None for completion in completions)
    for completion in completions:
        times = completion.token_times_ns or ()
        assert len(times) == len(completion.output_ids)
        assert times[0] == times[1] < times[2]
        assert completion.start_ns < times[0] <= times[-1] == completion.end_ns
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_turns_of_a_session_wait_for_each_other_and_for_nobody_else(begin: Begin) -> None:
    """Handed over at once, a later turn would find nothing of its history in a prefix cache."""
    turns = [
        replace(r, session="s", turn=n, think_s=0.05) for r, n in zip(requests_of(5, 9, 7), (1, 3, 2), strict=True)
    ]
    done = begin().generate([*turns, Request(3, (1, 2), 5)], lambda _done, _total: None)
    first, third, second, alone = done
    assert second.start_ns >= first.end_ns + 50_000_000
    assert third.start_ns >= second.end_ns + 50_000_000
    assert alone.start_ns < second.start_ns
    assert [completion.due_ns for completion in done] == [None, third.start_ns, second.start_ns, None]
    assert all((completion.sent_ns or 0) >= completion.start_ns for completion in done)


def test_the_life_of_an_engine_is_the_protocols(begin: Begin, engine_name: str) -> None:
    engine = begin({})
    shape = engine.shape()
    assert shape is not None
    assert (shape.layers, shape.parameters) == (2, None)
    assert engine.tokenizer().bos_id == 1
    effective = engine.effective()
    assert Path(str(effective["model_path"])).is_dir()
    assert (effective["dtype"], effective["quantized"], effective["weights"]) == ("float32", False, "real")
    assert (engine.quiesce(), engine.memory()) == ("drained", ())
    assert engine.reset() == ("cleared" if engine_name == "sglang" else "disabled")
    engine.shutdown()
    assert made(engine_name).ended
    with pytest.raises(LlemError, match="before load"):
        engine.effective()


def test_a_cache_that_nobody_emptied_is_not_called_empty(begin: Begin, engine_name: str) -> None:
    engine = begin() if engine_name == "sglang" else begin({"kv_cache_config": {"enable_block_reuse": True}})
    made(engine_name).refused_flushes = 10**6
    sglang_wait, sglang.FLUSH_WAIT_S = sglang.FLUSH_WAIT_S, 0.0
    try:
        assert engine.reset() == "unknown"
    finally:
        sglang.FLUSH_WAIT_S = sglang_wait


def test_random_weights_need_only_a_configuration(begin: Begin, engine_name: str, config_only: Path) -> None:
    engine = begin(model=str(config_only), weights="dummy")
    arguments = made(engine_name).server_args if engine_name == "sglang" else made(engine_name).args
    assert arguments.load_format == "dummy"
    assert engine.effective()["tokenizer"] == "builtin:tiny-llama"
    assert len(ids(generate(engine, requests_of(4)))[0]) == 8


STUDY = """\
model: builtin:tiny-llama
engine: sglang
dtype: float32
workload: {prompts: 2, input_tokens: 16, output_tokens: 16}
measurement: {min_duration_s: 0.1, idle: {duration_s: 0.1}, warmup: {max_repeats: 1}}
sglang: {max_running_requests: 2}
execution: {cycles: 1, retries: 0}
"""
PACKAGES = {
    "sglang/__init__.py": "from tests.engines.stand_ins import SGLangEngine as Engine\n__version__ = '0.5.5'\n",
    "sglang/srt/__init__.py": "",
    "sglang/srt/server_args.py": "from tests.engines.stand_ins import ServerArgs\n",
}


def test_a_study_runs_like_any_other_and_says_that_nobody_verified_the_engine(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Over the stand-in: the settings' check, the worker, and results that JSON can hold."""
    for name, text in PACKAGES.items():
        file = tmp_path / "packages" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    (pytester.path / "study.yaml").write_text(STUDY, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'packages'}{os.pathsep}{Path(__file__).parents[2]}")
    monkeypatch.setenv("LLEM_LEASE_DIR", str(tmp_path / "leases"))
    run = pytester.runpytest_subprocess("--llem-study=study.yaml", "--llem-meter=estimate", "-p", "no:cacheprovider")
    run.assert_outcomes(passed=1)
    [path] = pytester.path.rglob("result.json")
    result = json.loads(path.read_text())
    assert (result["validity"]["valid"], result["validity"]["reasons"]) == (True, [])
    assert "engine_not_verified" in [warning["code"] for warning in result["warnings"]]
    assert (result["engine"]["name"], result["engine"]["cache_reset"]) == ("sglang", "cleared")
    assert result["runner"]["start_method"] == "spawn"
    assert result["workload"]["output_tokens"] == 32
    assert result["latency"]["ttft_s"]["p50"] > 0


def test_an_engine_that_is_not_there_names_its_image(engine_name: str, make_config: ConfigMaker) -> None:
    with pytest.raises(EngineNotInstalledError) as caught:
        open_engine(engine_name).prepare(make_config(), ONE_GPU)
    assert f"--llem-runner={engine_name}=docker:" in (caught.value.fix or "")


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"max_runing_requests": 4, "max_bach_size": 4}, "did you mean 'max_"),
        ({"extra": {"no_such": 1}}, "extra.no_such"),
        ({"dtype": "float16"}, "dtype"),
        ({"tp_size": 2, "tensor_parallel_size": 2}, "2 devices, and 1 are leased"),
    ],
)
def test_wrong_settings_are_explained(begin: Begin, engine_name: str, settings: dict[str, Any], part: str) -> None:
    own = SGLANG_ARGUMENTS if engine_name == "sglang" else TRT_ARGUMENTS
    foreign = {"tp_size", "tensor_parallel_size", "max_runing_requests", "max_bach_size"} - set(own)
    foreign -= {"max_runing_requests"} if engine_name == "sglang" else {"max_bach_size"}
    with pytest.raises(EngineSettingError) as caught:
        begin({key: value for key, value in settings.items() if key not in foreign})
    assert part in str(caught.value)


def config(make: ConfigMaker, settings: dict[str, Any], **changes: Any) -> ExperimentConfig:
    return replace(make(), settings=settings, **changes)


def test_a_study_that_says_nothing_names_nothing_but_sizes() -> None:
    """A default that is spelled out would fail every cycle with a version that renamed that argument."""
    for section, sizes in ((SGLangSettings(), sglang.SIZES), (TensorRTLLMSettings(), tensorrt_llm.SIZES)):
        said = asdict(section, dict_factory=lambda items: {name: value for name, value in items if value is not None})
        assert {name for name, value in said.items() if value != {}} == set(sizes)


def test_sglang_gets_what_the_study_says(make_config: ConfigMaker, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    study = config(
        make_config,
        {"mem_fraction_static": 0.8, "disable_radix_cache": False, "extra": {"device": "cuda", "quantization": None}},
        revision="abc",
        lora=str(tmp_path),
        seed=4,
        dtype=None,
    )
    arguments = sglang.engine_arguments(study, ONE_GPU, "/model", "/tokenizer", SGLANG_ARGUMENTS)
    assert arguments == {
        "model_path": "/model",
        "tokenizer_path": "/tokenizer",
        "dtype": "auto",
        "revision": "abc",
        "trust_remote_code": False,
        "random_seed": 4,
        "log_level": "warning",
        "mem_fraction_static": 0.8,
        "disable_radix_cache": False,
        "device": "cuda",
        "enable_lora": True,
        "lora_paths": {"adapter": str(tmp_path)},
        "custom_sigquit_handler": sglang.scheduler_died,
    }
    on_cpu = sglang.engine_arguments(config(make_config, {}), DeviceSet("cpu"), "/model", "/t", SGLANG_ARGUMENTS)
    assert on_cpu["device"] == "cpu"


def test_sglang_samples_as_the_study_says(make_config: ConfigMaker) -> None:
    greedy = sglang.sampling_parameters(config(make_config, {}), REQUEST)
    assert greedy == {"max_new_tokens": 8, "ignore_eos": False, "temperature": 0.0}
    sampled = sglang.sampling_parameters(config(make_config, {}, decoding=SAMPLING, seed=9), REQUEST)
    assert sampled == {
        "max_new_tokens": 8,
        "ignore_eos": False,
        "temperature": 0.7,
        "top_k": -1,
        "top_p": 0.9,
        "repetition_penalty": 1.1,
        "sampling_seed": 9,
    }


def test_both_end_answers_at_the_strings_of_the_request(make_config: ConfigMaker) -> None:
    """TensorRT-LLM finds strings in texts, which it must be told to make."""
    study, request = config(make_config, {}), replace(REQUEST, stop=("\n\n", "Q:"))
    assert sglang.sampling_parameters(study, request)["stop"] == ["\n\n", "Q:"]
    parameters = tensorrt_llm.sampling_parameters(study, request)
    assert (parameters["stop"], parameters["detokenize"]) == (["\n\n", "Q:"], True)


@pytest.mark.parametrize("cumulative", [True, False])
def test_sglangs_chunks_hold_everything_or_what_is_new(cumulative: bool) -> None:
    """`incremental_streaming_output` changes the meaning of `output_ids`; read wrongly, tokens are lost or doubled."""
    answer = StreamedAnswer(REQUEST, 1)
    for count, everything in ((2, [7, 8]), (3, [7, 8, 9])):
        given = everything if cumulative else everything[-1:] if count == 3 else everything
        chunk = {"output_ids": given, "meta_info": {"completion_tokens": count, "finish_reason": None}}
        assert sglang.take_chunk(answer, chunk, count) is None
    assert (answer.ids, answer.times_ns) == ([7, 8, 9], [2, 2, 3])


def test_an_aborted_request_is_an_error_and_not_an_answer() -> None:
    answer = StreamedAnswer(REQUEST, 1)
    facts = {"completion_tokens": 0, "finish_reason": {"type": "abort", "message": "out of memory"}, "cached_tokens": 2}
    reason = sglang.take_chunk(answer, {"output_ids": [], "meta_info": facts}, 5)
    completion = answer.completion("SGLang", reason, 6)
    assert (completion.finish_reason, completion.error) == ("error", "SGLang ended the request: abort")
    assert (completion.index, completion.end_ns, completion.cached_tokens) == (3, 6, 2)


def test_a_scheduler_that_dies_is_an_error_of_this_process() -> None:
    with pytest.raises(LlemError, match=r"worker\.log"):
        sglang.scheduler_died(3, None)


def test_tensorrt_llm_gets_what_the_study_says(make_config: ConfigMaker) -> None:
    study = config(
        make_config,
        {
            "max_batch_size": 4,
            "kv_cache_config": {"free_gpu_memory_fraction": 0.5, "enable_block_reuse": None},
            "scheduler_config": {"capacity_scheduler_policy": "MAX_UTILIZATION"},
            "quant_config": {"quant_algo": None},
            "backend": "pytorch",
            "extra": {"max_seq_len": None},
        },
        revision="abc",
    )
    arguments = tensorrt_llm.llm_arguments(study, ONE_GPU, "/model", "/tokenizer", TRT_ARGUMENTS, MAKERS)
    assert arguments == {
        "model": "/model",
        "tokenizer": "/tokenizer",
        "dtype": "float32",
        "revision": "abc",
        "trust_remote_code": False,
        "max_batch_size": 4,
        "kv_cache_config": {"enable_block_reuse": False, "free_gpu_memory_fraction": 0.5},
        "scheduler_config": {"capacity_scheduler_policy": "MAX_UTILIZATION"},
    }


def test_tensorrt_llm_samples_as_the_study_says(make_config: ConfigMaker) -> None:
    common = {"max_tokens": 8, "ignore_eos": False, "detokenize": False}
    assert tensorrt_llm.sampling_parameters(config(make_config, {}), REQUEST) == {**common, "top_k": 1}
    sampled = tensorrt_llm.sampling_parameters(config(make_config, {}, decoding=SAMPLING, seed=9), REQUEST)
    asked = {"temperature": 0.7, "top_k": 0, "top_p": 0.9, "repetition_penalty": 1.1, "seed": 9}
    assert sampled == {**common, **asked}


@pytest.mark.parametrize(
    ("settings", "changes", "part"),
    [({"backend": "tensorrt"}, {}, "pytorch"), ({}, {"lora": "/adapter"}, "use vllm")],
)
def test_what_tensorrt_llm_is_not_asked_to_do_here_is_said(
    make_config: ConfigMaker, settings: dict[str, Any], changes: dict[str, Any], part: str
) -> None:
    study = config(make_config, settings, **changes)
    with pytest.raises(EngineSettingError) as caught:
        tensorrt_llm.llm_arguments(study, ONE_GPU, "/model", "/tokenizer", TRT_ARGUMENTS, MAKERS)
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("problem", "kind"),
    [
        (RuntimeError("CUDA out of memory while allocating"), OutOfMemoryError),
        (ValueError("max_batch_size must be positive"), EngineSettingError),
    ],
)
def test_tensorrt_llms_refusals_have_their_kind(
    make_config: ConfigMaker, problem: Exception, kind: type[LlemError]
) -> None:
    assert type(tensorrt_llm.TensorRTLLMEngine()._load_error(make_config(), problem)) is kind
