"""Items of a race over what is on the disk: which are skipped, and which of them fails for its setting."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from pytest_llem.results.state import CycleState, Outcome, now, write_state
from pytest_llem.results.store import RunStore
from pytest_llem.session.experiment_cycle import ExperimentCycle
from pytest_llem.session.run_results import RunResults
from pytest_llem.session.study_tests import skip_unless_raced
from pytest_llem.study import load_study
from tests.unit.results.test_results_raced import STUDY, outcome, outcome_of

if TYPE_CHECKING:
    from pytest_llem.session.session import LlemSession


@pytest.mark.parametrize("declared", ["", "assume: monotone, "])
def test_the_first_item_after_the_cycles_of_a_setting_without_a_valid_one_fails(tmp_path: Path, declared: str) -> None:
    """Each invalid cycle is a skip: all of a setting's passed for a race that went well.

    With a declared structure a setting joins late, and rounds before that have no cycle of it.
    """
    path, invalid = tmp_path / "study.yaml", "batch_size:4"
    path.write_text(STUDY.replace("max_cycles: 6", f"{declared}max_cycles: 12"))
    study = load_study(path)
    store = RunStore.create(tmp_path / "out", "run", environment={})
    cycles: list[int] = []

    def measured(cycle: ExperimentCycle, *, retried: bool) -> Outcome:
        key = cycle.key
        if key.experiment_id == invalid:
            cycles.append(key.cycle)
        found = (
            outcome(None, state="invalid") if key.experiment_id == invalid else outcome_of(key.experiment_id, key.cycle)
        )
        names = (key.study, key.experiment_id, key.config_hash, key.cycle)
        write_state(store.directory(key), CycleState(*names, found.state, (found.state,), now()))
        return found

    run = cast("Any", SimpleNamespace(id="run", out=store.run_dir.parent))
    results = RunResults(run, run, run)
    vars(results).update(store=store, get_or_measure=measured)
    results.races.begin(study, dict.fromkeys(each.id for each in study.experiments))
    session = cast("LlemSession", SimpleNamespace(results=results))
    (setting,) = (each for each in study.experiments if each.id == invalid)
    said: dict[int, tuple[bool, str]] = {}
    for number in range(1, study.last_cycle + 1):
        try:
            skip_unless_raced(cast("pytest.Item", None), session, ExperimentCycle(study, setting, number))
        except (pytest.skip.Exception, pytest.fail.Exception) as ended:
            said[number] = (type(ended) is pytest.fail.Exception, str(ended))
        else:
            results.get_or_measure(ExperimentCycle(study, setting, number), retried=True)

    failed = [number for number, (fails, _) in said.items() if fails]
    assert failed == [max(cycles) + 1]
    assert "no cycle of this experiment is valid; could not be measured: " in said[failed[0]][1]
