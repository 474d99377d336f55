"""What a server counts about itself: its Prometheus metrics, before and after."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pytest_llem.errors import JsonValue

GAUGES = {
    "running": ("vllm:num_requests_running", "llamacpp:requests_processing", "sglang:num_running_reqs"),
    "waiting": ("vllm:num_requests_waiting", "llamacpp:requests_deferred", "sglang:num_queue_reqs"),
}
COUNTERS = {
    "preemptions": ("vllm:num_preemptions_total", "sglang:num_retracted_reqs_total"),
    "prefix_cache_queried_tokens": ("vllm:prefix_cache_queries_total",),
    "prefix_cache_hit_tokens": (
        "vllm:prefix_cache_hits_total",
        "llamacpp:prompt_tokens_cached_total",
        "sglang:cached_tokens_total",
    ),
    "prompt_tokens": ("vllm:prompt_tokens_total", "llamacpp:prompt_tokens_total", "sglang:prompt_tokens_total"),
    "generated_tokens": (
        "vllm:generation_tokens_total",
        "llamacpp:tokens_predicted_total",
        "sglang:generation_tokens_total",
    ),
    "draft_tokens": ("vllm:spec_decode_num_draft_tokens_total", "llamacpp:spec_decode_num_draft_tokens_total"),
    "accepted_draft_tokens": (
        "vllm:spec_decode_num_accepted_tokens_total",
        "llamacpp:spec_decode_num_accepted_tokens_total",
    ),
}
_LINE = re.compile(r"^([A-Za-z_:][\w:]*)(\{.*\})?\s+(\S+)(?:\s+\d+)?$")
_NO_PREFIX_CACHE = re.compile(r"^vllm:cache_config_info\{[^}]*enable_prefix_caching=\"False\"", re.MULTILINE)


def parse_metrics(text: str) -> dict[str, float]:
    """Values by name in the Prometheus text format, summed over their labels; what is no number is left out."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        try:
            value = float(match.group(3))
        except ValueError:
            continue
        if value == value and abs(value) != float("inf"):
            found[match.group(1)] = found.get(match.group(1), 0.0) + value
    return found


def prefix_cache_is_off(text: str) -> bool:
    """Whether the metrics of vLLM say that it runs without a prefix cache."""
    return _NO_PREFIX_CACHE.search(text) is not None


def gauge(metrics: Mapping[str, float], name: str) -> int | None:
    """A gauge by our name for it; `None` where the server has no such."""
    for theirs in GAUGES[name]:
        if theirs in metrics:
            return int(metrics[theirs])
    return None


def grown(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, JsonValue]:
    """How far each known counter went in between; one that went back (a restart) is `None`."""
    found: dict[str, JsonValue] = {}
    for name, candidates in COUNTERS.items():
        for theirs in candidates:
            if theirs in before and theirs in after:
                step = after[theirs] - before[theirs]
                found[name] = int(step) if step >= 0 else None
                break
    return found
