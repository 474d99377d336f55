"""`llem history list`: what a folder has, and since when its runs compare."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_llem.cli import main
from tests.unit.results.history.test_history_files import RUN, entry, write


def test_each_study_has_a_line_and_each_segment_its_cause(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Who opens a history of two years wants to know first what in it may be compared."""
    for day in (1, 2, 3):
        run = replace(RUN, run_id=f"r{day}", started_at=f"2026-11-0{day}T00:00:00+00:00", dirty=day == 3)
        driver = "550" if day < 3 else "560"
        write(tmp_path, entry("1", 1.0, run, driver_major=driver), entry("2", 2.0, run, driver_major=driver))
    write(tmp_path, replace(entry("1"), run=replace(RUN, study="other", commit=None)))
    (tmp_path / "s" / "r0.jsonl").write_text("{\x1b[2J", encoding="utf-8")
    assert main(["history", "list", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        "study  experiments  runs       since       until           commit  segments",
        "other            1     1  2026-11-01  2026-11-01                -         1",
        "s                2     3  2026-11-01  2026-11-03  ccccccc (dirty)         2",
        "s: segment 2 since 2026-11-03 (1 run): driver_major: 550 -> 560",
    ]
    assert f"{tmp_path / 's' / 'r0.jsonl'}:1: not JSON" in printed.err
    assert main(["history", "list", str(tmp_path), "--format", "json"]) == 0
    _, study = json.loads(capsys.readouterr().out)
    assert study["segments"][1]["begun_by"] == ["driver_major: 550 -> 560"]


def test_an_empty_history_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A branch that was never added to is no history without changes."""
    assert main(["history", "list", str(tmp_path)]) == 2
    assert "no runs here" in capsys.readouterr().err
