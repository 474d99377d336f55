"""The section `vllm` of a study as arguments of vLLM's own classes, checked against the installed version."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

from pytest_llem.engines.refusals import unknown_setting
from pytest_llem.errors import EngineSettingError, JsonValue
from pytest_llem.job.config import ExperimentConfig

RENAMED = {"speculative": "speculative_config"}
NESTED = ("sampling", "beam_search", "extra")
RESERVED = ("model", "tokenizer", "seed", "dtype", "revision", "trust_remote_code", "disable_log_stats")
SIZES = ("tensor_parallel_size", "pipeline_parallel_size")
DTYPES = ("auto", "float32", "float16", "bfloat16")


@dataclasses.dataclass(frozen=True)
class VLLMArguments:
    """Arguments for `LLM` and for `SamplingParams`; what the workload decides is added per request."""

    engine: Mapping[str, Any]
    sampling: Mapping[str, Any]

    @property
    def sizes(self) -> tuple[int, ...]:
        """The parallel sizes, of which 1 is the default."""
        return tuple(int(self.engine.get(name) or 1) for name in SIZES)

    @property
    def devices(self) -> int:
        """How many devices the engine spreads over."""
        return math.prod(self.sizes)


def read_arguments(
    config: ExperimentConfig, engine_fields: Collection[str], sampling_fields: Collection[str]
) -> VLLMArguments:
    """Sort the settings into vLLM's two classes. Raises `EngineSettingError` for one that neither has."""
    if config.dtype is not None and config.dtype not in DTYPES:
        raise EngineSettingError(f"dtype: vLLM cannot run {config.dtype!r}", fix=f"use one of {', '.join(DTYPES)}")
    section = {key: value for key, value in config.settings.items() if value is not None}
    engine: dict[str, Any] = {}
    for key, value in section.items():
        if key in NESTED:
            continue
        name = RENAMED.get(key, key)
        if name not in engine_fields or name in RESERVED:
            raise unknown_setting("vLLM", f"vllm.{key}", key, engine_fields)
        engine[name] = _without_nulls(value)
    sampling: dict[str, Any] = {}
    for key, item in _mapping(section, "sampling").items():
        if key not in sampling_fields:
            raise unknown_setting("vLLM", f"vllm.sampling.{key}", key, sampling_fields)
        sampling[key] = item
    for key, item in _mapping(section, "extra").items():
        if key in RESERVED or (key not in sampling_fields and key not in engine_fields):
            raise unknown_setting("vLLM", f"vllm.extra.{key}", key, {*sampling_fields, *engine_fields})
        (sampling if key in sampling_fields else engine)[key] = item
    if int(str(_mapping(section, "beam_search").get("beam_width", 1))) > 1:
        raise EngineSettingError(
            "vllm.beam_search: vLLM runs beam search outside of its scheduler, one step of the whole engine per token",
            fix="use the engine transformers with num_beams",
        )
    if sampling.get("n", 1) != 1:
        raise EngineSettingError("vllm.sampling.n: one answer per prompt is measured", fix="raise workload.prompts")
    if int(engine.get("data_parallel_size") or 1) > 1:
        raise EngineSettingError(
            "vllm.data_parallel_size: vLLM's offline engine is one copy of the model",
            fix="use the engine openai with a server of several copies: vllm serve ... --data-parallel-size N",
        )
    if not engine.get("speculative_config"):
        engine.pop("speculative_config", None)
    sampling.update(_decoding(config))
    return VLLMArguments(engine, sampling)


def _decoding(config: ExperimentConfig) -> dict[str, Any]:
    decoding = config.decoding
    found: dict[str, Any] = {"temperature": 0.0}
    if decoding.do_sample:
        found = {"seed": config.seed, "temperature": 1.0}
        asked = {key: getattr(decoding, key) for key in ("temperature", "top_k", "top_p", "min_p")}
        found.update({key: value for key, value in asked.items() if value is not None})
    if decoding.repetition_penalty is not None:
        found["repetition_penalty"] = decoding.repetition_penalty
    return found


def _mapping(section: Mapping[str, JsonValue], key: str) -> dict[str, JsonValue]:
    value = section.get(key)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise EngineSettingError(f"vllm.{key}: expected a mapping, got {type(value).__name__}", fix="write a mapping")
    return {name: item for name, item in value.items() if item is not None}


def _without_nulls(value: JsonValue) -> JsonValue:
    if isinstance(value, Mapping):
        return {key: item for key, item in value.items() if item is not None}
    return value
