"""What is special to the transformers engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from pytest_llem.engines import open_engine
from pytest_llem.errors import EngineSettingError, LlemError, OutOfMemoryError
from pytest_llem.job.config import Decoding
from pytest_llem.job.job import DeviceSet
from tests.engines.engine_cases import ConfigMaker, Start, generate, ids, requests_of

pytestmark = pytest.mark.engine
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture
def engine_name() -> str:
    return "transformers"


def test_answers_are_those_of_plain_generate(start: Start) -> None:
    engine = start({"batch_size": 1})
    path = str(engine.effective()["model_path"])
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype="float32")
    for request, output in zip(requests_of(5, 12), ids(generate(engine, requests_of(5, 12))), strict=True):
        prompt = torch.tensor([request.token_ids])
        plain = model.generate(prompt, attention_mask=torch.ones_like(prompt), min_new_tokens=8, max_new_tokens=8)
        assert tuple(plain[0, 5 if request.index == 0 else 12 :].tolist()) == output


def test_the_models_own_generation_settings_do_not_leak(start: Start, tmp_path: Any) -> None:
    """Instruction models ship `do_sample: true`: greedy must be greedy all the same."""
    import json
    import shutil

    from pytest_llem.engines.builtin import builtin_path

    directory = tmp_path / "model"
    shutil.copytree(builtin_path("builtin:tiny-llama"), directory)
    sampling = {"do_sample": True, "temperature": 5.0, "top_k": 0, "eos_token_id": 2, "repetition_penalty": 3.0}
    (directory / "generation_config.json").write_text(json.dumps(sampling), encoding="utf-8")
    assert ids(generate(start(model=str(directory)), requests_of(5, 12))) == ids(generate(start(), requests_of(5, 12)))


@pytest.mark.parametrize(
    "settings",
    [
        {"attn_implementation": "eager"},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"prompt_lookup_num_tokens": 3, "batch_size": 1},
        {"batch_size": 2},
        {"extra": {"repetition_penalty": 1.0}},
    ],
)
def test_settings_that_only_change_speed_change_no_answer(start: Start, settings: dict[str, Any]) -> None:
    requests = requests_of(5, 12, 9)
    assert ids(generate(start(settings), requests)) == ids(generate(start(), requests))


@pytest.mark.parametrize(
    "settings",
    [{"num_beams": 3}, {"num_beams": 2, "length_penalty": 0.5, "early_stopping": True}, {"no_repeat_ngram_size": 1}],
)
def test_settings_that_change_answers_reach_generate(start: Start, settings: dict[str, Any]) -> None:
    requests = requests_of(5, 12, 9, output=24)
    completions = generate(start(settings), requests)
    assert ids(completions) != ids(generate(start(), requests))
    assert {len(output) for output in ids(completions)} == {24}


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 1},
        {"batch_size": 16},
        {"cache_implementation": "static"},
        {"prompt_lookup_num_tokens": 3, "batch_size": 1},
    ],
)
def test_answers_end_at_strings_however_they_are_generated(start: Start, settings: dict[str, Any]) -> None:
    """A step of speculative decoding may bring tokens behind the string, which are no part of the answer."""
    requests = [replace(r, stop=("obscure", "colour")) for r in requests_of(*range(4, 12), output=48, ignore_eos=False)]
    done = generate(start(settings), requests)
    assert ids(done) == ids(generate(start(), requests))
    assert {completion.finish_reason for completion in done} == {"stop", "length"}


@pytest.mark.parametrize("step", [1, 3])
def test_a_string_is_found_wherever_its_letters_come_apart(step: int) -> None:
    """Only the newest tokens are looked at, and only those that may end a string: none may be missed for that."""
    from pytest_llem.engines.transformers.stops import StopStrings

    def text_of(given: Sequence[int]) -> str:
        """Bytes as tokens; the first blank is lost, as some tokenizers do it."""
        return bytes(given).decode("utf-8", "replace").removeprefix(" ")

    random = Random(0)
    for strings in (("é",), ("a ",), (" z", "az"), ("z\na", "éz é"), ("</s>",)):
        for _ in range(50):
            answer = "".join(random.choices([*"az \nb</s>", "é", strings[-1]], k=12)).encode()
            lengths = range(1, len(answer) + 1)
            first = next((n for n in lengths if any(s in text_of(answer[:n]) for s in strings)), None)
            stops, seen = StopStrings(strings, text_of), 0
            found = None
            while found is None and seen < len(answer):
                found = stops.end_of(answer[: seen + step], seen)
                seen += step
            assert found == first


def test_a_batch_is_over_when_all_its_answers_are(start: Start) -> None:
    """What it generated further would be energy of the window that belongs to no token."""
    engine = start({"batch_size": 8})
    steps: list[int] = []
    model = engine._ready().model  # type: ignore[attr-defined]
    hook = model.register_forward_hook(lambda *_: steps.append(1))
    stops = [replace(request, stop=tuple("aeiou")) for request in requests_of(*range(4, 12), output=48)]
    done = generate(engine, stops)
    hook.remove()
    assert len(steps) == max(completion.generated for completion in done) < 48


def test_a_beam_ends_at_a_string(start: Start) -> None:
    engine = start({"num_beams": 3})
    requests = requests_of(5, 9, 12, output=24)
    text_of = engine.tokenizer().answer  # type: ignore[attr-defined]
    free = [text_of(answer) for answer in ids(generate(engine, requests))]
    done = generate(engine, [replace(request, stop=("e",)) for request in requests])
    for completion, text in zip(done, free, strict=True):
        assert "e" in text
        assert completion.finish_reason == "stop"
        assert "e" in text_of(completion.output_ids)
        assert "e" not in text_of(completion.output_ids[:-1])


def test_beam_search_has_no_token_times(start: Start) -> None:
    """Which beam's token came when is not known: `null`, not a guess."""
    engine = start({"num_beams": 2})
    assert not engine.capabilities.token_times
    assert generate(engine, requests_of(5))[0].token_times_ns is None


def test_sampling_repeats_itself_with_the_seed(start: Start) -> None:
    sampling = Decoding(do_sample=True, temperature=1.5, top_k=50)
    engine, other = start(decoding=sampling, seed=1), start(decoding=sampling, seed=2)
    requests = requests_of(5, 12, output=16)
    first = ids(generate(engine, requests))
    assert ids(generate(engine, requests)) == first
    assert ids(generate(other, requests)) != first
    assert ids(generate(start(), requests)) != first


def test_effective_shows_what_was_asked_for(start: Start) -> None:
    effective = start({"attn_implementation": "eager", "batch_size": 3, "threads": 1}, dtype="bfloat16").effective()
    asked = {"attn_implementation": "eager", "batch_size": 3, "threads": 1, "dtype": "bfloat16", "device": "cpu"}
    assert {key: effective[key] for key in asked} == asked


def test_without_a_dtype_the_checkpoints_own_is_used(start: Start) -> None:
    assert start(dtype=None).effective()["dtype"] == "float32"


def test_the_mixture_of_experts_model_runs(start: Start) -> None:
    engine = start(model="builtin:tiny-moe")
    shape = engine.shape()
    assert shape is not None
    assert (shape.experts, shape.experts_per_token) == (4, 2)
    assert len(ids(generate(engine, requests_of(5)))[0]) == 8


def test_random_weights_are_the_same_for_a_seed_and_not_degenerate(start: Start) -> None:
    first = ids(generate(start(weights="dummy"), requests_of(5, 12, output=16)))
    assert ids(generate(start(weights="dummy"), requests_of(5, 12, output=16))) == first
    assert ids(generate(start(weights="dummy", seed=7), requests_of(5, 12, output=16))) != first
    assert len(set(first[0])) > 4


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"batch_sise": 4}, "did you mean 'batch_size'"),
        ({"batch_size": "four"}, "transformers.batch_size"),
        ({"batch_size": 0}, "not positive"),
        ({"cache_implementation": "paged"}, "cache_implementation"),
        ({"attn_implementation": "flahs"}, "attn_implementation"),
        ({"extra": {"cache_implementation": "paged"}}, "continuous batching"),
        ({"extra": {"tempretaure": 1.0}}, "did you mean 'temperature'"),
        ({"prompt_lookup_num_tokens": 3, "num_beams": 2, "batch_size": 1}, "cannot be combined"),
        ({"use_cache": False, "cache_implementation": "static"}, "cannot be combined"),
    ],
)
def test_wrong_settings_are_explained(make_config: ConfigMaker, settings: dict[str, Any], part: str) -> None:
    config = make_config(settings)
    with pytest.raises(EngineSettingError) as caught:
        open_engine("transformers").prepare(config, DeviceSet("cpu"))
    assert part in str(caught.value)


def test_what_cannot_be_loaded_is_one_clear_error(make_config: ConfigMaker) -> None:
    config = make_config({"attn_implementation": "flash_attention_2"})
    engine = open_engine("transformers")
    engine.prepare(config, DeviceSet("cpu"))
    with pytest.raises(LlemError) as caught:
        engine.load()
    assert caught.value.fix


def test_running_out_of_memory_says_what_to_lower(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own words, raised by a real allocation that no machine can satisfy."""
    engine = start({"batch_size": 2})
    loaded: Any = engine
    real = loaded._engine.model.generate
    monkeypatch.setattr(loaded._engine.model, "generate", lambda *a, **k: (torch.empty(1 << 60), real(*a, **k))[1])
    with pytest.raises(OutOfMemoryError) as caught:
        generate(engine, requests_of(5, 5))
    assert "transformers.batch_size (now 2)" in (caught.value.fix or "")


def test_a_gpu_that_torch_does_not_see_is_refused(make_config: ConfigMaker) -> None:
    if torch.cuda.is_available():
        pytest.skip("torch sees a GPU here")
    with pytest.raises(LlemError, match="torch sees none"):
        open_engine("transformers").prepare(make_config(), DeviceSet("cuda", ("GPU-0",)))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"compile": {"mode": None, "backend": "inductor"}}, {"compile": False}),
        (
            {"compile": {"mode": "default", "backend": "eager"}},
            {"compile": {"mode": "default", "backend": "eager", "fullgraph": False, "dynamic": None}},
        ),
        ({"quantization": {"load_in_8bit": False, "load_in_4bit": False}}, {"quantized": False}),
        ({"tensor_parallel_size": 1, "attn_implementation": None}, {"attn_implementation": "sdpa"}),
    ],
)
def test_written_out_defaults_mean_what_leaving_them_out_means(
    start: Start, settings: dict[str, Any], expected: dict[str, Any]
) -> None:
    engine = start(settings)
    assert {key: engine.effective()[key] for key in expected} == expected
    assert ids(generate(engine, requests_of(5, 12))) == ids(generate(start(), requests_of(5, 12)))


def test_every_setting_of_the_study_schema_is_known_to_the_engine(make_config: ConfigMaker) -> None:
    """A setting that a study accepts and the engine then refuses would fail every cycle of a sweep."""
    from pytest_llem.engines.transformers.settings import TransformersSettings

    # A study puts an engine's own dtype in the place of the common one.
    written_out = {name: value for name, value in asdict(TransformersSettings()).items() if name != "dtype"}
    open_engine("transformers").prepare(make_config(written_out), DeviceSet("cpu"))


@pytest.mark.parametrize(
    ("quantization", "smaller_than"),
    [
        ({"load_in_8bit": True}, 0.90),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "float32"}, 0.87),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True}, 0.87),
    ],
)
def test_bitsandbytes_makes_the_weights_smaller_and_is_read_back(
    start: Start, quantization: dict[str, Any], smaller_than: float
) -> None:
    """Half of the tiny model is its embeddings, which stay as they are."""
    engine, plain = start({"quantization": quantization}), start()
    completions = generate(engine, requests_of(5, 12, 9))
    assert {len(output) for output in ids(completions)} == {8}
    assert ids(generate(engine, requests_of(5, 12, 9))) == ids(completions)
    effective = engine.effective()
    assert effective["quantized"] is True
    chosen = effective["quantization_config"]
    assert isinstance(chosen, dict)
    assert quantization.items() <= chosen.items()
    small, large = engine.memory()[0].weights_bytes, plain.memory()[0].weights_bytes
    assert small is not None
    assert large is not None
    assert small < smaller_than * large


def test_eight_bit_weights_write_no_line_per_matrix_product(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """bitsandbytes warned at each of them, into the log, while energy was measured."""
    generate(start({"quantization": {"load_in_8bit": True}}), requests_of(5))
    assert "MatMul8bitLt" not in caplog.text


PLACES = ("model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head")


def test_a_device_map_places_each_layer_and_changes_no_answer(start: Start, tmp_path: Path) -> None:
    """A layer on disk stands for one on a second device."""
    places = {name: "disk" if name == "model.layers.1" else "cpu" for name in PLACES}
    engine = start({"device_map": places, "extra": {"offload_folder": str(tmp_path)}})
    assert engine.effective()["device_map"] == places
    expected = ids(generate(start(), requests_of(5, 12)))
    assert ids(generate(engine, requests_of(5, 12))) == expected
    automatic = start({"device_map": "auto", "max_memory": {"cpu": "1GiB"}})
    assert ids(generate(automatic, requests_of(5, 12))) == expected


def test_threads_are_set_and_recorded(start: Start) -> None:
    before = torch.get_num_threads()
    try:
        engine: Any = start({"threads": before + 1})
        assert engine.effective()["threads"] == engine.environment()["torch_threads"] == before + 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("key", ["tensor_parallel_size", "data_parallel_size"])
def test_parallelism_over_processes_is_refused(make_config: ConfigMaker, key: str) -> None:
    with pytest.raises(EngineSettingError, match="process per device"):
        open_engine("transformers").prepare(make_config({key: 2}), DeviceSet("cpu"))


@pytest.mark.parametrize("settings", [{"batch_size": 1}, {"batch_size": 3}, {"attn_implementation": "eager"}])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_phases_apart_give_the_tokens_of_generate(start: Start, settings: dict[str, Any], dtype: str) -> None:
    engine = start(settings, dtype=dtype)
    requests = [*requests_of(5, 12, 30, 9, output=24), *requests_of(9, output=7)]
    requests = [type(r)(index, r.token_ids, r.max_new_tokens, True) for index, r in enumerate(requests)]
    entered: list[str] = []

    @contextmanager
    def border(name: str) -> Iterator[None]:
        entered.append(name)
        yield

    assert engine.split_obstacle(requests) is None
    assert engine.generate_in_phases(requests, border) == ids(generate(engine, requests))
    assert entered[:2] == ["first_token", "decode"]


def test_what_the_plain_loop_cannot_do_is_named(start: Start) -> None:
    engine = start({"num_beams": 2})
    assert "num_beams" in str(engine.split_obstacle(requests_of(5)))


def test_continuous_batching_gives_every_request_its_answer(start: Start) -> None:
    """The end-of-sequence token of the model's configuration must not come back in through the manager."""
    engine = start({"continuous_batching": True, "batch_size": 2})
    requests = [*requests_of(5, 12, 30, 9, output=40), *requests_of(9, output=7)]
    requests = [type(r)(index, r.token_ids, r.max_new_tokens, True) for index, r in enumerate(requests)]
    completions = generate(engine, requests)
    assert [len(output) for output in ids(completions)] == [40, 40, 40, 40, 7]
    assert ids(completions) == ids(generate(start({"batch_size": 1}), requests))
    assert all(len(c.token_times_ns or ()) == len(c.output_ids) for c in completions)
    assert ids(generate(engine, requests)) == ids(completions)
    free = generate(engine, requests_of(*range(4, 14), output=64, ignore_eos=False))
    assert "stop" in {completion.finish_reason for completion in free}
