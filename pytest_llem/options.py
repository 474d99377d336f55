"""The settings of a run, read once at the edge: nothing downstream looks at options again."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pytest_llem.errors import SettingsError


@dataclass(frozen=True)
class RunOptions:
    """The settings of this run, read once from the command line, the environment and the ini file."""

    out: Path
    runner: tuple[str, ...]
    meter: str
    meter_explicit: bool
    cycles: int | None
    order: str | None
    resume: bool
    baseline: str | None
    baseline_dir: Path
    save_baseline: str | None
    fail_if: Mapping[str, str]
    strict: bool
    breaker: bool
    skip_preflight: bool
    collect_only: bool


def run_options(config: pytest.Config) -> RunOptions:
    """Read the settings of this run; a wrong one is a usage error."""

    def chosen(name: str) -> Any:
        value = config.getoption(f"llem_{name}")
        if value in (None, []):
            environment = os.environ.get(f"LLEM_{name.upper()}")
            value = environment or config.getini(f"llem_{name}") or None
        return value

    meter = chosen("meter")
    cycles = chosen("cycles")
    try:
        cycles = int(cycles) if cycles is not None else None
    except ValueError:
        raise pytest.UsageError(f"llem_cycles: {cycles!r} is not a whole number") from None
    if meter is not None:
        _require_meter(str(meter))
    runner = config.getoption("llem_runner") or config.getini("llem_runner") or ()
    try:
        from pytest_llem.engines import known_engines
        from pytest_llem.runners.resolution import parse_runner_options

        parse_runner_options(tuple(runner), known_engines())
    except SettingsError as error:
        raise pytest.UsageError(str(error)) from None
    return RunOptions(
        out=(config.invocation_params.dir / str(chosen("out") or "llem-results")).resolve(),
        runner=tuple(runner),
        meter=str(meter or "auto"),
        meter_explicit=meter not in (None, "auto"),
        cycles=cycles,
        order=chosen("order"),
        resume=bool(config.getoption("llem_resume")),
        baseline=chosen("baseline"),
        baseline_dir=(config.rootpath / (config.getini("llem_baseline_dir") or "llem-baselines")).resolve(),
        save_baseline=config.getoption("llem_save_baseline"),
        fail_if=_fail_if(config.getoption("llem_fail_if")),
        breaker=not config.getoption("llem_no_breaker"),
        strict=bool(config.getoption("llem_strict")),
        skip_preflight=bool(config.getoption("llem_skip_preflight")),
        collect_only=bool(config.option.collectonly),
    )


def _fail_if(values: Sequence[str]) -> dict[str, str]:
    limits: dict[str, str] = {}
    for value in values:
        metric, colon, limit = value.partition(":")
        if not colon:
            raise pytest.UsageError(
                f"--llem-fail-if={value}: no limit\nfix: write METRIC:LIMIT, for example joules_per_output_token:5%"
            )
        try:
            from pytest_llem.study.limits import parse_fail_if

            parse_fail_if(metric.strip(), limit.strip())
        except SettingsError as error:
            raise pytest.UsageError(f"--llem-fail-if={value}: {error}") from None
        limits[metric.strip()] = limit.strip()
    return limits


def _require_meter(name: str) -> None:
    from difflib import get_close_matches

    from pytest_llem.energy import known_meters

    known = ("auto", *known_meters(), "none")
    if name not in known:
        close = get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise pytest.UsageError(f"--llem-meter={name}: unknown meter\nfix: {hint}known meters: {', '.join(known)}")
