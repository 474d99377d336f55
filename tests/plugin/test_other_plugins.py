"""Plugins of others, one by one and all at once: the same items pass, fail and are measured once, each reported."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.hostile.plugins import MOST_USED, PLUGINS, STUDY, Ran, run
from tests.plugin.serving.bench import SERVER
from tests.plugin.test_serving_studies import STUDY as SERVED

TOGETHER = (
    "pytest-html", "pytest-json-report", "pytest-rerunfailures", "pytest-timeout", "pytest-randomly", "pytest-cov",
)  # fmt: skip
BLOCKING = {
    "pytest-socket": ("--disable-socket", "--allow-hosts=192.0.2.1"),
    "pytest-recording": ("--block-network",),
}


def require(*names: str) -> None:
    """Skip what is not installed; `.ci/plugins-tests.sh` runs what the other tests' environment lacks."""
    missing = [name for name in names if PLUGINS[name].version is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


def check(ran: Ran) -> None:
    """Two cycles pass, two fail, two are invalid, one of these fails, no gate is decided; each was tried once."""
    assert ran.harm() == [], ran.output
    counts = ran.counts()
    assert (counts.get("passed"), counts.get("failed"), counts.get("skipped")) == (2, 3, 4), ran.output
    assert ran.code == pytest.ExitCode.TESTS_FAILED
    assert len(json.loads((ran.run / "run.json").read_text())["items"]) == 6
    cases = ElementTree.parse(ran.run / "junit.xml").getroot().findall(".//testcase")
    assert len({case.get("name") for case in cases}) == 9
    assert ran.failures() >= {"test_experiment[model:exception-c1]", "test_experiment[model:exception-c2]"}


@pytest.mark.parametrize("name", sorted({*MOST_USED} - {"pytest-forked"}))
def test_a_plugin_does_no_harm(name: str, tmp_path: Path) -> None:
    """What failed is red, whatever a plugin selects or runs again; so is an experiment without a valid cycle."""
    require(name)
    ran = run(tmp_path, name)
    assert ran.harm() == [], ran.output
    assert ran.refusal is None
    if name == "pytest-html":
        assert "test_experiment[model:none-c1]" in (tmp_path / "report.html").read_text()
    if name == "pytest-json-report":
        report = json.loads((tmp_path / "report.json").read_text())
        assert report["summary"]["failed"] == 3
    if name == "pytest-cov":
        assert (tmp_path / "coverage.json").exists()


@pytest.mark.parametrize("name", ["pytest-forked"])
def test_processes_that_end_with_their_item_are_refused_before_anything_is_measured(name: str, tmp_path: Path) -> None:
    """All was measured, and every item failed."""
    require(name)
    ran = run(tmp_path, name)
    assert ran.refusal is not None
    assert ran.refusal.startswith("--forked of pytest-forked cannot be used with a study: ")
    assert not list(tmp_path.rglob("worker.log"))


@pytest.mark.parametrize("name", BLOCKING)
def test_servers_are_reached_where_tests_are_kept_from_sockets(name: str, tmp_path: Path) -> None:
    """The items that measure are exempt; they failed with SocketBlockedError."""
    require(name)
    study = SERVED.replace("PYTHON", sys.executable).replace("SERVER", str(SERVER))
    study = re.sub(r"  - \{id: (sharing|another).*\n", "", study)
    study = study.replace("max_repeats: 1}}", "max_repeats: 1}, validity: {cpu_contended_rel: 1}}")
    ran = run(tmp_path, name, more=BLOCKING[name], study=study)
    assert ran.counts() == {"passed": 1}, ran.output


def test_plugins_at_once_do_no_harm_either(tmp_path: Path) -> None:
    require(*TOGETHER)
    check(run(tmp_path, *TOGETHER))


def test_plugins_at_once_under_xdist(tmp_path: Path) -> None:
    require(*TOGETHER)
    ran = run(tmp_path, *TOGETHER, more=("-n", "2"))
    assert ran.harm() == [], ran.output
    assert (ran.counts()["passed"], ran.code) == (2, pytest.ExitCode.TESTS_FAILED)


def test_a_rerun_of_a_failed_cycle_measures_nothing_and_never_passes(tmp_path: Path) -> None:
    """A terminal state is final for the run: a cycle that failed is not tried until it passes."""
    require("pytest-rerunfailures")
    ran = run(tmp_path, "pytest-rerunfailures", more=("-k", "exception and c1"))
    assert ran.counts() == {"failed": 1, "rerun": 2}
    assert len(list(ran.run.glob("plugins/*/c*/worker.log"))) == 1
    assert list(ran.run.glob("plugins/*/c*/attempt-*")) == []


def test_the_order_stays_the_studys_whatever_shuffles_tests(tmp_path: Path) -> None:
    """Cycles are ordered by `execution.order`, which the manifest records; pytest-randomly keeps its hands off them."""
    require("pytest-randomly")
    orders = []
    for seed in (1, 2, 3):
        (tmp_path / str(seed)).mkdir()
        ran = run(tmp_path / str(seed), "pytest-randomly", more=(f"--randomly-seed={seed}", "-k", "none"))
        orders.append(re.findall(r"test_\w+\[[^]]+\]", ran.output))
    assert orders[0] == orders[1] == orders[2]


def test_a_timeout_of_another_plugin_leaves_no_worker_on_the_device(tmp_path: Path) -> None:
    """It raises out of the wait for the worker: left alive, that one would hold the lease of the next cycle."""
    require("pytest-timeout")
    ran = run(tmp_path, "pytest-timeout", more=("-k", "c1", "--timeout=8"), study=STUDY.format(models="hang, none"))
    assert ran.counts() == {"failed": 1, "passed": 1}, ran.output
