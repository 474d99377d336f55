"""A few odd engines of each sort; `python -m tests.hostile.engines` tries all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hostile.engines import FAULTY, STUDY, environment, kinds, measure
from tests.timed import on_a_clock

LEAVE_SOMETHING = (
    "fork-twice-ignores.load",
    "popen-keeps.generate",
    "popen-no-environment.shutdown",
    "forks-again.load",
)
BREAK = ("system-exit-3.load", "raises-unprintable.generate", "raises-binary.load", "kills-parent.generate")
LIE = ("fewer", "twice-the-first", "times-future", "prompt-negative", "no-tokens")


@on_a_clock
def test_what_an_engine_leaves_ends_with_its_cycle_whoever_inherited_what(tmp_path: Path) -> None:
    """A process in a session of its own once held the pipe and the lease, and the next item never started."""
    run = measure(tmp_path, LEAVE_SOMETHING, timeout_s=30.0)
    assert [one.status for one in run.outcomes] == ["valid"] * len(LEAVE_SOMETHING), run.output
    assert run.orphans == ()


def test_an_odd_engine_fails_its_cycle_by_name_and_no_lie_is_valid(tmp_path: Path) -> None:
    run = measure(tmp_path, [*BREAK, *LIE], timeout_s=30.0)
    assert (run.green_lies, run.tracebacks, run.orphans) == ([], [], ())
    messages = {one.kind: one.message for one in run.outcomes}
    assert "SystemExit: 3" in messages["system-exit-3.load"]
    assert "UnprintableError: (its text cannot be shown)" in messages["raises-unprintable.generate"]
    assert "RuntimeError: \\ud800" in messages["raises-binary.load"]
    assert "the engine odd gave 1 answers to 2 requests" in messages["fewer"]
    assert "wrong_times" in messages["times-future"]
    assert "workload.input_tokens: Input should be greater than or equal to 0" in messages["prompt-negative"]


def test_an_exit_that_waits_for_ever_is_cut_short_and_its_number_counts(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("import pytest_llem.runners.watch as watch\nwatch.EXIT_S = 0.5\n")
    run = measure(tmp_path, ["thread-stays.load"], timeout_s=60.0)
    assert [(one.status, one.time_s < 30.0) for one in run.outcomes] == [("valid", True)], run.output


@pytest.mark.skipif(sys.version_info < (3, 11), reason="older Pythons cannot leave the current directory out")
def test_modules_that_only_lie_beside_the_study_hide_nothing(tmp_path: Path) -> None:
    for name in ("random", "colorsys"):
        (tmp_path / f"{name}.py").touch()
    run = measure(tmp_path, ["imports.load"], timeout_s=30.0)
    assert [one.status for one in run.outcomes] == ["valid"], run.output


@pytest.mark.skipif(sys.version_info < (3, 11), reason="older Pythons cannot leave the current directory out")
def test_an_engine_that_only_lies_beside_the_study_is_refused_with_the_remedy(tmp_path: Path) -> None:
    """`python -m pytest` finds it there, and its workers do not."""
    shutil.copytree(FAULTY, tmp_path, dirs_exist_ok=True)
    (tmp_path / "odd.yaml").write_text(STUDY.format(kinds="quiet", timeout_s=30.0))
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--llem-study=odd.yaml"]
    env = environment(tmp_path) | {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    run = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert "unknown engine 'odd'" in run.stdout
    assert "; workers find what is installed or on PYTHONPATH" in run.stdout


def test_a_module_of_the_users_path_that_hides_another_is_named(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path_factory.mktemp("own") / "colorsys.py"
    own.touch()
    monkeypatch.setenv("PYTHONPATH", str(own.parent), prepend=os.pathsep)
    [outcome] = measure(tmp_path, ["imports.load"], timeout_s=30.0).outcomes
    assert "AttributeError: module 'colorsys' has no attribute 'rgb_to_hls'" in outcome.message
    assert f"fix: rename {own}: it hides the module colorsys in " in outcome.message


def test_there_are_many_kinds() -> None:
    assert len(kinds()) == len(set(kinds())) >= 60
