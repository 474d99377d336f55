"""`llem history show` and `check`, from files on disk to what is printed and the exit code."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_llem.cli import main
from pytest_llem.results.history.files import read_file, written
from pytest_llem.results.history.record import HistoryEntry, HistoryRun, MetricEntry

JOULES, RATE = "joules_per_output_token", "output_tokens_per_s"
Add = Callable[..., None]


@pytest.fixture
def history(tmp_path: Path) -> Path:
    return tmp_path / "llem-history"


@pytest.fixture
def add(history: Path) -> Add:
    def add(levels: Sequence[float], metric: str = JOULES, first: int = 1, **conditions: str) -> None:
        """A run a day at each level, with three cycles that differ little."""
        rng = random.Random(first)
        for day, level in enumerate(levels, start=first):
            name = f"202611{day:02d}T000000Z-a"
            run = HistoryRun(name, "batch", f"2026-11-{day:02d}T01:00:00+00:00", commit=f"{day:02d}" * 20)
            cycles = tuple(level * rng.gauss(1, 0.003) for _ in range(3))
            entry = HistoryEntry(
                run,
                "b=1",
                "h",
                "f",
                {"engine": "vllm", **conditions},
                {},
                {metric: MetricEntry(level, None, None, cycles)},
            )
            path = history / "batch" / f"{name}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(written([entry]), encoding="utf-8")

    return add


STEP = [1.0, 1.01, 0.99, 1.0, 1.005, 0.995, 1.0, 1.1, 1.11, 1.09]
"""Ten percent more energy with the eighth run, found by the tenth."""


def test_show_names_level_size_and_commits(add: Add, history: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add(STEP)
    assert main(["history", "show", str(history)]) == 0
    out = capsys.readouterr().out
    assert "batch: joules_per_output_token in J, lower is better" in out
    assert "▁" in out
    assert "█" in out
    assert "b=1 worse +10." in out
    assert "last before 0707070707 of 2026-11-07, first after 0808080808 of 2026-11-08, found 2026-11-10" in out


def test_show_as_json_has_all_that_is_known(add: Add, history: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add(STEP)
    assert main(["history", "show", str(history), "--format", "json"]) == 0
    (series,) = json.loads(capsys.readouterr().out)["series"]
    (segment,) = series["segments"]
    (change,) = segment["changes"]
    assert (change["worse"], change["newest"], change["before"]["commit"][:2]) == (True, True, "07")
    assert change["low"] < 1.1 < change["high"]
    assert segment["low"] < 1.1 < segment["high"]
    assert segment["values"] == STEP


def test_check_is_red_once(add: Add, history: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Red every night from then on, it would be switched off."""
    add(STEP[:9])
    assert main(["history", "check", str(history)]) == 0
    add(STEP)
    capsys.readouterr()
    assert main(["history", "check", str(history)]) == 1
    out = capsys.readouterr().out
    assert "new: b=1 joules_per_output_token worse +10." in out
    assert (
        "which commit (batch): llem bisect 0707070707..0808080808 --study FILE --metric joules_per_output_token " in out
    )
    add([*STEP, 1.1])
    assert main(["history", "check", str(history)]) == 0


def test_a_change_between_runs_of_one_commit_is_not_searched(
    add: Add, history: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The machine did it: hours of bisecting would name nobody, or somebody innocent."""
    add(STEP)
    for path in (history / "batch").iterdir():
        (entry,) = read_file(path, [])
        same = replace(entry, run=replace(entry.run, commit="07" * 20))
        path.write_text(written([same]), encoding="utf-8")
    assert main(["history", "check", str(history)]) == 1
    assert "which commit (batch): none, the runs around it are all of 0707070707" in capsys.readouterr().out


def test_more_tokens_per_second_are_no_change_for_the_worse(add: Add, history: Path) -> None:
    add(STEP, RATE)
    assert main(["history", "check", str(history)]) == 0
    add([1 / level for level in STEP], RATE)
    assert main(["history", "check", str(history)]) == 1


def test_a_broken_file_is_red(add: Add, history: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A nightly job that skips it in silence keeps a history with holes."""
    add(STEP[:3])
    broken = history / "batch" / "broken.jsonl"
    broken.write_text("{", encoding="utf-8")
    assert main(["history", "check", str(history)]) == 1
    assert f"broken: {broken}:1" in capsys.readouterr().out


def test_other_conditions_are_a_row_and_not_a_change(
    add: Add, history: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add([1.0] * 8, driver="550")
    add([2.0] * 8, first=9, driver="560")
    assert main(["history", "check", str(history)]) == 0
    capsys.readouterr()
    main(["history", "show", str(history), "--format", "markdown"])
    out = capsys.readouterr().out
    assert "b=1 \\[2\\]" in out
    assert "- \\[2\\] from 2026-11-09: driver: 550 -\\> 560" in out


def test_runs_at_zero_are_said(add: Add, history: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No request met its target: a change without a ratio must not look like none."""
    add([0.9] * 5 + [0.0] * 3, "slo_met_share")
    assert main(["history", "check", str(history)]) == 0
    assert "slo_met_share: 3 runs with a value of 0" in capsys.readouterr().out


def test_one_run_has_a_level_and_no_spread(add: Add, history: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add([1.0])
    assert main(["history", "show", str(history), "--format", "json"]) == 0
    ((segment,),) = (series["segments"] for series in json.loads(capsys.readouterr().out)["series"])
    assert segment["spread"] is None
    assert segment["low"] < 0.985 < 1.015 < segment["high"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--experiment", "b=2"], "did you mean 'b=1'?"),
        (["--study", "bacth"], "did you mean 'batch'?"),
        (["--metric", "joules_per_output_tokne"], "did you mean 'joules_per_output_token'?"),
        (["--metric", "load_s"], "no run here measured 'load_s'"),
    ],
)
def test_a_name_that_is_not_there_gets_a_suggestion(
    add: Add, history: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    add([1.0])
    assert main(["history", "show", str(history), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_no_history_says_how_to_begin_one(history: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["history", "check", str(history)]) == 2
    history.mkdir()
    assert main(["history", "show", str(history)]) == 2
    assert capsys.readouterr().err.count("llem history add RUN --to DIR") == 2


def test_gates_choose_what_is_watched(add: Add, history: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add([1.0])
    (path,) = (history / "batch").iterdir()
    (entry,) = read_file(path, [])
    both = replace(
        entry, metrics={**entry.metrics, RATE: MetricEntry(5.0, None, None, (5.0,))}, verdicts={RATE: "pass"}
    )
    path.write_text(written([both]), encoding="utf-8")
    main(["history", "show", str(history)])
    assert capsys.readouterr().out.startswith("batch: output_tokens_per_s in 1/s, higher is better")
