"""What every engine must do alike, so that a study can vary the engine and nothing else."""

from __future__ import annotations

import gc
import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from pytest_llem.engines import open_engine
from pytest_llem.engines.protocol import Engine
from pytest_llem.errors import EngineSettingError, ModelNotFoundError, OutOfMemoryError, WorkloadError
from pytest_llem.job.job import DeviceSet
from pytest_llem.workload.build import token_hash
from pytest_llem.workload.tokenizer import AnswerTokenizer
from tests.engines.engine_cases import ConfigMaker, Start, generate, ids, requests_of

pytestmark = pytest.mark.engine

BATCH_SIZES = {"transformers": "batch_size", "vllm": "max_num_seqs"}
"""The setting that bounds how many requests run together."""
SAME_TOKENS = "efaaa8533b0c140e1ed25d67685c3413ff72cf0472c787d85e8b8373c782074d"


def test_answers_have_exactly_the_length_asked_for(loaded: Engine) -> None:
    requests = requests_of(5, 9, 16)
    requests += [type(r)(r.index + 3, r.token_ids, 3 + r.index, True) for r in requests_of(7, 7)]
    assert [len(output) for output in ids(generate(loaded, requests))] == [8, 8, 8, 3, 4]


def test_fixed_length_goes_on_after_the_end_of_sequence(loaded: Engine) -> None:
    free = generate(loaded, requests_of(*range(4, 20), output=64, ignore_eos=False))
    fixed = generate(loaded, requests_of(*range(4, 20), output=64))
    ended = [completion for completion in free if completion.finish_reason == "stop"]
    assert ended
    assert all(len(output) == 64 for output in ids(fixed))
    assert {completion.finish_reason for completion in fixed} == {"length"}


def test_output_ends_at_the_end_of_sequence_without_padding(loaded: Engine) -> None:
    """Padding after the end was counted as output elsewhere, which made short answers look efficient."""
    completions = generate(loaded, requests_of(*range(4, 20), output=64, ignore_eos=False))
    for completion in completions:
        if completion.finish_reason == "stop":
            assert completion.output_ids.index(2) == len(completion.output_ids) - 1
        else:
            assert 2 not in completion.output_ids
            assert len(completion.output_ids) == 64


@pytest.mark.parametrize("stop", [("obscure", "faint"), ("e G", "nothing says this", "s p")])
def test_output_ends_at_the_first_of_its_stop_strings(loaded: Engine, stop: tuple[str, ...]) -> None:
    """In one batch each answer ends where its own text has a string, and what the batch makes behind counts nowhere.

    A string may begin and end within tokens.
    """
    _end_at(loaded, stop)


def test_a_stop_string_may_name_a_special_token(loaded: Engine) -> None:
    """Tasks of lm-evaluation-harness name the ends of turns of many models."""
    _end_at(loaded, ("</s>",))


def _end_at(engine: Engine, stop: tuple[str, ...]) -> None:
    tokenizer = engine.tokenizer()
    requests = requests_of(*range(4, 20), output=48)
    free = ids(generate(engine, requests))
    stopped = generate(engine, [replace(request, stop=stop) for request in requests])

    def until(answer: tuple[int, ...]) -> tuple[int, ...]:
        counts = range(1, len(answer) + 1)
        return answer[: next((n for n in counts if any(s in tokenizer.decode(answer[:n]) for s in stop)), len(answer))]

    assert ids(stopped) == [until(answer) for answer in free]
    ended = [len(completion.output_ids) < 48 for completion in stopped]
    assert 2 < sum(ended) < 16, "the case holds answers with and without the strings"
    assert [completion.finish_reason == "stop" for completion in stopped] == ended
    assert all(len(completion.token_times_ns or ()) == completion.generated for completion in stopped)
    assert len({completion.generated for completion in stopped}) > 2


def test_a_stop_string_in_the_prompt_ends_no_answer(loaded: Engine) -> None:
    """transformers' own criterion sees one that the prompt begins and the answer completes, and servers do not."""
    tokenizer = loaded.tokenizer()
    (request,) = requests_of(12, output=8)
    (answer,) = ids(generate(loaded, [request]))
    across = tokenizer.decode(request.token_ids[-1:]) + tokenizer.decode(answer[:1])
    assert ids(generate(loaded, [replace(request, stop=(across,))])) == [answer]


def test_the_text_of_an_answer_has_no_special_tokens(loaded: Engine) -> None:
    """A scorer that got the end of sequence would find no answer right."""
    tokenizer = loaded.tokenizer()
    assert isinstance(tokenizer, AnswerTokenizer)
    done = generate(loaded, requests_of(*range(4, 20), output=64, ignore_eos=False))
    answers = [completion.output_ids for completion in done if completion.finish_reason == "stop"]
    assert all(tokenizer.decode(answer).endswith("</s>") for answer in answers)
    assert [tokenizer.answer(answer) for answer in answers] == [tokenizer.decode(answer[:-1]) for answer in answers]
    assert answers


def test_greedy_decoding_repeats_itself(loaded: Engine) -> None:
    requests = requests_of(5, 12, 9)
    assert ids(generate(loaded, requests)) == ids(generate(loaded, requests))


def test_every_engine_gives_the_same_greedy_tokens(loaded: Engine) -> None:
    """Same model, same work: in float32 the choice of engine must not change what is generated."""
    assert token_hash(ids(generate(loaded, requests_of(5, 12, 30, 9, output=24)))) == SAME_TOKENS


def test_batching_and_padding_change_no_answer(loaded: Engine) -> None:
    """Left padding that leaks into positions or attention would show here."""
    requests = requests_of(4, 17, 9, 30)
    alone = [ids(generate(loaded, [request]))[0] for request in requests]
    assert ids(generate(loaded, requests)) == alone


def test_input_tokens_are_the_prompt_without_padding(loaded: Engine) -> None:
    completions = generate(loaded, requests_of(4, 17))
    assert [completion.input_tokens for completion in completions] == [4, 17]


def test_times_are_ordered_and_on_the_monotonic_clock(loaded: Engine) -> None:
    before = time.monotonic_ns()
    completions = generate(loaded, requests_of(5, 9, 16, 4, 4, 4))
    after = time.monotonic_ns()
    for completion in completions:
        assert before <= completion.start_ns < completion.end_ns <= after
        if loaded.capabilities.token_times and completion.token_times_ns is not None:
            assert len(completion.token_times_ns) == completion.generated
            assert list(completion.token_times_ns) == sorted(completion.token_times_ns)
            assert completion.start_ns < completion.token_times_ns[0]
            assert completion.token_times_ns[-1] == completion.end_ns


def test_no_prompt_token_comes_from_a_cache_after_a_reset(loaded: Engine) -> None:
    requests = requests_of(64, 80)
    generate(loaded, requests)
    assert loaded.reset() != "unknown"
    assert not any(completion.cached_tokens for completion in generate(loaded, requests))


def test_progress_reaches_the_end(loaded: Engine) -> None:
    seen: list[tuple[int, int]] = []
    loaded.generate(requests_of(4, 4, 4, 4, 4, 4), lambda done, total: seen.append((done, total)))
    assert seen[-1] == (6, 6)
    assert seen == sorted(seen)


def test_long_prompt_is_answered_and_one_too_long_refused(loaded: Engine) -> None:
    assert len(ids(generate(loaded, requests_of(2000)))[0]) == 8
    with pytest.raises(WorkloadError, match="2048"):
        generate(loaded, requests_of(2045))


def test_effective_settings_are_read_back(loaded: Engine) -> None:
    effective = loaded.effective()
    assert effective["dtype"] == "float32"
    assert Path(str(effective["model_path"])).is_dir()


def test_shape_is_that_of_the_tiny_model(loaded: Engine) -> None:
    shape = loaded.shape()
    assert shape is not None
    assert (shape.layers, shape.heads, shape.kv_heads, shape.head_dim, shape.vocab_size) == (2, 2, 1, 32, 2048)


def test_tokenizer_round_trip_and_chat(loaded: Engine) -> None:
    tokenizer = loaded.tokenizer()
    text = "The Rays of Light differ in Colour."
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.chat(text)) > len(tokenizer.encode(text))
    assert tokenizer.bos_id == 1


def test_the_batch_size_changes_no_answer(start: Start, engine_name: str) -> None:
    """Whether the last batch is full, or there is but one, is the engine's own business."""
    requests = requests_of(4, 17, 9, 30, 5)
    key = BATCH_SIZES.get(engine_name)
    expected = ids(generate(start(), requests))
    for size in (1, 3):
        assert ids(generate(start({key: size} if key else {}), requests)) == expected


def test_a_second_load_in_the_same_process_gives_the_same_answers(start: Start) -> None:
    first = start()
    requests = requests_of(5, 12)
    expected = ids(generate(first, requests))
    first.shutdown()
    assert ids(generate(start(), requests)) == expected


def test_shutdown_leaves_no_process_no_thread_and_no_weights(start: Start) -> None:
    torch = pytest.importorskip("torch")
    children, threads = set(psutil.Process().children(recursive=True)), set(threading.enumerate())
    others = {id(tensor): tensor for tensor in _tensors(torch.Tensor)}
    engine = start()
    shape = engine.shape()
    assert shape is not None
    embeddings = (shape.vocab_size, shape.hidden_size)
    generate(engine, requests_of(5, 12))
    engine.shutdown()
    engine.shutdown()
    del engine
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and set(threading.enumerate()) - threads:
        time.sleep(0.05)
    gc.collect()
    assert not set(threading.enumerate()) - threads
    assert not set(psutil.Process().children(recursive=True)) - children
    left = [tensor for tensor in _tensors(torch.Tensor) if id(tensor) not in others]
    assert not [tensor for tensor in left if tuple(tensor.shape) == embeddings]


def _tensors(kind: type) -> list[Any]:
    return [each for each in gc.get_objects() if issubclass(type(each), kind)]


def test_a_model_that_fits_nowhere_is_out_of_memory(make_config: ConfigMaker, config_only: Path) -> None:
    """A real allocation, of more than there is address space for: 140 TB for one of its matrices."""
    file = config_only / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "intermediate_size": 2**39}), encoding="utf-8")
    config = make_config(model=str(config_only), weights="dummy")
    engine = open_engine(config.engine)
    engine.prepare(config, DeviceSet("cpu"))
    try:
        with pytest.raises(OutOfMemoryError) as caught:
            engine.load()
        assert caught.value.fix
    finally:
        engine.shutdown()


def test_random_weights_need_only_a_configuration(start: Start, config_only: Path) -> None:
    engine = start(model=str(config_only), weights="dummy")
    first = ids(generate(engine, requests_of(6, 6)))
    assert [len(output) for output in first] == [8, 8]
    assert engine.effective()["weights"] == "dummy"


def test_an_adapter_changes_answers_as_it_does_in_peft(start: Start, adapter: Path) -> None:
    """The reference is peft itself, which adds the adapter to each layer's output; engines may merge it instead."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    engine = start(lora=str(adapter))
    requests = requests_of(5, 12)
    answers = ids(generate(engine, requests))
    assert engine.effective()["lora"] == str(adapter)
    base = AutoModelForCausalLM.from_pretrained(str(engine.effective()["model_path"]), dtype="float32")
    reference = peft.PeftModel.from_pretrained(base, str(adapter)).eval()
    for request, answer in zip(requests, answers, strict=True):
        tokens = list(request.token_ids)
        for _ in answer:
            tokens.append(int(reference(torch.tensor([tokens])).logits[0, -1].argmax()))
        assert tuple(tokens[len(request.token_ids) :]) == answer
    assert answers != ids(generate(start(), requests))


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_an_adapter_that_is_not_there_is_a_clear_error(make_config: ConfigMaker, tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    config = make_config(lora=str(tmp_path / name))
    engine = open_engine(config.engine)
    engine.prepare(config, DeviceSet("cpu"))
    try:
        with pytest.raises(ModelNotFoundError, match=f"adapter.*{name}") as caught:
            engine.load()
        assert caught.value.fix
    finally:
        engine.shutdown()


@pytest.mark.parametrize("model", ["builtin:tiny-lama", "/no/such/directory", "nobody/no-such-model"])
def test_a_missing_model_is_a_clear_error(make_config: ConfigMaker, model: str) -> None:
    config = make_config(model=model)
    engine = open_engine(config.engine)
    engine.prepare(config, DeviceSet("cpu"))
    with pytest.raises(ModelNotFoundError) as caught:
        engine.load()
    assert model.removeprefix("builtin:") in caught.value.message
    assert caught.value.fix
    engine.shutdown()


@pytest.mark.parametrize(
    ("settings", "changes"),
    [({"no_such_setting": 1}, {}), ({}, {"dtype": "float37"})],
)
def test_wrong_settings_are_refused_before_loading(
    make_config: ConfigMaker, settings: dict[str, Any], changes: dict[str, Any]
) -> None:
    config = make_config(settings, **changes)
    with pytest.raises(EngineSettingError) as caught:
        open_engine(config.engine).prepare(config, DeviceSet("cpu"))
    assert caught.value.fix
