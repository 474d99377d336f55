"""The workflows and what docs/ci.md says of them: actionlint where it is installed, and names that exist everywhere."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[4]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
GATE = ROOT / ".github" / "workflows" / "energy-gate.yml"
PAGE = ROOT / "docs" / "ci.md"


def blocks(language: str) -> list[str]:
    found: list[str] = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    return found


def inputs() -> dict[str, dict[str, Any]]:
    # YAML 1.1 reads a bare `on` as true.
    found: dict[str, dict[str, Any]] = yaml.safe_load(GATE.read_text(encoding="utf-8"))[True]["workflow_call"]["inputs"]
    return found


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_actionlint_has_nothing_to_say(workflow: Path) -> None:
    actionlint = shutil.which("actionlint")
    if actionlint is None:
        pytest.skip("actionlint is not installed")
    done = subprocess.run([actionlint, "-no-color", str(workflow)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", [*WORKFLOWS, PAGE], ids=lambda path: path.name)
def test_every_option_named_exists(file: Path, pytestconfig: pytest.Config) -> None:
    named = {name.replace("-", "_") for name in re.findall(r"--(llem-[a-z-]+)", file.read_text(encoding="utf-8"))}
    assert [name for name in sorted(named) if not hasattr(pytestconfig.option, name)] == []


def test_the_documented_call_names_inputs_and_secrets_that_exist() -> None:
    call = next(yaml.safe_load(block) for block in blocks("yaml") if "energy-gate.yml" in block)
    (job,) = call["jobs"].values()
    known = inputs()
    assert set(job["with"]) <= set(known)
    assert {name for name, entry in known.items() if entry.get("required")} <= set(job["with"])


def test_the_table_of_inputs_is_complete_with_its_defaults() -> None:
    table = dict(re.findall(r"^\| `([a-z-]+)` \| (.*?) \|", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE))
    known = inputs()
    assert set(table) == set(known)
    for name, entry in known.items():
        default = entry.get("default", "")
        if default != "" and default is not None:
            shown = str(default).lower() if isinstance(default, bool) else str(default)
            assert table[name] == f"`{shown}`", name


def test_no_input_is_pasted_into_a_script() -> None:
    """An input inside `run:` would be executed; they go through the environment."""
    for workflow in WORKFLOWS:
        for job in yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"].values():
            for step in job["steps"]:
                assert "${{" not in str(step.get("run", "")), (workflow.name, step)


def test_evidence_and_cleaning_up_do_not_depend_on_the_verdict() -> None:
    steps = yaml.safe_load(GATE.read_text(encoding="utf-8"))["jobs"]["gate"]["steps"]
    after = [step for step in steps if step.get("name") in ("Keep the results", "Keep the new baseline", "Clean up")]
    assert len(after) == 3
    assert all("always()" in step["if"] for step in after)
