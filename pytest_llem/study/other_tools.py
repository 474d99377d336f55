"""Recognises the parameter files of other benchmarks, which are easily taken for a study.

`document` asks for every file that it reads. A rule may name only keys that no study has; what a file of such a tool
says in a study's words stands in docs/studies.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from pytest_llem.errors import JsonValue

_AIPERF = frozenset({"endpoint", "loadgen", "phases", "datasets", "input"})
_GUIDELLM = frozenset({"profile", "rate_type", "request_type", "max_seconds", "max_requests", "constraints"})
_GUIDELLM_SPEC = frozenset({"backend", "data", "profile", "constraints"})
_BENCH = frozenset(
    {"random_input_len", "random_output_len", "request_rate", "max_concurrency", "dataset_name", "num_prompts"}
)
_BENCH_SUITE = frozenset({"test_name", "server_parameters", "client_parameters", "qps_list"})
_SERVE = frozenset({"max_model_len", "tensor_parallel_size", "gpu_memory_utilization", "max_num_seqs"})
_OWN = frozenset({"model", "engine", "workload", "base", "sweep", "experiments", "transformers", "vllm"})
_SERVE |= {"max_num_batched_tokens", "served_model_name", "uvicorn_log_level"}


def tool_of(data: JsonValue) -> str | None:
    """The tool whose parameter file this is, with an article where one is needed; `None` for anything else."""
    return next((tool for tool, is_one in _TOOLS.items() if is_one(data)), None)


def _is_aiperf(data: JsonValue) -> bool:
    if not isinstance(data, Mapping):
        return False
    body = data.get("benchmark")
    keys = body.keys() if isinstance(body, Mapping) else data.keys()
    return str(data.get("apiVersion", "")).startswith("aiperf.") or len(_AIPERF & keys) > 1


def _is_guidellm(data: JsonValue) -> bool:
    if not isinstance(data, Mapping):
        return False
    spec = data.get("spec")
    plain = {"target", "data"} & data.keys() and _GUIDELLM & _words(data)
    return bool(plain) or (isinstance(spec, Mapping) and len(_GUIDELLM_SPEC & spec.keys()) > 1)


def _is_vllm(data: JsonValue) -> bool:
    if isinstance(data, Mapping):
        if any("-" in key and key.replace("-", "_") in _SERVE | _BENCH for key in data):
            return True
        if _OWN & data.keys():
            return False
    return any(
        (_BENCH | _BENCH_SUITE) & words or (_SERVE & words and isinstance(data, list)) for words in _entries(data)
    )


def _entries(data: JsonValue) -> Iterator[set[str]]:
    """The words of each mapping in a list, or in the mapping of named entries that it may be as well."""
    inner = data if isinstance(data, (list, tuple)) else data.values() if isinstance(data, Mapping) else ()
    for entry in inner:
        for part in entry if isinstance(entry, list) else [entry]:
            if isinstance(part, Mapping):
                yield _words(part)


def _words(data: Mapping[str, JsonValue]) -> set[str]:
    return {key.replace("-", "_") for key in data}


_TOOLS: Mapping[str, Callable[[JsonValue], bool]] = {
    "AIPerf": _is_aiperf,
    "GuideLLM": _is_guidellm,
    "vLLM (vllm bench or vllm serve)": _is_vllm,
}
