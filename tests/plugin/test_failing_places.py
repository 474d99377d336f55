"""A disk that fills, a directory that is removed, an output that closes: what was measured is kept, and said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

STUDY = """\
name: small
model: none
engine: faulty
workload: {prompts: 2, input_tokens: 4, output_tokens: 2}
measurement: {min_duration_s: 0.01, idle: {duration_s: 0.02}, warmup: {max_repeats: 1}}
execution: {cycles: 4, retries: 0}
"""
REMOVE = """\
import shutil
def pytest_runtest_logreport(report):
    if report.when == "teardown" and report.nodeid.endswith("-c%d]"):
        shutil.rmtree("llem-results")
"""
DISK_BYTES = 128 * 2**10
"""Chosen: between the first cycle's files and the fourth's, of some 40 kB each."""


@pytest.fixture
def command(pytester: pytest.Pytester) -> list[str]:
    pytester.makefile(".yaml", study=STUDY)
    return [sys.executable, "-m", "pytest", "study.yaml", "--rootdir=."]


@pytest.fixture
def small_disk(pytester: pytest.Pytester) -> Iterator[Path]:
    disk = pytester.mkdir("disk")
    size = f"size={DISK_BYTES}"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "none", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def run(command: list[str], *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    ended = subprocess.run([*command, *arguments], text=True, check=False, timeout=120, **streams)  # type: ignore[call-overload]
    assert "Traceback" not in f"{ended.stdout}{ended.stderr}"
    assert "INTERNALERROR" not in f"{ended.stdout}{ended.stderr}"
    return ended  # type: ignore[no-any-return]


def states(out: Path) -> list[str]:
    """The manifest's, which is whole; that of JUnit, if it is there, is checked as well."""
    (manifest,) = out.glob("*/run.json")
    for junit in out.glob("*/junit.xml"):
        ElementTree.parse(junit)
    return [item["state"] for item in json.loads(manifest.read_text())["items"]]


@pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["alone", "xdist"])
def test_a_disk_that_fills_ends_the_run_and_keeps_what_it_measured(
    command: list[str], small_disk: Path, workers: list[str]
) -> None:
    """It was a traceback per item and one at the end, with an empty JUnit file, and no summary."""
    # Preflight would find it too small: here it fills up meanwhile.
    ended = run(command, f"--llem-out={small_disk / 'out'}", "--llem-skip-preflight", *workers)
    assert ended.returncode in (pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED)
    assert "cannot be written: No space left on device\nfix: make room" in ended.stdout
    kept = [json.loads(path.read_text()) for path in small_disk.rglob("result.json")]
    assert 1 <= len(kept) < 4
    assert len(states(small_disk / "out")) == 4
    assert "artifacts: disk/out" in ended.stdout
    assert not [path for path in small_disk.rglob("junit.xml") if not path.stat().st_size]


@pytest.mark.parametrize("cycle", [2, 4])
def test_a_results_directory_that_is_removed_fails_the_run(
    command: list[str], pytester: pytest.Pytester, cycle: int
) -> None:
    """After the last item it was green."""
    pytester.makeconftest(REMOVE % cycle)
    ended = run(command)
    assert ended.returncode == pytest.ExitCode.TESTS_FAILED
    assert ": gone, and with it what this run measured" in ended.stdout
    assert f"{cycle} passed" in ended.stdout


def test_a_report_to_a_full_device_costs_the_exit_code_and_nothing_else(
    command: list[str], pytester: pytest.Pytester
) -> None:
    ended = run(command, "--junitxml=/dev/full")
    assert ended.returncode == pytest.ExitCode.TESTS_FAILED
    assert "cannot be written: No space left on device" in ended.stdout
    assert "4 passed" in ended.stdout
    assert states(pytester.path / "llem-results") == ["valid"] * 4
    assert Path("/dev/full").is_char_device()


def test_an_output_that_is_closed_in_the_middle_is_one_line(command: list[str], pytester: pytest.Pytester) -> None:
    """As `pytest ... | head`: pytest's traceback, to an output that is gone, hid what happened."""
    with subprocess.Popen([*command, "-v"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        for line in running.stdout:
            if "-c1]" in line and "PASSED" in line:
                break
        running.stdout.close()
        errors = running.stderr.read()
    assert running.returncode
    assert errors.startswith("llem: standard output cannot be written: Broken pipe; ")
    assert "Traceback" not in errors
    assert states(pytester.path / "llem-results")[0] == "valid"


def test_a_full_output_is_one_line(command: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        ended = run(command, stdout=full)
    assert ended.returncode
    assert ended.stderr.startswith("llem: standard output cannot be written: No space left on device; ")
    assert len(ended.stderr.splitlines()) == 2


def test_a_run_without_an_output_works(command: list[str], pytester: pytest.Pytester) -> None:
    ended = run(command, stdout=None, preexec_fn=lambda: os.close(1))
    assert ended.returncode == pytest.ExitCode.OK, ended.stderr
    assert states(pytester.path / "llem-results") == ["valid"] * 4
