"""A count on the terminal where reading takes long, and nothing anywhere else."""

from __future__ import annotations

import io
import sys

import pytest

from pytest_llem.results import terminal as output


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "SHOW_AFTER_S", 0.0)
    monkeypatch.setenv("TERM", "xterm")


@pytest.mark.usefixtures("impatient")
def test_a_terminal_sees_the_count_and_is_left_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(output.counted([10, 20, 30], "reading")) == [10, 20, 30]
    assert "reading 1/3" in terminal.getvalue()
    assert terminal.getvalue().endswith(output.CLEAR)


@pytest.mark.usefixtures("impatient")
def test_a_file_or_pipe_sees_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stderr", pipe)
    assert list(output.counted([1, 2], "reading")) == [1, 2]
    assert pipe.getvalue() == ""


def test_what_is_quick_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    assert list(output.counted([1, 2], "reading")) == [1, 2]
    assert terminal.getvalue() == ""
