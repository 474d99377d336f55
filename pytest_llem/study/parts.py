"""Checks the parts of a study that are no settings of experiments: execution, gates, runners, meter and limits.

The loader calls these functions, and `settings` does for a user's own file. Each reports what is wrong and goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pytest_llem.energy.registry import known_meters
from pytest_llem.energy.validity import Thresholds
from pytest_llem.errors import JsonValue, SettingsError
from pytest_llem.job.metric_names import check_condition, metric_name
from pytest_llem.study.declared import BadValueError, check, keys_of
from pytest_llem.study.document import KeyPath, kind
from pytest_llem.study.fields import Report
from pytest_llem.study.limits import (
    Budget,
    Comparison,
    FailIf,
    parse_budget,
    parse_fail_if,
)
from pytest_llem.study.model import Execution, Gates, Overrides
from pytest_llem.study.problems import suggest_or_list
from pytest_llem.study.runner_settings import DockerSettings, RaySettings
from pytest_llem.study.schema import Compare

VALIDITY = "measurement.validity"


def check_section(declaration: type, data: JsonValue, report: Report, key_path: KeyPath) -> dict[str, JsonValue]:
    """The checked values of a mapping, key by key; what is wrong goes to `report` and is left out."""
    name = ".".join(map(str, key_path))
    keys = keys_of(declaration)
    if data is None:
        return {}
    if not isinstance(data, Mapping):
        report(key_path, f"{name}: expected a mapping, got {kind(data)}", f"known here: {', '.join(keys)}", False)
        return {}
    checked: dict[str, JsonValue] = {}
    for key, value in data.items():
        dotted = f"{name}.{key}" if name else key
        if key not in keys:
            report((*key_path, key), f"unknown setting {dotted}", suggest_or_list(key, keys), True)
            continue
        try:
            checked[key] = check(declaration, key, value)
        except BadValueError as problem:
            report((*key_path, key, *problem.inner), f"{dotted}: {problem.text}", problem.fix, False)
    return checked


def execution(data: JsonValue, below: Mapping[str, JsonValue], report: Report) -> Execution:
    """The `execution` section over a user's defaults `below` it; what is wrong in it keeps its default."""
    given = check_section(Execution, data, report, ("execution",))
    headline = given.get("headline")
    if isinstance(headline, str):
        try:
            metric_name(headline)
        except SettingsError as problem:
            report(("execution", "headline"), f"execution.headline: {problem.message}", problem.fix, False)
    made = Execution(**{**below, **given})  # type: ignore[arg-type]  # checked above, and where the user's file is read
    if made.target_ci is not None and made.max_cycles < made.cycles:
        text = f"execution.max_cycles {made.max_cycles} is below execution.cycles {made.cycles}"
        report(("execution",), text, "raise max_cycles", True)
    return made


def gates(expect: JsonValue, compare: JsonValue, tags: tuple[str, ...], report: Report, key_path: KeyPath) -> Gates:
    """The gates of a study or of one of its experiments."""
    limits = check_section(Compare, compare, report, (*key_path, "compare"))
    alpha = limits.get("alpha", 0.05)
    changes = tuple(_comparisons(limits, report, (*key_path, "compare")))
    allow = tuple(_allowed(limits.get("allow"), report, (*key_path, "compare", "allow")))
    comparison = Comparison(changes, alpha if isinstance(alpha, float) else 0.05, allow)
    return Gates(tuple(_budgets(expect, report, (*key_path, "expect"))), comparison if limits else None, tags)


def _budgets(data: JsonValue, report: Report, key_path: KeyPath) -> Iterator[Budget]:
    if data is None:
        return
    if not isinstance(data, Mapping):
        text = f"expect: expected a mapping, got {kind(data)}"
        report(key_path, text, 'write expect: {joules_per_output_token: "<= 0.5"}', False)
        return
    for metric, budget in data.items():
        if budget is None:
            continue
        try:
            yield parse_budget(metric, budget)
        except SettingsError as problem:
            report((*key_path, metric), f"expect: {problem.message}", problem.fix, "unknown metric" in problem.message)


def _comparisons(limits: Mapping[str, JsonValue], report: Report, key_path: KeyPath) -> Iterator[FailIf]:
    fail_if, resolution = limits.get("fail_if"), limits.get("resolution")
    resolutions = resolution if isinstance(resolution, Mapping) else {}
    known = fail_if if isinstance(fail_if, Mapping) else {}
    for metric, text in known.items():
        try:
            yield parse_fail_if(metric, text, resolutions.get(metric))
        except SettingsError as problem:
            at_key = "unknown metric" in problem.message
            report((*key_path, "fail_if", metric), f"compare: {problem.message}", problem.fix, at_key)
    for metric in resolutions.keys() - known.keys():
        hint = "name it in fail_if as well, or take it out"
        report((*key_path, "resolution", metric), f"compare: resolution of {metric}, which has no limit", hint, True)


def _allowed(names: JsonValue, report: Report, key_path: KeyPath) -> Iterator[str]:
    for index, name in enumerate(names if isinstance(names, list) else ()):
        try:
            check_condition(str(name))
            yield str(name)
        except SettingsError as problem:
            report((*key_path, index), f"compare.allow: {problem.message}", problem.fix, False)


def runners(data: Mapping[str, str], engines: tuple[str, ...], report: Report) -> dict[str, str]:
    """The `runners` of a study: an engine's name to a runner's."""
    for engine, spec in data.items():
        if engine not in engines:
            report(("runners", engine), f"runners: unknown engine {engine!r}", suggest_or_list(engine, engines), True)
        name = spec.partition(":")[0]
        if name not in ("local", "docker", "ray"):
            hint = suggest_or_list(name, ("local", "docker", "ray"))
            report(("runners", engine), f"runners: {engine}: unknown runner {spec!r}", hint, False)
    return dict(data)


def docker(data: JsonValue, directory: Path, report: Report) -> dict[str, JsonValue]:
    """What the section `docker` says, with mounts as absolute paths; relative ones start at `directory`."""
    checked = check_section(DockerSettings, data, report, ("docker",))
    given: dict[str, JsonValue] = {key: value for key, value in checked.items() if value is not None}
    mounts = given.get("mounts")
    if isinstance(mounts, list):
        given["mounts"] = [str((directory / Path(str(mount)).expanduser()).resolve()) for mount in mounts]
    return given


def follow_residual_memory(allowed_bytes: int, docker: dict[str, JsonValue], thresholds: dict[str, float]) -> None:
    """Raise two limits to `execution.residual_memory_bytes`, which they follow where a study does not set them itself.

    `docker.residual` and `measurement.validity.residual_memory_bytes` look at the same memory, in a kept container and
    before the engine is loaded: what `execution` allows must neither replace a container nor make a result invalid.
    Below their defaults they need not follow, because `execution` refuses the cycle first.
    """
    if "residual" not in docker and allowed_bytes > DockerSettings().residual_bytes:
        docker["residual"] = allowed_bytes
    if "residual_memory_bytes" not in thresholds and allowed_bytes > Thresholds.residual_memory_bytes:
        thresholds["residual_memory_bytes"] = float(allowed_bytes)


def ray(data: JsonValue, directory: Path, report: Report) -> dict[str, JsonValue]:
    """What the section `ray` says, with local paths of its `runtime_env` made absolute, from `directory`."""
    checked = check_section(RaySettings, data, report, ("ray",))
    settings: dict[str, JsonValue] = {key: value for key, value in checked.items() if value is not None}
    environment = settings.get("runtime_env")
    if isinstance(environment, Mapping):
        given: dict[str, JsonValue] = {key: value for key, value in environment.items() if value is not None}
        for key in ("py_modules", "working_dir", "pip", "uv", "conda"):
            if key in given:
                given[key] = _absolute(given[key], directory)
        settings["runtime_env"] = given
    return settings


def _absolute(value: JsonValue, directory: Path) -> JsonValue:
    """Names of files that exist, relative to `directory`, under their full names; all else as it is."""
    if isinstance(value, list):
        return [_absolute(item, directory) for item in value]
    if not isinstance(value, str):
        return value
    path = directory / Path(value).expanduser()
    return str(path.resolve()) if path.exists() else value


def validity(data: Mapping[str, JsonValue], report: Report) -> tuple[Mapping[str, JsonValue], dict[str, float]]:
    """A study without its `measurement.validity`, which is no setting of experiments, and the limits that it set."""
    rest, limits = dict(data), dict[str, JsonValue]()
    inside = data.get("measurement")
    if isinstance(inside, Mapping) and "validity" in inside:
        rest["measurement"] = {key: value for key, value in inside.items() if key != "validity"}
        limits.update(check_section(Thresholds, inside["validity"], report, ("measurement", "validity")))
    for key, value in data.items():
        if key == VALIDITY:
            limits.update(check_section(Thresholds, value, report, (key,)))
        elif key.startswith(f"{VALIDITY}."):
            limits.update(
                check_section(Thresholds, {key.removeprefix(f"{VALIDITY}."): value}, _at_key(key, report), ())
            )
        else:
            continue
        del rest[key]
    return rest, {name: value for name, value in limits.items() if isinstance(value, float)}


def _at_key(key: str, report: Report) -> Report:
    """Problems below a dotted key, placed at it."""

    def placed(key_path: KeyPath, text: str, fix: str | None, at_key: bool) -> None:
        report((key, *key_path[1:]), text, fix, at_key)

    return placed


def meter(name: JsonValue, report: Report) -> str | None:
    """The meter that a study names; an unknown one is reported."""
    if name is None:
        return None
    known = ("auto", *known_meters(), "none")
    if name not in known:
        report(("meter",), f"meter: unknown meter {name!r}", suggest_or_list(str(name), known), False)
    return str(name)


def overridden(execution: Execution, overrides: Overrides) -> Execution:
    """The execution with what the command line says. Raises `SettingsError`."""
    changes: dict[str, Any] = {}
    if overrides.cycles is not None:
        changes["cycles"] = overrides.cycles
    if overrides.order is not None:
        changes["order"] = overrides.order
    try:
        for key, value in changes.items():
            check(Execution, key, value)
    except BadValueError as problem:
        raise SettingsError(f"execution: {problem.text}", fix=problem.fix) from None
    return replace(execution, **changes)
