"""`llem list`: what became of each run, without opening it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_llem.cli import main
from pytest_llem.errors import EngineError
from pytest_llem.results.attempts import get_or_measure
from pytest_llem.results.gate_report import GateReport, GateRow, write_gate
from pytest_llem.results.gates import Status
from pytest_llem.results.layout import MANIFEST, CycleKey, new_run_id, run_directories, started_at
from pytest_llem.results.manifest import (
    Invocation,
    PlannedCycle,
    StudyPlan,
    read_manifest,
    rebuild_manifest,
    write_manifest,
)
from pytest_llem.results.state import Holder
from pytest_llem.results.store import RunStore
from pytest_llem.results.summary import summarise, write_summary

if TYPE_CHECKING:
    from tests.unit.results.conftest import Bench, Worker

    MakeWorker = Callable[..., Worker]

CYCLES = 4
MakeRun = Callable[..., Path]
GONE = Holder(2**22 + 1, 0.0, os.uname().nodename)


@pytest.fixture
def make_run(tmp_path: Path, bench: Bench, key: CycleKey, worker: MakeWorker) -> MakeRun:
    """Makes a run of two experiments of four cycles, of which so many were measured, in a folder of runs."""
    second = CycleKey(key.study, "batch_size:2", "f" * 16, 1)
    planned = [replace(each, cycle=cycle) for each in (key, second) for cycle in range(1, CYCLES + 1)]
    plan = StudyPlan(
        key.study,
        None,
        cycles=tuple(PlannedCycle(each.experiment_id, each.config_hash, each.cycle) for each in planned),
        headline="joules_per_request",
    )

    def make(name: str, measured: int, *, ends: bool = True, interrupted: bool = False, fail: int = 0) -> Path:
        store = RunStore.create(tmp_path / "out", name, studies=(plan,), environment={"hostname": "here"})
        for number, cell in enumerate(planned[:measured]):
            power = bench.measurement(10.0 * (1 + number // CYCLES))
            get_or_measure(store, cell, worker(cell, EngineError("no") if number < fail else power))
        if ends:
            rebuild_manifest(store.run_dir, finished=True, interrupted=interrupted)
            write_summary(store.run_dir, list(summarise(planned, store.outcome)))
        return store.run_dir

    return make


def states(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """The state that the list shows, by run."""
    assert main(["list", str(tmp_path / "out")]) == 0
    rows = [line.split("  ") for line in capsys.readouterr().out.splitlines()[1:]]
    return {row[0]: next(cell for cell in row[1:] if cell).strip() for row in rows}


def test_a_runs_state_says_how_far_it_came(
    tmp_path: Path, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    """An interrupted run once read `finished`, and one that was killed `unfinished`, as did one that went on."""
    make_run("1-whole", 8)
    make_run("2-failed", 8, fail=3)
    make_run("3-ctrl-c", 5, interrupted=True)
    make_run("4-first-failure", 5, fail=1)
    calls = {"5-killed": GONE, "6-goes-on": Holder.me(), "7-elsewhere": replace(Holder.me(), hostname="elsewhere")}
    for name, holder in calls.items():
        called = Invocation(("pytest",), str(tmp_path), str(tmp_path), holder)
        rebuild_manifest(make_run(name, 2, ends=False), invocation=called)
    found = states(tmp_path, capsys)
    assert list(found) == sorted(found, reverse=True)
    assert found == {
        "1-whole": "complete",
        "2-failed": "failed 3/8",
        "3-ctrl-c": "interrupted 5/8",
        "4-first-failure": "stopped 5/8",
        "5-killed": "interrupted 2/8",
        "6-goes-on": "running 2/8",
        "7-elsewhere": "unfinished 2/8",
    }


def test_a_run_of_cycles_that_are_not_valid_is_no_good_one(
    tmp_path: Path, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    """It read `complete`, and the column of valid cycles is the first but one to go on a narrow terminal."""
    run = make_run("run", 8)
    for path in [*run.glob("*/*/*/state.json")][:3]:
        path.write_text(path.read_text().replace('"valid"', '"invalid"'))
    rebuild_manifest(run, finished=True)
    assert states(tmp_path, capsys) == {"run": "complete, 3 invalid"}


def test_a_headline_says_what_it_is_of_and_that_it_was_estimated(
    tmp_path: Path, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    """Joules that nobody measured stood there like others, and beside joules a rate had neither name nor unit."""
    make_run("measured", 8)
    summary = make_run("estimated", 8) / "summary.csv"
    summary.write_text(summary.read_text().replace(",True,", ",False,"))
    run = make_run("rate", 8)
    manifest = read_manifest(run / MANIFEST)
    plans = tuple(replace(plan, headline="output_tokens_per_s") for plan in manifest.studies)
    write_manifest(run, replace(manifest, studies=plans))
    main(["list", str(tmp_path / "out")])
    head, rate, measured, estimated, *notes = capsys.readouterr().out.splitlines()
    assert "headline" in head
    assert "tokens/s " in rate
    assert "J/request " in measured
    assert "*" not in measured
    assert "J*  " in estimated
    assert notes == ["* energy is NOT measured but estimated"]


def test_what_ended_after_the_manifest_was_written_counts(
    tmp_path: Path, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that was killed, or had no room left for its manifest, was listed as one that had measured nothing."""
    run = make_run("killed", 3, ends=False)
    manifest = read_manifest(run / MANIFEST)
    write_manifest(run, replace(manifest, items=tuple(replace(i, state="pending") for i in manifest.items)))
    assert states(tmp_path, capsys) == {"killed": "interrupted 3/8"}


@pytest.mark.parametrize("columns", [80, 160])
def test_gates_and_the_studys_own_headline_stay_on_a_narrow_terminal(
    tmp_path: Path,
    make_run: MakeRun,
    columns: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    run = make_run("20261129T152300Z-0123abcd", 8)
    make_run("20261129T152200Z-0123abcd", 4, interrupted=True)
    verdicts: tuple[Status, ...] = ("pass", "fail", "inconclusive")
    rows = [GateRow("energy_j", "budget", status, "<= 1", None, None, None, None, None, "") for status in verdicts]
    for experiment in run.glob("*/*/"):
        write_gate(experiment, GateReport("study", experiment.name, tuple(rows), strict=False))
    main(["list", str(tmp_path / "out")])
    head, first, second, *note = capsys.readouterr().out.splitlines()
    assert max(map(len, (head, first, second, *note))) <= columns
    assert "J/request" in head
    assert ("2 fail, 2 skip, 2 pass" if columns == 160 else "2 of 6 fail") in first
    assert "complete" in first
    best, _, worst = first.partition(" .. ")
    assert float(worst.split()[0]) == pytest.approx(2 * float(best.split()[-1]), rel=0.01)
    assert " ± " in second
    assert ("studies" in head) is (columns == 160)
    assert bool(note) is (columns == 80)


def test_json_has_everything(tmp_path: Path, make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    make_run("run", 8, fail=1)
    main(["list", "--json", str(tmp_path / "out")])
    [row] = json.loads(capsys.readouterr().out)
    assert (row["state"], row["planned"], row["ended"], row["valid"]) == ("failed", 8, 8, 7)
    [headline] = row["headlines"]
    assert (headline["metric"], headline["unit"], headline["experiments"]) == ("joules_per_request", "J", 2)
    assert headline["worst"] == pytest.approx(2 * headline["best"])


@pytest.mark.parametrize(
    "text", ["study,joules_per_request_value\ns,many\n", "study,joules_per_request_value\ns,nan\n", "study\n\xff"]
)
def test_a_broken_summary_is_named(
    tmp_path: Path, make_run: MakeRun, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("run", 8)
    make_run("whole", 1)
    (run / "summary.csv").write_bytes(text.replace("\ns,", "\nstudy,").encode("latin-1"))
    assert main(["list", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr()
    assert str(run / "summary.csv") in printed.err
    assert printed.out.splitlines()[1].startswith("whole"), "one broken run took the whole list with it"


def test_a_time_that_is_none_is_shown_as_it_is(
    tmp_path: Path, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run of somebody else may hold any text where its beginning should stand; it hid all other runs."""
    run = make_run("a", 1)
    write_manifest(run, replace(read_manifest(run / MANIFEST), started_at="yesterday"))
    assert main(["list", str(run.parent)]) == 0
    assert "yesterday" in capsys.readouterr().out


def test_runs_without_gates_show_their_valid_cycles_in_that_room(
    tmp_path: Path, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A column of dashes stayed at 80 columns, and that of valid cycles went."""
    make_run("20261129T152300Z-0123abcd", 8)
    for columns in (100, 80, 70, 60):
        monkeypatch.setenv("COLUMNS", str(columns))
        main(["list", str(tmp_path / "out")])
        head = capsys.readouterr().out.splitlines()[0]
        assert "valid" in head or "gates" not in head


def test_runs_are_listed_newest_first_within_a_second_and_under_another_name(tmp_path: Path) -> None:
    """The digits behind the second were drawn: of `llem ab`'s two runs either might have been the newest."""
    ids = [new_run_id() for _ in range(200)]
    made = [RunStore.create(tmp_path, run_id).run_dir for run_id in ids]
    later = "29991231T235959Z-00000001"
    RunStore.create(tmp_path, later)
    last = made.pop(0).rename(tmp_path / "the-one-of-the-paper")
    broken = tmp_path / "cut-off"
    broken.mkdir()
    (broken / MANIFEST).write_text("{")

    assert [path.name for path in run_directories(tmp_path)] == [later, *reversed(ids[1:]), last.name, broken.name]


def test_run_ids_begin_with_the_time_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 1_800_000_000_999_999_999)
    ids = {new_run_id() for _ in range(100)}
    assert ids == {f"20270115T080000Z-ee6b27f{digit}" for digit in "cdef"}
    assert {started_at(run_id) for run_id in ids} == {"2027-01-15T08:00:00+00:00"}
