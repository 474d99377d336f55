"""The workflows, the action and what docs/ci.md says of them: names that exist everywhere, and few rights.

`nox -s lint` has jactionlint, zizmor and ShellCheck read them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[4]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
SCRIPTS = sorted((ROOT / ".github" / "scripts").iterdir())
GATE = ROOT / ".github" / "workflows" / "energy-gate.yml"
ACTION = ROOT / "action.yml"
PAGE = ROOT / "docs" / "ci.md"


def read(path: Path) -> dict[Any, Any]:
    found: dict[Any, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def blocks(language: str) -> list[str]:
    found: list[str] = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    return found


def inputs() -> dict[str, dict[str, Any]]:
    # YAML 1.1 reads a bare `on` as true.
    found: dict[str, dict[str, Any]] = read(GATE)[True]["workflow_call"]["inputs"]
    return found


def steps() -> list[tuple[str, dict[str, Any]]]:
    """All steps with the name of their file."""
    found = [
        (path.name, step)
        for path in WORKFLOWS
        for job in read(path)["jobs"].values()
        for step in job.get("steps", ())  # a job that calls a workflow has none
    ]
    return [*found, *((ACTION.name, step) for step in read(ACTION)["runs"]["steps"])]


@pytest.mark.parametrize("file", [*WORKFLOWS, *SCRIPTS, PAGE], ids=lambda path: path.name)
def test_every_option_named_exists(file: Path, pytestconfig: pytest.Config) -> None:
    named = {name.replace("-", "_") for name in re.findall(r"--(llem-[a-z-]+)", file.read_text(encoding="utf-8"))}
    assert [name for name in sorted(named) if not hasattr(pytestconfig.option, name)] == []


def test_the_documented_call_names_inputs_and_secrets_that_exist() -> None:
    call = next(yaml.safe_load(block) for block in blocks("yaml") if "energy-gate.yml" in block)
    (job,) = call["jobs"].values()
    known = inputs()
    assert set(job["with"]) <= set(known)
    assert {name for name, entry in known.items() if entry.get("required")} <= set(job["with"])


@pytest.mark.parametrize("name", ["energy-gate.yml", "energy-comment.yml"])
def test_the_documented_call_grants_what_the_jobs_ask_for(name: str) -> None:
    """GitHub does not start a called workflow whose job asks for more than the caller has."""
    call = next(yaml.safe_load(block) for block in blocks("yaml") if f"/{name}@" in block)
    (job,) = call["jobs"].values()
    asked = [of.get("permissions", {}) for of in read(ROOT / ".github" / "workflows" / name)["jobs"].values()]
    granted = job["permissions"]
    assert set(granted) == {scope for each in asked for scope in each}
    assert all(granted[scope] in ("write", right) for each in asked for scope, right in each.items())


def test_what_measures_can_write_nothing_and_what_writes_measures_nothing() -> None:
    """The job of a pull request runs its author's code."""
    jobs = read(GATE)["jobs"]
    assert set(jobs["gate"]["permissions"].values()) == {"read"}
    writing = {name: job["permissions"] for name, job in jobs.items() if "write" in job["permissions"].values()}
    assert writing == {"history": {"contents": "write"}, "comment": {"pull-requests": "write"}}
    assert "!startsWith(github.event_name, 'pull_request')" in jobs["history"]["if"]
    for name in writing:
        scripts = " ".join(str(step.get("run", "")) for step in jobs[name]["steps"])
        assert re.findall(r"[a-z-]+\.sh", scripts) == [{"history": "push-history.sh", "comment": "comment.sh"}[name]]


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
    for file, step in steps():
        assert "${{" not in str(step.get("run", "")), (file, step)


def test_evidence_and_cleaning_up_do_not_depend_on_the_verdict() -> None:
    after = [step for step in read(GATE)["jobs"]["gate"]["steps"] if step.get("name", "").startswith(("Keep", "Clean"))]
    assert len(after) == 6
    assert all("always()" in step["if"] for step in after)
