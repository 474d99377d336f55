"""Reads the settings of a run from all their sources, and loads studies with them.

`start` and `code_meter` call `run_options`, and `LlemSession.study` calls `load_for_run`. What comes later must take
the run's settings from `RunOptions`: xdist's workers may get that, and loaded studies, from their controller.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path

import pytest

from pytest_llem.energy.registry import known_meters
from pytest_llem.engines import engine_names
from pytest_llem.errors import SettingsError, StoreError, StudyError
from pytest_llem.job.files import require_writable
from pytest_llem.job.metric_names import metric_name, registered_metrics
from pytest_llem.job.report import RunnerName
from pytest_llem.results.layout import registration_file, repeatability_file
from pytest_llem.runners.resolution import parse_runner_options, parse_runner_value
from pytest_llem.servers.plan import require_possible_servers
from pytest_llem.session.named_files import require_named_files
from pytest_llem.session.run import RunOptions, absolute, named, names_studies
from pytest_llem.session.runner_plan import RunnerPlans
from pytest_llem.session.sharding import Shard, parse_shard
from pytest_llem.study import Study, load_study
from pytest_llem.study.limits import parse_fail_if
from pytest_llem.study.runner_settings import ACCEPTED_RUNNERS
from pytest_llem.study.settings import ABOVE_STUDY, EffectiveSetting, Settings, load_settings, report_lines

INI_NAMES = ("out", "meter", "device", "cycles", "order", "strict", "run", "baseline_dir")


def run_options(config: pytest.Config) -> RunOptions:
    """Read the settings of this run. Raises `pytest.UsageError` for a wrong one, before anything is collected."""
    option = config.getoption
    dry = bool(config.option.collectonly or option("setupplan"))
    try:
        settings = settings_of(config)
        _require_meter(settings.values["meter"])
        overrides = settings.overrides(_fail_if(option("llem_fail_if")))
    except SettingsError as error:
        raise pytest.UsageError(str(error)) from None
    directories = _directories(config, settings, dry=dry)
    return RunOptions(
        **directories,
        runner=_runners(config, settings),
        user_runners={
            engine: str(setting.value)
            for engine, setting in settings.runners.items()
            if setting.source == "user settings"
        },
        meter=str(settings["meter"]),
        meter_overrides=settings.values["meter"].source in ABOVE_STUDY,
        device_overrides=settings.values["device"].source in ABOVE_STUDY,
        overrides=overrides,
        execution=settings.execution,
        validity=settings.validity,
        percentiles=settings.percentiles,
        resume=bool(option("llem_resume")),
        baseline=option("llem_baseline") or config.getini("llem_baseline") or None,
        save_baseline=_save_baseline(config, directories["baseline_dir"], dry=dry),
        html=_html(config, dry=dry),
        strict=bool(settings["strict"]),
        explicit=settings["run"] == "explicit",
        breaker=not option("llem_no_breaker"),
        skip_preflight=bool(option("llem_skip_preflight")),
        collect_only=dry,
        shard=_shard(config),
    )


def settings_of(config: pytest.Config) -> Settings:
    """The settings of all sources. Raises `SettingsError` for a wrong one."""
    option = config.getoption
    return load_settings(
        command_line={
            **{name: option(f"llem_{name}") for name in ("out", "meter", "device", "cycles", "order")},
            "strict": option("llem_strict") or None,
        },
        ini={name: config.getini(f"llem_{name}") for name in INI_NAMES},
    )


class _ConfigOfPytest:
    """A plugin that takes pytest's configuration, as pytest finds it, before anything runs, and ends pytest there."""

    found: pytest.Config | None = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_cmdline_main(self, config: pytest.Config) -> int:
        self.found = config
        return 0


def print_settings(_: argparse.Namespace) -> int:
    """`llem config`: print the settings of a run that pytest would begin in this directory."""
    asked = _ConfigOfPytest()
    pytest.main([], plugins=[asked])
    config = asked.found
    if config is None:
        return 2  # pytest has said why
    try:
        settings = settings_of(config)
    except ValueError:
        fix = "look for `-p no:llem` in addopts, and for PYTEST_DISABLE_PLUGIN_AUTOLOAD"
        raise SettingsError("pytest does not load this plugin here", fix=fix) from None
    baseline = config.getini("llem_baseline") or None
    more = [EffectiveSetting("baseline", baseline, "ini" if baseline else "default", baseline and "llem_baseline")]
    more += [EffectiveSetting("runner", value, "ini", "llem_runner") for value in config.getini("llem_runner")]
    sys.stdout.write("\n".join(report_lines(settings, more, config.inipath)) + "\n")
    return 0


def _directories(config: pytest.Config, settings: Settings, *, dry: bool) -> dict[str, Path]:
    """Where results go and baselines lie. A dry run needs no place for results, nor does one that may not measure."""
    below = {"out": config.invocation_params.dir, "baseline_dir": config.rootpath}
    found: dict[str, Path] = {}
    for name, root in below.items():
        setting = settings.values[name]
        where = setting.where or ("--llem-out" if name == "out" else f"llem_{name}")
        with named(f"{where}={setting.value}", "choose a directory that can be written"):
            found[name] = directory = Path(os.path.realpath(root / str(setting.value)))
            if directory.exists() and not directory.is_dir():
                raise SettingsError("not a directory")
            if name == "out" and not dry and (setting.source != "default" or names_studies(config)):
                require_writable(directory)
    return found


def _runners(config: pytest.Config, settings: Settings) -> tuple[str, ...]:
    """The runners of the command line, or those of the ini file; all that any source names are known runners."""
    fix = f"use one of: {ACCEPTED_RUNNERS}"
    given = config.getoption("llem_runner")
    where, values = ("--llem-runner", given) if given else ("llem_runner", config.getini("llem_runner"))
    for value in values:
        with named(f"{where}={value}", fix):
            parse_runner_options([value], engine_names())
    for setting in settings.runners.values():
        with named(f"{setting.where}={setting.value}", fix):
            parse_runner_value(str(setting.value))
    return tuple(values)


def _save_baseline(config: pytest.Config, directory: Path, *, dry: bool) -> str | None:
    name: str | None = config.getoption("llem_save_baseline")
    if name is None or dry:
        return name
    from pytest_llem.results.baselines import require_saveable  # imports pydantic

    with named(f"--llem-save-baseline={name}", "mend or remove the file, or give the baseline another name"):
        require_saveable(name, directory)
    return name


def _shard(config: pytest.Config) -> Shard | None:
    text, times = config.getoption("llem_shard"), config.getoption("llem_shard_times")
    if text is None:
        if times is not None:
            raise pytest.UsageError("--llem-shard-times without --llem-shard\nfix: give both, or neither")
        return None
    with named(f"--llem-shard={text}", "write K/N, e.g. 1/4"):
        shard = parse_shard(text)
    if times is None:
        return shard
    from pytest_llem.results.reading import recorded_durations

    with named(f"--llem-shard-times={times}", "name a run's directory, a results folder or a result.json"):
        return replace(shard, recorded=recorded_durations(absolute(config, times)))


def _html(config: pytest.Config, *, dry: bool) -> Path | None:
    name = config.getoption("llem_html")
    if name is None:
        return None
    with named(f"--llem-html={name}", "name the file to write, e.g. report.html"):
        path = absolute(config, name)
        if not name.strip() or (path.exists() and not path.is_file()):
            raise SettingsError("not a file")
        if not dry:
            require_writable(path.parent)
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
    registered_metrics()  # the summary needs them all: one that is broken is found before anything is measured
    load = partial(
        load_study, path, execution=options.execution, validity=options.validity, percentiles=options.percentiles
    )
    study = load(overrides=options.overrides)
    compared = any(experiment.compare for experiment in study.experiments)
    if options.baseline and not compared and study.optimize is None:
        limits = {study.execution.headline: DEFAULT_LIMIT}
        study = load(overrides=replace(options.overrides, fail_if=limits))
    for other in others:
        if other.name == study.name:
            raise StudyError(
                f"{path}:1:1: another study of this run has the name {study.name!r}: {other.path}",
                fix="give one of them another `name:`",
            )

    def runner_of(engine: str) -> RunnerName:
        return runner_plans.spec(engine, study).name

    _require_possible_race(study, options)
    _require_possible(study, runner_of, distributed=distributed)
    if not options.skip_preflight:
        require_named_files(study, runner_of)
    require_possible_servers(study, runner_of)
    if registration_file(study.path).is_file():
        from pytest_llem.results.registration import registration_of  # as below

        try:
            registration_of(study.path)
        except StoreError as error:
            raise StudyError(f"{path}:1:1: {error}", fix=error.fix) from None
    if repeatability_file(study.name, options.baseline_dir).exists():
        from pytest_llem.results.repeatability import read_repeatability  # costs more than all of collection

        try:
            read_repeatability(study.name, options.baseline_dir)
        except StoreError as error:
            raise StudyError(f"{path}:1:1: {error}", fix="measure it again with `llem aa`, or remove it") from None
    return study


def _require_possible_race(study: Study, options: RunOptions) -> None:
    """Raise `StudyError` where a run's own settings leave a study's race without an answer."""
    goal = study.optimize
    if goal is None:
        return
    place = f"{study.locate('optimize')}: optimize cannot be combined with"
    if options.baseline is not None:
        raise StudyError(
            f"{place} a baseline ({options.baseline}): the race measures some settings too seldom to be judged",
            fix="leave --llem-baseline (llem_baseline) out; `llem compare` compares the cycles that all settings got",
        )
    if options.shard is not None:
        raise StudyError(
            f"{place} --llem-shard: the settings of one shard would race without those of the others",
            fix="leave it out, and use -n on one machine or --llem-runner=ray on several",
        )
    if options.meter_of(study) == "none":
        energy = [setting for setting, metric in goal.settings() if metric_name(metric).energy]
        if energy:
            raise StudyError(
                f"{study.locate(energy[0])}: {energy[0]} needs a meter, and the run has none (meter: none)",
                fix="leave the meter to auto, or optimize a metric of time",
            )


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
