"""Adding runs to a history: what a run leaves there, once, whoever else adds."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_llem.cli import main
from pytest_llem.errors import EngineError, JsonValue, StoreError
from pytest_llem.results.attempts import get_or_measure
from pytest_llem.results.gate_report import GateReport, GateRow, write_gate
from pytest_llem.results.history.adding import add_run
from pytest_llem.results.history.files import read_history
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.manifest import rebuild_manifest
from pytest_llem.results.resume import Reuse
from pytest_llem.results.store import RunStore

if TYPE_CHECKING:
    from tests.unit.results.conftest import Bench, Worker

    MakeWorker = Callable[..., Worker]

FIRST, SECOND = "20261101T000000Z-aaaa", "20261102T000000Z-bbbb"
Measure = Callable[..., RunStore]


def git(commit: str, **facts: JsonValue) -> JsonValue:
    return {"commit": commit * 40, "committed_at": "2026-11-01T09:00:00+09:00", "dirty": False, **facts}


@pytest.fixture
def measure(tmp_path: Path, bench: Bench, worker: MakeWorker) -> Measure:
    """Measures cycles of experiments in a run: `reused` are taken over from another; no watts, a cycle that failed."""

    def make(
        name: str = FIRST,
        experiments: tuple[str, ...] = ("1",),
        cycles: tuple[int, ...] = (1, 2, 3),
        study: str = "study",
        watts: float | None = 10.0,
        commit: str = "a",
        reused: RunStore | None = None,
        shard: tuple[int, int] | None = None,
        store: RunStore | None = None,
    ) -> RunStore:
        store = store or RunStore.create(tmp_path / "out", name, environment={"hostname": "h", "git": git(commit)})
        for key in (CycleKey(study, each, each * 16, cycle) for each in experiments for cycle in cycles):
            measured = EngineError("no") if watts is None else bench.measurement(watts * (1 + key.cycle / 100))
            work = worker(key, measured)
            work.run_id = name
            earlier = None if reused is None else reused.outcome(key)
            reuse = None if earlier is None else partial(Reuse, earlier.result, None)
            get_or_measure(store, key, work, reuse=reuse)
        part: dict[str, JsonValue] = {}
        if shard is not None:
            part = {"shard": {"index": shard[0], "count": shard[1], "splits": {study: "x"}}}
        rebuild_manifest(store.run_dir, finished=True, facts=part)
        return store

    return make


def gate(store: RunStore, metric: str, *statuses: str) -> None:
    """The verdicts on the first experiment, of a comparison and then of budgets on one metric."""
    row = GateRow(metric, "budget", "pass", "<= 1 J", None, 1.0, 1.0, None, None, "")
    rows = [replace(row, status=each) for each in statuses]  # type: ignore[arg-type]
    rows[0] = replace(rows[0], kind="comparison")
    directory = store.directory(CycleKey("study", "1", "1" * 16, 1)).parent
    write_gate(directory, GateReport("study", "1", tuple(rows), strict=False))


def held(directory: Path) -> list[tuple[str, str, str | None, int]]:
    """Run, experiment, first digit of the commit, and cycles."""
    entries = read_history(directory).entries
    return [(e.run.run_id, e.experiment_id, (e.run.commit or "-")[0], len(e.measurements)) for e in entries]


def test_a_run_is_there_once_however_often_it_is_added(measure: Measure, tmp_path: Path) -> None:
    """A job that is run again adds again; what was measured since then replaces what was there."""
    store, history = measure(cycles=(1, 2)), tmp_path / "h"
    assert [each.outcome for each in add_run(store.run_dir, history)] == ["added"]
    assert [each.outcome for each in add_run(store.run_dir, history)] == ["already there"]
    measure(cycles=(3,), store=store)
    assert [each.outcome for each in add_run(store.run_dir, history)] == ["replaced"]
    assert held(history) == [(FIRST, "1", "a", 3)]
    assert not [path for path in history.rglob("*") if path.name.startswith(".llem")]


def test_what_a_history_has_of_a_run(measure: Measure, tmp_path: Path) -> None:
    """Since when, because of which commit, and is it true: all that needs is in the line."""
    store = measure()
    gate(store, "energy_j", "fail", "pass")
    add_run(store.run_dir, tmp_path / "h")
    (entry,) = read_history(tmp_path / "h").entries
    assert (entry.run.started_at, entry.run.committed_at) == ("2026-11-01T00:00:00+00:00", "2026-11-01T00:00:00+00:00")
    assert (entry.run.commit, entry.run.dirty, entry.run.hostname) == ("a" * 40, False, "h")
    energy = entry.metrics["energy_j"]
    assert energy.cycles == (20.2, 20.4, 20.6)
    assert energy.low is not None
    assert energy.high is not None
    assert energy.low < energy.value == 20.3993 < energy.high
    assert entry.verdicts == {"energy_j": "fail"}  # a budget that passes hides no comparison that fails
    assert entry.regressed == ("energy_j",)
    assert entry.conditions["meter"] == "rapl"
    assert entry.settings["workload.prompts"] == 3


def test_studies_of_a_run_have_a_file_each(measure: Measure, tmp_path: Path) -> None:
    """Also where their names differ in what a file's name cannot have."""
    store = measure(study="a b")
    measure(study="a/b", experiments=("2",), store=store)
    add_run(store.run_dir, tmp_path / "h")
    entries = read_history(tmp_path / "h").entries
    assert sorted((e.run.study, e.experiment_id) for e in entries) == [("a b", "1"), ("a/b", "2")]


def test_a_failed_run_keeps_no_other_out(measure: Measure, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In CI the history is added to whatever became of the run; alone it is an error, and nothing is written."""
    failed = measure(FIRST, watts=None)
    with pytest.raises(StoreError, match="no cycle of this run has ended with a result"):
        add_run(failed.run_dir, tmp_path / "h")
    assert not (tmp_path / "h").exists()
    measure(SECOND)
    assert main(["history", "add", str(tmp_path / "out"), "--to", str(tmp_path / "h")]) == 0
    printed = capsys.readouterr()
    assert "added, 1 experiment" in printed.out
    assert f"llem: not added: {failed.run_dir}" in printed.err
    assert [run for run, *_ in held(tmp_path / "h")] == [SECOND]
    assert main(["history", "add", str(failed.run_dir), "--to", str(tmp_path / "h")]) == 2


def test_shards_are_one_run_and_never_less_than_it_was(measure: Measure, tmp_path: Path) -> None:
    """Four jobs measure parts of one run: it is one point of a trend, whichever part is added once more."""
    first = measure(FIRST, ("1",), shard=(1, 2))
    second = measure(SECOND, ("2",), shard=(2, 2))
    history = tmp_path / "h"
    assert [each.outcome for each in add_run(tmp_path / "out", history)] == ["added"]
    assert held(history) == [(FIRST, "1", "a", 3), (FIRST, "2", "a", 3)]
    assert [each.outcome for each in add_run(first.run_dir, history)] == ["kept"]
    add_run(second.run_dir, history)
    assert [(experiment, count) for _, experiment, _, count in sorted(held(history))] == [("1", 3), ("2", 3)]


def test_cycles_that_were_taken_over_belong_to_their_commit(measure: Measure, tmp_path: Path) -> None:
    """`--llem-resume` on a later commit must not show the energy of the earlier one as its own."""
    earlier = measure(FIRST, ("1", "2"), commit="a")
    resumed = measure(SECOND, ("1", "2", "3"), commit="b", cycles=())
    for experiment, source in (("1", earlier), ("2", earlier), ("3", None)):
        measure(SECOND, (experiment,), reused=source, store=resumed)
    history = tmp_path / "h"
    add_run(resumed.run_dir, history)
    alone = [(FIRST, "1", "a", 3), (FIRST, "2", "a", 3), (SECOND, "3", "b", 3)]
    assert held(history) == alone
    add_run(earlier.run_dir, history)
    assert held(history) == alone


def test_cycles_of_a_run_that_crashed_count_for_the_one_that_resumed_it(measure: Measure, tmp_path: Path) -> None:
    """On one commit both are one measurement, and neither half of it is a run of its own."""
    crashed = measure(FIRST, cycles=(1, 2))
    resumed = measure(SECOND, cycles=(1, 2), reused=crashed)
    measure(SECOND, cycles=(3,), store=resumed)
    for order in ((crashed, resumed), (resumed, crashed)):
        history = tmp_path / order[0].run_id
        for store in order:
            add_run(store.run_dir, history)
        assert held(history) == [(SECOND, "1", "a", 3)]


def test_two_processes_that_add_at_once_lose_nothing(measure: Measure, tmp_path: Path) -> None:
    """Runners share a disk: with one file for all, the second would write what the first one had read."""
    stores = [measure(f"2026110{number}T000000Z-x") for number in range(1, 5)]
    code = "import sys; from pytest_llem.cli import main; sys.exit(main(['history', 'add', *sys.argv[1:]]))"
    to = ["--to", str(tmp_path / "h")]
    halves = [stores[:3], stores[1:]]  # two of the runs are added by both
    adding = [
        subprocess.Popen([sys.executable, "-c", code, *(str(store.run_dir) for store in half), *to]) for half in halves
    ]
    assert [process.wait(60) for process in adding] == [0, 0]
    assert [run for run, *_ in held(tmp_path / "h")] == [store.run_id for store in stores]
    assert read_history(tmp_path / "h").problems == ()


def test_branches_that_both_added_merge_without_conflict(measure: Measure, tmp_path: Path) -> None:
    """Two jobs push to the history's branch; the second merges or rebases, and nobody is there to resolve anything."""
    folder = tmp_path / "repository"
    stores = [measure(FIRST), measure(SECOND)]

    def do(*arguments: str) -> None:
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)

    folder.mkdir()
    do("init", "-q", "-b", "main")
    do("commit", "-q", "--allow-empty", "-m", "begin")
    for store in stores:
        do("checkout", "-q", "-b", store.run_id, "main")
        add_run(store.run_dir, folder / "llem-history")
        do("add", "-A")
        do("commit", "-q", "-m", store.run_id)
    do("merge", "-q", "-m", "both", FIRST)
    assert [run for run, *_ in held(folder / "llem-history")] == [FIRST, SECOND]
