"""Whether another laboratory's figures were reproduced: a wrong *equivalent* would be cited."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_llem.cli import main
from pytest_llem.results.attempts import get_or_measure
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.manifest import PlannedCycle, StudyPlan
from pytest_llem.results.metrics import metric
from pytest_llem.results.reading import Results
from pytest_llem.results.reproduction import Reproduction, judge_reproduction
from pytest_llem.results.schema import Result
from pytest_llem.results.store import RunStore
from tests.benchmarks.reproduction import Noise, laboratory, verdicts
from tests.unit.results.conftest import Bench, Worker

JOULES = metric("joules_per_output_token")
QUIET = Noise(cycle=0.002, run=0.001, leakage=0.0)


def labs(more: float = 0.0, noise: Noise = QUIET, cycles: int = 5) -> tuple[Results, Results]:
    rng = random.Random(1)
    return laboratory(rng, "there", noise, cycles), laboratory(rng, "here", noise, cycles, more)


def scaled(results: Results, factor: float) -> Results:
    """The same with other joules."""

    def times(each: Result) -> Result:
        joules = (each.energy.joules_per_output_token or 0.0) * factor
        return each.model_copy(update={"energy": replace(each.energy, joules_per_output_token=joules)})

    return Results(tuple(map(times, results)))


def of(found: Reproduction, kind: str) -> dict[str, str]:
    return {figure.experiment: figure.status for figure in found.figures if figure.kind == kind}


def test_equal_laboratories_are_equivalent_and_another_cost_is_not() -> None:
    """Small form of `python -m tests.benchmarks.reproduction`, whose table is in docs/reproduce.md."""
    assert verdicts(60, 0.0, Noise(), 5)["equivalent"] >= 50
    assert verdicts(60, 0.10, Noise(), 5)["equivalent"] == 0
    assert verdicts(60, 0.05, Noise(leakage=0.0), 5)["equivalent"] <= 8


def test_a_gain_of_one_board_cancels_in_the_ratios_and_leaves_the_levels_open() -> None:
    there, here = labs()
    gained = scaled(here, 1.05)
    found = judge_reproduction(there, gained, JOULES)
    assert found.status == "equivalent"
    assert set(of(found, "ratio").values()) == {"equivalent"}
    assert set(of(found, "level").values()) == {"inconclusive"}


def test_the_setting_that_differs_is_the_one_that_is_named() -> None:
    found = judge_reproduction(*labs(0.15), JOULES)
    assert (found.status, found.reference) == ("different", "a")
    assert of(found, "ratio") == {"b": "equivalent", "c": "equivalent", "d": "different"}
    (figure,) = (each for each in found.figures if each.kind == "ratio" and each.experiment == "d")
    assert figure.factor == pytest.approx(1.15, rel=0.01)
    assert (figure.low or 9) < 1.15 < (figure.high or 0)


def test_what_was_not_measured_here_is_no_reproduction() -> None:
    """Three of four settings that agree are not the study."""
    there, here = labs()
    some = here.where(lambda result: result.experiment.id != "d")
    found = judge_reproduction(there, some, JOULES)
    assert (found.status, found.notes[0]) == ("inconclusive", "not measured here: d")


def test_other_work_and_the_same_measurements_are_not_compared() -> None:
    there, here = labs()
    longer = Results(
        tuple(each.model_copy(update={"workload": replace(each.workload, output_tokens=9)}) for each in here)
    )
    for other, why in ((longer, "output_tokens"), (there, "the same measurements on both sides")):
        found = judge_reproduction(there, other, JOULES)
        assert (found.status, found.reference) == ("inconclusive", None)
        assert {figure.status for figure in found.figures} == {"not comparable"}
        assert all(figure.reason and why in figure.reason for figure in found.figures)


def test_single_cycles_decide_nothing() -> None:
    found = judge_reproduction(*labs(0.5, cycles=1), JOULES)
    assert found.status == "inconclusive"
    assert all(figure.low is None and "two cycles" in (figure.reason or "") for figure in found.figures)


@pytest.mark.parametrize(
    "machine",
    [{"host": {"cpu": {"model": "another"}}}, {"host": {"cpu": {"logical_cores": 8}}, "worker": {"cpus_allowed": 2}}],
    ids=["another", "fewer CPUs of it"],
)
def test_levels_of_other_boards_decide_nothing(machine: dict[str, Any]) -> None:
    """An H100 is not another H100's failure to reproduce."""
    there, here = labs()
    another = replace(here[0].environment, **machine)
    cheaper = Results(tuple(each.model_copy(update={"environment": another}) for each in scaled(here, 0.5)))
    found = judge_reproduction(there, cheaper, JOULES)
    assert set(of(found, "level").values()) == {"different"}
    assert found.status == "equivalent"


@pytest.fixture
def run(bench: Bench, tmp_path: Path) -> Callable[..., Path]:
    """A stored run of one experiment with these watts per cycle."""

    def run(name: str, *watts: float, study: str = "study") -> Path:
        keys = [CycleKey(study, "a:1", "0123456789abcdef", cycle) for cycle in range(1, len(watts) + 1)]
        plan = StudyPlan(
            study,
            None,
            cycles=tuple(PlannedCycle(key.experiment_id, key.config_hash, key.cycle) for key in keys),
            required_cycles=len(keys),
        )
        store = RunStore.create(tmp_path / name, name, environment={}, studies=(plan,))
        for key, power_w in zip(keys, watts, strict=True):
            worker = Worker(bench, key, bench.measurement(power_w))
            worker.run_id = name
            get_or_measure(store, key, worker)
        return store.run_dir

    return run


def test_the_command_judges_a_run_that_is_there(
    run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    there, same, other = (
        run("there", 10.0, 10.01, 9.99),
        run("same", 10.02, 10.0, 10.01),
        run("other", 20.0, 20.1, 19.9),
    )
    assert main(["reproduce", str(there), "--check"]) == 0
    assert "this machine and theirs:" in capsys.readouterr().out
    assert main(["reproduce", str(there), "--run", str(same), "--margin", "0.25"]) == 0
    assert "reproduction: equivalent" in capsys.readouterr().out
    assert main(["reproduce", str(there), "--run", str(same), "--margin", "0.001"]) == 3
    assert main(["reproduce", str(there), "--run", str(other)]) == 1
    kept = json.loads((tmp_path / "llem-results" / "reproduction" / "reproduction.json").read_text())
    assert (kept["status"], kept["reproductions"][0]["figures"][0]["factor"]) == (
        "different",
        pytest.approx(2, rel=0.01),
    )


def test_the_command_says_what_is_wrong(
    run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    there, other = run("there", 10.0, 10.1), run("other", 10.0, 10.1, study="another")
    for arguments, problem in (
        ([str(there), "--margin=5"], "not between 0 and 1"),
        ([str(there)], "holds no study"),
        ([str(there), "--run", str(other)], "no result of the study 'study'"),
        ([str(tmp_path), "--study=less"], "no study 'less'"),
        ([str(there), "--metric=joules", "--check"], "unknown metric"),
    ):
        assert main(["reproduce", *arguments]) == 2
        assert problem in capsys.readouterr().err
