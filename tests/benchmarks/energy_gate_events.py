"""The energy-gate workflow as a stranger has it: pushes and pull requests of a new repository, measured for real.

    python -m tests.benchmarks.energy_gate_events

A repository has a study and the server that it measures. Three pushes and a pull request change nothing, and must be
green; a second pull request makes each request take half as long again at the same settings, and must be red; so must a
third, which changes a setting by mistake. Scripts are those of the YAML (`tests/actions.py`); GitHub is stood in for.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.actions import ROOT, Actions, Job
from tests.unit.results.comment.test_comment_posting import GitHub, serving
from tests.unit.session.reporting.test_energy_gate import GATE, GIT, OWN, PUSH, git, kept, program, pull_request

STUDY = """\
name: gate
model: builtin:tiny-llama
engine: openai
dtype: float32
workload: {prompts: 8, input_tokens: 8, output_tokens: 4}
openai:
  command: [python, server.py, --model, "{model}", --port, "{port}", --dtype, "{dtype}"]
  enable_prefix_caching: false
  concurrency: 1
measurement: {min_duration_s: 0.5, idle: {duration_s: 0}, warmup: {max_repeats: 1}, validity: {cpu_contended_rel: 1}}
execution: {cycles: 3, cooldown: 0}
compare: {fail_if: {e2el_p50_s: 20%}, allow: [estimated_energy]}
"""
SERVER = """\
import runpy, sys

sys.argv[0] = {server!r}
sys.argv += ["--service", "0.1"]
runpy.run_path({server!r}, run_name="__main__")
"""


@contextmanager
def repository(folder: Path, github: GitHub) -> Iterator[Actions]:
    """One with a study, on a server, and a runner with this environment's programs."""
    bare, work, programs = folder / "server" / "o" / "r", folder / "work", folder / "programs"
    bare.mkdir(parents=True)
    programs.mkdir()
    git(bare, "init", "--quiet", "--bare", "--initial-branch=main")
    git(folder, "clone", "--quiet", str(bare), str(work))
    (work / "study.yaml").write_text(STUDY)
    scripted = ROOT / "tests" / "plugin" / "serving" / "scripted_server.py"
    (work / "server.py").write_text(SERVER.format(server=str(scripted)))
    for name, module in (("python", ""), ("llem", "-m pytest_llem.cli"), ("pytest", "-m pytest -p no:cacheprovider")):
        program(programs / name, f'exec {sys.executable} {module} "$@"')
    shared = {**GIT, "GITHUB_API_URL": github.url, "PYTHONPATH": str(ROOT), "GITHUB_ACTIONS": "true"}
    shared["LLEM_LEASE_DIR"] = str(folder / "leases")  # the server sleeps: who else measures here does not matter
    yield Actions(folder, folder / "server", programs, shared)


def commit(actions: Actions, branch: str, **changed: tuple[str, str]) -> str:
    """A commit on a branch, with a text replaced in each of these files."""
    work = actions.folder / "work"
    if branch != "main":
        git(work, "checkout", "--quiet", "-B", branch, "main")
    for name, (before, after) in changed.items():
        path = work / name.replace("_", ".")
        text = path.read_text()
        assert before in text
        path.write_text(text.replace(before, after))
    git(work, "add", ".")
    git(work, "commit", "--quiet", "--allow-empty", "-m", branch)
    git(work, "push", "--quiet", "--force", "origin", f"HEAD:{branch}")
    if branch != "main":
        git(work, "checkout", "--quiet", "main")
    return git(work, "rev-parse", branch)


def main() -> None:
    """Run the events, print what became of each, and fail where one is not as it must be."""
    events: list[tuple[str, dict[str, tuple[str, str]], bool]] = [
        ("push 1", {}, True),
        ("push 2", {}, True),
        ("push 3", {}, True),
        ("pull request, equal", {}, True),
        ("pull request, slower", {"server_py": ('"0.1"', '"0.15"')}, False),
        ("pull request, a setting changed", {"study_yaml": ("prompts: 8", "prompts: 9")}, False),
    ]
    wrong = []
    with tempfile.TemporaryDirectory() as name:
        for github in serving():
            with repository(Path(name), github) as actions:
                for title, changed, must_be_green in events:
                    branch = "main" if title.startswith("push") else "change"
                    sha = commit(actions, branch, **changed)
                    event: dict[str, Any] = PUSH if branch == "main" else pull_request(OWN)
                    begun = time.monotonic()
                    jobs: dict[str, Job] = actions.run(GATE, sha, {**event, "sha": sha}, study="study.yaml")
                    green = all(job.green for job in jobs.values())
                    strict = "--llem-strict" in jobs["gate"].printed or "not strict yet" not in jobs["gate"].printed
                    told = github.comments[-1]["body"].splitlines()[1] if github.comments else ""
                    print(
                        f"{title}: {'green' if green else 'red'}, {'strict' if strict else 'not strict yet'}, "
                        f"{len(kept(actions))} runs kept, {time.monotonic() - begun:.0f} s"
                        + (f", {len(github.comments)} comment: {told}" if branch != "main" else "")
                    )
                    if green != must_be_green or "-v" in sys.argv:
                        print(*(job.printed for job in jobs.values()), sep="\n")
                        print(github.comments[-1]["body"] if github.comments else "")
                    wrong += [title] if green != must_be_green else []
    if wrong:
        sys.exit(f"not as it must be: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
