"""The conditions that must be equal before two measurements are compared, and the differences between them.

`judging`, `compare`, `baselines`, `derive` and the AI Energy Score export call it. Conditions must stay flat, so that
a changed one is one line in a baseline's diff; their names are published (`compare.allow`) and stay.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from statistics import mode
from typing import cast

from pytest_llem.errors import JsonValue
from pytest_llem.job.metric_names import MetricName
from pytest_llem.results.schema import Result

UNKNOWN_GAIN = 0.05
"""Gain error of a board whose meter states none: about 5 % over many boards (arXiv 2312.02741)."""

DEVICE_IDS = "device_ids"
CORRELATED = ("experiment", "load", "server")
"""Isolations under which the cycles of an experiment share one loaded engine."""
UNSET = "unset"
CALIBRATION, ESTIMATOR = "calibration", "estimator"
THERMAL_STATE = "thermal_state"
ENERGY_ONLY = frozenset({"meter", "scope", "energy_measured", "metered_devices", CALIBRATION, ESTIMATOR, THERMAL_STATE})
SLO = "slo"
"""A condition of metrics that count good requests alone."""
QUESTIONS = "questions"
SCORED_ONLY = frozenset({QUESTIONS, "scorer"})
"""Conditions of metrics that count right answers."""
SETTLED_BY_SETTINGS = ("dtype", "quantization", "load_shape", "cache", "arrivals_hash")
"""Conditions that follow from settings: they may differ where the same work is judged under changed settings."""
POWER_LIMIT = "power_limit_w"
SHOWN_SETTINGS = 5
"""Settings that a sentence names. Chosen: more than differ in most changes, and it stays readable."""
Conditions = Mapping[str, JsonValue]


def conditions(result: Result) -> dict[str, JsonValue]:
    """The conditions of a result by name; `None` where the machine or engine does not say.

    `output_tokens` is `None` where sampling decides how long an answer is: then it is an outcome, no condition.
    """
    host, effective, compared = result.environment.host, result.engine.effective, result.environment.comparable
    gpus = _gpus(result)
    cpu = host.get("cpu")
    return {
        "engine": result.engine.name,
        "engine_version": result.engine.version,
        "dtype": _text(effective.get("dtype")),
        "quantization": _quantization(effective),
        "model_revision": _text(effective.get("model_revision")),
        "model_fingerprint": _text(effective.get("model_fingerprint")),
        "lora_fingerprint": _text(compared.get("lora_fingerprint") or compared.get("lora_commit")),
        "prompts_hash": result.workload.prompts_hash,
        "input_tokens": result.workload.input_tokens,
        "output_tokens": result.workload.output_tokens if output_lengths_determined(result.experiment.config) else None,
        "load_shape": result.workload.load_shape,
        "cache": result.workload.cache,
        "arrivals_hash": result.workload.arrivals_hash,
        "isolation": result.runner.isolation,
        "runner": result.runner.name,
        "device_kind": result.runner.device_kind,
        "device_count": len(result.runner.device_ids),
        "device_models": _sorted({str(gpu.get("name")) for gpu in gpus}),
        DEVICE_IDS: _sorted(result.runner.device_ids),
        "cpus": _cpus(result),
        "numa_node": _pinned(result, "numa_node"),
        POWER_LIMIT: _sorted({str(gpu.get("power_limit_w")) for gpu in gpus}),
        "driver_major": next((str(gpu.get("driver")).split(".")[0] for gpu in gpus), None),
        "cpu_model": _text(cpu.get("model")) if isinstance(cpu, Mapping) else None,
        "meter": result.energy.meter,
        "scope": result.energy.scope,
        "energy_measured": result.energy.measured,
        "metered_devices": _sorted(device.kind for device in result.energy.devices if device.leased),
        CALIBRATION: _calibrations(result),
        ESTIMATOR: _estimator(result),
        SLO: _slo(result),
        QUESTIONS: None if result.quality is None else result.quality.questions_hash,
        "scorer": None if result.quality is None else f"{result.quality.scorer} {result.quality.scorer_version}",
        THERMAL_STATE: None if result.thermal.state == "unknown" else result.thermal.state,
    }


MODEL = ("dtype", "quantization", "model_revision", "model_fingerprint")
"""Conditions that are read from the loaded model. Earlier versions read fewer of them, and so did their baselines."""
NOT_ALWAYS_APART = frozenset({*MODEL, CALIBRATION})
"""Conditions that may differ between measurements that compare without any limit; each other forbids it."""
MACHINE = ("device_kind", "device_count", "device_models", "power_limit_w", "driver_major", "cpu_model")
"""Conditions that differ between the cycles of one run only where several machines measured them."""


def common_conditions(results: Sequence[Result]) -> dict[str, JsonValue]:
    """The conditions of one experiment's cycles in one run: the first one's, with the machines of all of them.

    Boards, models and limits are those of all cycles together; different CPU models are joined with ` and `.
    """
    common = conditions(results[0])
    others = [conditions(result) for result in results[1:]]
    for name in (*MACHINE, DEVICE_IDS, CALIBRATION, THERMAL_STATE):
        values = [common[name], *(other[name] for other in others)]
        if any(isinstance(value, list) for value in values):
            common[name] = _sorted({str(entry) for value in values if isinstance(value, list) for entry in value})
        elif len(set(map(str, values))) > 1:
            common[name] = " and ".join(sorted(set(map(str, values))))
    common |= {name: " and ".join(values) for name, values in mixed_scores(results).items()}
    # A disturbed cycle falls back to another estimator, with wider bounds: no difference between two runs.
    common[ESTIMATOR] = mode(_text(found[ESTIMATOR]) for found in (common, *others))
    return common


def mixed_scores(results: Sequence[Result]) -> dict[str, list[str]]:
    """In which of questions and scorer those cycles of an experiment differ that have scores, with the values.

    A grader's file may be edited between two cycles, and a mean over both is one of neither.
    """
    scored = [conditions(result) for result in results if result.quality is not None and result.quality.scores]
    values = {name: list(dict.fromkeys(str(each[name]) for each in scored)) for name in sorted(SCORED_ONLY)}
    return {name: found for name, found in values.items() if len(found) > 1}


def short_hashes(text: str) -> str:
    """The text with the first twelve digits of each SHA-256, which tell them apart; versions stay whole."""
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1", text)


def mixture(results: Sequence[Result], allow: Collection[str] = ()) -> list[str]:
    """Why the cycles of one experiment in one run do not repeat one measurement, a sentence each.

    Nodes of a cluster may have different device models, and a server may get another model between two cycles. Boards
    of one model may differ.
    """
    mixed: dict[str, str] = {}
    first = conditions(results[0]) if results else {}
    for result in results[1:]:
        now = conditions(result)
        for name in (*MODEL, *MACHINE):
            unread = name in MODEL and (None in (now[name], first[name]) or _unlike(name, now[name], first[name]))
            if name not in allow and now[name] != first[name] and not unread:
                text = f"c{results[0].cycle} {_shown(first[name])}, c{result.cycle} {_shown(now[name])}"
                mixed.setdefault(name, f"the cycles differ in {name}: {text}")
    return list(mixed.values())


def differences(
    baseline: Conditions,
    current: Conditions,
    measure: MetricName,
    limit: float,
    gain: tuple[float | None, float | None] = (None, None),
    allow: Collection[str] = (),
) -> list[str]:
    """The differences that forbid the comparison in this metric, a sentence each, except those in `allow`.

    Conditions of the meter matter only to metrics of energy, limits of `slo` to those of good requests, and questions
    and scorer to those of right answers, which may differ in length. Another board of the same model has another gain:
    then the limit must exceed both boards' gain errors in quadrature. An answer's score knows no board.
    """
    free = {*allow, *without_effect(measure)}
    problems: list[str] = []
    for name in {**baseline, **current}:
        before, now = baseline.get(name), current.get(name)
        if name in free or before == now:
            continue
        if name in MODEL and (before is None or _unlike(name, before, now)):
            continue  # not read for the baseline, or in another way: no difference is known
        if name == CALIBRATION and baseline.get(DEVICE_IDS) != current.get(DEVICE_IDS):
            continue  # other boards have other calibrations: their gains decide
        if name != DEVICE_IDS:
            absent = {"cpus": "all"}.get(name, "none" if name in ("cache", "numa_node", *SCORED_ONLY) else "unknown")
            sides = short_hashes(" -> ".join(_shown(value, absent) for value in (before, now)))
            if name in SCORED_ONLY:
                sides = f"{sides} (save the baseline again, or allow: [{name}])"
            problems.append(f"{name}: {sides}")
            continue
        combined = math.hypot(*(UNKNOWN_GAIN if error is None else error for error in gain))
        if abs(limit) <= combined and baseline.get("device_count") == current.get("device_count"):
            boards = f"other boards ({_shown(before)} -> {_shown(now)}), whose gain may differ by {combined:.1%}"
            problems.append(f"{name}: {boards}" + (f", and the limit is {abs(limit):.1%}" if limit else ""))
    return problems


def without_effect(measure: MetricName) -> Iterator[str]:
    """The conditions that do not matter to a metric."""
    if not measure.energy:
        yield from ENERGY_ONLY
    if not measure.slo:
        yield SLO
    if not measure.quality:
        yield from SCORED_ONLY
    else:
        yield "output_tokens"
        if not measure.energy:
            yield DEVICE_IDS


def _unlike(name: str, before: JsonValue, now: JsonValue) -> bool:
    """Whether these are fingerprints of unlike kinds: of a file that could be read, and of what a server tells."""
    kinds = [str(value).partition(":") for value in (before, now)]
    return name == "model_fingerprint" and all(colon for _, colon, _ in kinds) and kinds[0][0] != kinds[1][0]


def flat_settings(result: Result) -> dict[str, JsonValue]:
    """The resolved settings of a result's experiment, defaults too, by dotted path."""
    flat: dict[str, JsonValue] = {}

    def walk(path: str, value: JsonValue) -> None:
        if isinstance(value, Mapping):
            for name, entry in value.items():
                walk(f"{path}.{name}" if path else name, entry)
        else:
            flat[path] = value

    walk("", cast("JsonValue", result.experiment.config))
    return flat


def compared_settings(result: Result) -> dict[str, JsonValue]:
    """The same without what a search chose: the load of the window that answered, and the seed of its arrivals."""
    if result.search is None:
        return flat_settings(result)
    searched = result.search.setting.replace(f"{result.experiment.config.get('engine')}.", "settings.")
    chosen = (searched, "workload.arrival.seed")
    return {path: value for path, value in flat_settings(result).items() if path not in chosen}


def written_settings(result: Result) -> dict[str, JsonValue]:
    """The same by the names that a study uses: `transformers.batch_size`."""
    section = result.experiment.config.get("engine")
    return {
        f"{section}.{path.removeprefix('settings.')}" if path.startswith("settings.") else path: value
        for path, value in flat_settings(result).items()
    }


def settled_by_settings(before: Conditions, now: Conditions) -> tuple[str, ...]:
    """The conditions that follow from flat settings where these differ."""
    return (*SETTLED_BY_SETTINGS, *limit_set_otherwise(before, now))


def limit_set_otherwise(before: Conditions, now: Conditions) -> tuple[str, ...]:
    """The power limit, as a condition, where flat settings differ in it; else it is somebody else's doing."""
    name = f"device.{POWER_LIMIT}"
    return (POWER_LIMIT,) if before.get(name) != now.get(name) else ()


def settings_differences(before: Conditions, now: Conditions) -> list[str]:
    """What differs between flat settings, `batch_size 4 -> 1`; names are their last part where that is unambiguous."""
    if not before:
        return ["another configuration; this baseline does not keep its settings, save it again"]
    changed = [path for path in {**before, **now} if before.get(path) != now.get(path)]
    last = [path.rpartition(".")[2] for path in changed]
    shown = [
        f"{name if last.count(name) == 1 else path} {_shown(before.get(path), UNSET)} -> {_shown(now.get(path), UNSET)}"
        for path, name in zip(changed, last, strict=True)
    ]
    more = [f"{len(shown) - SHOWN_SETTINGS} further settings differ"] if len(shown) > SHOWN_SETTINGS else []
    return [*shown[:SHOWN_SETTINGS], *more] or ["another configuration under this id"]


def _gpus(result: Result) -> list[Mapping[str, JsonValue]]:
    gpus = result.environment.host.get("gpus")
    listed = [gpu for gpu in gpus if isinstance(gpu, Mapping)] if isinstance(gpus, list) else []
    leased = set(result.runner.device_ids)
    return cast("list[Mapping[str, JsonValue]]", [gpu for gpu in listed if gpu.get("uuid") in leased])


def _calibrations(result: Result) -> JsonValue:
    leased = {device.id for device in result.energy.devices if device.leased}
    return _sorted(f"{c.id} {c.hash[:12]}" for c in result.energy.calibrations if c.device in leased) or None


def _pinned(result: Result, name: str) -> str | None:
    """What an experiment on the CPU is pinned to."""
    device = result.experiment.config.get("device")
    return _text(device.get(name)) if isinstance(device, Mapping) else None


def _cpus(result: Result) -> str | None:
    """The CPUs of an experiment on the CPU: those it is pinned to, else how many it was left where that is not all."""
    cpu = result.environment.host.get("cpu")
    there = cpu.get("logical_cores") if isinstance(cpu, Mapping) else None
    allowed = result.environment.worker.get("cpus_allowed")
    settings = result.experiment.config.get("settings")
    runs_already = isinstance(settings, Mapping) and settings.get("base_url") is not None
    pinned = _pinned(result, "cpus") or _pinned(result, "numa_node")
    if pinned or result.runner.device_kind != "cpu" or runs_already or allowed is None or there in (None, allowed):
        return _pinned(result, "cpus")
    return f"{allowed} of {there}"


def _slo(result: Result) -> str | None:
    """The limits, and the share that must keep them: `ttft_s 0.5, at 0.99`; `None` without any."""
    if result.slo is None:
        return None
    return ", ".join(f"{name} {limit:g}" for name, limit in {**result.slo.limits, "at": result.slo.at}.items())


def _estimator(result: Result) -> str | None:
    """How the energy of GPUs was found; other sensors have one way each."""
    if not any(device.kind == "gpu" for device in result.energy.devices):
        return None
    return " and ".join(sorted({str(w.estimator) for w in result.energy.windows if w.name == "measure"}))


def _quantization(effective: Mapping[str, object]) -> str | None:
    """How the model's weights are quantised, `none`, or `None` where the engine does not say."""
    stated = effective.get("quantization_config")
    method = effective.get("quantization") or (stated.get("quant_method") if isinstance(stated, Mapping) else None)
    return str(method) if method else ("none" if effective.get("quantized") is False else None)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _sorted(values: Iterable[str]) -> JsonValue:
    ordered: list[JsonValue] = [*sorted(values)]
    return ordered


def _shown(value: JsonValue, absent: str = "unknown") -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(str(entry) for entry in value) or "none"
    return absent if value is None else str(value)


def output_lengths_determined(config: Mapping[str, object]) -> bool:
    """Whether each repeat of a resolved `config` must generate as many tokens: not where sampling may end answers."""
    decoding, workload = config.get("decoding"), config.get("workload")
    samples = isinstance(decoding, Mapping) and decoding.get("do_sample") is True
    may_end = isinstance(workload, Mapping) and workload.get("ignore_eos") is False
    return not (samples and may_end)
