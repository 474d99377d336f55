"""A study through pytest, each cycle in a container: what a user of `--llem-runner=docker` gets."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import docker
import pytest

pytestmark = pytest.mark.docker

WORKLOAD = "{prompts: 2, input_tokens: 8, output_tokens: 4}"
STUDY = """\
name: boxed
engine: scripted
model: builtin:tiny-llama
workload: {workload}
measurement: {{min_duration_s: 0.05, idle: {{duration_s: 0.0}}, warmup: {{max_repeats: 1}}}}
sweep:
  scripted.script: [{scripts}]
execution: {{cycles: 2, retries: 0}}
{more}
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory in which the scripted engine is registered for pytest, as it is in its image."""
    engine = Path(__file__).parent / "engine"
    installed = tmp_path / "site" / "llem_scripted-1.0.dist-info"
    installed.mkdir(parents=True)
    for name in ("METADATA", "entry_points.txt"):
        shutil.copy(engine / name, installed)
    shutil.copy(engine / "scripted_engine.py", tmp_path / "site")
    return tmp_path


def run(
    place: Path, *arguments: str, scripts: str = "work", more: str = "", workload: str = WORKLOAD
) -> tuple[subprocess.CompletedProcess[str], Path]:
    (place / "boxed.yaml").write_text(STUDY.format(scripts=scripts, more=more, workload=workload))
    environment = {**os.environ, "PYTHONPATH": str(place / "site"), "LLEM_LEASE_DIR": str(place / "leases")}
    # Plugins of others have tests/plugin/test_other_plugins.py.
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    command = [sys.executable, "-m", "pytest", "-p", "llem", "-p", "no:cacheprovider"]
    command += ["--llem-study=boxed.yaml", *arguments]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=300)
    assert list(place.glob("llem-results/*/run.json")), done.stdout + done.stderr
    return done, max(place.glob("llem-results/*/run.json"), key=lambda path: path.stat().st_mtime_ns).parent


def results(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(directory.glob("boxed/*/c*/result.json"))]


def test_each_cycle_runs_in_a_container_of_its_own(place: Path, engine_image: str) -> None:
    done, directory = run(place, f"--llem-runner=docker:{engine_image}")
    assert done.returncode == 0, done.stdout
    found = results(directory)
    assert [result["status"] for result in found] == ["valid", "valid"]
    for result in found:
        assert (result["runner"]["name"], result["runner"]["source"]) == ("docker", "command line")
        assert result["runner"]["image"] == engine_image
        assert result["runner"]["image_digest"].startswith("sha256:")
        assert result["runner"]["facts"]["preflight"] == "passed"
    assert found[0]["environment"]["worker"] is not None


def test_a_study_may_keep_one_container_for_its_cycles(place: Path, engine_image: str) -> None:
    more = f"runners: {{scripted: 'docker:{engine_image}'}}\ndocker: {{lifecycle: session, memory: 256m}}"
    done, directory = run(place, "--llem-skip-preflight", more=more)
    assert done.returncode == 0, done.stdout
    found = results(directory)
    assert {result["runner"]["source"] for result in found} == {"study"}
    assert len({result["runner"]["facts"]["container"] for result in found}) == 1
    assert {result["runner"]["facts"]["preflight"] for result in found} == {"skipped"}


def test_answers_come_back_from_the_container_and_are_scored_outside(place: Path, engine_image: str) -> None:
    """The image has neither the grader nor the questions' file."""
    (place / "q.jsonl").write_text('{"question": "four?", "answer": 4}\n{"question": "five?", "answer": 5}\n')
    (place / "grading.py").write_text("def grade(answer, target):\n    return len(answer) == target\n")
    asked = "{dataset: q.jsonl, column: question, answer_column: answer, score: {python: 'grading.py:grade'}"
    workload = asked + ", prompts: 2, output_tokens: 4}"
    done, directory = run(place, f"--llem-runner=docker:{engine_image}", "--llem-cycles=1", workload=workload)
    assert done.returncode == 0, done.stdout
    found = results(directory)
    assert [result["quality"]["scores"] for result in found] == [[1.0, 0.0]]
    for path in directory.glob("boxed/*/c*/answers.jsonl"):
        answers = [json.loads(line) for line in path.read_text().splitlines()]
        assert [(each["target"], each["score"]) for each in answers] == [(4, 1.0), (5, 0.0)]


def test_a_missing_image_fails_its_items_at_once_with_one_short_message(place: Path, engine_image: str) -> None:
    began = time.monotonic()
    done, directory = run(place, "--llem-runner=docker:llem-no-such-image:1")
    assert done.returncode == 1
    assert "llem-no-such-image" in done.stdout
    assert "fix: " in done.stdout
    assert "Traceback" not in done.stdout
    assert results(directory) == []
    assert time.monotonic() - began < 60


def test_a_worker_that_fails_in_its_container_leaves_evidence_and_the_others_go_on(
    place: Path, engine_image: str
) -> None:
    done, directory = run(place, f"--llem-runner=docker:{engine_image}", "--llem-cycles=1", scripts="raise, work")
    assert done.returncode == 1
    assert "1 failed, 1 passed" in done.stdout
    assert "bloom-560m: tokenizer not found in the room" in done.stdout
    [error, *_] = sorted(directory.glob("boxed/*raise*/c*/error.json"))
    assert json.loads(error.read_text())["category"] == "error"
    assert "bloom" in (error.parent / "worker.log").read_text()


def test_results_are_reused_while_the_image_is_the_same_and_not_when_its_name_names_another(
    place: Path, engine_image: str, client: docker.DockerClient
) -> None:
    """A tag moves: what was measured in another image of the same name is not the same measurement."""
    name, options = "llem-test-resume:1", ("--llem-runner=docker:llem-test-resume:1", "--llem-cycles=1")
    client.images.get(engine_image).tag("llem-test-resume", "1")
    try:
        _, first = run(place, *options)
        _, second = run(place, *options, "--llem-resume")
        assert [item["source_run"] for item in items(second)] == [first.name]
        dockerfile = io.BytesIO(f"FROM {engine_image}\nLABEL other=1\n".encode())
        client.images.build(fileobj=dockerfile, tag=name, rm=True)
        _, third = run(place, *options, "--llem-resume")
        assert [item["source_run"] for item in items(third)] == [None]
        assert "image: sha256:" in items(third)[0]["not_reused"]
    finally:
        client.images.remove(name, force=True)


def items(directory: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((directory / "run.json").read_text())["items"]
    return found
