"""The published JSON Schemas: of a study file, of a result, and of the user's settings."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Literal

from pytest_llem.study.schema import StudyFile

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
