"""Compares a study's settings with the signatures of the installed engine, before the first cycle.

Runners run it (`python -m pytest_llem.engines.signatures SOURCE [TARGET]`, or by the fork server) and read its report;
`streamed` calls `parameters`. It must import no more than the engine and the standard library.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Literal, Union, get_args, get_origin

from pytest_llem.engines import engine_info
from pytest_llem.engines.info import Layout, Target
from pytest_llem.errors import EngineNotInstalledError, JsonValue
from pytest_llem.job.config import ExperimentConfig
from pytest_llem.job.files import read_json_value, write_json
from pytest_llem.job.job import load_job
from pytest_llem.job.wire import decode, encode


@dataclass(frozen=True)
class SettingProblem:
    """A setting that the installed engine does not take: its path in a study, what is wrong, what to write."""

    path: str
    message: str
    fix: str | None = None
    value: JsonValue = None

    def concerns(self, config: ExperimentConfig) -> bool:
        """Whether a configuration has this setting with this value."""
        wanted = (self.path, json.dumps(self.value, sort_keys=True))
        return any((given.path, json.dumps(given.value, sort_keys=True)) == wanted for given in _given(config))


@dataclass(frozen=True)
class SignatureReport:
    """What was found, and why nothing could be compared, if so (`unchecked`)."""

    problems: tuple[SettingProblem, ...] = ()
    unchecked: str | None = None


REPORT_MARK = "LLEM-SETTINGS "


def check_all(configs: Iterable[ExperimentConfig]) -> list[SettingProblem]:
    """What the installed engine does not take, each problem once. Raises `EngineNotInstalledError`."""
    known = cache(parameters)
    found: dict[tuple[str, str], SettingProblem] = {}
    for config in configs:
        layout = engine_info(config.engine).signatures
        for problem in () if layout is None else _problems(config, layout, known):
            found.setdefault((problem.path, json.dumps(problem.value, sort_keys=True)), problem)
    return list(found.values())


@dataclass(frozen=True)
class _Given:
    """A setting that reaches the engine's classes; `section` is `None` for the main arguments."""

    path: str
    section: str | None
    name: str
    value: JsonValue


def _given(config: ExperimentConfig) -> Iterator[_Given]:
    engine = config.engine
    layout = engine_info(engine).signatures
    for name, value in config.settings.items():
        path = f"{engine}.{name}"
        nested = name == "extra" or (layout is not None and name in layout.sections)
        if nested and isinstance(value, Mapping):
            for key, inner in value.items():
                yield _Given(f"{path}.{key}", None if name == "extra" else name, key, inner)
        elif layout is None or name not in layout.own:
            yield _Given(path, None, name, value)
    for item in dataclasses.fields(config.decoding):
        value = getattr(config.decoding, item.name)
        if value is not None and item.name != "do_sample":
            yield _Given(f"decoding.{item.name}", "decoding", item.name, value)


def _problems(
    config: ExperimentConfig, layout: Layout, known: Callable[[Target, str], dict[str, Any]]
) -> Iterator[SettingProblem]:
    main: dict[str, Any] = {}
    for target in reversed(layout.main):
        main.update(known(target, config.engine))
    for one in _given(config):
        if one.section is None:
            names = main
        else:
            target = layout.decoding if one.section == "decoding" else layout.sections[one.section]
            names = known(target, config.engine)
        yield from _check(one.path, one.name, one.value, names)


def _check(path: str, name: str, value: JsonValue, known: Mapping[str, Any]) -> Iterator[SettingProblem]:
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "take it out, or install a version of the engine that has it"
        yield SettingProblem(path, f"{path}: the installed engine has no argument {name!r}", hint, value)
    elif fits(known[name], value) is False:
        expected = getattr(known[name], "__name__", None) or str(known[name]).replace("typing.", "")
        message = f"{path}: the installed engine expects {expected}, got {json.dumps(value)}"
        yield SettingProblem(path, message, f"give {expected}", value)


def parameters(target: Target, engine: str) -> dict[str, Any]:
    """Argument names of a class or function, with types where known. Raises `EngineNotInstalledError`."""
    found = _find(target, engine)
    hints = _hints(found)
    if isinstance(model_fields := getattr(found, "model_fields", None), Mapping):
        return {**dict.fromkeys(target.more), **{name: info.annotation for name, info in model_fields.items()}}
    if isinstance(struct_fields := getattr(found, "__struct_fields__", None), tuple):
        names = list(struct_fields)
    else:
        names = _signature_names(found)
    return {**dict.fromkeys(target.more), **{name: hints.get(name) for name in names}}


def _find(target: Target, engine: str) -> Any:
    problem: Exception | None = None
    for place in target.places:
        try:
            return resolve_name(place)
        except (ImportError, AttributeError) as missing:
            problem = missing
    raise EngineNotInstalledError(
        f"the engine {engine} is not installed here, or its {target.places[0]} has moved: {problem}",
        fix=f"install {engine}, or use a runner whose image has it",
        details={"engine": engine},
    )


def _signature_names(found: Any) -> list[str]:
    signature = inspect.signature(found.__init__ if inspect.isclass(found) else found)
    names = [
        parameter.name
        for parameter in signature.parameters.values()
        if parameter.name != "self" and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    if inspect.isclass(found) and dataclasses.is_dataclass(found):
        # A pydantic dataclass hides its fields behind **kwargs; others have a constructor of their own.
        names += [item.name for item in dataclasses.fields(found) if item.init and item.name not in names]
    if inspect.isclass(found) and not names:
        # GenerationConfig takes only **kwargs; what it knows are the attributes of an empty one.
        names = [name for name in vars(found()) if not name.startswith("_")]
    return names


def _hints(found: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(found)
    except (NameError, TypeError, AttributeError, SyntaxError):
        return {}


def fits(annotation: Any, value: JsonValue) -> bool | None:
    """Whether a JSON value suits a type annotation; `None` where the annotation is not plain enough to tell."""
    if annotation in (None, Any, inspect.Parameter.empty):
        return None
    origin = get_origin(annotation)
    if origin is typing.Annotated:
        return fits(get_args(annotation)[0], value)
    if origin in (Union, types.UnionType):
        answers = [fits(option, value) for option in get_args(annotation)]
        return True if True in answers else None if None in answers else False
    if origin is Literal:
        return value in get_args(annotation)
    if annotation is type(None):
        return value is None
    if annotation is bool:
        return isinstance(value, bool)
    if annotation in (int, float):
        allowed = (int,) if annotation is int else (int, float)
        return isinstance(value, allowed) and not isinstance(value, bool)
    if annotation is str:
        return isinstance(value, str)
    if (origin or annotation) in (list, tuple):
        return isinstance(value, (list, tuple))
    if (origin or annotation) is dict:
        return isinstance(value, Mapping)
    return None


def main(arguments: Sequence[str]) -> int:
    """Check the configuration of a job file, or a JSON list of configurations.

    The report goes to the file `TARGET`, else to standard output behind `REPORT_MARK`. Returns 1 where there are
    problems and 2 for wrong usage.
    """
    if len(arguments) not in (1, 2):
        sys.stderr.write("usage: python -m pytest_llem.engines.signatures SOURCE [TARGET]\n")
        return 2
    source = Path(arguments[0])
    data = read_json_value(source)
    configs = [decode(ExperimentConfig, item) for item in data] if isinstance(data, list) else [load_job(source).config]
    try:
        report = SignatureReport(tuple(check_all(configs)))
    except EngineNotInstalledError as missing:
        report = SignatureReport(unchecked=missing.message)
    if len(arguments) == 2:
        write_json(Path(arguments[1]), encode(report))
    else:
        sys.stdout.write(f"{REPORT_MARK}{json.dumps(encode(report))}\n")
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
