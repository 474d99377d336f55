"""Combinations of settings that no engine can run, in one place.

Each rule names the settings it reads, so that a sweep evaluates it once per combination of those alone. What a rule
returns names both settings and says what to change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pytest_llem.errors import JsonValue
from pytest_llem.study.canonical import Get


@dataclass(frozen=True)
class Refusal:
    """Why a combination cannot run, and what to change."""

    text: str
    fix: str


@dataclass(frozen=True)
class Rule:
    """A check over `paths`; with `engine` it applies to that engine's experiments alone."""

    paths: tuple[str, ...]
    check: Callable[[Get], Refusal | None]
    engine: str | None = None


def _never(
    one: str, is_one: Callable[[JsonValue], bool], other: str, is_other: Callable[[JsonValue], bool], fix: str
) -> Rule:
    def check(get: Get) -> Refusal | None:
        first, second = get(one), get(other)
        if is_one(first) and is_other(second):
            return Refusal(f"{one} {_show(first)} cannot be combined with {other} {_show(second)}", fix)
        return None

    engine = one.partition(".")[0] if "." in one else other.partition(".")[0]
    return Rule((one, other), check, engine)


def _show(value: JsonValue) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _is_set(value: JsonValue) -> bool:
    return value is not None


def _true(value: JsonValue) -> bool:
    return value is True


def _false(value: JsonValue) -> bool:
    return value is False


def _above_one(value: JsonValue) -> bool:
    return isinstance(value, int) and value > 1


def _lengths(path: str) -> Rule:
    def check(get: Get) -> Refusal | None:
        value = get(path)
        if not isinstance(value, Mapping):
            return None
        low, high = value.get("low"), value.get("high")
        if isinstance(low, int) and isinstance(high, int) and low > high:
            return Refusal(f"{path}: low {low} is above high {high}", "swap them")
        if value.get("distribution") == "lognormal" and not {"mean", "sigma"} <= value.keys():
            return Refusal(f"{path}: distribution lognormal needs mean and sigma", "give both")
        return None

    return Rule((path,), check)


def _arrival(get: Get) -> Refusal | None:
    value = get("workload.arrival")
    if not isinstance(value, Mapping):
        return None
    process = str(value.get("process"))
    needed = {"burst": ("burst_size", "rate_per_s"), "concurrency": ("concurrency",)}.get(process, ("rate_per_s",))
    for name in needed:
        if name not in value:
            return Refusal(f"workload.arrival: process {process} needs {name}", f"give {name}")
    if get("engine") == "transformers":
        return Refusal("workload.arrival cannot be combined with engine transformers", "it does not serve: use vllm")
    return None


def _synthetic_length(get: Get) -> Refusal | None:
    if get("workload.dataset") == "synthetic" and get("workload.input_tokens") is None:
        return Refusal(
            "workload.input_tokens null cannot be combined with workload.dataset synthetic", "give a number of tokens"
        )
    return None


def _warmup(get: Get) -> Refusal | None:
    low, high = get("measurement.warmup.min_repeats"), get("measurement.warmup.max_repeats")
    if isinstance(low, int) and isinstance(high, int) and 0 < high < low:
        return Refusal(
            f"measurement.warmup.min_repeats {low} is above measurement.warmup.max_repeats {high}", "swap them"
        )
    return None


_T = "transformers"
_Q = "transformers.quantization"

RULES: tuple[Rule, ...] = (
    _lengths("workload.input_tokens"),
    _lengths("workload.output_tokens"),
    Rule(("workload.arrival", "engine"), _arrival),
    Rule(("workload.dataset", "workload.input_tokens"), _synthetic_length),
    Rule(("measurement.warmup.min_repeats", "measurement.warmup.max_repeats"), _warmup),
    _never(f"{_Q}.load_in_8bit", _true, f"{_Q}.load_in_4bit", _true, "choose one"),
    _never(f"{_T}.cache_implementation", _is_set, f"{_T}.use_cache", _false, "leave use_cache on"),
    _never(f"{_T}.prompt_lookup_num_tokens", _is_set, f"{_T}.batch_size", _above_one, "use batch_size 1"),
    _never(f"{_T}.prompt_lookup_num_tokens", _is_set, f"{_T}.num_beams", _above_one, "use num_beams 1"),
    _never(f"{_T}.prompt_lookup_num_tokens", _is_set, f"{_T}.use_cache", _false, "leave use_cache on"),
    _never(f"{_T}.continuous_batching", _true, f"{_T}.num_beams", _above_one, "use num_beams 1"),
    _never(f"{_T}.continuous_batching", _true, f"{_T}.prompt_lookup_num_tokens", _is_set, "use one of them"),
    _never(f"{_T}.continuous_batching", _true, f"{_T}.cache_implementation", _is_set, "leave the cache to the engine"),
    _never(f"{_T}.continuous_batching", _true, f"{_T}.use_cache", _false, "leave use_cache on"),
    _never(
        f"{_T}.attn_implementation",
        lambda v: str(v).startswith("flash"),
        "dtype",
        lambda v: v == "float32",
        "use float16 or bfloat16",
    ),
)
