"""A small number of the wrong studies of `tests.hostile.studies`, the same each time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile.studies import KINDS, attempt, places, try_all


def test_mutated_studies_give_a_plan_or_a_place(tmp_path: Path) -> None:
    tallies = try_all(10 * len(KINDS), tmp_path, huge=False)

    assert [fault for tally in tallies.values() for fault in tally.faults] == []
    assert sum(tally.tried for tally in tallies.values()) > 10 * len(KINDS)
    assert all(tally.planned < tally.tried for tally in tallies.values())


def test_a_fault_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path, env: object) -> None:
        raise KeyError("model")

    monkeypatch.setattr("tests.hostile.studies.load_study", broken)

    assert attempt(places(tmp_path, huge=False)["a directory"]).fault == "KeyError: 'model'"
