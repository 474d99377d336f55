"""Live status: a line per worker on a terminal, where pytest's own output stays readable."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import pytest

from pytest_llem.runners.announcement import Announcement, announced
from pytest_llem.session.reporting.forecast import Forecast, Planned
from pytest_llem.session.reporting.live import LiveStatus


def shown(run_dir: Path, count: int, forecast: Forecast | None = None) -> str:
    """What a terminal was sent until it showed so many lines, and to clear them."""
    stream = io.StringIO()
    status = LiveStatus(run_dir, stream, terminal=True, width=60, forecast=lambda: forecast)
    status.start()
    deadline = time.monotonic() + 120
    while stream.getvalue().count("\x1b[2K") < count and time.monotonic() < deadline:
        time.sleep(0.05)
    status.stop()
    return stream.getvalue()


@pytest.fixture
def announcements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten workers: the first measures, the others wait. They announce themselves from one process here."""
    for number in range(10):
        monkeypatch.setenv("PYTEST_XDIST_WORKER", f"gw{number}")
        events = tmp_path / f"{number}.jsonl"
        events.write_text(json.dumps({"event": "phase", "name": "measure"}) + "\n")
        announcement = Announcement(tmp_path, f"cycle {number}", events)
        announcement.__enter__()
        if number:
            announcement.say("waiting for 1 of 2 GPUs: in use by process 4711")
        [own] = (tmp_path / ".live").glob("[0-9]*.json")
        own.rename(own.with_name(f"worker-{number}.json"))
    return tmp_path


def test_each_worker_has_a_line_and_the_rest_is_counted(announcements: Path) -> None:
    text = shown(announcements, 8)

    first = text.partition("\x1b8")[0]
    assert first.startswith("\x1bD" * 8 + "\x1bM" * 8 + "\x1b7"), "room for eight lines, then back to pytest's own"
    lines = first.split("\x1bD\r\x1b[2K")[1:]
    assert lines[0] == "[gw0] measure, 0 s: cycle 0"
    assert [line[:9] for line in lines[1:7]] == [f"[gw{number}] wai" for number in range(1, 7)]
    assert all("waiting for 1 of 2 GPUs" in line and len(line) < 60 for line in lines[1:7])
    assert lines[7] == "and 3 more"


def test_the_lines_go_when_pytest_writes(announcements: Path) -> None:
    text = shown(announcements, 8)
    assert text.endswith("\x1b7" + "\x1bD\r\x1b[2K" * 8 + "\x1b8")


def test_what_a_worker_announced_is_found_by_its_name(announcements: Path) -> None:
    [found] = [one for one in announced(announcements) if one.worker == "gw7"]
    assert found.events == announcements / "7.jsonl"


def test_a_cycle_that_is_measured_again_says_so(tmp_path: Path) -> None:
    """After an invalid attempt the line began anew with the same cycle, as if the first had never been."""
    with Announcement(tmp_path, "cycle 1", tmp_path / "events.jsonl", 2):
        assert "[2Kattempt 2, start, 0 s: cycle 1" in shown(tmp_path, 1)


def test_how_far_the_run_is_stands_before_the_cycle_or_above_several(announcements: Path, tmp_path: Path) -> None:
    """A study of hours said which cycle it measured, and neither of how many nor for how long."""
    cycles = {tmp_path / f"c{number}": Planned("a", 60.0) for number in range(24)}
    forecast = Forecast({**cycles, announcements: Planned("a", 60.0)}, known=True)
    assert "\x1bD\r\x1b[2K[1/25, about 25 min left]\x1bD" in shown(announcements, 8, forecast)
    for path in (announcements / ".live").glob("worker-[1-9].json"):
        path.unlink()
    assert "\x1b[2K[1/25, about 25 min left] [gw0] measure, " in shown(announcements, 1, forecast)
