"""Reduces settings to what they do: presets expanded, defaults and inactive settings removed.

Loading, `experiments` and `published` call it; `servers.plan` and the session take its getters. Hashes are made from
its output, so it must stay: it covers only what differs from the defaults, so that a new setting changes no hash.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pytest_llem.engines import engines, shipped_engines
from pytest_llem.errors import JsonValue
from pytest_llem.job.config import DATA_FILES, SYNTHETIC, ExperimentConfig, SloSettings
from pytest_llem.job.files import expanded, found
from pytest_llem.job.wire import decode
from pytest_llem.study.declared import keys_of
from pytest_llem.study.fields import FlatSettings, defaults, unflatten
from pytest_llem.study.search import SEARCH, Search

Get = Callable[[str], JsonValue]

PRESETS: Mapping[str, Mapping[str, JsonValue]] = {
    "greedy": {"do_sample": False},
    "deterministic": {"do_sample": False},
    "standard": {"do_sample": True, "temperature": 1.0, "top_p": 0.95, "top_k": 50},
    "creative": {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.1},
    "factual": {"do_sample": True, "temperature": 0.3, "top_k": 10},
}


@dataclass(frozen=True)
class InactivityRule:
    """Settings that do nothing while `inactive` holds. It reads only `controls`; `because` completes "does nothing"."""

    fields: tuple[str, ...]
    controls: tuple[str, ...]
    inactive: Callable[[Get], bool]
    because: str

    @property
    def linked(self) -> tuple[str, ...]:
        """All paths that must be looked at together."""
        return self.fields + self.controls


def _below(section: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{section}.{name}" for name in names)


def _while(control: str, values: tuple[object, ...], fields: tuple[str, ...], because: str) -> InactivityRule:
    return InactivityRule(fields, (control,), lambda get: get(control) in values, because)


def _process(arrival: JsonValue) -> JsonValue:
    return arrival.get("process") if isinstance(arrival, Mapping) else None


def is_synthetic(get: Get) -> bool:
    """Whether prompts are made of a seed."""
    return get("workload.dataset") == SYNTHETIC and get("workload.task") is None


LIMITS = frozenset(f"slo.{name}" for name in keys_of(SloSettings)) - {"slo.at"}
"""Settings of which one makes an SLO."""

ENDED_BY = _below("workload", "score", "task", "stop")
"""Settings with which answers end where the model or a stop string ends them."""

OF_TASKS = _below("workload", "output_tokens", "few_shot")
"""Settings that a task has of its own."""

DECIDED_BY: Mapping[str, tuple[str, ...]] = {
    "workload.input_tokens": ("workload.dataset", "workload.task"),
    "workload.ignore_eos": ENDED_BY,
    **dict.fromkeys(OF_TASKS, ("workload.task",)),
}
"""Settings whose default is another one with what these say (`effective`)."""

INACTIVITY_RULES: tuple[InactivityRule, ...] = (
    InactivityRule(
        _below("decoding", "temperature", "top_k", "top_p", "min_p"),
        ("decoding.do_sample", "decoding.temperature", "decoding.preset"),
        lambda get: not get("decoding.do_sample") or get("decoding.temperature") == 0,
        "under greedy decoding (decoding.do_sample is false or the temperature 0)",
    ),
    InactivityRule(
        ("decoding.do_sample",),
        ("decoding.temperature", "decoding.preset"),
        lambda get: get("decoding.temperature") == 0,
        "at temperature 0, which is greedy",
    ),
    InactivityRule(
        _below("workload", "column", "split", "revision", "answer_column", "order"),
        ("workload.task",),
        lambda get: get("workload.task") is not None,
        "with a task, which has its own questions",
    ),
    InactivityRule(
        _below("workload", "order", "chat_template", "system_prompt", "few_shot"),
        ("workload.dataset", "workload.task"),
        is_synthetic,
        "with synthetic prompts",
    ),
    _while(
        "workload.dataset", (SYNTHETIC,), _below("workload", "column", "split", "revision"), "with synthetic prompts"
    ),
    InactivityRule(
        ("workload.answer_column",),
        ("workload.score", "workload.few_shot", "workload.dataset"),
        lambda get: get("workload.score") is None and (not get("workload.few_shot") or is_synthetic(get)),
        "where nothing is scored (workload.score) and there are no examples (workload.few_shot)",
    ),
    InactivityRule(
        ("workload.keep_answers",),
        ("workload.score", "workload.task"),
        lambda get: get("workload.score") is None and get("workload.task") is None,
        "where nothing is scored (workload.score)",
    ),
    _while("workload.task", (None,), ("workload.include_path",), "without workload.task"),
    InactivityRule(
        ("workload.speed",),
        ("workload.dataset", "workload.arrival"),
        lambda get: get("workload.dataset") == SYNTHETIC and _process(get("workload.arrival")) != "schedule",
        "without recorded times",
    ),
    InactivityRule(
        ("slo.at",),
        tuple(sorted(LIMITS)),
        lambda get: all(get(path) is None for path in LIMITS),
        "without a limit beside it in slo",
    ),
    *(
        _while(f"{info.name}.{rule.setting}", rule.values, _below(info.name, *rule.names), rule.reason)
        for info in shipped_engines().values()
        for rule in info.inactive
    ),
    _while(
        "measurement.warmup.max_repeats",
        (0,),
        _below("measurement.warmup", "min_repeats", "max_s", "cv", "window"),
        "without warm-up (max_repeats is 0)",
    ),
    _while(
        "measurement.warmup.thermal",
        ("repeatable",),
        ("measurement.warmup.thermal_max_s",),
        "without waiting until GPUs have settled (thermal is repeatable)",
    ),
    _while(
        "measurement.idle.duration_s",
        (0,),
        _below("measurement.idle", "max_wait_s", "reuse"),
        "without an idle window (duration_s is 0)",
    ),
)

_RULES_OF: dict[str, tuple[InactivityRule, ...]] = {
    path: tuple(rule for rule in INACTIVITY_RULES if path in rule.fields)
    for other in INACTIVITY_RULES
    for path in other.fields
}


def effective(flat: FlatSettings, engine: str) -> FlatSettings:
    """The settings with what stands for others replaced by it, so that rules and hashes need to know only these.

    A preset is replaced by its settings, below what is set beside it, and the engine's own `dtype` by the common one. A
    data set whose prompts have no length set keeps its own lengths: the declared default is that of synthetic prompts.
    Answers that are scored, or have stop strings, end on their own; a task has its own limit of them, and examples. A
    searched load stands at the lower end of its bracket.
    """
    preset, own_dtype = flat.get("decoding.preset"), f"{engine}.dtype"
    result = dict(flat)
    if isinstance(preset, str):
        del result["decoding.preset"]
        for key, value in PRESETS[preset].items():
            if result.get(f"decoding.{key}") is None:
                result[f"decoding.{key}"] = value
    if result.get(own_dtype) is not None and engine in shipped_engines():
        result["dtype"] = result.pop(own_dtype)
    if not is_synthetic(getter(flat)):
        result.setdefault("workload.input_tokens", None)
    if any(flat.get(path) for path in ENDED_BY):
        result.setdefault("workload.ignore_eos", False)
    for path in OF_TASKS if flat.get("workload.task") is not None else ():
        result.setdefault(path, None)
    search = Search.of(flat)
    if search is not None:
        result.update(search.at(search.low, result))
    return result


def getter(flat: FlatSettings) -> Get:
    """Reads a setting by path: its value, else its default."""
    default_values = defaults()
    return lambda path: flat[path] if path in flat else default_values.get(path)


def section_of(path: str) -> str | None:
    """The engine whose section a path lies in, or `None` for common settings."""
    head = path.partition(".")[0]
    return head if head in engines() else None


def canonical(flat: FlatSettings, engine: str) -> tuple[FlatSettings, dict[str, str]]:
    """The settings that count, and for every set one that does not, why it does nothing."""
    flat = effective(flat, engine)
    get = getter(flat)
    default_values = defaults()
    answers = ((path, rule) for path in flat for rule in reversed(_RULES_OF.get(path, ())) if rule.inactive(get))
    inactive = {path: rule.because for path, rule in answers}
    kept: FlatSettings = {}
    for path, value in flat.items():
        if section_of(path) not in (None, engine):
            inactive[path] = f"with engine {engine}"
        elif path in inactive:
            continue
        elif path not in default_values or not same(value, default_values[path]) or path in ("model", "engine"):
            kept[path] = value
    return kept, inactive


def inactive_by_default(flat: FlatSettings) -> set[str]:
    """Every path, set or not, that does nothing in an experiment with these canonical settings."""
    get = getter(flat)
    return {path for rule in INACTIVITY_RULES if rule.inactive(get) for path in rule.fields}


def same(one: JsonValue, other: JsonValue) -> bool:
    """Equality that tells 1 from true."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


_LOCAL = ("./", "../", "~/")


@cache
def _common_defaults() -> Mapping[str, JsonValue]:
    return {path: value for path, value in defaults().items() if path.partition(".")[0] not in engines()}


def resolve(kept: FlatSettings, directory: Path) -> ExperimentConfig:
    """The configuration with every default spelled out; relative paths start at `directory`, the study's."""
    engine = str(kept.get("engine", defaults()["engine"]))
    inactive = inactive_by_default(kept)
    common = {**_common_defaults(), **{path: kept[path] for path in kept if path.partition(".")[0] != engine}}
    common.pop("decoding.preset", None)
    common.pop(SEARCH, None)
    for path in inactive & common.keys():
        common[path] = defaults()[path]
    data = unflatten(common)
    data["settings"] = _engine_settings(kept, engine, inactive)
    for key in ("model", "lora"):
        data[key] = _local(data.get(key), directory, files=False)
    workload = data["workload"]
    if isinstance(workload, dict):
        workload["dataset"] = _local(workload["dataset"], directory, files=True)
        arrival = workload.get("arrival")
        if isinstance(arrival, dict) and isinstance(arrival.get("file"), str):
            workload["arrival"] = {**arrival, "file": _resolved(directory / expanded(arrival["file"]))}
        if isinstance(tasks := workload.get("include_path"), str):
            workload["include_path"] = _resolved(directory / expanded(tasks))
        score = workload.get("score")
        if isinstance(score, dict) and isinstance(score.get("python"), str):
            file, colon, function = score["python"].rpartition(":")
            where = _resolved(directory / expanded(file)) if colon else ""
            workload["score"] = {**score, "python": f"{where}{colon}{function}"}
    return decode(ExperimentConfig, data)


def _engine_settings(kept: FlatSettings, engine: str, inactive: set[str]) -> dict[str, JsonValue]:
    prefix = f"{engine}."
    flat: FlatSettings = {}
    for path, default in defaults().items():
        value = kept.get(path, default)
        if path.startswith(prefix) and path not in inactive and value is not None and _is_in_use(path, kept):
            flat[path] = value
    flat.update({path: kept[path] for path in kept if path.startswith(prefix) and path not in defaults()})
    settings = unflatten(flat).get(engine, {})
    return settings if isinstance(settings, dict) else {}


def _is_in_use(path: str, kept: FlatSettings) -> bool:
    """Whether a setting's section is in use: a nested section counts once something in it is set."""
    section = path.rpartition(".")[0]
    if "." not in section:
        return True
    return any(other.startswith(f"{section}.") and not same(kept[other], defaults().get(other)) for other in kept)


def _local(value: JsonValue, directory: Path, *, files: bool) -> JsonValue:
    if not isinstance(value, str):
        return value
    if value.startswith(_LOCAL) or (files and value.lower().endswith(DATA_FILES) and "://" not in value):
        path = expanded(value)
        return str(path) if path.is_absolute() else _resolved(directory / path)
    return value


def _resolved(path: Path) -> str:
    """The path without links, also of a loop of them; a file keeps the ending that says what it is.

    Caches, as those of the hub and of DVC, link a file to one that has its hash as name.
    """
    real = Path(os.path.realpath(path))
    if real.suffix != path.suffix and (file := found(str(real))) is not None and file.is_file():
        return str(path.parent.resolve() / path.name)
    return str(real)
