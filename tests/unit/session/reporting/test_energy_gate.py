"""The workflow energy-gate.yml, its scripts run as they are: against a repository, GitHub's stand-in and prepared runs.

Nothing is measured here: a prepared run stands in for pytest's. `tests/benchmarks/energy_gate_events.py` measures.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_llem.results.attempts import get_or_measure
from pytest_llem.results.history.adding import add_run
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.manifest import PlannedCycle, StudyPlan, rebuild_manifest
from pytest_llem.results.store import RunStore
from tests.actions import ROOT, Actions, Job
from tests.unit.results.comment.test_comment_posting import GitHub, serving
from tests.unit.results.conftest import Bench, Worker

WORKFLOWS = ROOT / ".github" / "workflows"
GATE = WORKFLOWS / "energy-gate.yml"
SCRIPTS = ROOT / ".github" / "scripts"
STUDY = """\
name: study
model: builtin:tiny-llama
engine: transformers
sweep: {transformers.batch_size: [1]}
compare: {fail_if: {joules_per_output_token: 5%}}
"""
PUSH = {"event_name": "push", "ref_name": "main", "event": {"repository": {"default_branch": "main"}}}
OWN = {"number": 7, "head": {"repo": {"full_name": "o/r"}}}
FORK = {"number": 7, "head": {"repo": {"full_name": "mallory/r"}}}
GIT = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    **{
        f"GIT_{who}_{what}": f"{what.lower()}@x.invalid"
        for who in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    },
}


def pull_request(pull: dict[str, Any]) -> dict[str, Any]:
    event = {"repository": {"default_branch": "main"}, "pull_request": pull}
    return {"event_name": "pull_request", "ref_name": "7/merge", "event": event, "run_id": 1}


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, env={**os.environ, **GIT}, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


def program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of a study of one experiment, a folder each."""
    folder, bench = tmp_path_factory.mktemp("runs"), Bench()
    key = CycleKey("study", "batch_size:1", "01234567", 1)
    cells = [replace(key, cycle=cycle) for cycle in (1, 2, 3)]
    plan = StudyPlan("study", None, cycles=tuple(PlannedCycle("batch_size:1", "01234567", n) for n in (1, 2, 3)))
    for number in (1, 2):
        store = RunStore.create(folder / str(number), f"2026110{number}T000000Z-r", studies=(plan,), environment={})
        for cell in cells:
            worker = Worker(bench, cell, bench.measurement(10.0 + cell.cycle / 100))
            worker.run_id = store.run_dir.name
            get_or_measure(store, cell, worker)
        rebuild_manifest(store.run_dir, finished=True)
    return folder


@pytest.fixture
def github() -> Iterator[GitHub]:
    yield from serving()


@pytest.fixture
def actions(tmp_path: Path, runs: Path, github: GitHub) -> Actions:
    """A repository with a study, on a server, and a runner whose `pytest` takes the next prepared run."""
    repository = tmp_path / "server" / "o" / "r"
    repository.mkdir(parents=True)
    git(repository, "init", "--quiet", "--bare", "--initial-branch=main")
    work = tmp_path / "work"
    git(tmp_path, "clone", "--quiet", str(repository), str(work))
    (work / "study.yaml").write_text(STUDY)
    git(work, "add", ".")
    git(work, "commit", "--quiet", "-m", "A study")
    git(work, "push", "--quiet", "origin", "HEAD:main")
    programs = tmp_path / "programs"
    programs.mkdir()
    program(programs / "python", f'exec {sys.executable} "$@"')
    program(programs / "llem", f'exec {sys.executable} -m pytest_llem.cli "$@"')
    count = tmp_path / "count"
    program(
        programs / "pytest",
        f'echo "pytest $*"; n=$(($(cat {count} 2>/dev/null || echo 0) + 1)); echo $n > {count}\n'
        f"mkdir -p llem-results; cp -R {runs}/$n/* llem-results/",
    )
    shared = {**GIT, "GITHUB_API_URL": github.url, "PYTHONPATH": str(ROOT)}
    return Actions(tmp_path, tmp_path / "server", programs, shared)


def kept(actions: Actions) -> list[str]:
    """The runs in the branch of the history."""
    repository = actions.server / "o" / "r"
    if not git(repository, "branch", "--list", "llem-history"):
        return []
    listed = git(repository, "ls-tree", "-r", "--name-only", "llem-history")
    return [name for name in listed.splitlines() if name.endswith(".jsonl")]


def later_pushes(actions: Actions, folder: Path, count: int) -> None:
    """So many runs more in the history's branch, equal to its first."""
    clone = folder / "later"
    git(folder, "clone", "--quiet", "--branch=llem-history", str(actions.server / "o" / "r"), str(clone))
    (first,) = (clone / "study").iterdir()
    for day in range(2, count + 2):
        name = first.stem.replace("20261101", f"2026110{day}")
        (clone / "study" / f"{name}.jsonl").write_text(first.read_text().replace(first.stem, name))
    git(clone, "add", ".")
    git(clone, "commit", "--quiet", "-m", "Later")
    git(clone, "push", "--quiet")


def gate(actions: Actions, event: dict[str, Any], **inputs: Any) -> dict[str, Job]:
    return actions.run(GATE, "main", event, study="study.yaml", **inputs)


def green(jobs: dict[str, Job]) -> bool:
    return all(job.green for job in jobs.values())


def test_a_stranger_who_copies_the_workflow_gets_a_history_that_grows_and_a_comment(
    actions: Actions, github: GitHub, tmp_path: Path
) -> None:
    """The first run had nothing to be judged by and was red, since strict; so was each until the noise was known."""
    jobs = gate(actions, PUSH)
    assert green(jobs), jobs
    assert set(jobs) == {"gate", "history"}
    assert "no history yet" in jobs["gate"].printed
    assert "not strict yet::0 of 3 earlier runs of study.yaml" in jobs["gate"].printed
    assert "--llem-baseline=history:llem-history" in jobs["gate"].printed
    assert "--llem-strict" not in jobs["gate"].printed
    assert kept(actions) == ["study/20261101T000000Z-r.jsonl"]
    later_pushes(actions, tmp_path, 2)
    jobs = gate(actions, pull_request(OWN))
    assert green(jobs), jobs
    assert set(jobs) == {"gate", "comment"}
    assert "--llem-strict" in jobs["gate"].printed
    assert len(kept(actions)) == 3
    assert len(github.comments) == 1, jobs["comment"].printed
    assert github.comments[0]["body"].startswith("<!-- pytest-llem: study.yaml-gpu-0-")
    assert "actions/runs/1" in github.comments[0]["body"]
    assert github.tokens == {"Bearer secret"}
    # By the study as well: two of one run would have replaced each other's.
    assert set(actions.artifacts) == {"llem-results-gpu-0-study.yaml", "llem-comment-gpu-0-study.yaml"}


def test_that_of_a_fork_runs_where_it_is_allowed_and_is_posted_by_the_second_workflow(
    actions: Actions, github: GitHub
) -> None:
    assert gate(actions, pull_request(FORK)) == {}
    jobs = gate(actions, pull_request(FORK), forks=True)
    assert list(jobs) == ["gate"]
    assert jobs["gate"].green
    assert github.comments == []
    kept_by_run = dict(actions.artifacts)
    head = {"head_branch": "fix", "head_sha": "a" * 40, "head_repository": {"owner": {"login": "mallory"}}}
    run = {"event": "pull_request", "id": 1, "html_url": "https://x.invalid/1", **head}
    run["head_repository"] = {"owner": {"login": "mallory"}, "full_name": "mallory/r"}
    github.pulls = [{"number": 7, "head": {"label": "mallory:fix", "sha": "a" * 40}}]
    event = {"event_name": "workflow_run", "event": {"workflow_run": run}}
    jobs = actions.run(WORKFLOWS / "energy-comment.yml", "main", event, kept=kept_by_run)
    assert green(jobs), jobs
    assert len(github.comments) == 1, jobs["comment"].printed
    assert "https://x.invalid/1" in github.comments[0]["body"]


def test_a_history_that_cannot_be_read_is_no_first_run(actions: Actions) -> None:
    """A server that was away would have made the gate blind, and green."""
    away = {**actions.environment, "GITHUB_SERVER_URL": "file:///nowhere"}
    jobs = gate(replace(actions, environment=away), PUSH)
    assert not jobs["gate"].green
    assert "the history cannot be read" in jobs["gate"].printed
    assert "pytest --llem" not in jobs["gate"].printed


def push(actions: Actions, folder: Path, name: str, branch: str = "llem-history") -> subprocess.Popen[str]:
    """Pushes a run of that name, as the job of the workflow does."""
    (folder / "llem-history-added" / "study").mkdir(parents=True)
    (folder / "llem-history-added" / "study" / f"{name}.jsonl").write_text(f"{name}\n")
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("GITHUB_")},
        **GIT,
        "GITHUB_SERVER_URL": actions.server.as_uri(),
        "GITHUB_REPOSITORY": "o/r",
        "GITHUB_SHA": "c" * 40,
        "HISTORY_BRANCH": branch,
        "DEFAULT_BRANCH": "main",
    }
    command = ["bash", str(SCRIPTS / "push-history.sh")]
    output = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, text=True)


def test_runs_that_end_at_the_same_time_are_all_kept(actions: Actions, tmp_path: Path) -> None:
    """The later push was rejected, and its run lost."""
    pushes = [push(actions, tmp_path / name, name) for name in ("a", "b", "c")]
    printed = [each.communicate()[0] for each in pushes]
    assert [each.returncode for each in pushes] == [0, 0, 0], printed
    assert kept(actions) == ["study/a.jsonl", "study/b.jsonl", "study/c.jsonl"]


def test_the_default_branch_is_no_history(actions: Actions, tmp_path: Path) -> None:
    done = push(actions, tmp_path / "a", "a", branch="main")
    assert "the history takes a branch of its own" in done.communicate()[0]
    assert done.returncode == 2


def test_without_a_history_it_is_strict_from_the_first_run(actions: Actions) -> None:
    """Budgets need no baseline, and neither does one that is committed. Of lines, only the first counted."""
    jobs = gate(
        actions, PUSH, history="none", arguments="--llem-baseline=main", fail_if="energy_j:5%\nttft_p50_s:10%\n"
    )
    assert list(jobs) == ["gate"]
    wanted = "--llem-fail-if=energy_j:5% --llem-fail-if=ttft_p50_s:10% --llem-strict --llem-baseline=main"
    assert wanted in jobs["gate"].printed


@pytest.mark.parametrize("limits", [(), ("joules_per_output_token:5%",)])
def test_a_study_without_limits_of_its_own_is_not_strict_at_once_either(
    tmp_path: Path, limits: tuple[str, ...]
) -> None:
    """It is judged by the caller's limits, or by its headline; the first run of the quickstart was red."""
    command = [sys.executable, str(SCRIPTS / "known_runs.py"), "builtin:quickstart", str(tmp_path), *limits]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_artifacts_keep_a_history_too(actions: Actions, github: GitHub, runs: Path, tmp_path: Path) -> None:
    """Only of the default branch's own runs: a fork's branch may bear its name."""
    (tmp_path / "kept").mkdir()
    add_run(runs / "1" / "20261101T000000Z-r", tmp_path / "kept")
    own, of_fork = {"id": 5, "head_branch": "main", "repository_id": 1}, {"id": 6, "head_branch": "main"}
    github.artifacts = [
        {"expired": False, "created_at": "1", "workflow_run": {**own, "head_repository_id": 1}},
        {"expired": False, "created_at": "2", "workflow_run": {**of_fork, "repository_id": 1, "head_repository_id": 2}},
    ]
    jobs = actions.run(
        GATE,
        "main",
        PUSH,
        study="study.yaml",
        history="artifact",
        kept={"llem-history-gpu-0-study.yaml": tmp_path / "kept"},
    )
    assert green(jobs), jobs
    assert "not strict yet::1 of 3" in jobs["gate"].printed


@pytest.mark.parametrize(
    ("requirements", "installed"),
    [
        ("pytest-llem[vllm,report]\nother==1", "pytest-llem[vllm,report] @ file://SOURCE|other==1|"),
        ("pytest-llem", "pytest-llem @ file://SOURCE|"),
        ("pytest-llem[vllm]@git+https://x.invalid/y pytest-llem-more", None),
    ],
)
def test_pytest_llem_comes_from_the_workflows_own_commit(
    tmp_path: Path, requirements: str, installed: str | None
) -> None:
    """It is in no package index. A constraint did not do: pip looks for extras of it in the index all the same."""
    (tmp_path / "programs").mkdir()
    (tmp_path / "llem" / "bin").mkdir(parents=True)
    program(
        tmp_path / "programs" / "python3",
        'printf \'#!/bin/sh\\nshift 2; printf "%%s|" "$@"\\n\' > "$3/bin/pip"; chmod +x "$3/bin/pip"',
    )
    path = f"{tmp_path / 'programs'}{os.pathsep}{os.environ['PATH']}"
    source = tmp_path / "a runner"
    source.mkdir()
    shared = {"PATH": path, "RUNNER_TEMP": str(tmp_path), "LLEM_SOURCE": str(source), "REQUIREMENTS": requirements}
    done = subprocess.run(["bash", str(SCRIPTS / "install.sh")], env=shared, capture_output=True, text=True, check=True)
    wanted = (
        requirements.replace(" ", "|") + "|"
        if installed is None
        else installed.replace("SOURCE", source.as_uri().removeprefix("file://"))
    )
    assert done.stdout == wanted


def test_the_action_runs_the_workflows_own_scripts() -> None:
    """What the step and the workflow do is written once."""
    import yaml

    action = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
    inputs = yaml.safe_load(GATE.read_text(encoding="utf-8"))[True]["workflow_call"]["inputs"]
    of_jobs = {"runs-on", "timeout-minutes", "forks"}
    assert set(inputs) - of_jobs == set(action["inputs"])
    for name, entry in action["inputs"].items():
        default = inputs[name].get("default")
        assert entry.get("default") == (str(default).lower() if isinstance(default, bool) else default), name
    scripts = "".join(str(step.get("run", "")) for step in action["runs"]["steps"])
    used = {path.name for path in SCRIPTS.iterdir() if path.name in scripts}
    assert used == {path.name for path in SCRIPTS.glob("*.*")} - {"git-token.sh", "known_runs.py"}
    assert shutil.which("bash")
