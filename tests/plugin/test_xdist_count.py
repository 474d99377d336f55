"""Every selected item of a run with a study is reported, or the run fails and names those that are not."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

TESTS = """
import pytest

def test_one(): pass
def test_lost(): pass
def test_last(): {last}

@pytest.mark.llem_study("study.yaml")
@pytest.mark.skip
def test_of_a_study(llem_result): pass
"""
LOSES = """
def pytest_runtest_protocol(item):
    return True if item.name == "test_lost" else None
"""
WORKER_BREAKS = """
import os

def pytest_runtest_logreport(report):
    if report.nodeid.endswith("test_lost") and "PYTEST_XDIST_WORKER" in os.environ:
        raise RuntimeError("a plugin's mistake")

def pytest_sessionfinish(session):
    controller = session.config.pluginmanager.get_plugin("dsession")
    if controller is not None:
        (session.config.rootpath / "chunk").write_text(str(controller.sched.maxschedchunk))
"""


@pytest.fixture(autouse=True)
def study(pytester: pytest.Pytester) -> None:
    (pytester.path / "study.yaml").write_text("model: builtin:tiny-llama\nexecution: {cycles: 1}\n")
    pytester.makepyfile(test_it=TESTS.format(last="pass"))


def failures(path: Path) -> list[str]:
    return [case.attrib["name"] for case in ElementTree.parse(path).iter("testcase") if list(case.iter("failure"))]


def test_an_item_that_nobody_reported_fails(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(LOSES)

    result = pytester.runpytest("--junitxml=junit.xml")

    result.assert_outcomes(passed=2, failed=1, skipped=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        ["*selected, and never reported*", "1 of 4 selected items were never reported; they count as failed"]
    )
    assert failures(pytester.path / "junit.xml") == ["test_lost"]


@pytest.mark.parametrize("options", [("-x",), ("--maxfail=1",), ("-k", "one or study")], ids=["x", "maxfail", "k"])
def test_what_was_not_come_to_is_not_lost(pytester: pytest.Pytester, options: tuple[str, ...]) -> None:
    pytester.makepyfile(test_it=TESTS.format(last="assert False").replace("def test_one", "def test_lost_not"))

    result = pytester.runpytest(*options)

    assert "never reported" not in result.stdout.str()


@pytest.mark.parametrize("code", [None, 0, 1])
def test_a_run_that_was_asked_to_end_has_lost_nothing(pytester: pytest.Pytester, code: int | None) -> None:
    pytester.makepyfile(test_it=TESTS.format(last=f"pytest.exit('enough', {code})"))

    result = pytester.runpytest()

    assert result.ret == (pytest.ExitCode.INTERRUPTED if code is None else code)
    assert "never reported" not in result.stdout.str()


def test_a_plain_run_counts_nothing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it="def test_lost(): pass")
    pytester.makeconftest(LOSES)

    result = pytester.runpytest()

    assert result.ret == pytest.ExitCode.OK


def test_what_a_broken_worker_loses_is_reported(pytester: pytest.Pytester) -> None:
    """xdist ends a worker with an internal error, and with it what the worker had; it may even call that a success."""
    pytester.makeconftest(WORKER_BREAKS)

    result = pytester.runpytest_subprocess("-n2", "--junitxml=junit.xml")

    assert result.ret not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
    assert "test_lost" in failures(pytester.path / "junit.xml")
    assert (pytester.path / "chunk").read_text() == "1", "the study that a marker names was found in time"
