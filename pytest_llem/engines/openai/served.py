"""The model that a server has loaded: its dtype, its quantisation and its fingerprint, as far as server or files tell.

`probe` asks the server for it, and `OpenAIEngine` adds what the files say that lie on this machine. Nothing here may
fail a run: what is not told is `None`. Results hold the fields, and gates compare them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pytest_llem.energy.processes import PROXIES, TUNNELS, is_here, listening_pid, program
from pytest_llem.engines.gguf_files import quantization_of, read_gguf
from pytest_llem.engines.info import ServerApi
from pytest_llem.engines.model_files import find_gguf, find_model, fingerprint
from pytest_llem.engines.openai.client import ASIDE_TIMEOUT_S
from pytest_llem.engines.openai.settings import ClientSettings
from pytest_llem.errors import LlemError, StoreError
from pytest_llem.job.config import ExperimentConfig
from pytest_llem.job.files import read_json
from pytest_llem.workload.hub import cached_commit

Ask = Callable[[str, float], Mapping[str, Any]]
"""Asks the server for the JSON object at a path, for so many seconds; an empty one where it has none."""
DESCRIBED_S = 60.0
"""vLLM looks at its whole environment before it first tells its settings. Chosen: one answer in time, one too late,
and runs would not be comparable."""
LM_STUDIO = ("organization_owner", "organization-owner")
"""What LM Studio states as `owned_by`."""
LONGEST_WORD = 100
"""Chosen: above every dtype, way of quantising and hash; what is longer is none, and would stand in every result."""
COMMIT = re.compile(r"[0-9a-f]{40}")
DTYPES = {"half": "float16", "float": "float32"}
"""PyTorch's other names, which servers take."""


@dataclass(frozen=True)
class ServedModel:
    """What is known of a loaded model. `quantized` is `None` where it is not known whether it is.

    `fingerprint` begins with how it was made: `sha256:` and `sha256-sampled:` of a GGUF file, `manifest-sha256:` of
    Ollama, `counts:` for the numbers that llama.cpp tells, and nothing for a directory's (`model_files`).
    """

    path: str | None = None
    dtype: str | None = None
    quantization: str | None = None
    quantized: bool | None = None
    kv_cache_dtype: str | None = None
    revision: str | None = None
    fingerprint: str | None = None
    parameters: int | None = None
    size_bytes: int | None = None


def from_llama_cpp(props: Mapping[str, Any], entry: Mapping[str, Any]) -> ServedModel:
    """Of llama.cpp's `/props` and its `entry` of `/v1/models` (tools/server/README.md); older ones tell no `ftype`."""
    meta = _mapping(entry.get("meta"))
    counts = {name: number for name in ("n_params", "size", "n_vocab") if (number := _count(meta.get(name)))}
    return replace(
        _of_file_type(_word(props.get("model_ftype")) or _word(meta.get("ftype"))),
        fingerprint="counts:" + ",".join(f"{name}={number}" for name, number in counts.items()) if counts else None,
        parameters=counts.get("n_params"),
        size_bytes=counts.get("size"),
    )


def from_engine(api: ServerApi, ask: Ask) -> ServedModel:
    """Of the server of an engine, which says where it tells what."""
    said = next((answer for path in api.model_paths if (answer := ask(path, DESCRIBED_S))), {})
    found = {name: _word(_at(said, place)) for name, place in api.model_facts.items()}
    quantization = found.get("quantization")
    within, _, key = api.model_facts.get("quantization", "").rpartition(".")
    tells_none = api.model_facts_resolved and quantization is None and key in _mapping(_at(said, within))
    return ServedModel(
        dtype=_dtype(found.get("dtype")),
        quantization=quantization,
        quantized=False if tells_none else (True if quantization else None),
        kv_cache_dtype=found.get("kv_cache_dtype"),
    )


def from_others(owner: str, served: str, ask: Ask) -> ServedModel:
    """Of servers that no engine here has, by the `owned_by` of their models.

    LM Studio: `/api/v0/models` (its REST API). Text Generation Inference, whose models own themselves: `/info`
    (docs/openapi.json; 3.x tells no dtype). Ollama, and whatever calls itself otherwise: `/api/tags` (docs/api.md). The
    server of llama-cpp-python has nothing but its model's path as the name.
    """
    if owner in LM_STUDIO:
        entry = _named(ask("/api/v0/models", ASIDE_TIMEOUT_S).get("data"), served, "id")
        said = _word(entry.get("quantization"))
        if entry.get("compatibility_type") == "gguf":
            return _of_file_type(said)
        return ServedModel(quantization=said, quantized=True if said else None)
    if owner == served:
        info = ask("/info", ASIDE_TIMEOUT_S)
        sha = _word(info.get("model_sha"))
        return ServedModel(dtype=_dtype(_word(info.get("model_dtype"))), revision=sha)
    if served.endswith(".gguf"):
        return ServedModel(path=served)
    entry = _named(ask("/api/tags", ASIDE_TIMEOUT_S).get("models"), served, "model", "name")
    digest = _word(entry.get("digest"))
    return replace(
        _of_file_type(_word(_mapping(entry.get("details")).get("quantization_level"))),
        fingerprint=f"manifest-sha256:{digest.removeprefix('sha256:')}" if digest else None,
    )


def with_files(told: ServedModel, config: ExperimentConfig, settings: ClientSettings) -> ServedModel:
    """What the server told, with what the model's files say where they can be read here.

    They are those of the study's model where the server was started for it, which then got that model; else those at
    the path that the server tells, if it runs on this machine.
    """
    if settings.command is None and settings.image is None:
        path = None if told.path is None else _as_seen_by_server(settings.base_url, told.path)
        return told if path is None else _with_file(told, path)
    try:
        source = find_gguf(config.model) if settings.gets_gguf else find_model(config.model, weights=False)
    except LlemError:
        return told
    if source.local:
        return _with_file(replace(told, path=told.path or source.location), Path(source.location))
    is_commit = config.revision is not None and COMMIT.fullmatch(config.revision)
    commit = config.revision if is_commit else cached_commit("models", config.model, config.revision)
    return replace(told, revision=told.revision or commit)


def _with_file(told: ServedModel, path: Path) -> ServedModel:
    try:
        is_directory = path.is_dir()
    except (OSError, ValueError):
        return told
    if is_directory:
        try:
            stated = _mapping(read_json(path / "config.json").get("quantization_config"))
            made = fingerprint(path)
        except (StoreError, OSError):
            return told
        method = told.quantization or _word(stated.get("quant_method"))
        return replace(told, fingerprint=made, quantization=method, quantized=True if method else told.quantized)
    model = read_gguf(path)
    # Another number of parameters: the file was replaced since the server read it, or is another machine's.
    if model is None or told.parameters not in (None, model.parameters):
        return told
    of_file = replace(_of_types(model.quantization, model.dtype), path=told.path)
    known = told if told.quantized is not None else replace(of_file, size_bytes=told.size_bytes)
    return replace(known, fingerprint=model.fingerprint, parameters=model.parameters)


def _as_seen_by_server(url: str, path: str) -> Path | None:
    """Where a path of the server's is here: below the root of its process, if that is known, as in a container."""
    parts = urlsplit(url)
    if not is_here(parts.hostname or ""):
        return None
    pid = listening_pid(parts.port or (443 if parts.scheme == "https" else 80))
    name = program(pid) if pid is not None else None
    if name in TUNNELS:
        return None
    if pid is None or name in PROXIES:
        return Path(path) if path.startswith("/") else None
    process = Path(f"/proc/{pid}")
    return process / "root" / path.lstrip("/") if path.startswith("/") else process / "cwd" / path


def _of_file_type(name: str | None) -> ServedModel:
    return _of_types(*quantization_of(name))


def _of_types(quantization: str | None, dtype: str | None) -> ServedModel:
    known = quantization is not None or dtype is not None
    return ServedModel(dtype=dtype, quantization=quantization, quantized=quantization is not None if known else None)


def _dtype(word: str | None) -> str | None:
    name = (word or "auto").removeprefix("torch.")
    return None if name == "auto" else DTYPES.get(name, name)


def _named(entries: Any, name: str, *keys: str) -> Mapping[str, Any]:
    """The entry for a model; Ollama takes a name without its tag for the latest."""
    listed = [entry for entry in entries if isinstance(entry, Mapping)] if isinstance(entries, list) else []
    names = (name, f"{name}:latest")
    return next((entry for entry in listed if any(entry.get(key) in names for key in keys)), {})


def _at(said: Mapping[str, Any], place: str) -> Any:
    value: Any = said
    for key in place.split(".") if place else ():
        value = _mapping(value).get(key)
    return value


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _word(value: Any) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= LONGEST_WORD else None


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 < value < 2**53 else None
