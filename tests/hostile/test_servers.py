"""The named misbehaving servers and some mutations of good ones, in CI."""

from __future__ import annotations

import pytest

from .server_cases import FAILING, TRUE
from .servers import mutations, run

pytestmark = pytest.mark.engine


def test_no_server_makes_a_lie_a_traceback_or_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    outcomes = run({**FAILING, **TRUE, **dict(mutations(50))})
    assert [f"{each.name}: {each.end}: {each.said:.200}" for each in outcomes if each.wrong] == []
