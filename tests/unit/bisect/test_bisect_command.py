"""`llem bisect` as a user sees it: a real repository and processes, with a stand-in for the interpreter."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_llem.bisect.levels import Reference
from pytest_llem.cli import main
from pytest_llem.errors import SettingsError
from pytest_llem.results.measured_cycles import MeasuredCycles, cycles_of
from pytest_llem.results.metrics import metric
from tests.planted_commits import KEY, STUDY, finding, repository, stub
from tests.timed import on_a_clock
from tests.unit.bisect.test_bisect_commits import git
from tests.unit.results.conftest import Bench

Bisect = Callable[..., int]
STEP = math.log(1.08)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a study; what `repository` makes there is where the command is called."""
    (tmp_path / "study.yaml").write_text(STUDY, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def bisect(place: Path, *options: str) -> int:
    """From the first commit to the last; its exit code."""
    os.chdir(place / "repository")
    first = git(place / "repository", "rev-list", "--max-parents=0", "HEAD")
    python = place / "python"
    if not python.exists():
        stub(place, noise=0.005)
    return main(
        ["bisect", f"{first}..HEAD", "--study", "../study.yaml", f"--python={python}", "--out=../out", *options]
    )


def attempts(place: Path) -> list[dict[str, object]]:
    return [json.loads(file.read_text()) for file in sorted((place / "out" / "attempts").glob("*/attempt.json"))]


def test_the_commit_is_named_and_the_same_command_goes_on(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All that was measured is kept: another search, or the same after Ctrl-C, does not measure it again."""
    path = repository(place / "repository", [0, 0, 0, STEP, STEP])
    (path / "level").write_text("not committed\n")
    build = '--build=test "$(git rev-parse HEAD)" = "$LLEM_BISECT_COMMIT"'
    assert bisect(place, build, "--max-runs=3", "--format=json") == 1
    assert json.loads(capsys.readouterr().out)["ending"] == "undecided"
    assert bisect(place, build) == 0
    said = capsys.readouterr().out
    assert "3 attempts of earlier searches" in said
    assert f"found: {git(path, 'rev-parse', 'HEAD~1')[:10]} (commit 3) with " in said
    assert "with 100.0 %" not in said, "a probability is never certainty"
    found, made = finding(place / "out"), attempts(place)
    assert (found["commits"], found["runs"]) == (4, len(made))
    assert bisect(place, build) == 0
    assert attempts(place) == made
    assert git(path, "worktree", "list").count("\n") == 0
    assert git(path, "status", "--porcelain") == "M level"
    assert (path / "level").read_text() == "not committed\n"


def test_commits_that_cannot_be_measured_are_skipped_with_what_they_said(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Commit 1 does not build, and in commit 2 the engine does not start: it may be each of 1, 2 and 3."""
    repository(place / "repository", [0, 0, "broken", STEP])
    unbuilt = git(place / "repository", "rev-parse", "HEAD~2")
    build = f"if test $LLEM_BISECT_COMMIT = {unbuilt}; then echo no header; exit 3; fi"
    assert bisect(place, "--build", build) == 0
    said = capsys.readouterr().out
    assert "the build ended with exit code 3: no header" in said
    assert "no module named engine: once more" in said
    assert "no module named engine: skipped" in said
    assert "one of 3 commits" in said
    assert finding(place / "out")["suspects"][0]["subjects"] == ["commit 1", "commit 2", "commit 3"]
    named = [f"{unbuilt}..HEAD", "--study=../study.yaml", f"--python={place / 'python'}", "--out=../out"]
    assert main(["bisect", *named, "--build", build]) == 2
    (folder,) = Path("../out").absolute().joinpath("attempts").glob(f"*-{unbuilt[:10]}")
    assert f"see {folder}, and remove" in capsys.readouterr().err


def test_another_range_begins_with_a_commit_that_was_not_measured(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing was there yet to hold the stored runs of its end against, so that this one "cannot be measured"."""
    repository(place / "repository", [0, 0, STEP])
    assert bisect(place, "--max-runs=4") == 1
    stored = {str(each["commit"]) for each in attempts(place)}
    assert len(stored) == 2
    named = ["HEAD~1..HEAD", "--study=../study.yaml", f"--python={place / 'python'}", "--out=../out"]
    assert main(["bisect", *named]) == 0
    assert "2 attempts of earlier searches" in capsys.readouterr().out


def test_what_a_commit_says_acts_on_no_terminal(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A subject could clear the screen: it was printed as it is to stderr, where JSON has standard output."""
    path = repository(place / "repository", [0])
    git(path, "-c", "user.name=A", "-c", "user.email=a@x.invalid", "commit", "--allow-empty", "-qm", "a\x1b[2Jb")
    for chosen, most in (("text", 3), ("json", 4)):
        assert bisect(place, f"--max-runs={most}", f"--format={chosen}") == 1
        said = capsys.readouterr()
        assert "\x1b" not in said.out + said.err
        assert "a\\x1b[2Jb" in said.err


def test_an_experiment_that_the_first_run_lacks_is_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The others alone decided, and nothing said that a change of this one could not be found."""
    repository(place / "repository", [0, STEP])
    entries = "experiments: [{id: study}, {id: other, transformers: {batch_size: 2}}]"
    (place / "study.yaml").write_text(f"name: study\n{STUDY}engine: transformers\n{entries}\n")
    assert bisect(place) == 0
    assert "note: without other: the first run of" in capsys.readouterr().out


def test_what_cannot_be_searched_is_said(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = repository(place / "repository", [0, 0])
    for option, problem in {
        "--build=echo no compiler; false": "the good commit .* cannot be measured: the build ended .*: no compiler",
        "--python=.venv/bin/python": "no interpreter .*/worktree/.venv/bin/python",
        "--metric=joules": "joules_per_output_token",
        "--experiment=other": "experiment",
        "--confidence=95": "not between",
        "--max-runs=0": "nothing may be measured",
        "--pytest='": "No closing quotation",
        "--study=builtin:quickstart": "no cycle is valid: (?!no file)",  # was taken for a path
    }.items():
        assert bisect(place, option) == 2
        assert re.search(problem, capsys.readouterr().err)
    assert git(path, "worktree", "list").count("\n") == 0


@on_a_clock
def test_what_is_killed_leaves_no_process_and_goes_on(place: Path) -> None:
    """A build that went on after `kill -9` still wrote into the work tree of the next search."""
    path = repository(place / "repository", [0, STEP])
    mark = f"sleep 600.{os.getpid()}"
    arguments = ["bisect", "HEAD~1..HEAD", "--study=../study.yaml", "--out=../out", f"--build={mark}"]
    with subprocess.Popen([sys.executable, "-m", "pytest_llem.cli", *arguments], cwd=path) as command:
        try:
            until(lambda: running(mark))
        finally:
            command.kill()
    until(lambda: not running(mark))
    assert (place / "out" / "worktree").exists()
    assert bisect(place, "--max-runs=1") == 1
    assert len(attempts(place)) == 1
    assert git(path, "worktree", "list").count("\n") == 0


def running(mark: str) -> bool:
    lines = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
    return any(line == mark for line in lines)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def measured() -> MeasuredCycles:
    cycles = cycles_of([Bench().result()])
    assert cycles is not None
    return cycles


def test_a_run_of_other_work_is_none_and_one_of_another_machine_ends_the_search(measured: MeasuredCycles) -> None:
    """A commit may change the prompts, and it alone cannot be judged; a GPU that is gone is so for all that follow."""
    first = Reference({KEY.experiment_id: measured}, metric("joules_per_output_token"), ())

    def level(**conditions: str) -> tuple[float | None, str]:
        now = replace(measured, conditions={**measured.conditions, **conditions})
        return first.level({KEY.experiment_id: now})

    assert level()[0] == pytest.approx(math.log(measured.values(first.measure)[0]))
    assert level(engine_version="of this commit")[0] is not None
    assert level(prompts_hash="q") == (None, "study: prompts_hash: p -> q")
    assert first.level({}) == (None, "study has no valid cycle")
    with pytest.raises(SettingsError, match="cpu_model"):
        level(cpu_model="another")
    with pytest.raises(SettingsError, match="the study is another"):
        first.level({KEY.experiment_id: replace(measured, config_hash="f")})
