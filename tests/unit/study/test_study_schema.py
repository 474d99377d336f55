"""What is published from the models: the JSON Schema, the reference, and the studies that use them."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

import pytest_llem
from pytest_llem.cli import main
from pytest_llem.study import load_study
from pytest_llem.study.published import reference
from pytest_llem.study.schema import build_schema

ROOT = Path(pytest_llem.__file__).parent.parent
STUDIES = sorted((ROOT / "studies").glob("*.yaml"))


def test_packaged_schema_is_current() -> None:
    """Renew it with `llem schema study > pytest_llem/study/study.schema.json`."""
    assert (ROOT / "pytest_llem/study/study.schema.json").read_text(encoding="utf-8") == (
        json.dumps(build_schema("study"), indent=2) + "\n"
    )


def test_reference_is_current() -> None:
    """Renew it with `python -m pytest_llem.study.published > docs/configuration.md`."""
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == reference()


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_shipped_studies_load_carry_the_modeline_and_satisfy_the_schema(path: Path) -> None:
    study = load_study(path, env={})

    text = path.read_text(encoding="utf-8")
    assert text.startswith("# yaml-language-server: $schema=")
    jsonschema.validate(yaml.safe_load(text), build_schema("study"))
    assert study.experiments
    assert not study.notices


@pytest.mark.parametrize(
    "document",
    [
        {"model": 3},
        {"model": "m", "transformers": {"batchsize": 1}},
        {"model": "m", "execution": {"order": "random"}},
        {"model": "m", "workload": {"input_tokens": {"distribution": "uniform"}}},
    ],
)
def test_schema_refuses_what_the_loader_refuses(document: object) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, build_schema("study"))


def test_every_setting_is_described() -> None:
    def undescribed(schema: dict[str, object], path: str) -> list[str]:
        properties = schema.get("properties")
        found: list[str] = []
        for name, inner in (properties if isinstance(properties, dict) else {}).items():
            if "description" not in inner:
                found.append(f"{path}.{name}")
        return found

    schema = build_schema("study")
    models = schema["$defs"]
    assert isinstance(models, dict)
    missing = undescribed(schema, "") + [name for key, model in models.items() for name in undescribed(model, key)]
    assert missing == []


@pytest.mark.parametrize("which", ["study", "result", "config"])
def test_llem_schema_prints_json_schema(which: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", which]) == 0

    schema = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"].startswith("https://json-schema.org/")
