"""Writes the configuration reference of the documentation from the declarations.

`nox -s pages` writes docs/configuration.md with it; a test compares, so run it after changing this or a declaration.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from pytest_llem.engines import shipped_engines
from pytest_llem.job.config import Arrival, Lengths, Thresholds
from pytest_llem.study.canonical import INACTIVITY_RULES, PRESETS
from pytest_llem.study.declared import Key, is_section, keys_of, model_of, options, published_name, summary
from pytest_llem.study.llenergymeasure import DROPPED, REFUSED, RENAMES, REPLACED
from pytest_llem.study.model import Execution
from pytest_llem.study.report_settings import ReportSettings
from pytest_llem.study.runner_settings import DockerSettings, RaySettings
from pytest_llem.study.schema import Compare, ExperimentSettings, OptimizeSettings, StudyDocument, UserFile

HEAD = """# Configuration reference

Written from the models by `python -m pytest_llem.study.published`; do not edit. The same models give the JSON Schema
(`llem schema study`).
"""

_STUDY_KEYS = [name for name in keys_of(StudyDocument) if name not in keys_of(ExperimentSettings)]


def reference() -> str:
    """The whole page, in Markdown."""
    return "\n".join(_lines()).rstrip() + "\n"


def _lines() -> Iterator[str]:
    yield HEAD
    yield "## The study\n"
    yield from _table(StudyDocument, only=_STUDY_KEYS)
    for title, part in (
        ("execution", Execution),
        ("compare", Compare),
        ("report", ReportSettings),
        ("optimize", OptimizeSettings),
        ("docker", DockerSettings),
        ("ray", RaySettings),
        ("measurement.validity", Thresholds),
    ):
        yield f"\n### {title}\n"
        yield from _table(part, title)
    yield "\n## Experiments\n\nAll of these may be shared, swept, or set by one of `experiments`.\n"
    keys = keys_of(ExperimentSettings)
    yield from _table(ExperimentSettings, only=["model"])
    plain = [name for name, key in keys.items() if key.section is None]
    yield from _rows(ExperimentSettings, "", [name for name in plain if name != "model"])
    for name, key in keys.items():
        if key.section is not None:
            title = f"engine `{name}`" if name in shipped_engines() else f"`{name}`"
            yield f"\n### {title}\n\n{summary(key.section).splitlines()[0]}\n"
            yield from _table(key.section, name)
    for shape in (Lengths, Arrival):
        yield f"\n### {published_name(shape)}\n\n{summary(shape).splitlines()[0]}\n"
        yield from _table(shape)
    yield "\n### Presets of `decoding.preset`\n\n| preset | settings |\n|---|---|"
    for preset, settings in PRESETS.items():
        yield f"| `{preset}` | {', '.join(f'`{key}: {json.dumps(value)}`' for key, value in settings.items())} |"
    yield "\n## Dormant settings\n\nThese do nothing under a condition, and then do not count in `config_hash`.\n"
    for rule in INACTIVITY_RULES:
        yield f"- {', '.join(f'`{path}`' for path in rule.fields)}: {rule.because}"
    yield "\n## Settings of a user\n\n`llem/config.yaml` in the platform's config directory (on Linux `~/.config`).\n"
    yield from _table(UserFile)
    yield "\nEach plain one also has a variable (`LLEM_OUT`, ...), and each engine `LLEM_RUNNER_<ENGINE>`. Precedence:"
    yield "command line, environment, ini file, study, user settings, default. `llem config` shows what holds here.\n"
    yield "## Words of LLenergyMeasure\n\nIts files, of every generation, are studies. Points that an engine cannot"
    yield "run are left out, as there; `llem convert FILE` writes one in the words of this page. Its words, and what"
    yield "they are here:\n"
    yield "| there | here |\n|---|---|"
    for word, targets in RENAMES.items():
        paths = [path for path, _ in targets if path != word]
        if paths:
            yield f"| `{word}` | {', '.join(f'`{path}`' for path in paths)} |"
    yield "\nWithout a counterpart, and no measurement depends on them; a notice lists those that a file has:\n"
    for word, why in DROPPED.items():
        yield f"- `{word}`: {why}"
    for word, values in REPLACED.items():
        for value, (new, why) in values.items():
            yield f"- `{word}: {value}` is `{new}`: {why}"
    yield "\nWithout a counterpart and an error, because they would change it:\n"
    for word, hint in REFUSED.items():
        yield f"- `{word}`: {hint}"


def _table(declaration: type, prefix: str = "", only: list[str] | None = None) -> Iterator[str]:
    yield "| setting | type | default | meaning |\n|---|---|---|---|"
    yield from _rows(declaration, prefix, only)


def _rows(declaration: type, prefix: str, only: list[str] | None = None) -> Iterator[str]:
    properties = model_of(declaration).model_json_schema()["properties"]
    for name, key in keys_of(declaration).items():
        if only is not None and name not in only:
            continue
        path = f"{prefix}.{name}" if prefix else name
        if key.section is not None and prefix:
            yield from _rows(key.section, path)
            continue
        text = properties[name].get("description", "")
        yield f"| `{path}` | {_type(properties[name], key)} | {_default(key)} | {text} |"


def _type(schema: dict[str, Any], key: Key) -> str:
    sections = [
        published_name(option) for option in options(key.hint) if isinstance(option, type) and is_section(option)
    ]
    texts: list[str] = []
    alternatives = schema.get("anyOf", [schema])
    for part in [inner for each in alternatives for inner in each.get("anyOf", [each])]:
        if "$ref" in part:
            texts += sections[:1] or ["mapping"]
        elif "enum" in part:
            texts += [f"`{word}`" for word in part["enum"]]
        elif "const" in part:
            texts.append(f"`{part['const']}`")
        elif part.get("pattern", "").endswith("%$"):
            texts.append("percent")
        elif "type" in part:
            texts.append({"object": "mapping", "array": "list", "string": "text"}.get(part["type"], part["type"]))
    return " or ".join(dict.fromkeys(texts))


def _default(key: Key) -> str:
    if key.is_required:
        return "required"
    return "see below" if key.section is not None else f"`{json.dumps(key.default)}`"


if __name__ == "__main__":
    sys.stdout.write(reference())
