"""Resolves which runner each engine gets, and records which setting chose it.

`session.runner_plan` and `options` call it. The order must stay: command line, environment, study, user settings,
detection, default. Only a value that someone set counts as explicit; a default must never hide detection.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec

from pytest_llem.engines import engine_info
from pytest_llem.errors import RunnerError, SettingsError
from pytest_llem.job.report import Note, RunnerSource, RunnerSpec
from pytest_llem.study.runner_settings import ACCEPTED_RUNNERS, runner_problem

ENVIRONMENT_PREFIX = "LLEM_RUNNER_"
EXPLICIT_SOURCES: tuple[RunnerSource, ...] = ("command line", "environment", "study", "user settings")


def parse_runner_value(value: str, source: RunnerSource = "command line") -> RunnerSpec:
    """`local`, `docker`, `docker:IMAGE`, `ray` or `ray:ADDRESS` as a spec; `SettingsError` for anything else."""
    problem = runner_problem(value)
    if problem:
        raise SettingsError(f"{problem} ({source})", fix=f"use one of: {ACCEPTED_RUNNERS}", details={"value": value})
    name, _, rest = value.strip().partition(":")
    rest = rest.strip()
    if name == "docker":
        return RunnerSpec("docker", source, image=rest or None)
    if name == "ray":
        return RunnerSpec("ray", source, address=rest or None)
    return RunnerSpec("local", source)


def parse_runner_options(values: Sequence[str], engines: Collection[str]) -> dict[str | None, RunnerSpec]:
    """`SPEC` for all engines (key `None`) or `ENGINE=SPEC`, the last of each; `SettingsError` if not in `engines`."""
    specs: dict[str | None, RunnerSpec] = {}
    for value in values:
        engine, equals, rest = value.partition("=")
        if equals and ":" not in engine:
            if engine.strip() not in engines:
                raise SettingsError(
                    f"unknown engine {engine.strip()!r} in runner {value!r} (command line)",
                    fix=f"use one of: {', '.join(engines)}",
                )
            specs[engine.strip()] = parse_runner_value(rest)
        else:
            specs[None] = parse_runner_value(value)
    return specs


def resolve_runner(
    engine: str,
    *,
    command_line: Mapping[str | None, RunnerSpec] | None = None,
    environment: Mapping[str, str] | None = None,
    study: Mapping[str, str] | None = None,
    user_settings: Mapping[str, str] | None = None,
    detect: Callable[[str], RunnerSpec | None] | None = None,
) -> RunnerSpec:
    """One engine's runner; mappings lack it, or hold `None`, if nobody set one; `detect` is asked when none did."""
    options = command_line or {}
    for key in (engine, None):
        if key in options:
            return options[key]
    variable = ENVIRONMENT_PREFIX + engine.upper()
    value = (environment or {}).get(variable)
    if value:
        try:
            return parse_runner_value(value, "environment")
        except SettingsError as error:
            raise SettingsError(f"{variable}: {error.message}", fix=error.fix, details=error.details) from None
    if study and study.get(engine):
        return parse_runner_value(study[engine], "study")
    if user_settings and user_settings.get(engine):
        return parse_runner_value(user_settings[engine], "user settings")
    return (detect(engine) if detect else None) or RunnerSpec("local", "default")


def missing_modules(engine: str) -> tuple[str, ...]:
    """The engine's Python packages that this interpreter cannot find; nothing is imported."""
    return tuple(name for name in engine_info(engine).modules if find_spec(name) is None)


def detect_runner(engine: str, *, installed: Callable[[str], bool], daemon: Callable[[], bool]) -> RunnerSpec | None:
    """Docker, when the engine is not importable here and a daemon (asked last: it is slow) answers; else `None`."""
    if not engine_info(engine).exclusive or installed(engine) or not daemon():
        return None
    return RunnerSpec("docker", "detected")


@dataclass(frozen=True)
class RunnerPlan:
    """A runner per engine of a study, what the user should know about it, and what makes it impossible."""

    specs: Mapping[str, RunnerSpec]
    notices: tuple[Note, ...] = ()
    problems: tuple[RunnerError, ...] = ()


def plan_runners(
    engines: Collection[str], specs: Mapping[str, RunnerSpec], installed: Collection[str], daemon: bool
) -> RunnerPlan:
    """Look at all engines of a study together; a mix of runners is allowed and gets a notice.

    Engines that cannot share one environment (`EngineInfo.exclusive`), unless all are `installed`, are moved to Docker
    where nobody chose otherwise and `daemon` answers; without one that is a problem that says what to install.
    """
    planned = {engine: specs[engine] for engine in engines}
    notices: list[Note] = []
    problems: list[RunnerError] = []
    exclusive = [engine for engine in planned if engine_info(engine).exclusive]
    missing = [engine for engine in exclusive if engine not in installed]
    if len(exclusive) > 1 and missing:
        free = [
            engine
            for engine in exclusive
            if planned[engine].source not in EXPLICIT_SOURCES and planned[engine].name == "local"
        ]
        if free and daemon:
            for engine in free:
                planned[engine] = replace(planned[engine], name="docker", source="detected")
            notices.append(
                Note(
                    "elevated_to_docker",
                    f"{', '.join(exclusive)} do not share one environment: {', '.join(free)} "
                    f"{'runs' if len(free) == 1 else 'run'} in Docker; choose with --llem-runner=ENGINE=SPEC",
                )
            )
    wanting = [*missing, *(e for e in planned if engine_info(e).install and e not in (*exclusive, *installed))]
    homeless = [engine for engine in wanting if planned[engine].name == "local"]
    if homeless:
        problems.append(_not_installed(homeless, exclusive, daemon))
    names = sorted({spec.name for spec in planned.values()})
    if len(names) > 1:
        notices.append(
            Note(
                "mixed_runners",
                f"this study mixes the runners {' and '.join(names)}: "
                "their numbers are not directly comparable, since the software environments differ",
            )
        )
    return RunnerPlan(planned, tuple(notices), tuple(problems))


def _not_installed(homeless: list[str], exclusive: list[str], daemon: bool) -> RunnerError:
    install = "; ".join(engine_info(engine).install or f"install {engine}" for engine in homeless)
    several = len(exclusive) > 1
    docker = "use --llem-runner=docker, or " if daemon else "start a Docker daemon and use --llem-runner=docker, or "
    if not exclusive:
        docker = ""
    return RunnerError(
        f"{', '.join(homeless)} cannot run here: not installed"
        + (f", and {', '.join(exclusive)} rarely fit in one environment" if several else ""),
        fix=f"{docker}{'give each its own environment: ' if several else ''}{install}",
        details={"engines": list(homeless)},
    )
