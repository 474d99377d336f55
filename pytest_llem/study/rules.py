"""Combinations of settings that no engine can run, as rules by which `loader` and `points` refuse them.

Those of questions are in `question_rules`, of servers in `server_rules`, of devices in `device_rules`. What a rule
returns must name both settings and say what to change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pytest_llem.engines import engine_info, engines, shipped_engines
from pytest_llem.engines.info import EngineInfo
from pytest_llem.errors import JsonValue
from pytest_llem.job.config import SYNTHETIC
from pytest_llem.study.canonical import LIMITS, Get, is_synthetic, section_of
from pytest_llem.study.device_rules import DEVICE_RULES
from pytest_llem.study.question_rules import QUESTION_RULES
from pytest_llem.study.rule import Rule, refused
from pytest_llem.study.search import ARRIVAL, CLIENT, IN_FLIGHT, RATE, SEARCH, Search
from pytest_llem.study.server_rules import SERVER_RULES
from pytest_llem.study.values import shown


def _never(
    one: str, is_one: Callable[[JsonValue], bool], other: str, is_other: Callable[[JsonValue], bool], fix: str
) -> Rule:
    def check(get: Get) -> str | None:
        first, second = get(one), get(other)
        if is_one(first) and is_other(second):
            return refused(f"{one} {shown(first)} cannot be combined with {other} {shown(second)}", fix)
        return None

    return Rule((one, other), check, section_of(one) or section_of(other))


def _is_set(value: JsonValue) -> bool:
    return value is not None


def _is(*values: JsonValue) -> Callable[[JsonValue], bool]:
    return lambda value: value in values


def _above_one(value: JsonValue) -> bool:
    return isinstance(value, int) and value > 1


def _lengths(path: str) -> Rule:
    def check(get: Get) -> str | None:
        value = get(path)
        if not isinstance(value, Mapping):
            return None
        low, high = value.get("low"), value.get("high")
        if isinstance(low, int) and isinstance(high, int) and low > high:
            return refused(f"{path}: low {low} is above high {high}", "swap them")
        if value.get("distribution") == "lognormal" and not {"mean", "sigma"} <= value.keys():
            return refused(f"{path}: distribution lognormal needs mean and sigma", "give both")
        return None

    return Rule((path,), check)


_ARRIVALS: Mapping[str, tuple[str, ...]] = {
    "gamma": ("rate_per_s", "burstiness"),
    "burst": ("burst_size", "rate_per_s"),
    "ramp": ("rate_per_s", "end_rate_per_s"),
    "schedule": (),
    "concurrency": ("concurrency",),
}
"""What arrival processes need beside the rate, which the others need alone."""


def _arrival(get: Get) -> str | None:
    value = get("workload.arrival")
    if not isinstance(value, Mapping):
        return None
    process = str(value.get("process"))
    needed = _ARRIVALS.get(process, ("rate_per_s",))
    for name in needed:
        if value.get(name) is None:
            return refused(f"workload.arrival: process {process} needs {name}", f"give {name}")
    if process == "schedule":
        needed = ("file",)
        if value.get("file") is None and get("workload.dataset") == SYNTHETIC:
            text = "workload.arrival: process schedule without a file takes the times of a data set"
            return refused(f"{text}, and workload.dataset synthetic has none", "give file")
    random = ("seed",) if process in ("poisson", "gamma", "ramp") else ()
    for name, number in value.items():
        if name not in ("process", *needed, *random) and number is not None:
            return refused(f"workload.arrival: {name} has no effect with process {process}", f"leave {name} out")
    engine = str(get("engine"))
    if engine_info(engine).batch_size is not None:
        return refused(f"workload.arrival cannot be combined with engine {engine}", "it does not serve: use vllm")
    return None


def _searched(get: Get) -> str | None:
    search = Search.of({SEARCH: get(SEARCH)})
    if search is None:
        return None
    engine, arrival = str(get("engine")), get(ARRIVAL)
    process = arrival.get("process") if isinstance(arrival, Mapping) else None
    what = f"a search of {search.setting}"
    if engine_info(engine).batch_size is not None:
        return refused(f"{what} cannot be combined with engine {engine}", "it does not serve: use vllm or openai")
    if search.setting == CLIENT and engine != "openai":
        return refused(f"{what} cannot be combined with engine {engine}", f"search {IN_FLIGHT}")
    if all(get(path) is None for path in LIMITS):
        text = f"{what} finds the largest load under an SLO, and slo sets no limit"
        return refused(text, "write slo: {ttft_s: 0.5, at: 99%}")
    processes = {RATE: ("constant", "poisson", "gamma", "burst"), IN_FLIGHT: ("concurrency",)}.get(search.setting)
    if processes is not None and process not in processes:
        return refused(f"{what} cannot be combined with process {process}", f"use process {' or '.join(processes)}")
    return None


def _synthetic_length(get: Get) -> str | None:
    if is_synthetic(get) and get("workload.input_tokens") is None:
        text = "workload.input_tokens null cannot be combined with workload.dataset synthetic"
        return refused(text, "give a number of tokens")
    return None


def _warmup(get: Get) -> str | None:
    low, high = get("measurement.warmup.min_repeats"), get("measurement.warmup.max_repeats")
    if isinstance(low, int) and isinstance(high, int) and 0 < high < low:
        text = f"measurement.warmup.min_repeats {low} is above measurement.warmup.max_repeats {high}"
        return refused(text, "swap them")
    if high == 0 and get("measurement.warmup.thermal") == "settled":
        text = "measurement.warmup.thermal settled cannot be combined with measurement.warmup.max_repeats 0"
        return refused(text, "leave max_repeats out: GPUs settle under the repeats of the warm-up")
    return None


def _at_most_one(path: str, text: str, fix: str) -> Rule:
    def check(get: Get) -> str | None:
        value = get(path)
        return refused(f"{path} {text.format(value)}", fix) if _above_one(value) else None

    return Rule((path,), check, section_of(path))


def _vllm_lengths(get: Get) -> str | None:
    batched, longest = get("vllm.max_num_batched_tokens"), get("vllm.max_model_len")
    if not isinstance(batched, int) or not isinstance(longest, int) or batched >= longest:
        return None
    if get("vllm.enable_chunked_prefill") is False:
        return refused(
            f"vllm.max_num_batched_tokens {batched} is below vllm.max_model_len {longest} without chunked prefill",
            "raise max_num_batched_tokens, or leave enable_chunked_prefill on",
        )
    return None


def _context(info: EngineInfo) -> Rule:
    limit_path = f"{info.name}.{info.context_length}"

    def check(get: Get) -> str | None:
        limit = get(limit_path)
        needed = sum(value for value in map(_longest, (get(path) for path in _LENGTHS)) if value)
        if isinstance(limit, int) and needed > limit:
            return refused(
                f"workload.input_tokens and workload.output_tokens need {needed} tokens, {limit_path} is {limit}",
                f"raise {limit_path}, or shorten the workload",
            )
        return None

    return Rule((*_LENGTHS, limit_path), check, info.name)


_LENGTHS = ("workload.input_tokens", "workload.output_tokens")


def _cache(info: EngineInfo) -> Rule:
    """What an engine can keep of its prefix cache, and whether it is on."""
    own = info.prefix_cache
    setting = None if own is None else f"{info.name}.{own.setting}"

    def check(get: Get) -> str | None:
        cache = get("workload.cache")
        if cache is None:
            return None
        if own is None or setting is None:
            text = f"workload.cache {cache} cannot be combined with engine {info.name}, which keeps no prefix cache"
            return refused(text, "leave workload.cache out")
        if cache == "cold" and not own.emptied:
            return refused(
                f"workload.cache cold cannot be combined with engine {info.name}, whose prefix cache nothing empties",
                "use warm, or leave workload.cache out: without reuse every prompt is computed whole",
            )
        if get(setting) in own.off:
            text = f"workload.cache {cache} cannot be combined with {setting} {shown(get(setting))}"
            return refused(f"{text}: there is no prefix cache then", f"change {setting}, or leave workload.cache out")
        return None

    paths = ("workload.cache", *([] if setting is None else [setting]))
    return Rule(paths, check, info.name)


def _stops(get: Get) -> str | None:
    """Refuses what ends answers at strings on an engine that would pass over them: it would answer, and cost, more."""
    engine = str(get("engine"))
    asked = [f"{path} {shown(get(path))}" for path in ("workload.stop", "workload.task") if get(path)]
    if not asked or engine_info(engine).stop_strings:
        return None
    known = ", ".join(info.name for info in engines().values() if info.stop_strings)
    return refused(
        f"{asked[0]} cannot be combined with engine {engine}, which does not say that it ends answers at stop strings",
        f"use one of {known}, or declare stop_strings in the engine's EngineInfo: docs/engines.md",
    )


def _longest(value: JsonValue) -> int:
    if isinstance(value, Mapping):
        value = value.get("high")
    return value if isinstance(value, int) else 0


def _observed(limit: str, setting: str, untimed: Callable[[JsonValue], bool], fix: str) -> Rule:
    """Refuses a limit on a time that the engine does not tell under a setting."""

    def check(get: Get) -> str | None:
        value = get(setting)
        if get(limit) is None or not untimed(value):
            return None
        text = f"{limit} cannot be judged: with {setting} {shown(value)} nobody sees when the tokens of an answer come"
        return refused(text, f"{fix}, or limit slo.e2el_s instead")

    return Rule((limit, setting), check, section_of(setting))


_TOKEN_TIMES = ("slo.ttft_s", "slo.tpot_s", "slo.itl_s")
_T = "transformers"
_Q = "transformers.quantization"

RULES: tuple[Rule, ...] = (
    _lengths("workload.input_tokens"),
    _lengths("workload.output_tokens"),
    Rule((SEARCH, *sorted(LIMITS), ARRIVAL, "engine"), _searched),
    Rule(("workload.arrival", "workload.dataset", "engine"), _arrival),
    Rule(("workload.dataset", "workload.task", "workload.input_tokens"), _synthetic_length),
    *QUESTION_RULES,
    Rule(("workload.stop", "workload.task", "engine"), _stops),
    Rule(
        ("measurement.warmup.min_repeats", "measurement.warmup.max_repeats", "measurement.warmup.thermal"),
        _warmup,
    ),
    *(
        _at_most_one(
            f"{_T}.{name}",
            "{}: transformers needs a process per device for this, and a cycle is one process",
            "spread the layers with transformers.device_map: auto, or use the engine vllm",
        )
        for name in ("tensor_parallel_size", "data_parallel_size")
    ),
    _never(f"{_Q}.load_in_8bit", _is(True), f"{_Q}.load_in_4bit", _is(True), "choose one"),
    _never(f"{_T}.cache_implementation", _is_set, f"{_T}.use_cache", _is(False), "leave use_cache on"),
    _never(f"{_T}.prompt_lookup_num_tokens", _is_set, f"{_T}.batch_size", _above_one, "use batch_size 1"),
    _never(f"{_T}.prompt_lookup_num_tokens", _is_set, f"{_T}.num_beams", _above_one, "use num_beams 1"),
    _never(f"{_T}.prompt_lookup_num_tokens", _is_set, f"{_T}.use_cache", _is(False), "leave use_cache on"),
    _never(f"{_T}.continuous_batching", _is(True), f"{_T}.num_beams", _above_one, "use num_beams 1"),
    _never(f"{_T}.continuous_batching", _is(True), f"{_T}.prompt_lookup_num_tokens", _is_set, "use one of them"),
    _never(
        f"{_T}.continuous_batching", _is(True), f"{_T}.cache_implementation", _is_set, "leave the cache to the engine"
    ),
    _never(f"{_T}.continuous_batching", _is(True), f"{_T}.use_cache", _is(False), "leave use_cache on"),
    *(
        _never(f"{_T}.continuous_batching", _is(True), path, bool, "leave it out: it ends no answers at stop strings")
        for path in ("workload.stop", "workload.task")
    ),
    _never(
        f"{_T}.attn_implementation",
        lambda v: str(v).startswith("flash"),
        "dtype",
        _is("float32"),
        "use float16 or bfloat16",
    ),
    _never("vllm.gpu_memory_utilization", _is_set, "vllm.kv_cache_memory_bytes", _is_set, "choose one"),
    _at_most_one(
        "vllm.beam_search.beam_width",
        "above 1: vLLM searches beams outside of its scheduler",
        "use engine transformers with transformers.num_beams",
    ),
    _at_most_one("vllm.sampling.n", "above 1: one answer per prompt is measured", "raise workload.prompts"),
    _never("vllm.enforce_eager", _is(True), "vllm.compilation_config", _is_set, "leave one of them out"),
    Rule(("vllm.max_num_batched_tokens", "vllm.max_model_len", "vllm.enable_chunked_prefill"), _vllm_lengths, "vllm"),
    *(_context(info) for info in shipped_engines().values() if info.context_length is not None),
    *(_cache(info) for info in shipped_engines().values()),
    _never(
        "workload.cache",
        _is("warm"),
        "measurement.warmup.max_repeats",
        _is(0),
        "leave max_repeats out: a warm cache holds what the warm-up left",
    ),
    _never("tensorrt_llm.backend", _is("pytorch", None), "tensorrt_llm.fast_build", _is(True), "use backend: tensorrt"),
    *SERVER_RULES,
    *DEVICE_RULES,
    *(
        _never("openai.extra.stop", _is_set, path, bool, "name every stop string in workload.stop")
        for path in ("workload.stop", "workload.task")
    ),
    *(_observed(limit, "openai.stream", _is(False), "leave openai.stream on") for limit in _TOKEN_TIMES),
    *(_observed(limit, f"{_T}.num_beams", _above_one, "use num_beams 1") for limit in _TOKEN_TIMES),
    _never("weights", _is("dummy"), "openai.base_url", _is_set, "the server has its own weights"),
)
