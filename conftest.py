"""Fixtures and settings for every test of the project."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

pytest_plugins = ["pytester"]

# A shell starts background jobs with SIGINT ignored, and processes hand that on: tests of Ctrl-C would test nothing.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _shared_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """User settings by which a busy CPU makes no result invalid: tests run beside each other, and few test that."""
    directory = tmp_path_factory.mktemp("user-settings")
    (directory / "llem").mkdir()
    (directory / "llem" / "config.yaml").write_text("validity: {cpu_contended_rel: 1.0}\n")
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CONFIG_HOME", str(directory))
    yield
    patch.undo()
