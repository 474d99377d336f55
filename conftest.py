"""Fixtures and settings for every test of the project."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest

from tests.timed import on_a_clock

if TYPE_CHECKING:
    from xdist.scheduler import LoadScopeScheduling

# pytester takes back what a run in this process imported, and these packages bear no second import.
for name in ("pandas", "vl_convert"):
    with suppress(ImportError):
        import_module(name)

pytest_plugins = ["pytester"]

# torch reads it when a test file imports it. Two threads of it wait for each other in loops, long on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell starts background jobs with SIGINT ignored, and processes hand that on: tests of Ctrl-C would test nothing.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


MANY_OBJECTS = 100_000
"""Chosen: a full collection of so many takes some 50 ms; an engine's library adds several times as many."""
_freeze = gc.freeze


def set_apart() -> None:
    """Except what lives now from collections of garbage, once nothing of it is garbage."""
    gc.collect()
    _freeze()


def pytest_runtest_logfinish() -> None:
    """Set apart what the first users of a large library left: modules, which stay."""
    if gc.freeze is not _freeze and len(gc.get_objects()) > MANY_OBJECTS:
        set_apart()


@pytest.fixture(scope="session", autouse=True)
def _garbage_of_tests_alone() -> Iterator[None]:
    """Let a full collection look at what tests made, not at a million objects of modules: that is most of their time.

    Engines collect when they load and end, a cycle before it measures, pytest five times after each run in a process.
    Freezing and thawing by what is tested does nothing meanwhile: the one would keep dead engines, the other undo this.
    """
    patch = pytest.MonkeyPatch()
    for name in ("freeze", "unfreeze"):
        patch.setattr(gc, name, lambda: None)
    set_apart()
    yield
    patch.undo()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Try tests of simulated sensors again where a busy machine read them late."""
    for item in items:
        if {"simulation", "make_simulation"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(on_a_clock)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling | None:
    """Keep a folder in one process, since its files share a daemon or a cluster; those of unit tests share nothing."""
    if config.getoption("dist") != "load":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByFolder(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            return path if path.startswith(("tests/unit/", "tests/plugin/")) else "/".join(path.split("/")[:2])

    return ByFolder(config, log)


@pytest.fixture(scope="session", autouse=True)
def _shared_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """User settings by which a busy CPU makes no result invalid: tests run beside each other, and few test that."""
    directory = tmp_path_factory.mktemp("user-settings")
    (directory / "llem").mkdir()
    (directory / "llem" / "config.yaml").write_text("validity: {cpu_contended_rel: 1.0}\n")
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CONFIG_HOME", str(directory))
    # Nothing here outlives the machine, and to wait until a file is on its disk takes longer than to write it: fsync
    # comes to no more than an error for what is no open file.
    patch.setattr(os, "fsync", os.fstat)
    # Runs of pytest that tests start are no part of this one; and xdist gives its workers a terminal of 80 columns.
    for name in [name for name in os.environ if name.startswith(("PYTEST_XDIST", "COLUMNS"))]:
        patch.delenv(name)
    yield
    patch.undo()
