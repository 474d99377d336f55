"""Gathers the settings of a run from command line, environment, ini file and the user's file, each with its source.

`session.options` and `llem config` call it. That order is the precedence, with the study between ini file and user's
file; it is published and must stay, as must the user's file, `llem/config.yaml` in the platform's config directory.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pytest_llem.engines import engine_names
from pytest_llem.errors import JsonValue, SettingsError
from pytest_llem.job.config import Thresholds
from pytest_llem.job.percentiles import STANDARD
from pytest_llem.study import parts
from pytest_llem.study.declared import BadValueError, check, keys_of
from pytest_llem.study.document import Document, read_document
from pytest_llem.study.model import Execution, Overrides
from pytest_llem.study.problems import Problem, UnreadableError, study_error, suggest_or_list
from pytest_llem.study.schema import UserFile
from pytest_llem.study.values import KeyPath, shown

Source = Literal["command line", "environment", "ini", "user settings", "default"]

ABOVE_STUDY: tuple[Source, ...] = ("command line", "environment", "ini")
"""Sources that apply to this run only, and so stand above the study."""

ENVIRONMENT_PREFIX = "LLEM_"
RUNNER_PREFIX = "LLEM_RUNNER_"
RESERVED_VARIABLES = (
    "LLEM_CALIBRATION_DIR",
    "LLEM_CONFIG_PATH",
    "LLEM_EVENT_PREFIX",
    "LLEM_LEASE_DIR",
    "LLEM_POWERCAP_ROOT",
)
"""Variables that other modules read; they are no settings of a run."""


_PLAIN = ("out", "meter", "device", "baseline_dir", "run", "strict")
_EXECUTION = ("cycles", "order")


@dataclass(frozen=True)
class EffectiveSetting:
    """The value of a setting and its source; `where` is the variable, the option or the position in a file."""

    name: str
    value: JsonValue
    source: Source
    where: str | None = None


@dataclass(frozen=True)
class Settings:
    """All settings of a run. `execution`, `validity` and `percentiles` are the user file's defaults for studies."""

    values: Mapping[str, EffectiveSetting]
    runners: Mapping[str, EffectiveSetting] = field(default_factory=dict)
    execution: Mapping[str, JsonValue] = field(default_factory=dict)
    validity: Mapping[str, float] = field(default_factory=dict)
    percentiles: tuple[float, ...] = STANDARD
    user_file: Path | None = None
    unknown: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> JsonValue:
        return self.values[name].value

    def __iter__(self) -> Iterator[EffectiveSetting]:
        yield from self.values.values()
        yield from self.runners.values()

    def overrides(self, fail_if: Mapping[str, str] | None = None) -> Overrides:
        """What stands above a study: cycles and order from the command line, the environment or the ini file.

        The kind of device does so for experiments that leave it open, whatever its source.
        """
        above = {name: self.values[name].value for name in _EXECUTION if self.values[name].source in ABOVE_STUDY}
        return Overrides(fail_if=fail_if or {}, device=self["device"], **above)  # type: ignore[arg-type]  # checked when they were gathered


def user_file() -> Path:
    """Where the per-user file is looked for; for a user without a home directory a path where none is."""
    from platformdirs import user_config_path

    try:
        return user_config_path("llem") / "config.yaml"
    except RuntimeError:
        return Path("~/.config/llem/config.yaml")


def load_settings(
    *,
    command_line: Mapping[str, object] | None = None,
    env: Mapping[str, str] | None = None,
    ini: Mapping[str, object] | None = None,
    path: Path | None = None,
) -> Settings:
    """Gather the settings; `None` and `""` in `command_line` and `ini` are unset. Raises `SettingsError`."""
    env = os.environ if env is None else env
    file = user_file() if path is None else path
    document, own = _read_user_file(file, env)
    given: dict[Source, dict[str, tuple[object, str | None]]] = {
        "command line": _given(command_line, "--llem-{}"),
        "environment": {
            name: (env[variable], variable)
            for name in (*_PLAIN, *_EXECUTION)
            if env.get(variable := f"{ENVIRONMENT_PREFIX}{name.upper()}")
        },
        "ini": _given(ini, "llem_{}"),
        "user settings": {
            name: (value, str(document.locate((name,)))) for name, value in own.items() if document and name in _PLAIN
        },
    }
    execution = own.get("execution")
    execution = execution if isinstance(execution, Mapping) else {}
    for name in _EXECUTION:
        if name in execution and document:
            given["user settings"][name] = (execution[name], str(document.locate(("execution", name))))
    values = {name: _first(name, given) for name in (*_PLAIN, *_EXECUTION)}
    limits = own.get("validity")
    return Settings(
        values=values,
        runners=_runners(own, document, env),
        execution=execution,
        validity=parts.limits_in(limits) if isinstance(limits, Mapping) else {},
        percentiles=parts.percentiles_in(own) or STANDARD,
        user_file=file if document else None,
        unknown=tuple(sorted(_unknown(env))),
    )


def _given(values: Mapping[str, object] | None, option: str) -> dict[str, tuple[object, str | None]]:
    return {
        name: (value, option.format(name if "_" in option else name.replace("_", "-")))
        for name, value in (values or {}).items()
        if value is not None and value != ""
    }


def _first(name: str, given: Mapping[Source, Mapping[str, tuple[object, str | None]]]) -> EffectiveSetting:
    declaration = Execution if name in _EXECUTION else UserFile
    for source, values in given.items():
        if name in values:
            value, where = values[name]
            try:
                return EffectiveSetting(name, check(declaration, name, _typed(value)), source, where)
            except BadValueError as problem:
                raise SettingsError(f"{where}: {name}: {problem.text}", fix=problem.fix) from None
    return EffectiveSetting(name, keys_of(declaration)[name].default, "default")


def _typed(value: object) -> JsonValue:
    """Texts of the environment and of ini files as the numbers and booleans they spell."""
    if isinstance(value, str):
        lowered = value.strip().lower()
        if lowered in ("true", "false"):
            return lowered == "true"
        if lowered.lstrip("-").isdecimal() and len(lowered) < 20:
            return int(lowered)
        return str(value)
    return value if isinstance(value, (bool, int, float)) else str(value)


def _read_user_file(path: Path, env: Mapping[str, str]) -> tuple[Document | None, dict[str, JsonValue]]:
    if not path.is_file() or not path.read_bytes().strip():
        return None, {}
    try:
        document = read_document(path, env)
    except UnreadableError as problem:
        raise SettingsError(str(study_error(problem.problems, path))) from None
    problems: list[Problem] = []

    def report(key_path: KeyPath, text: str, fix: str | None, at_key: bool) -> None:
        problems.append(Problem(document.locate(key_path, key=at_key), text, fix))

    sections = {"execution": Execution, "validity": Thresholds}
    # Null sections are as good as none.
    given = {
        key: value for key, value in document.data.items() if value is not None or key not in (*sections, "runners")
    }
    inside = {name: given.pop(name, None) for name in sections}
    checked = parts.check_section(UserFile, given, report, ())
    for name, declaration in sections.items():
        checked[name] = parts.check_section(declaration, inside[name], report, (name,))
    parts.check_runners(checked.get("runners"), report)
    parts.percentiles(parts.percentiles_in(checked), (), report)
    if problems:
        raise SettingsError(str(study_error(problems, path)))
    return document, checked


def _runners(
    own: Mapping[str, JsonValue], document: Document | None, env: Mapping[str, str]
) -> dict[str, EffectiveSetting]:
    runners: dict[str, EffectiveSetting] = {}
    specs = own.get("runners")
    if isinstance(specs, Mapping) and document:
        for engine, spec in specs.items():
            where = str(document.locate(("runners", engine)))
            runners[engine] = EffectiveSetting(f"runners.{engine}", spec, "user settings", where)
    for engine in engine_names():
        variable = f"{RUNNER_PREFIX}{engine.upper()}"
        if env.get(variable):
            runners[engine] = EffectiveSetting(f"runners.{engine}", env[variable], "environment", variable)
    return runners


def _unknown(env: Mapping[str, str]) -> Iterator[str]:
    names = {f"{ENVIRONMENT_PREFIX}{name.upper()}" for name in (*_PLAIN, *_EXECUTION)}
    names |= {f"{RUNNER_PREFIX}{engine.upper()}" for engine in engine_names()} | set(RESERVED_VARIABLES)
    for variable in env:
        if variable.startswith(ENVIRONMENT_PREFIX) and variable not in names:
            yield f"{variable} is not a setting: {suggest_or_list(variable, sorted(names))}"


def report_lines(settings: Settings, more: Iterable[EffectiveSetting] = (), ini_file: Path | None = None) -> list[str]:
    """What `llem config` prints: each setting, its effective value, and where it came from, then the files."""
    of_studies = {"execution": settings.execution, "validity": settings.validity}
    defaults = [
        EffectiveSetting(f"{section}.{name}", value, "user settings")
        for section, values in of_studies.items()
        for name, value in values.items()
        if name not in _EXECUTION
    ]
    if settings.percentiles != STANDARD:
        defaults.append(EffectiveSetting("percentiles", list(settings.percentiles), "user settings"))
    every = [*settings, *more, *defaults]
    rows = [(setting.name, shown(setting.value), _origin(setting, ini_file)) for setting in every]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    lines = [f"{name:<{widths[0]}}  {value:<{widths[1]}}  {origin}" for name, value, origin in rows]
    file = settings.user_file
    lines += ["", f"ini file: {ini_file or f'none above {Path.cwd()}'}"]
    lines += [f"user settings: {file}" if file else f"user settings: none at {user_file()}"]
    lines += ["a study stands above user settings and defaults"]
    return lines + [f"warning: {text}" for text in settings.unknown]


def _origin(setting: EffectiveSetting, ini_file: Path | None) -> str:
    if setting.source == "ini" and ini_file is not None:
        return f"{ini_file.name} ({setting.where})"
    if setting.source == "command line":  # the command llem has none of these options
        return f"addopts ({setting.where})"
    return f"{setting.source}{f' ({setting.where})' if setting.where else ''}"
