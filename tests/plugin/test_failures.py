"""A worker that breaks gives a failed item with a short message and an `error.json`, and the other items go on.

Every failure is produced for real, by an engine that breaks its own worker process.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.hostile.engines import processes_of, words_of
from tests.timed import on_a_clock

Faults = Callable[..., Path]


def artifacts(directory: Path) -> Path:
    [run] = [path.parent for path in (directory / "llem-results").glob("*/run.json")]
    return run


def error_of(directory: Path, fault: str) -> dict[str, object]:
    [path] = artifacts(directory).glob(f"faults/*{fault}*/c1/error.json")
    data: dict[str, object] = json.loads(path.read_text())
    return data


@pytest.mark.parametrize(
    ("fault", "category", "origin", "message"),
    [
        ("exception", "error", "worker", "*RuntimeError: the faulty engine raised this*"),
        ("kill", "worker_crashed", "runner", "*the worker was killed by SIGKILL*"),
        ("segfault", "worker_crashed", "runner", "*the worker was killed by SIGSEGV*"),
        ("memory", "out_of_memory", "worker", "*ran out of memory*"),
        ("exit", "worker_silent", "runner", "*wrote neither a measurement nor an error*"),
    ],
)
def test_a_broken_worker_is_a_failed_item_and_the_others_go_on(
    pytester: pytest.Pytester, faults: Faults, fault: str, category: str, origin: str, message: str
) -> None:
    faults(fault, "none")
    result = pytester.runpytest("--llem-study=faults.yaml")
    result.assert_outcomes(failed=1, passed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines([message, "*fix: *", "*worker.log*"])
    [log] = artifacts(pytester.path).glob(f"faults/*{fault}*/c1/worker.log")
    assert f"about to do: {fault}" in log.read_text()
    assert log.read_text().splitlines()[-1] in result.stdout.str()
    error = error_of(pytester.path, fault)
    assert (error["category"], error["origin"]) == (category, origin)
    assert error["phase"] in ("load", "failed")


@on_a_clock
def test_a_worker_that_hangs_is_killed_at_its_deadline(pytester: pytest.Pytester, faults: Faults) -> None:
    """The faulty engine ignores SIGTERM, so only SIGKILL ends it. The experiment beside it has as long."""
    faults("hang", "none", timeout=4.0)
    result = pytester.runpytest("--llem-study=faults.yaml")
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["*killed in phase 'load': it ran for more than 4 s (execution.timeout_s)*"])
    assert error_of(pytester.path, "hang")["category"] == "timeout"
    assert workers(pytester.path) == []


def workers(directory: Path) -> list[int]:
    """Processes that still work on a job of this test."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(str(directory) in word for word in process.info["cmdline"] or ()):
            found.append(process.pid)
    return [pid for pid in found if pid != psutil.Process().pid]


def start(pytester: pytest.Pytester, *arguments: str) -> subprocess.Popen[str]:
    """pytest in a process of its own, once its worker hangs in its load phase."""
    command = [sys.executable, "-m", "pytest", "--llem-study=faults.yaml", *arguments]
    process = subprocess.Popen(command, cwd=pytester.path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while (
        not list(pytester.path.glob("llem-results/*/faults/*hang*/c1/worker.log"))
        or "hang" not in next(pytester.path.glob("llem-results/*/faults/*hang*/c1/worker.log")).read_text()
    ):
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_no_process_and_keeps_what_is_finished(
    pytester: pytest.Pytester, faults: Faults, number: signal.Signals
) -> None:
    faults("none", "hang")
    process = start(pytester)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == pytest.ExitCode.INTERRUPTED, output
    assert workers(pytester.path) == []
    manifest = json.loads((artifacts(pytester.path) / "run.json").read_text())
    assert [item["state"] for item in manifest["items"]] == ["valid", "interrupted"]
    assert manifest["interrupted"]
    assert error_of(pytester.path, "hang")["category"] == "interrupted"
    assert "1 of 2 cycles left" in output
    assert re.search(r"^ +(\S+ -m )?pytest --llem-study=faults.yaml .*--llem-resume$", output, re.MULTILINE)


def test_a_killed_pytest_takes_its_worker_with_it(pytester: pytest.Pytester, faults: Faults) -> None:
    """The worker ignores SIGTERM. It once lived on, with the lease, until the next run ended it."""
    faults("hang")
    process = start(pytester)
    process.kill()
    process.communicate()
    assert all_end(pytester.path, 120.0)
    faults("none")
    pytester.runpytest("--llem-study=faults.yaml").assert_outcomes(passed=1)


def test_a_killed_pytest_takes_a_fork_server_with_it_that_still_imports(pytester: pytest.Pytester, sweep: Path) -> None:
    """Its imports take seconds, in which it once noticed nothing: far longer than pytest until it starts one."""
    begun = time.monotonic()
    command = [sys.executable, "-m", "pytest", f"--llem-study={sweep.name}"]
    process = subprocess.Popen(command, cwd=pytester.path, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not any("transformers" in words_of(one) for one in processes_of(pytester.path)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    took_s = time.monotonic() - begun
    process.kill()
    process.wait()
    assert all_end(pytester.path, max(1.0, took_s))


def all_end(directory: Path, limit_s: float) -> bool:
    """Whether all processes of a test's run end by themselves in time."""
    deadline = time.monotonic() + limit_s
    while processes_of(directory) and time.monotonic() < deadline:
        time.sleep(0.02)
    return processes_of(directory) == []


def test_a_second_ctrl_c_ends_the_run_at_once_and_leaves_nothing(pytester: pytest.Pytester, faults: Faults) -> None:
    """The worker ignores SIGTERM: the second Ctrl-C comes while the first one waits for it."""
    faults("hang")
    process = start(pytester)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED), output
    assert workers(pytester.path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_under_xdist_leaves_no_process(
    pytester: pytest.Pytester, faults: Faults, number: signal.Signals
) -> None:
    faults("hang", "none")
    process = start(pytester, "-n2")
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == pytest.ExitCode.INTERRUPTED, output
    assert workers(pytester.path) == []
    assert error_of(pytester.path, "hang")["category"] == "interrupted"


def test_stopping_at_the_first_failure_under_xdist_leaves_no_process(pytester: pytest.Pytester, faults: Faults) -> None:
    faults("exception", "none", "memory")
    result = pytester.runpytest_subprocess("--llem-study=faults.yaml", "-n2", "-x")
    assert result.ret != pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["    *pytest *--llem-study=faults.yaml -n2 -x --llem-resume"])
    assert workers(pytester.path) == []
    states = [item["state"] for item in json.loads((artifacts(pytester.path) / "run.json").read_text())["items"]]
    assert states[0] == "failed"
    assert "running" not in states


def test_x_stops_after_the_first_failure(pytester: pytest.Pytester, faults: Faults) -> None:
    faults("exception", "none")
    result = pytester.runpytest("--llem-study=faults.yaml", "-x")
    result.assert_outcomes(failed=1)
    states = [item["state"] for item in json.loads((artifacts(pytester.path) / "run.json").read_text())["items"]]
    assert states == ["failed", "pending"]


def test_last_failed_runs_only_what_failed(pytester: pytest.Pytester, faults: Faults) -> None:
    faults("exception", "none")
    pytester.runpytest("--llem-study=faults.yaml")
    again = pytester.runpytest("--llem-study=faults.yaml", "--lf")
    again.assert_outcomes(failed=1)
    assert "1 deselected" in again.stdout.str() or again.parseoutcomes().get("passed", 0) == 0


@pytest.mark.parametrize("arguments", [(), ("-n2", "--dist=load", "--maxschedchunk=1")])
def test_a_run_without_a_valid_cycle_is_red(
    pytester: pytest.Pytester, faults: Callable[..., Path], arguments: tuple[str, ...]
) -> None:
    """It once was skipped cycle by cycle, and exited 0; a single cycle that is invalid among valid ones still is."""
    study = faults("lies", "none")
    study.write_text(study.read_text().replace("cycles: 1", "cycles: 2") + "dtype: float16\n")

    started = pytester.runpytest_subprocess if arguments else pytester.runpytest
    result = started(f"--llem-study={study.name}", "-p", "no:cacheprovider", "--junitxml=j.xml", *arguments)

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    junit = (pytester.path / "j.xml").read_text()
    assert re.search('failures="[12]"', junit)
    assert "no cycle of this experiment is valid; invalid: effective_differs" in junit
    if not arguments:
        only = pytester.runpytest(f"--llem-study={study.name}", "-k", "none")
        assert only.ret == pytest.ExitCode.OK


@pytest.mark.parametrize("arguments", [("-p", "no:terminal"), ("-p", "no:junitxml"), ("-p", "no:terminal", "-n1")])
def test_a_run_without_some_of_pytests_own_plugins_measures(
    pytester: pytest.Pytester, faults: Callable[..., Path], arguments: tuple[str, ...]
) -> None:
    study = faults("none")
    started = pytester.runpytest_subprocess if "-n1" in arguments else pytester.runpytest
    result = started(f"--llem-study={study.name}", "-p", "no:cacheprovider", *arguments)
    assert result.ret == pytest.ExitCode.OK
    assert "INTERNALERROR" not in result.stderr.str() + result.stdout.str()
    (path,) = pytester.path.glob("llem-results/*/summary.json")
    assert json.loads(path.read_text())["experiments"][0]["cycles_valid"] == 1


def test_a_setup_plan_measures_nothing(pytester: pytest.Pytester, faults: Callable[..., Path]) -> None:
    result = pytester.runpytest(f"--llem-study={faults('none').name}", "--setup-plan")
    assert result.ret == pytest.ExitCode.OK
    assert not list(pytester.path.glob("llem-results/*/*/*/*/measurement.json"))


def test_nothing_valid_is_red_without_the_cycles_own_items_too(
    pytester: pytest.Pytester, faults: Callable[..., Path]
) -> None:
    """Gates and tests of all results, selected alone, as plugins that split runs do, skipped where all had failed."""
    study = faults("lies", "exception", "none")
    study.write_text(
        study.read_text()
        + 'dtype: float16\nmeasurement.validity: {cpu_contended_rel: 1}\nexpect: {output_tokens_per_s: ">= 1"}\n'
    )
    mark = '@pytest.mark.llem_study("faults.yaml")'
    pytester.makepyfile(test_own=f"import pytest\n{mark}\ndef test_own(llem_results): assert llem_results\n")

    gates = pytester.runpytest("--llem-study=faults.yaml", "-k", "test_gate")
    own = pytester.runpytest("test_own.py")

    gates.assert_outcomes(failed=2, skipped=1)
    own.assert_outcomes(errors=2, passed=1)
