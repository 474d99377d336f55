"""Text of others cannot act on terminals, GitHub, browsers or spreadsheets; the long form is `text`."""

from __future__ import annotations

import random
from pathlib import Path

from tests.hostile import text
from tests.hostile.report import SEED


def test_what_engines_and_servers_say_is_harmless(tmp_path: Path) -> None:
    assert text.from_engines(tmp_path, text.TEXTS) == []


def test_what_studies_hold_is_harmless(tmp_path: Path) -> None:
    assert text.from_studies(tmp_path, text.TEXTS[::4]) == []


def test_results_of_strangers_are_harmless(tmp_path: Path) -> None:
    assert text.from_results(tmp_path, text.TEXTS, random.Random(SEED), 3) == []


def test_the_checks_see_what_is_wrong() -> None:
    assert list(text.in_terminal("\x1b[2J"))
    assert list(text.in_terminal("  ::add-mask::pwned"))
    assert list(text.in_html("<p onclick='pwned()'><img src=x><script>pwned()</script>"))
    assert list(text.in_html('<script type="application/json">{"a": "</script>'))
    assert list(text.in_csv("a,=pwned\n"))
    assert list(text.in_markdown("| a |\n| :-- |\n| <b> | [x](y) |"))
    assert list(text.in_xml("<a>"))
    harmless = "error of a.py::test_it: 5 < 6, -3.5"
    assert not [*text.in_terminal(harmless), *text.in_csv("a,-3.5\n"), *text.in_markdown("\\<b\\>")]
