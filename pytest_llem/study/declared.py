"""Reads what a section of a study may hold off its declaration: a frozen dataclass, or an engine's pydantic model.

The loading modules and `settings` check values with it, key by key, so that every problem has its position; `schema`
and `published` write from `model_of`. What it checks and what it publishes must agree; pydantic is imported only for a
value that is not plainly right.
"""

from __future__ import annotations

import dataclasses
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeGuard, Union, get_args, get_origin

from pytest_llem.errors import JsonValue
from pytest_llem.job.setting import Limits, share
from pytest_llem.job.wire import is_json, type_hints
from pytest_llem.study.problems import suggest
from pytest_llem.study.values import OldBoolean, kind, old_boolean

if TYPE_CHECKING:
    from pydantic import BaseModel, TypeAdapter, ValidationError
    from pydantic.fields import FieldInfo

PUBLISHED_NAMES = {
    "Lengths": "LengthDistribution",
    "Arrival": "Arrivals",
    "PresetDecoding": "Decoding",
    "Thresholds": "Validity",
}
"""Names of declarations in the published JSON Schema, where they are not the class's name without `Settings`."""


MAX_INT = 2**53
"""Up to here every integer is a floating-point number as well (IEEE 754, double precision)."""


@dataclass(frozen=True)
class Key:
    """One key of a section: the type of its value as it is declared, and its default as plain data."""

    owner: type
    name: str
    hint: Any
    default: JsonValue = None
    is_required: bool = False

    @property
    def section(self) -> type | None:
        """The declaration of the nested section that this key holds, or `None` for a plain value."""
        return self.hint if is_section(self.hint) else None

    @property
    def takes_list(self) -> bool:
        """Whether a value of this key is itself a list."""
        return any(get_origin(option) in (list, tuple) for option in options(self.hint))


def is_section(hint: object) -> bool:
    """Whether a type declares a section: a dataclass or a pydantic model."""
    return isinstance(hint, type) and (dataclasses.is_dataclass(hint) or _is_model(hint))


def options(hint: object) -> tuple[object, ...]:
    """The alternatives of a union, or the type itself; `Annotated` is looked through."""
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(inner for option in get_args(hint) for inner in options(option))
    return options(get_args(hint)[0]) if get_origin(hint) is Annotated else (hint,)


def _is_model(declaration: type) -> TypeGuard[type[BaseModel]]:
    pydantic = sys.modules.get("pydantic")  # without it there are no models
    return pydantic is not None and issubclass(declaration, pydantic.BaseModel)


@cache
def keys_of(declaration: type) -> dict[str, Key]:
    """The keys of a section by name, in the order in which they are declared."""
    if _is_model(declaration):
        return {
            name: Key(declaration, name, info.annotation, _model_default(info), info.is_required())
            for name, info in declaration.model_fields.items()
        }
    hints = type_hints(declaration, include_extras=True)
    return {
        item.name: Key(declaration, item.name, hints[item.name], _default(item), _is_required(item))
        for item in dataclasses.fields(declaration)
    }


def _model_default(info: FieldInfo) -> JsonValue:
    return None if info.is_required() or is_section(info.annotation) else info.get_default(call_default_factory=True)


def _is_required(item: dataclasses.Field[Any]) -> bool:
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING


def _default(item: dataclasses.Field[Any]) -> JsonValue:
    if item.default_factory is not dataclasses.MISSING:
        made = item.default_factory()
        return None if dataclasses.is_dataclass(made) else made
    default = None if item.default is dataclasses.MISSING else item.default
    return list(default) if isinstance(default, tuple) else default


def readable(hint: Any) -> Any:
    """A declared type as pydantic reads YAML: lists for tuples, dictionaries for mappings, models for sections."""
    import pydantic

    origin, arguments = get_origin(hint), get_args(hint)
    if is_json(hint):
        return pydantic.JsonValue
    if origin is Annotated:
        return Annotated.__class_getitem__((readable(arguments[0]), *arguments[1:]))
    if origin in (Union, types.UnionType):
        return Union[tuple(map(readable, arguments))]  # noqa: UP007  (made of a tuple)
    if origin is tuple:
        return list.__class_getitem__(readable(arguments[0]))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return dict.__class_getitem__(tuple(map(readable, arguments)))
    return model_of(hint) if is_section(hint) else hint


@cache
def model_of(declaration: type) -> type[BaseModel]:
    """The pydantic model of a section, under its published name."""
    if _is_model(declaration):
        return declaration
    import pydantic

    from pytest_llem.study.strict_model import Section

    fields: dict[str, Any] = {}
    for item in dataclasses.fields(declaration):
        hint = readable(keys_of(declaration)[item.name].hint)
        help_ = {"description": item.metadata["description"], "examples": item.metadata["examples"] or None}
        if is_section(hint):
            fields[item.name] = (hint, pydantic.Field(default_factory=hint, **help_))
        elif item.default_factory is not dataclasses.MISSING or item.default == ():
            fields[item.name] = (hint, pydantic.Field(default_factory=get_origin(hint), **help_))
        elif item.default is dataclasses.MISSING:
            fields[item.name] = (hint, pydantic.Field(**help_))
        else:
            fields[item.name] = (hint, pydantic.Field(item.default, **help_))
    return pydantic.create_model(published_name(declaration), __base__=Section, __doc__=summary(declaration), **fields)


def published_name(declaration: type) -> str:
    """The name of a section in the JSON Schema."""
    name = declaration.__name__
    return PUBLISHED_NAMES.get(name, name.removesuffix("Settings"))


def summary(declaration: type) -> str:
    """The first sentence or sentences of a section's docstring, up to an empty line."""
    return (declaration.__doc__ or "").partition("\n\n")[0].strip()


class BadValueError(Exception):
    """A value that its setting does not accept; `inner` is the path below it, `fix` a remedy."""

    def __init__(self, text: str, fix: str | None = None, inner: tuple[str | int, ...] = ()) -> None:
        super().__init__(text)
        self.text = text
        self.fix = fix
        self.inner = inner


def check(declaration: type, name: str, value: JsonValue) -> JsonValue:
    """The value of a section's key as it is kept (1 becomes 1.0 for a float). Raises `BadValueError`."""
    key = keys_of(declaration)[name]
    if isinstance(value, dict):
        nested = next((option for option in options(key.hint) if is_section(option)), None)
        if isinstance(nested, type):
            return _check_mapping(nested, value)
        problem = old_boolean(value) if any(_holds_anything(option) for option in options(key.hint)) else None
        if problem is not None:
            raise BadValueError(problem, OldBoolean.REMEDY)
    plain = _as_declared(key.hint, value)
    if not _is_model(declaration) and _is_plainly(key.hint, plain):
        return plain
    from pydantic import ValidationError

    try:
        if _is_model(declaration):
            changed = declaration.__pydantic_validator__.validate_assignment(_blank(declaration), name, value)
            checked: JsonValue = getattr(changed, name)
        else:
            checked = _adapter(declaration, name).validate_python(value)
    except ValidationError as error:
        skipped = 1 if _is_model(declaration) else 0
        raise _bad_value(error, key, value, skipped) from None
    return checked


def _holds_anything(hint: object) -> bool:
    return get_origin(hint) in (Mapping, dict) and is_json(get_args(hint)[1])


def _takes_percent(hint: object) -> bool:
    if get_origin(hint) in (Union, types.UnionType):
        return any(map(_takes_percent, get_args(hint)))
    limits = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    return any(isinstance(each, Limits) and each.percent for each in limits)


def _as_declared(hint: object, value: JsonValue) -> JsonValue:
    """An integer, or a share in percent, as the number with a fraction that is declared; any other value as it is."""
    if isinstance(value, str) and _takes_percent(hint):
        meant = share(value)
        return meant if isinstance(meant, float) else value
    if type(value) is not int or abs(value) > MAX_INT or float not in options(hint) or int in options(hint):
        return value
    return float(value)


def _is_plainly(hint: object, value: JsonValue) -> bool:
    """Whether a value is of the declared type and within its limits, so that there is nothing to ask pydantic.

    False where that takes more than a look, as for lists.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_is_plainly(option, value) for option in arguments)
    if origin is Annotated:
        return _is_plainly(arguments[0], value) and all(
            isinstance(limits, Limits) and limits.plainly_hold(value) for limits in arguments[1:]
        )
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in arguments)
    return type(value) is hint and hint in (str, int, float, bool, type(None))


@cache
def _adapter(declaration: type, name: str) -> TypeAdapter[Any]:
    from pydantic import ConfigDict, TypeAdapter

    hint = readable(keys_of(declaration)[name].hint)
    return TypeAdapter(hint, config=None if is_section(hint) else ConfigDict(strict=True))


@cache
def _blank(model: type[BaseModel]) -> BaseModel:
    """An instance that assignments are checked on; no default is made, which would build other models."""
    return model.model_construct(**dict.fromkeys(model.model_fields))


def _check_mapping(declaration: type, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    keys = keys_of(declaration)
    names = f"known here: {', '.join(keys)}"
    checked: dict[str, JsonValue] = {}
    for name, inner in value.items():
        if name not in keys:
            raise BadValueError(f"unknown key {name!r}", suggest(name, keys) or names, (name,))
        try:
            plain = check(declaration, name, inner)
        except BadValueError as problem:
            raise BadValueError(problem.text, problem.fix, (name, *problem.inner)) from None
        if plain is not None:
            checked[name] = plain
    for name, key in keys.items():
        if key.is_required and name not in checked:
            raise BadValueError(f"{name!r} is missing", names)
    return checked


def _bad_value(error: ValidationError, key: Key, value: JsonValue, skipped: int) -> BadValueError:
    detail = error.errors(include_url=False, include_context=True, include_input=False)
    words = [choice for o in options(key.hint) if get_origin(o) is Literal for choice in get_args(o)]
    texts = [str(word) for word in words]
    near = suggest(_CALLED.get(value.casefold(), value), texts) if isinstance(value, str) else None
    if isinstance(value, str) and words and all(get_origin(o) is Literal or o is type(None) for o in options(key.hint)):
        return BadValueError(f"{kind(value)} is not accepted", f"{near or ''} use one of: {', '.join(texts)}".strip())
    names = tuple(value) if isinstance(value, dict) else ()
    inner = tuple(part for part in detail[0]["loc"][skipped:] if isinstance(part, int) or part in names)
    expected = [_EXPECTED.get(str(entry["type"]), _plain_message(str(entry["msg"]))) for entry in detail]
    given = _at(value, inner)
    fix = near
    if "expected a text" in expected and isinstance(given, (bool, int, float)):
        fix = "quote it"
    if isinstance(given, (int, float)) and _takes_percent(key.hint) and 1 < given <= 100:
        fix = f"write {given:g}%, or {given / 100:g}"
    first, *others = dict.fromkeys(expected)
    either = " or ".join([first, *(other.removeprefix("expected ") for other in others)])
    return BadValueError(f"{either}, got {kind(given)}", fix, inner)


def _at(value: JsonValue, inner: tuple[str | int, ...]) -> JsonValue:
    for part in inner:
        if isinstance(value, dict) and isinstance(part, str):
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
    return value


def _plain_message(message: str) -> str:
    plain = message.replace("Input should be", "expected").replace("String should", "the text should")
    return plain.removeprefix("Value error, ")


_CALLED = {"gpu": "cuda", "nvidia": "cuda", "amd": "rocm", "hip": "rocm"}
"""What people call a kind of device, which is near another one (`gpu` to `cpu`) or to none."""
_EXPECTED = {
    "int_type": "expected an integer",
    "float_type": "expected a number",
    "string_type": "expected a text",
    "bool_type": "expected true or false",
    "list_type": "expected a list",
    "dict_type": "expected a mapping",
    "model_type": "expected a mapping",
}
