"""Reads the settings of a run from all their sources, and loads studies with them.

`start` and `code_meter` call `run_options`, and `LlemSession.study` calls `load_for_run`. What comes later must take
the run's settings from `RunOptions`: xdist's workers may get that, and loaded studies, from their controller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path

import pytest

from pytest_llem.energy.registry import known_meters
from pytest_llem.engines import engine_names
from pytest_llem.errors import LlemError, SettingsError, StoreError, StudyError
from pytest_llem.results.layout import repeatability_file
from pytest_llem.runners.resolution import parse_runner_options
from pytest_llem.servers.plan import require_possible_servers
from pytest_llem.session.run import RunOptions
from pytest_llem.session.runner_plan import RunnerPlans
from pytest_llem.session.sharding import Shard, parse_shard
from pytest_llem.study import Study, load_study
from pytest_llem.study.limits import parse_fail_if
from pytest_llem.study.settings import ABOVE_STUDY, EffectiveSetting, load_settings

INI_NAMES = ("out", "meter", "cycles", "order", "strict", "run", "baseline_dir")


def run_options(config: pytest.Config) -> RunOptions:
    """Read the settings of this run. Raises `pytest.UsageError` for a wrong one."""
    option = config.getoption
    runner = tuple(option("llem_runner") or config.getini("llem_runner"))
    try:
        settings = load_settings(
            command_line={
                **{name: option(f"llem_{name}") for name in ("out", "meter", "cycles", "order")},
                "strict": option("llem_strict") or None,
            },
            ini={name: config.getini(f"llem_{name}") for name in INI_NAMES},
        )
        _require_meter(settings.values["meter"])
        parse_runner_options(runner, engine_names())
        overrides = settings.overrides(_fail_if(option("llem_fail_if")))
    except SettingsError as error:
        raise pytest.UsageError(str(error)) from None
    return RunOptions(
        out=(config.invocation_params.dir / str(settings["out"])).resolve(),
        runner=runner,
        user_runners={
            engine: str(setting.value)
            for engine, setting in settings.runners.items()
            if setting.source == "user settings"
        },
        meter=str(settings["meter"]),
        meter_overrides=settings.values["meter"].source in ABOVE_STUDY,
        overrides=overrides,
        execution=settings.execution,
        validity=settings.validity,
        resume=bool(option("llem_resume")),
        baseline=option("llem_baseline") or config.getini("llem_baseline") or None,
        baseline_dir=(config.rootpath / str(settings["baseline_dir"])).resolve(),
        save_baseline=option("llem_save_baseline"),
        html=_html(config),
        strict=bool(settings["strict"]),
        explicit=settings["run"] == "explicit",
        breaker=not option("llem_no_breaker"),
        skip_preflight=bool(option("llem_skip_preflight")),
        collect_only=bool(config.option.collectonly or option("setupplan")),
        shard=_shard(config),
    )


def _shard(config: pytest.Config) -> Shard | None:
    text, times = config.getoption("llem_shard"), config.getoption("llem_shard_times")
    if text is None:
        if times is not None:
            raise pytest.UsageError("--llem-shard-times without --llem-shard\nfix: give both, or neither")
        return None
    try:
        shard = parse_shard(text)
    except SettingsError as error:
        raise pytest.UsageError(f"--llem-shard={text}: {error}") from None
    if times is None:
        return shard
    from pytest_llem.results.reading import recorded_durations

    try:
        return replace(shard, recorded=recorded_durations((config.invocation_params.dir / times).resolve()))
    except LlemError as error:
        raise pytest.UsageError(f"--llem-shard-times: {error}") from None


def _html(config: pytest.Config) -> Path | None:
    name = config.getoption("llem_html")
    if name is None:
        return None
    path: Path = (config.invocation_params.dir / name).resolve()
    if not name or path.is_dir():
        raise pytest.UsageError(f"--llem-html={name}: not a file\nfix: name the file to write, e.g. report.html")
    return path


def _fail_if(values: Sequence[str]) -> dict[str, str]:
    limits: dict[str, str] = {}
    for value in values:
        metric, colon, limit = (part.strip() for part in value.partition(":"))
        if not colon:
            raise SettingsError(
                f"--llem-fail-if={value}: no limit", fix="write METRIC:LIMIT, e.g. joules_per_output_token:5%"
            )
        try:
            parse_fail_if(metric, limit)
        except SettingsError as error:
            raise SettingsError(f"--llem-fail-if={value}: {error.message}", fix=error.fix) from None
        limits[metric] = limit
    return limits


def _require_meter(setting: EffectiveSetting) -> None:
    if setting.value in ("auto", "none"):
        return
    meters = ("auto", *known_meters(), "none")
    if setting.value not in meters:
        close = get_close_matches(str(setting.value), meters, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise SettingsError(
            f"{setting.where}={setting.value}: unknown meter", fix=f"{hint}known meters: {', '.join(meters)}"
        )


DEFAULT_LIMIT = "5%"
"""Change of the headline metric that fails where a baseline is given without any limit. Chosen: well above the spread
of valid cycles on one machine, and the limit that the documentation uses throughout."""


def load_for_run(
    path: Path, options: RunOptions, others: Iterable[Study], runner_plans: RunnerPlans, *, distributed: bool
) -> Study:
    """Load a study beside the `others` of the run. Raises `StudyError` when it is wrong, or has the name of another."""
    load = partial(load_study, path, execution=options.execution, validity=options.validity)
    study = load(overrides=options.overrides)
    if options.baseline and not any(experiment.compare for experiment in study.experiments):
        limits = {study.execution.headline: DEFAULT_LIMIT}
        study = load(overrides=replace(options.overrides, fail_if=limits))
    for other in others:
        if other.name == study.name:
            raise StudyError(
                f"{path}:1:1: another study of this run has the name {study.name!r}: {other.path}",
                fix="give one of them another `name:`",
            )

    def runner_of(engine: str) -> str:
        return runner_plans.spec(engine, study).name

    _require_possible(study, runner_of, distributed=distributed)
    require_possible_servers(study, runner_of)
    if repeatability_file(study.name, options.baseline_dir).exists():
        from pytest_llem.results.repeatability import read_repeatability  # costs more than all of collection

        try:
            read_repeatability(study.name, options.baseline_dir)
        except StoreError as error:
            raise StudyError(f"{path}:1:1: {error}", fix="measure it again with `llem aa`, or remove it") from None
    return study


class IsolationError(StudyError):
    """A study's isolation or runner does not go with its order, with each other, or with the way pytest was called."""

    category = "isolation"


def _require_possible(study: Study, runner_of: Callable[[str], str], *, distributed: bool) -> None:
    """Raise `IsolationError`: an engine loaded while others need its devices, or Ray with xdist (`distributed`)."""
    engines = dict.fromkeys(experiment.engine for experiment in study.experiments)
    if distributed and any(runner_of(engine) == "ray" for engine in engines):
        raise IsolationError(
            f"{study.locate('runners')}: the runner ray cannot be combined with -n (pytest-xdist): Ray runs cycles "
            "side by side already, and each worker of xdist would hold a part of the study back from it",
            fix="leave -n out (ray.max_in_flight bounds what is submitted at a time), or use the runner local",
        )
    isolation = study.execution.isolation
    if isolation == "process":
        return
    conflict = f"{study.locate('execution.isolation')}: execution.isolation: {isolation} cannot be combined with"
    if study.execution.order != "sequential":
        raise IsolationError(
            f"{conflict} execution.order: {study.execution.order}", fix="use order: sequential, or isolation: process"
        )
    if distributed:
        raise IsolationError(f"{conflict} -n (pytest-xdist)", fix="leave -n out, or use isolation: process")
    for engine in engines:
        runner = runner_of(engine)
        if runner != "local":
            raise IsolationError(f"{conflict} the runner {runner}", fix="use the runner local, or isolation: process")
