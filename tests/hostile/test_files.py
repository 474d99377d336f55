"""A small number of the broken files of `tests.hostile.files`, the same each time."""

from __future__ import annotations

import pytest

from tests.hostile.files import KINDS, World, try_all, world


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> World:
    return world(tmp_path_factory.mktemp("files"))


def test_broken_files_are_refused_by_name_and_no_result_is_lost(measured: World) -> None:
    tallies = try_all(measured, 2 * len(KINDS))

    assert [fault for tally in tallies.values() for fault in tally.faults + tally.lost] == []
    assert sum(tally.refused for tally in tallies.values()) > 5


def test_a_fault_would_be_found(measured: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(made: World) -> None:
        raise KeyError("runs")

    monkeypatch.setattr("tests.hostile.files.READERS", dict.fromkeys(("a", "b", "c", "user settings"), broken))
    monkeypatch.setattr("tests.hostile.files.OF_FILE", {})

    assert all(tally.faults for tally in try_all(measured, 2).values())
