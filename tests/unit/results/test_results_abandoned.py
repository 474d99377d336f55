"""A cycle whose pytest process is gone is recorded as crashed, by whoever knows most about it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
from filelock import FileLock

from pytest_llem.errors import StoreError, WorkerCrashedError
from pytest_llem.job.job import JobDir
from pytest_llem.results import attempts as attempts_module
from pytest_llem.results.attempts import abandon, get_or_measure
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.state import Holder, begin, read_state, write_state
from pytest_llem.results.store import LOCKS, RunStore

KEY = CycleKey("study", "experiment", "0" * 64, 1)
DEATH = WorkerCrashedError("worker gw3 of xdist, which measured it, died")


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore.create(tmp_path, "run", environment={})


def left_running(store: RunStore) -> None:
    """As a process leaves it that was killed: there was one of this id, and there is none."""
    state = begin(KEY, None)
    assert state.holder is not None
    write_state(store.directory(KEY), replace(state, holder=Holder(state.holder.pid, 0.0, state.holder.hostname)))


def measure(attempt: int, job_dir: JobDir) -> NoReturn:
    raise AssertionError("it is not to be measured again")


@pytest.mark.parametrize("begun", [True, False], ids=["while it measured", "before it began"])
def test_the_death_of_its_process_is_final(store: RunStore, begun: bool) -> None:
    if begun:
        left_running(store)

    outcome = abandon(store, KEY, DEATH)

    assert (outcome.state, outcome.attempts) == ("crashed", 1)
    assert "gw3" in outcome.message()
    assert get_or_measure(store, KEY, measure).state == "crashed"


def test_who_knows_more_than_the_next_to_come_is_heard(store: RunStore) -> None:
    left_running(store)
    assert "gw3" not in get_or_measure(store, KEY, measure).message()

    assert "gw3" in abandon(store, KEY, DEATH).message()


def test_a_cycle_that_had_ended_stays_as_it_was(store: RunStore) -> None:
    def fail(attempt: int, job_dir: JobDir) -> NoReturn:
        raise WorkerCrashedError("the worker was killed by SIGSEGV")

    get_or_measure(store, KEY, fail)

    assert "SIGSEGV" in abandon(store, KEY, DEATH).message()


def test_a_cycle_that_somebody_has_in_hand_is_left_to_them(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts_module, "HANDOVER_S", 0.1)
    lock = store.run_dir / LOCKS / ("_".join(KEY.directory.parts) + ".lock")
    with FileLock(lock), pytest.raises(StoreError, match="in hand"):
        abandon(store, KEY, DEATH)
    assert read_state(store.directory(KEY)) is None
