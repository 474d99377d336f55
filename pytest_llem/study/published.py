"""The configuration reference of the documentation: `python -m pytest_llem.study.published` writes it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pytest_llem.study.canonical import DORMANCIES, PRESETS
from pytest_llem.study.engine_names import ENGINE_SECTIONS
from pytest_llem.study.fields import options
from pytest_llem.study.llenergymeasure.words import REFUSED, RENAMES
from pytest_llem.study.schema import Arrivals, Compare, Execution, ExperimentSettings, LengthDistribution, StudyFile
from pytest_llem.study.sections.docker import Docker
from pytest_llem.study.sections.ray import Ray
from pytest_llem.study.sections.validity import Validity
from pytest_llem.study.settings import UserFile

HEAD = """# Configuration reference

Written from the models by `python -m pytest_llem.study.published`; do not edit. The same models give the JSON Schema
(`llem schema study`).
"""

_STUDY_KEYS = [name for name in StudyFile.model_fields if name not in ExperimentSettings.model_fields]


def reference() -> str:
    """The whole page, in Markdown."""
    return "\n".join(_lines()).rstrip() + "\n"


def _lines() -> Iterator[str]:
    yield HEAD
    yield "## The study\n"
    yield from _table(StudyFile, only=_STUDY_KEYS)
    for title, part in (
        ("execution", Execution),
        ("compare", Compare),
        ("docker", Docker),
        ("ray", Ray),
        ("measurement.validity", Validity),
    ):
        yield f"\n### {title}\n"
        yield from _table(part, title)
    yield "\n## Experiments\n\nAll of these may be shared, swept, or set by one of `experiments`.\n"
    plain = [name for name, info in ExperimentSettings.model_fields.items() if _section(info) is None]
    yield from _table(ExperimentSettings, only=["model"])
    yield from _rows(ExperimentSettings, "", [name for name in plain if name != "model"])
    for name, info in ExperimentSettings.model_fields.items():
        section = _section(info)
        if section is not None:
            title = f"engine `{name}`" if name in ENGINE_SECTIONS else f"`{name}`"
            yield f"\n### {title}\n\n{(section.__doc__ or '').splitlines()[0]}\n"
            yield from _table(section, name)
    shapes: tuple[type[BaseModel], ...] = (LengthDistribution, Arrivals)
    for model in shapes:
        yield f"\n### {model.__name__}\n\n{(model.__doc__ or '').splitlines()[0]}\n"
        yield from _table(model)
    yield "\n### Presets of `decoding.preset`\n\n| preset | settings |\n|---|---|"
    for preset, settings in PRESETS.items():
        yield f"| `{preset}` | {', '.join(f'`{key}: {json.dumps(value)}`' for key, value in settings.items())} |"
    yield "\n## Dormant settings\n\nThese do nothing under a condition, and then do not count in `config_hash`.\n"
    for rule in DORMANCIES:
        yield f"- {', '.join(f'`{path}`' for path in rule.fields)}: {rule.because}"
    yield "\n## Settings of a user\n\n`llem/config.yaml` in the platform's config directory (on Linux `~/.config`).\n"
    yield from _table(UserFile)
    yield "\nEach plain one also has a variable (`LLEM_OUT`, ...), and each engine `LLEM_RUNNER_<ENGINE>`. Precedence:"
    yield "command line, environment, ini file, study, user settings, default. `llem config` shows what holds.\n"
    yield "## Words of LLenergyMeasure\n\nIts files load unchanged; its words and what they are here:\n"
    yield "| there | here |\n|---|---|"
    for word, targets in RENAMES.items():
        paths = [path for path, _ in targets if path != word]
        if paths:
            yield f"| `{word}` | {', '.join(f'`{path}`' for path in paths)} |"
    yield "\nWithout a counterpart:\n"
    for word, hint in REFUSED.items():
        yield f"- `{word}`: {hint}"


def _section(info: FieldInfo) -> type[BaseModel] | None:
    annotation = info.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _table(model: type[BaseModel], prefix: str = "", only: list[str] | None = None) -> Iterator[str]:
    yield "| setting | type | default | meaning |\n|---|---|---|---|"
    yield from _rows(model, prefix, only)


def _rows(model: type[BaseModel], prefix: str, only: list[str] | None = None) -> Iterator[str]:
    for name, info in model.model_fields.items():
        if only is not None and name not in only:
            continue
        path = f"{prefix}.{name}" if prefix else name
        section = _section(info)
        if section is not None and prefix:
            yield from _rows(section, path)
            continue
        yield f"| `{path}` | {_type(_properties(model)[name], info)} | {_default(info)} | {info.description or ''} |"


@cache
def _properties(model: type[BaseModel]) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = model.model_json_schema()["properties"]
    return found


def _type(schema: dict[str, object], info: FieldInfo) -> str:
    named = [o.__name__ for o in options(info.annotation) if isinstance(o, type) and issubclass(o, BaseModel)]
    choices = schema.get("anyOf")
    parts = [part for part in choices if isinstance(part, dict)] if isinstance(choices, list) else [schema]
    texts: list[str] = []
    for part in parts:
        if "$ref" in part:
            texts.append(named[0] if named else "mapping")
        elif "enum" in part:
            texts += [f"`{word}`" for word in _list(part["enum"])]
        elif "const" in part:
            texts.append(f"`{part['const']}`")
        else:
            texts.append({"object": "mapping", "array": "list", "string": "text"}.get(t := str(part.get("type")), t))
    return " or ".join(dict.fromkeys(text for text in texts if text != "None"))


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    return "see below" if isinstance(value, BaseModel) else f"`{json.dumps(value)}`"


if __name__ == "__main__":
    sys.stdout.write(reference())

Which = Literal["study", "result", "config"]

STUDY_FILE = "study.schema.json"

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def build_schema(which: Which) -> dict[str, object]:
    """A schema made from the models."""
    if which == "result":
        from pytest_llem.results.schema import Result

        return {"$schema": DIALECT, **Result.model_json_schema()}
    if which == "config":
        from pytest_llem.study.settings import UserFile

        return {"$schema": DIALECT, **UserFile.model_json_schema()}
    schema: dict[str, object] = {"$schema": DIALECT, **StudyFile.model_json_schema()}
    schema["title"] = "pytest-llem study"
    _open_dotted_keys(schema)
    return schema


def _open_dotted_keys(schema: dict[str, object]) -> None:
    """Let dotted paths pass an editor's check; the loader knows better which of them exist."""
    models = schema.get("$defs")
    for model in [schema, *(models.values() if isinstance(models, dict) else [])]:
        if isinstance(model, dict) and model.get("additionalProperties") is False:
            model["patternProperties"] = {r"^[a-z_]+\..+$": {"description": "A setting by its dotted path."}}


def schema_text(which: Which) -> str:
    """A schema as the text that `llem schema` prints."""
    return json.dumps(build_schema(which), indent=2, sort_keys=False) + "\n"


def packaged_study_schema() -> str:
    """The study's schema as it is shipped beside this module."""
    return (files("pytest_llem.study") / STUDY_FILE).read_text(encoding="utf-8")
