"""Checks the parts of a study that are no settings of experiments: execution, gates, runners, meter and limits.

The loader and, for a user's own file, `settings` call these. A check must report a problem and go on, to show all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pytest_llem.energy.registry import known_meters
from pytest_llem.engines import engine_names
from pytest_llem.errors import JsonValue, SettingsError
from pytest_llem.job.condition_names import check_condition
from pytest_llem.job.config import Thresholds
from pytest_llem.job.files import expanded, found
from pytest_llem.job.metric_names import ACCURACY, metric_name, percentile_of
from pytest_llem.job.percentiles import problems, written
from pytest_llem.job.wire import decode
from pytest_llem.study.declared import BadValueError, check, keys_of
from pytest_llem.study.fields import Report
from pytest_llem.study.limits import Budget, Comparison, FailIf, parse_budget, parse_fail_if
from pytest_llem.study.model import Execution, Gates, Overrides
from pytest_llem.study.problems import suggest, suggest_or_list
from pytest_llem.study.report_settings import ReportSettings
from pytest_llem.study.runner_settings import ACCEPTED_RUNNERS, DockerSettings, RaySettings, runner_problem
from pytest_llem.study.schema import Compare
from pytest_llem.study.values import KeyPath, kind

T = TypeVar("T")
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


def read_section(declaration: type[T], data: JsonValue, report: Report, key_path: KeyPath) -> T:
    """A flat section with what a mapping sets in it; what is wrong goes to `report` and keeps its default."""
    checked = check_section(declaration, data, report, key_path)
    return declaration(**{key: tuple(value) if isinstance(value, list) else value for key, value in checked.items()})


def execution(data: JsonValue, below: Mapping[str, JsonValue], report: Report) -> Execution:
    """The `execution` section over a user's defaults `below` it; what is wrong in it keeps its default."""
    checked = check_section(Execution, data, report, ("execution",))
    made = Execution(**{**below, **checked})  # type: ignore[arg-type]  # checked above, and where the user's file is read
    if "headline" in checked:
        try:
            metric_name(made.headline)
        except SettingsError as problem:
            report(("execution", "headline"), f"execution.headline: {problem.message}", problem.fix, False)
    if made.target_ci is not None and made.max_cycles < made.cycles:
        text = f"execution.max_cycles {made.max_cycles} is below execution.cycles {made.cycles}"
        report(("execution",), text, "raise max_cycles", True)
    if made.target_ci is not None and made.headline == ACCURACY:
        text = f"execution.target_ci: cycles that repeat answers do not narrow the interval of {ACCURACY}"
        report(("execution", "target_ci"), text, "ask more questions, or choose another headline", False)
    return made


def gates(expect: JsonValue, compare: JsonValue, tags: tuple[str, ...], report: Report) -> Gates:
    """The gates of a study or of one of its experiments."""
    checked = check_section(Compare, compare, report, ("compare",))
    comparison = None
    if checked:
        limits = Compare(**checked)  # type: ignore[arg-type]  # checked above
        for index, name in enumerate(limits.allow):
            with _reported(report, ("compare", "allow", index), "compare.allow"):
                check_condition(name)
        comparison = Comparison(tuple(_comparisons(limits, report)), limits.alpha, tuple(limits.allow), limits.match)
    return Gates(tuple(_budgets(expect, report)), comparison, tags)


@contextmanager
def _reported(report: Report, key_path: KeyPath, name: str) -> Iterator[None]:
    """Reports a `SettingsError` of the block: at the key if that is an unknown metric, else at the value."""
    try:
        yield
    except SettingsError as problem:
        report(key_path, f"{name}: {problem.message}", problem.fix, "unknown metric" in problem.message)


def _budgets(data: JsonValue, report: Report) -> Iterator[Budget]:
    if data is not None and not isinstance(data, Mapping):
        text = f"expect: expected a mapping, got {kind(data)}"
        report(("expect",), text, 'write expect: {joules_per_output_token: "<= 0.5"}', False)
        return
    for metric, budget in (data or {}).items():
        if budget is not None:
            with _reported(report, ("expect", metric), "expect"):
                yield parse_budget(metric, budget)


def _comparisons(limits: Compare, report: Report) -> Iterator[FailIf]:
    for metric, text in limits.fail_if.items():
        with _reported(report, ("compare", "fail_if", metric), "compare"):
            yield parse_fail_if(metric, text, limits.resolution.get(metric))
    for metric in limits.resolution.keys() - limits.fail_if.keys():
        hint = "name it in fail_if as well, or take it out"
        report(("compare", "resolution", metric), f"compare: resolution of {metric}, which has no limit", hint, True)


def limited(every: Iterable[Gates]) -> Iterator[str]:
    """The metrics that gates limit."""
    for gates in every:
        yield from (budget.metric for budget in gates.expect)
        yield from (limit.metric for limit in (gates.compare.fail_if if gates.compare else ()))


def percentiles_in(checked: Mapping[str, JsonValue]) -> tuple[float, ...]:
    """Those of a checked file; none where it has none."""
    values = checked.get("percentiles")
    return tuple(float(str(value)) for value in values) if isinstance(values, list) else ()


def percentiles(chosen: Sequence[float], metrics: Iterable[str], report: Report) -> tuple[float, ...]:
    """The percentiles that a study chooses, in rising order, with those that metrics are by their names."""
    for place, text in problems(chosen):
        rising = ", ".join(map(written, sorted({*chosen})))
        report(("percentiles", place), f"percentiles: {text}", f"write percentiles: [{rising}]", False)
    named = {found[1] for metric in metrics if (found := percentile_of(metric)) is not None}
    return tuple(sorted({*chosen, *named}))


def check_runners(runners: JsonValue, report: Report) -> None:
    """Report engines and runners that there are not in a mapping from one to the other."""
    engines = engine_names()
    for engine, spec in runners.items() if isinstance(runners, Mapping) else ():
        if engine not in engines:
            report(("runners", engine), f"runners: unknown engine {engine!r}", suggest_or_list(engine, engines), True)
        problem = runner_problem(str(spec))
        if problem is not None:
            near = suggest(str(spec), ("local", "docker", "ray")) if problem.startswith("unknown") else None
            fix = near or f"use one of: {ACCEPTED_RUNNERS}"
            report(("runners", engine), f"runners: {engine}: {problem}", fix, False)


def _given(declaration: type, data: JsonValue, report: Report, name: str) -> dict[str, JsonValue]:
    checked = check_section(declaration, data, report, (name,))
    return {key: value for key, value in checked.items() if value is not None}


def docker(data: JsonValue, directory: Path, report: Report) -> dict[str, JsonValue]:
    """What the section `docker` says, with mounts as absolute paths; relative ones start at `directory`."""
    given = _given(DockerSettings, data, report, "docker")
    mounts = given.get("mounts")
    if isinstance(mounts, list):
        given["mounts"] = [str((directory / expanded(str(mount))).resolve()) for mount in mounts]
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
    given = _given(RaySettings, data, report, "ray")
    environment = given.get("runtime_env")
    if isinstance(environment, dict):
        for key in ("py_modules", "working_dir", "pip", "uv", "conda"):
            if key in environment:
                environment[key] = _absolute(environment[key], directory)
    return given


def _absolute(value: JsonValue, directory: Path) -> JsonValue:
    """Names of files that exist, relative to `directory`, under their full names; all else as it is."""
    if isinstance(value, list):
        return [_absolute(item, directory) for item in value]
    if not isinstance(value, str):
        return value
    path = found(str(directory / expanded(value)))
    return str(path.resolve()) if path is not None else value


NEEDED = {
    "grid_gco2e_per_kwh": ("source", 'source: "publisher, grid, year"'),
    "price_per_kwh": ("currency", "currency: EUR"),
}
"""What a number of the section `report` is worth nothing without."""


def report_settings(data: JsonValue, report: Report) -> ReportSettings:
    """The section `report`. A bare number, of which nobody could tell the source or currency, is refused."""
    given: JsonValue = data
    if isinstance(data, Mapping):
        bare = {key: value for key, value in data.items() if key in NEEDED and type(value) in (int, float)}
        for key, value in bare.items():
            missing, example = NEEDED[key]
            text = f"report.{key}: {value:g} has no {missing}, without which nobody can use the figures"
            report(("report", key), text, f"write {key}: {{value: {value:g}, {example}}}", False)
        given = {key: value for key, value in data.items() if key not in bare}
    checked = check_section(ReportSettings, given, report, ("report",))
    return decode(ReportSettings, checked)


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
            name = key.removeprefix(f"{VALIDITY}.")
            limits.update(check_section(Thresholds, {name: value}, moved(report, (key,), 1), ()))
        else:
            continue
        del rest[key]
    return rest, limits_in(limits)


def limits_in(checked: Mapping[str, JsonValue]) -> dict[str, float]:
    """The limits of validity in a checked section."""
    return {name: value for name, value in checked.items() if isinstance(value, float)}


def moved(report: Report, above: KeyPath, skip: int = 0) -> Report:
    """Reports what is at a key path as being below `above`, in place of its first `skip` parts."""
    return lambda key_path, *rest: report((*above, *key_path[skip:]), *rest)


def check_meter(name: str | None, report: Report) -> None:
    """Report a meter that there is not; without one, installed packages are not searched for meters."""
    if name is not None and name not in (names := ("auto", *known_meters(), "none")):
        report(("meter",), f"meter: unknown meter {name!r}", suggest_or_list(name, names), False)


def overridden(execution: Execution, overrides: Overrides) -> Execution:
    """The execution with what the command line says. Raises `SettingsError`."""
    values: dict[str, Any] = {"cycles": overrides.cycles, "order": overrides.order}
    changes = {key: value for key, value in values.items() if value is not None}
    try:
        for key, value in changes.items():
            check(Execution, key, value)
    except BadValueError as problem:
        raise SettingsError(f"execution: {problem.text}", fix=problem.fix) from None
    return replace(execution, **changes)
