"""A container's user may have no passwd entry and no HOME, or `/` for one that it cannot write."""

from __future__ import annotations

import pwd
from pathlib import Path

import pytest

from pytest_llem.energy import calibration
from pytest_llem.engines.builtin import builtin_path
from pytest_llem.errors import StoreError
from pytest_llem.study.settings import load_settings, user_file


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", calibration.DIRECTORY_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", missing)


@pytest.mark.usefixtures("nobody")
def test_who_has_no_home_has_the_default_settings_and_no_calibration() -> None:
    """Settings ended in an INTERNALERROR, and calibrations in a RuntimeError."""
    assert load_settings(env={}, command_line={"cycles": 2})["cycles"] == 2
    assert not user_file().exists()
    assert calibration.load("GPU-0", "1.0") is None


@pytest.mark.usefixtures("nobody")
def test_who_has_no_home_is_told_where_models_could_lie() -> None:
    with pytest.raises(StoreError, match="has no home directory\nfix: set HOME or XDG_CACHE_HOME"):
        builtin_path("builtin:tiny-llama")


def test_a_home_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/proc")
    with pytest.raises(StoreError, match=f"no place for built-in models at {Path('/proc/.cache/llem/models')}: "):
        builtin_path("builtin:tiny-llama")
