"""Reads the settings of a run from pytest's options, the ini file, the environment and the user's file.

`start.py` calls it once, and the fixture `llem_meter`; nothing downstream looks at options again.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import pytest

from pytest_llem.energy.registry import known_meters
from pytest_llem.engines import engine_names
from pytest_llem.errors import SettingsError
from pytest_llem.runners.resolution import parse_runner_options
from pytest_llem.session.run import RunOptions
from pytest_llem.session.sharding import Shard, parse_shard
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
        resume=bool(option("llem_resume")),
        baseline=option("llem_baseline") or config.getini("llem_baseline") or None,
        baseline_dir=(config.rootpath / str(settings["baseline_dir"])).resolve(),
        save_baseline=option("llem_save_baseline"),
        html=_html(config),
        strict=bool(settings["strict"]),
        explicit=settings["run"] == "explicit",
        breaker=not option("llem_no_breaker"),
        skip_preflight=bool(option("llem_skip_preflight")),
        collect_only=bool(config.option.collectonly),
        shard=_shard(config),
    )


def _shard(config: pytest.Config) -> Shard | None:
    text, times = config.getoption("llem_shard"), config.getoption("llem_shard_times")
    if text is None:
        if times is not None:
            raise pytest.UsageError("--llem-shard-times without --llem-shard\nfix: give both, or neither")
        return None
    try:
        return parse_shard(text, None if times is None else (config.invocation_params.dir / times).resolve())
    except SettingsError as error:
        raise pytest.UsageError(f"--llem-shard={text}: {error}") from None


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
