"""Runs the `run:` steps of a workflow as GitHub Actions would, in folders of this machine, with artifacts as folders.

For tests of the workflows of this repository: scripts, conditions and outputs are those of the YAML. Checking out,
artifacts and the runner's variables are made here; a step that is `left_out` counts as done.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import subprocess
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
TOKEN = re.compile(r"'[^']*'|[A-Za-z_][\w.-]*\(?|&&|\|\||!=|!|==")
OPERATORS = {"&&": " and ", "||": " or ", "!": " not "}


def look_up(context: Mapping[str, Any], path: str) -> Any:
    """A value of a context by its dotted path; `None` for what is not there, as in GitHub's expressions."""
    value: Any = context
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def evaluate(expression: str, context: Mapping[str, Any]) -> Any:
    """An expression of a workflow."""

    def translated(match: re.Match[str]) -> str:
        word = match.group()
        if word[0] == "'" or word in ("!=", "==") or word.endswith("("):
            return word
        return OPERATORS.get(word) or f"get({word!r})"

    functions = {
        "get": lambda path: look_up(context, path),
        "startsWith": lambda text, start: str(text or "").startswith(start),
        "fromJSON": json.loads,
        "always": lambda: True,
    }
    return eval(TOKEN.sub(translated, expression).strip(), functions)


def filled(text: object, context: Mapping[str, Any]) -> str:
    """A text with the values of its `${{ }}`."""

    def value(match: re.Match[str]) -> str:
        found = evaluate(match.group(1), context)
        return str(found).lower() if isinstance(found, bool) else "" if found is None else str(found)

    shown = str(text).lower() if isinstance(text, bool) else str(text)
    return re.sub(r"\$\{\{(.*?)\}\}", value, shown, flags=re.DOTALL).strip()


@dataclass
class Job:
    """What became of a job: green or not, what its steps printed, its outputs, and the steps that were run."""

    green: bool = True
    printed: str = ""
    outputs: dict[str, Any] = field(default_factory=dict)
    ran: list[str] = field(default_factory=list)


@dataclass
class Actions:
    """A repository at `server`, and what a run of a workflow needs. `programs` stands for the installed environment."""

    folder: Path
    server: Path
    programs: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    left_out: Collection[str] = ("Install", "What can be measured here")
    artifacts: dict[str, Path] = field(default_factory=dict)
    runs: int = 0

    def run(
        self,
        workflow: Path,
        commit: str,
        github: Mapping[str, Any],
        kept: Mapping[str, Path] | None = None,
        **inputs: Any,
    ) -> dict[str, Job]:
        """The jobs of a called workflow for an event, each that its condition lets run; `kept` by an earlier run."""
        self.runs += 1
        self.artifacts = dict(kept or {})
        document = yaml.safe_load(workflow.read_text(encoding="utf-8"))
        declared = document[True]["workflow_call"] or {}  # YAML 1.1 reads a bare `on` as true
        defaults = {name: entry.get("default") for name, entry in declared.get("inputs", {}).items()}
        context: dict[str, Any] = {
            "inputs": {**defaults, **{name.replace("_", "-"): value for name, value in inputs.items()}},
            "github": {"token": "secret", "repository": "o/r", "server_url": "https://github.invalid", **github},
            "job": {"workflow_repository": "pytest-llem/pytest-llem", "workflow_sha": "0" * 40},
            "secrets": {},
            "needs": {},
        }
        done: dict[str, Job] = {}
        for name, job in document["jobs"].items():
            met = evaluate(str(job.get("if", "always()")), context)
            if met:
                done[name] = self._job(name, job, commit, context)
            result = "skipped" if not met else "success" if done[name].green else "failure"
            context["needs"][name] = {"result": result, "outputs": done[name].outputs if met else {}}
        return done

    def _job(self, name: str, job: Mapping[str, Any], commit: str, around: Mapping[str, Any]) -> Job:
        workspace = self.folder / f"run{self.runs}" / name
        (workspace.parent / f"{name}-temp" / "llem").mkdir(parents=True)
        (workspace.parent / f"{name}-temp" / "llem" / "bin").symlink_to(self.programs)
        workspace.mkdir()
        context = {**around, "steps": {}}
        shared = {key: filled(value, context) for key, value in job.get("env", {}).items()}
        context["env"] = shared
        found = Job()
        for step in job["steps"]:
            condition = str(step.get("if", "success"))
            if not (found.green if condition == "success" else evaluate(condition, context)):
                continue
            label = step.get("name") or step.get("uses", "").partition("@")[0]
            found.ran.append(label)
            if label in self.left_out:
                continue
            if "uses" in step:
                self._used(step, workspace, commit, context)
                continue
            code, printed, outputs = self._script(step, workspace, shared, context)
            found.printed += printed
            context["steps"][step.get("id", "")] = {"outputs": outputs}
            found.green = found.green and (code == 0 or bool(step.get("continue-on-error")))
        found.outputs = {key: filled(value, context) for key, value in job.get("outputs", {}).items()}
        return found

    def _script(
        self, step: Mapping[str, Any], workspace: Path, shared: Mapping[str, str], context: Mapping[str, Any]
    ) -> tuple[int, str, dict[str, str]]:
        temporary = workspace.parent / f"{workspace.name}-temp"
        outputs, event = temporary / "outputs", temporary / "event.json"
        outputs.write_text("")
        event.write_text(json.dumps(context["github"].get("event", {})))
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("GITHUB_")},
            "RUNNER_TEMP": str(temporary),
            "GITHUB_WORKSPACE": str(workspace),
            "GITHUB_OUTPUT": str(outputs),
            "GITHUB_EVENT_PATH": str(event),
            "GITHUB_REPOSITORY": "o/r",
            "GITHUB_SERVER_URL": self.server.as_uri(),
            "GITHUB_SHA": str(context["github"].get("sha", "0" * 40)),
            **self.environment,
            **shared,
            **{name: filled(value, context) for name, value in step.get("env", {}).items()},
        }
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            cwd=workspace,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        lines = outputs.read_text().splitlines()
        return done.returncode, done.stdout, dict(line.split("=", 1) for line in lines)

    def _used(self, step: Mapping[str, Any], workspace: Path, commit: str, context: Mapping[str, Any]) -> None:
        action = step["uses"].partition("@")[0]
        given = {name: filled(value, context) for name, value in step.get("with", {}).items()}
        if action == "actions/checkout":
            if "path" in given:
                (workspace / given["path"]).symlink_to(ROOT)
            else:
                git = ["git", "-c", "advice.detachedHead=false"]
                subprocess.run([*git, "clone", "--quiet", str(self.server / "o" / "r"), str(workspace)], check=True)
                subprocess.run([*git, "checkout", "--quiet", commit], cwd=workspace, check=True)
        elif action == "actions/upload-artifact":
            if (workspace / given["path"]).exists():
                kept = self.folder / f"run{self.runs}" / "artifacts" / given["name"]
                shutil.copytree(workspace / given["path"], kept, dirs_exist_ok=True)
                self.artifacts[given["name"]] = kept
        elif action == "actions/download-artifact":
            target = workspace / given["path"]
            if "name" in given:
                shutil.copytree(self.artifacts[given["name"]], target)
            for name in fnmatch.filter(self.artifacts, given.get("pattern", "")):
                shutil.copytree(self.artifacts[name], target / name)
