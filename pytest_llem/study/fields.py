"""The settings of an experiment by dotted path: what each accepts, its default, and its keyword.

Everything downstream works on *leaves*, a flat mapping from dotted path to plain value. The tree here is read off the
schema's models once; a value is checked by the model that owns its field, so there is one definition of each setting.
"""

from __future__ import annotations

import types
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from pytest_llem.errors import JsonValue
from pytest_llem.study.document import PlaceholderText, kind
from pytest_llem.study.engine_names import engine_names, settings_model
from pytest_llem.study.model import FlatSettings as FlatSettings
from pytest_llem.study.problems import nearest, suggest
from pytest_llem.study.schema import ExperimentSettings


@dataclass(frozen=True)
class Field:
    """One setting: a `section` has children, a `map` takes any key below it, a `leaf` holds a value."""

    path: str
    kind: Literal["section", "map", "leaf"]
    info: FieldInfo | None
    owner: type[BaseModel] | None
    default: JsonValue = None
    children: dict[str, Field] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition(".")[2]

    @property
    def takes_list(self) -> bool:
        """Whether a value of this setting is itself a list."""
        return self.info is not None and any(get_origin(option) is list for option in options(self.info.annotation))


def options(annotation: object) -> tuple[object, ...]:
    """The alternatives of a union, or the annotation itself; `Annotated` is looked through."""
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(inner for option in get_args(annotation) for inner in options(option))
    if hasattr(annotation, "__metadata__"):
        return options(get_args(annotation)[0])
    return (annotation,)


def _children(model: type[BaseModel], prefix: str) -> dict[str, Field]:
    found: dict[str, Field] = {}
    for name, info in model.model_fields.items():
        path = f"{prefix}{name}"
        annotation = info.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found[name] = Field(path, "section", info, model, None, _children(annotation, f"{path}."))
        elif name == "extra":
            found[name] = Field(path, "map", info, model)
        else:
            default = None if info.is_required() else info.get_default(call_default_factory=True)
            found[name] = Field(path, "leaf", info, model, default)
    return found


@cache
def tree() -> Field:
    """The root of all settings of an experiment."""
    children = _children(ExperimentSettings, "")
    children.update({name: _outside(name) for name in engine_names() if name not in children})
    return Field("", "section", None, None, None, children)


def _outside(engine: str) -> Field:
    """The section of an engine of another package: checked where the package says how."""
    model = settings_model(engine)
    if model is None:
        return Field(engine, "map", None, None)
    return Field(engine, "section", None, None, None, _children(model, f"{engine}."))


@cache
def table() -> dict[str, Field]:
    """Every setting by its path, sections and maps included."""
    return {item.path: item for item in _walk(tree()) if item.path}


def _walk(item: Field) -> Iterator[Field]:
    yield item
    for child in item.children.values():
        yield from _walk(child)


@cache
def defaults() -> FlatSettings:
    """The default of every leaf, by path."""
    return {path: item.default for path, item in table().items() if item.kind == "leaf"}


def find(path: str) -> Field | None:
    """The setting at `path`; anything below a map is that map's. `None` when there is no such setting."""
    known = table()
    item = known.get(path)
    if item is not None:
        return item
    parts = path.split(".")
    for length in range(len(parts) - 1, 0, -1):
        above = known.get(".".join(parts[:length]))
        if above is not None:
            return above if above.kind == "map" and all(parts) else None
    return None


@cache
def _places() -> dict[str, list[str]]:
    places: dict[str, list[str]] = {}
    for path, item in table().items():
        places.setdefault(item.name, []).append(path)
    return places


def suggest_path(path: str, beside: Iterable[str] = ()) -> str | None:
    """A remedy for an unknown path: a near name in the same section (or in `beside`), or a near one elsewhere."""
    above, _, last = path.rpartition(".")
    section = table().get(above, tree()) if above else tree()
    local = nearest(last, (*section.children, *beside)) if not above or section.path else None
    elsewhere = nearest(last, _places())
    if local is not None and (elsewhere is None or local[0] >= elsewhere[0] - 0.1):
        return f"did you mean '{above}.{local[1]}'?" if above else f"did you mean '{local[1]}'?"
    if elsewhere is not None:
        return f"did you mean {' or '.join(repr(place) for place in _places()[elsewhere[1]][:3])}?"
    if section.children:
        names = ", ".join(section.children)
        return f"known here: {names}" if len(names) < 400 else f"known here: {names[:400].rpartition(', ')[0]}, ..."
    return None


@cache
def _blank(model: type[BaseModel]) -> BaseModel:
    """An instance that assignments are checked on; no default is made, which would build other models."""
    return model.model_construct(**dict.fromkeys(model.model_fields))


@cache
def _owner(model: type[BaseModel], name: str) -> type[BaseModel]:
    """The base class that defines a field: its validator is smaller than that of the whole model."""
    bases = [base for base in model.__mro__ if issubclass(base, BaseModel) and base is not BaseModel]
    return next((base for base in reversed(bases) if name in base.__annotations__), model)


class BadValueError(Exception):
    """A value that its setting does not accept; `inner` is the place below it, `fix` a remedy."""

    def __init__(self, text: str, fix: str | None = None, inner: tuple[str | int, ...] = ()) -> None:
        super().__init__(text)
        self.text = text
        self.fix = fix
        self.inner = inner


def check_leaf(item: Field, value: JsonValue) -> JsonValue:
    """The value as the setting keeps it (1 becomes 1.0 for a float). Raises `BadValueError`."""
    if item.owner is None:
        return value
    if isinstance(value, PlaceholderText):
        try:
            return check_leaf(item, value.plain)
        except BadValueError:
            return check_leaf(item, str(value))
    return check_field(item.owner, item.name, value)


def check_field(owner: type[BaseModel], name: str, value: JsonValue) -> JsonValue:
    """Check a value by the field `name` of a model alone. Raises `BadValueError`."""
    if isinstance(value, dict):
        model = _mapping_model(owner, name)
        if model is not None:
            return _check_mapping(model, value)
    try:
        owner = _owner(owner, name)
        changed = owner.__pydantic_validator__.validate_assignment(_blank(owner), name, value)
    except ValidationError as error:
        raise _bad_value(error, owner.model_fields[name], value) from None
    checked: JsonValue = getattr(changed, name)
    return checked


@cache
def _mapping_model(owner: type[BaseModel], name: str) -> type[BaseModel] | None:
    """The model of a mapping that a field accepts, alone or beside plain values."""
    for option in options(owner.model_fields[name].annotation):
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option
    return None


def _check_mapping(model: type[BaseModel], value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    checked: dict[str, JsonValue] = {}
    for key, inner in value.items():
        if key not in model.model_fields:
            raise BadValueError(f"unknown key {key!r}", suggest(key, model.model_fields) or _known(model), (key,))
        try:
            plain = check_field(model, key, inner)
        except BadValueError as problem:
            raise BadValueError(problem.text, problem.fix, (key, *problem.inner)) from None
        if plain is not None:
            checked[key] = plain
    for key, info in model.model_fields.items():
        if info.is_required() and key not in checked:
            raise BadValueError(f"{key!r} is missing", _known(model))
    return checked


def _known(model: type[BaseModel]) -> str:
    return f"known here: {', '.join(model.model_fields)}"


def _bad_value(error: ValidationError, info: FieldInfo, value: JsonValue) -> BadValueError:
    detail = error.errors(include_url=False, include_context=True, include_input=False)
    words = [choice for o in options(info.annotation) if get_origin(o) is Literal for choice in get_args(o)]
    if isinstance(value, str) and words:
        texts = [str(word) for word in words]
        near = suggest(value, texts)
        return BadValueError(f"{kind(value)} is not accepted", f"{near or ''} use one of: {', '.join(texts)}".strip())
    first = detail[0]
    inner = tuple(part for part in first["loc"][1:] if isinstance(part, int) or part in _mapping_keys(value))
    expected = [_EXPECTED.get(str(entry["type"]), _plain_message(str(entry["msg"]))) for entry in detail]
    return BadValueError(f"{' or '.join(dict.fromkeys(expected))}, got {kind(_at(value, inner))}", None, inner)


def _mapping_keys(value: JsonValue) -> tuple[str, ...]:
    return tuple(value) if isinstance(value, dict) else ()


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


_EXPECTED = {
    "int_type": "expected an integer",
    "float_type": "expected a number",
    "string_type": "expected a text",
    "bool_type": "expected true or false",
    "list_type": "expected a list",
    "dict_type": "expected a mapping",
}


@cache
def _published() -> dict[str, Field]:
    """The leaves of the schema itself: a package that brings an engine must not change the names of the others."""
    own = ExperimentSettings.model_fields
    return {path: item for path, item in table().items() if item.kind == "leaf" and path.partition(".")[0] in own}


@cache
def _leaf_name_counts() -> Counter[str]:
    return Counter(item.name for item in _published().values())


@cache
def keyword(path: str) -> str:
    """The marker keyword and id key of a setting: the shortest tail of its path that is unique in the schema.

    A top-level setting keeps its name; below `extra` the word `extra` stands before a name that the schema has too.
    """
    counts = _leaf_name_counts()
    parts = path.split(".")
    known = path in _published()
    if len(parts) == 1 or counts[parts[-1]] == (1 if known else 0):
        return parts[-1]
    for length in range(2, len(parts) + 1):
        tail = "_".join(parts[-length:])
        others = sum(
            1
            for other in _published().values()
            if other.path != path and other.path.replace(".", "_").endswith(f"_{tail}")
        )
        if not others and counts[tail] == 0:
            return tail
    return "_".join(parts)
