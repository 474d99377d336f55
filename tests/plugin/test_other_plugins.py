"""Plugins of others, one by one and all at once: the same items pass, fail and are measured once, each with its report.

Each runs in a process of its own, in which only pytest-llem, xdist and the plugins in question are loaded.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from xml.etree import ElementTree

import pytest

STUDY = """\
name: plugins
engine: faulty
workload: {{prompts: 2, input_tokens: 8, output_tokens: 4}}
measurement: {{min_duration_s: 0.05, idle: {{duration_s: 0.02}}, warmup: {{max_repeats: 1}}}}
sweep:
  model: [{models}]
execution: {{cycles: 2, retries: 0}}
expect: {{output_tokens_per_s: ">= 1"}}
"""
PLUGINS = {
    "pytest-html": ("html", ("--html=report.html", "--self-contained-html")),
    "pytest-json-report": ("pytest_jsonreport", ("--json-report", "--json-report-file=report.json")),
    "pytest-rerunfailures": ("rerunfailures", ("--reruns=2",)),
    "pytest-timeout": ("timeout", ("--timeout=120",)),
    "pytest-randomly": ("randomly", ("-p", "no:cacheprovider")),
    "pytest-cov": ("pytest_cov", ("--cov=pytest_llem.session.collection", "--cov-report=json")),
}
NEEDED_BY = {"pytest-html": ("metadata",), "pytest-json-report": ("metadata",)}


@dataclass(frozen=True)
class Ran:
    """What pytest said, and where."""

    directory: Path
    code: int
    output: str

    @property
    def run(self) -> Path:
        (manifest,) = self.directory.glob("llem-results/*/run.json")
        return manifest.parent

    def counts(self) -> dict[str, int]:
        last = [line for line in self.output.splitlines() if re.search(r"\d+ (passed|failed)", line)][-1]
        return {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error|rerun)", last)}


def run(directory: Path, *names: str, more: tuple[str, ...] = (), models: str = "none, exception") -> Ran:
    """Run the study with these plugins alone, each with the option that makes it do its work."""
    for name in names:
        if not list(distributions(name=name)):
            pytest.skip(f"{name} is not installed")
    (directory / "plugins.yaml").write_text(STUDY.format(models=models))
    plugins = ["llem", "xdist"]
    plugins += dict.fromkeys(needed for name in names for needed in NEEDED_BY.get(name, ()))
    plugins += [PLUGINS[name][0] for name in names]
    loaded = [part for plugin in plugins for part in ("-p", plugin)]
    options = [option for name in names for option in PLUGINS[name][1]]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}
    command = [sys.executable, "-m", "pytest", *loaded, "--llem-study=plugins.yaml", "--llem-meter=none"]
    done = subprocess.run(
        [*command, *options, *more], cwd=directory, env=environment, capture_output=True, text=True, timeout=240
    )
    return Ran(directory, done.returncode, done.stdout + done.stderr)


def check(ran: Ran) -> None:
    """Two cycles pass, two fail, and both gates (of too few cycles) are undecided; each attempt happened once."""
    counts = ran.counts()
    assert (counts.get("passed"), counts.get("failed"), counts.get("skipped")) == (2, 2, 2), ran.output
    assert ran.code == pytest.ExitCode.TESTS_FAILED
    items = json.loads((ran.run / "run.json").read_text())["items"]
    assert sorted(item["state"] for item in items) == ["failed", "failed", "valid", "valid"]
    assert [len(item["attempts"]) for item in items] == [1] * 4
    cases = ElementTree.parse(ran.run / "junit.xml").getroot().findall(".//testcase")
    names = {case.get("name") for case in cases}
    assert len(names) == 6
    failures = {case.get("name") for case in cases if case.find("failure") is not None}
    assert failures == {"test_experiment[model:exception-c1]", "test_experiment[model:exception-c2]"}


@pytest.mark.parametrize("name", PLUGINS)
def test_a_plugin_does_no_harm(name: str, tmp_path: Path) -> None:
    ran = run(tmp_path, name)
    check(ran)
    if name == "pytest-html":
        assert "test_experiment[model:none-c1]" in (tmp_path / "report.html").read_text()
    if name == "pytest-json-report":
        report = json.loads((tmp_path / "report.json").read_text())
        assert report["summary"]["failed"] == 2
    if name == "pytest-cov":
        assert (tmp_path / "coverage.json").exists()


def test_all_plugins_at_once_do_no_harm_either(tmp_path: Path) -> None:
    check(run(tmp_path, *PLUGINS))


def test_all_plugins_at_once_under_xdist(tmp_path: Path) -> None:
    check(run(tmp_path, *PLUGINS, more=("-n", "2")))


def test_a_rerun_of_a_failed_cycle_measures_nothing_and_never_passes(tmp_path: Path) -> None:
    """A terminal state is final for the run: a cycle that failed is not tried until it passes."""
    ran = run(tmp_path, "pytest-rerunfailures", more=("-k", "exception and c1"))
    assert ran.counts() == {"failed": 1, "rerun": 2}
    assert len(list(ran.run.glob("plugins/*/c*/worker.log"))) == 1
    assert list(ran.run.glob("plugins/*/c*/attempt-*")) == []


def test_the_order_stays_the_studys_whatever_shuffles_tests(tmp_path: Path) -> None:
    """Cycles are ordered by `execution.order`, which the manifest records; pytest-randomly keeps its hands off them."""
    orders = []
    for seed in (1, 2, 3):
        (tmp_path / str(seed)).mkdir()
        ran = run(tmp_path / str(seed), "pytest-randomly", more=(f"--randomly-seed={seed}", "-k", "none"))
        orders.append(re.findall(r"test_\w+\[[^]]+\]", ran.output))
    assert orders[0] == orders[1] == orders[2]


def test_a_timeout_of_another_plugin_leaves_no_worker_on_the_device(tmp_path: Path) -> None:
    """It raises out of the wait for the worker: left alive, that one would hold the lease of the next cycle."""
    ran = run(tmp_path, "pytest-timeout", more=("-k", "c1", "--timeout=8"), models="hang, none")
    assert ran.counts() == {"failed": 1, "passed": 1}, ran.output
