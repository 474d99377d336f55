"""What the client of servers finds out about the model that a server has loaded: the answers of each product, in short,
and the files that lie on this machine."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from pytest_llem.engines.builtin import builtin_path
from pytest_llem.engines.model_files import fingerprint
from pytest_llem.worker.cycle import settings_differ
from tests.engines.servers.bench import Bench, bench
from tests.engines.servers.configs import config_maker
from tests.engines.servers.gguf_model import write_gguf

__all__ = ["bench"]

pytestmark = pytest.mark.engine

FIELDS = ("dtype", "quantization", "quantized", "kv_cache_dtype", "model_revision", "model_fingerprint")
COMMIT = "4847e87e5975a573a2a190399ca62cd266c899ad"
DIGEST = "a2af6cc3eb7fa8be8504abaf9b04e88f17a119ec3f04a3addf55f92841195f5a"
META = {"vocab_type": 2, "n_vocab": 2048, "n_ctx_train": 2048, "n_embd": 64, "n_params": 360_768, "size": 1_443_072}


def models(owner: str, name: str = "m", **more: Any) -> dict[str, Any]:
    return {"object": "list", "data": [{"id": name, "object": "model", "owned_by": owner, **more}]}


SAID: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[object, ...]]] = {
    "llama.cpp": (
        models("llamacpp", meta={**META, "ftype": "Q4_K - Medium"}),
        {"/props": {"total_slots": 1, "model_path": "/nowhere/m.gguf", "model_ftype": "Q4_K - Medium"}},
        (None, "Q4_K_M", True, None, None, "counts:n_params=360768,size=1443072,n_vocab=2048"),
    ),
    "llama.cpp of 2025": (
        models("llamacpp", meta=META),
        {"/props": {"total_slots": 1, "model_path": "/nowhere/m.gguf"}},
        (None, None, None, None, None, "counts:n_params=360768,size=1443072,n_vocab=2048"),
    ),
    "vLLM": (models("vllm", root="org/m"), {"/version": {"version": "0.32.0"}}, (None,) * 6),
    "vLLM in development mode": (
        models("vllm", root="org/m"),
        {
            "/server_info?config_format=json": {
                "vllm_config": {
                    "model_config": {"dtype": "torch.bfloat16", "quantization": "fp8"},
                    "cache_config": {"cache_dtype": "fp8_e4m3"},
                }
            }
        },
        ("bfloat16", "fp8", True, "fp8_e4m3", None, None),
    ),
    "vLLM in development mode, as it is": (
        models("vllm"),
        {
            "/server_info?config_format=json": {
                "vllm_config": {"model_config": {"dtype": "torch.float16", "quantization": None}}
            }
        },
        ("float16", None, False, None, None, None),
    ),
    "SGLang": (
        models("sglang"),
        {"/get_server_info": {"dtype": "half", "quantization": "awq", "kv_cache_dtype": "auto", "model_path": "org/m"}},
        ("float16", "awq", True, "auto", None, None),
    ),
    "SGLang with its defaults": (
        models("sglang"),
        {"/server_info": {"dtype": "auto", "quantization": None, "kv_cache_dtype": "auto"}},
        (None, None, None, "auto", None, None),
    ),
    "Text Generation Inference": (
        models("org/m", "org/m"),
        {"/info": {"model_id": "org/m", "model_sha": COMMIT, "model_dtype": "torch.float16"}},
        ("float16", None, None, None, COMMIT, None),
    ),
    "Ollama": (
        models("library", "gemma3"),
        {
            "/api/tags": {
                "models": [
                    {"model": "other:latest", "digest": "0" * 64, "details": {"quantization_level": "F16"}},
                    {"model": "gemma3:latest", "digest": DIGEST, "details": {"quantization_level": "Q4_K_M"}},
                ]
            }
        },
        (None, "Q4_K_M", True, None, None, f"manifest-sha256:{DIGEST}"),
    ),
    "LM Studio": (
        models("organization_owner"),
        {"/api/v0/models": {"data": [{"id": "m", "compatibility_type": "gguf", "quantization": "F16"}]}},
        ("float16", None, False, None, None, None),
    ),
    "LM Studio with MLX": (
        models("organization-owner"),
        {"/api/v0/models": {"data": [{"id": "m", "compatibility_type": "mlx", "quantization": "4bit"}]}},
        (None, "4bit", True, None, None, None),
    ),
    "nothing of the kind": (models("somebody"), {}, (None,) * 6),
    "nonsense": (
        models("vllm", root=7, meta=[1]),
        {"/server_info?config_format=json": {"vllm_config": "VllmConfig(dtype=…)"}, "/props": [], "/version": {}},
        (None,) * 6,
    ),
}


@pytest.mark.parametrize("product", SAID)
def test_what_a_product_tells_of_its_model_is_in_the_result(bench: Bench, product: str) -> None:
    listed, aside, expected = SAID[product]
    effective = bench.engine(bench.server(models=listed, aside=aside)).effective()
    assert tuple(effective[field] for field in FIELDS) == expected


def llama_cpp(bench: Bench, model: Path, **settings: Any) -> dict[str, Any]:
    """What is known of a scripted llama.cpp that says that it has loaded a file."""
    props = {"/props": {"total_slots": 1, "model_path": str(model)}}
    server = bench.server(models=models("llamacpp", meta=META), aside=props)
    return dict(bench.engine(server, **settings).effective())


def test_the_file_of_a_server_on_this_machine_is_read(bench: Bench, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    effective = llama_cpp(bench, path)
    assert (effective["dtype"], effective["quantized"], effective["model_parameters"]) == ("float32", False, 360_768)
    assert effective["model_fingerprint"].startswith("sha256:")
    assert effective["model_path"] == str(path)


def test_a_file_with_other_numbers_than_the_server_tells_is_not_its_model(bench: Bench, tmp_path: Path) -> None:
    """It was replaced since the server read it, or the path is one of another machine behind a tunnel."""
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(16))
    assert str(llama_cpp(bench, path)["model_fingerprint"]).startswith("counts:")


def test_weights_of_an_unknown_type_may_be_quantised(bench: Bench, tmp_path: Path) -> None:
    """A type that is newer than this version was told as no quantisation at all."""
    path = tmp_path / "m.gguf"
    tensor = (1).to_bytes(8, "little") + b"w" + struct.pack("<IQIQ", 1, META["n_params"], 9999, 0)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + tensor)
    effective = llama_cpp(bench, path)
    assert effective["model_fingerprint"].startswith("sha256:")
    assert (effective["dtype"], effective["quantized"], effective["quantization"]) == (None, None, None)


@pytest.fixture
def quantised(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    for file in builtin_path("builtin:tiny-llama").iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "awq", "bits": 4}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize("started", [True, False])
def test_the_directory_that_a_server_has_loaded_is_read(bench: Bench, quantised: Path, started: bool) -> None:
    """A server that was started for the study got the study's model; another one tells a path."""
    listed = models("nobody" if started else "vllm", root=str(quantised))
    config, settings = ({"model": str(quantised)}, {"command": ["serve", "{model}"]}) if started else ({}, {})
    effective = bench.engine(bench.server(models=listed), config, **settings).effective()
    assert (effective["quantization"], effective["quantized"], effective["dtype"]) == ("awq", True, None)
    assert effective["model_fingerprint"] == fingerprint(quantised)
    assert effective["model_path"] == str(quantised)


def test_the_commit_of_a_model_from_the_hub_is_that_of_the_cache(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    refs = tmp_path / "models--org--m" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text(COMMIT)

    def started(revision: str | None = None) -> object:
        config = {"model": "org/m", "revision": revision}
        return bench.engine(bench.server(), config, command=["serve", "{model}"]).effective()["model_revision"]

    assert (started(), started("f" * 40)) == (COMMIT, "f" * 40)


def test_a_dtype_that_the_server_does_not_have_makes_the_cycle_invalid() -> None:
    """What was asked for never reaches a server that runs already; quantised weights have no dtype of the study's."""
    config = config_maker("http://127.0.0.1:1")(dtype="float16")
    assert settings_differ(config, {"dtype": None, "quantized": None}) == []
    assert settings_differ(config, {"dtype": None, "quantized": True}) == []
    assert settings_differ(config, {"dtype": "float16", "quantized": False}) == []
    note = settings_differ(config, {"dtype": "float32", "quantized": False})
    assert [each.code for each in note] == ["effective_differs"]
