"""`llem aa`: what equal runs differ by, and what gates make of it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import pytest

from pytest_llem.cli import main
from pytest_llem.errors import SettingsError
from pytest_llem.results.attempts import get_or_measure
from pytest_llem.results.baseline_reference import open_baseline
from pytest_llem.results.comparability import common_conditions
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.reading import load
from pytest_llem.results.repeatability import estimate, read_repeatability
from pytest_llem.results.store import RunStore

if TYPE_CHECKING:
    from tests.unit.results.conftest import Bench, Worker

    MakeWorker = Callable[..., Worker]

STUDY = """
name: study
model: builtin:tiny-llama
compare: {fail_if: {joules_per_output_token: 5%}}
"""


def drawn(
    rng: random.Random, runs: int, experiments: int, within: float, common: float, between: float
) -> list[dict[str, list[float]]]:
    shared = [rng.gauss(0, common) for _ in range(runs)]
    return [
        {
            f"run-{run}": [
                10 * (1 + experiment) * rng.lognormvariate(shared[run] + own, within)
                for own in [rng.gauss(0, between)] * 5
            ]
            for run in range(runs)
        }
        for experiment in range(experiments)
    ]


def test_each_component_is_estimated_without_bias() -> None:
    rng = random.Random(5)
    found = [estimate(drawn(rng, 6, 8, 0.01, 0.02, 0.015)) for _ in range(60)]
    assert fmean(each.within_run**2 for each in found) ** 0.5 == pytest.approx(0.01, rel=0.05)
    assert fmean((each.common or 0.0) ** 2 for each in found) ** 0.5 == pytest.approx(0.02, rel=0.2)
    assert fmean(each.between_runs**2 for each in found) ** 0.5 == pytest.approx(0.015, rel=0.05)
    assert {each.degrees for each in found} == {5}


def test_of_one_experiment_all_that_runs_differ_by_is_its_own() -> None:
    rng = random.Random(5)
    found = [estimate(drawn(rng, 6, 1, 0.01, 0.02, 0.015)) for _ in range(150)]
    assert {each.common for each in found} == {None}
    assert fmean(each.between_runs**2 for each in found) ** 0.5 == pytest.approx(0.025, rel=0.1)


def test_runs_that_lack_an_experiment_do_not_count() -> None:
    first, second = drawn(random.Random(1), 4, 2, 0.01, 0.0, 0.0)
    del second["run-3"]
    assert estimate([first, second]).degrees == 2
    del second["run-2"]
    with pytest.raises(SettingsError, match="2 runs have 3 valid cycles of every experiment, and 3 are needed"):
        estimate([first, second])


@pytest.fixture
def runs(tmp_path: Path, bench: Bench, key: CycleKey, worker: MakeWorker) -> Path:
    """Six runs of two experiments whose level differs by 4 % between runs and by 0.5 % between cycles."""
    rng = random.Random(3)
    for number in range(6):
        level = 10 * rng.lognormvariate(0, 0.04)
        store = RunStore.create(tmp_path / "out", f"run-{number}", environment={"hostname": "here"})
        for name in ("a", "b"):
            for cycle in range(1, 4):
                each = replace(key, experiment_id=name, config_hash=name * 16, cycle=cycle)
                inner = worker(each, bench.measurement(level * rng.lognormvariate(0, 0.005)))
                inner.run_id = f"run-{number}"
                get_or_measure(store, each, inner)
    (tmp_path / "study.yaml").write_text(STUDY)
    return tmp_path / "out"


def test_what_equal_runs_differ_by_is_kept_and_used_by_gates(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs that differ by 4 % fail a limit of 5 % falsely, until gates know by how much runs differ here."""
    baselines = tmp_path / "llem-baselines"
    arguments = ["aa", str(tmp_path / "study.yaml"), "--from", str(runs), "--baseline-dir", str(baselines)]
    assert main([*arguments, "--format", "json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    (rate,) = answer["rates"]
    assert (rate["pairs"], rate["gates"]) == (30, 60)
    assert rate["simulated"] < 0.05
    assert rate["failed"] <= 3
    kept = read_repeatability("study", baselines)
    assert kept is not None
    spread = kept.metrics["joules_per_output_token"]
    assert spread.common == pytest.approx(0.04, rel=0.5)
    assert spread.within_run == pytest.approx(0.005, rel=0.4)
    # Metrics without a limit as well: an uncertainty beside another in one table must not rest on another assumption.
    assert kept.metrics["energy_j"].common == pytest.approx(spread.common)

    now = common_conditions(load(runs).valid[:3])
    baseline = open_baseline(str(runs), baselines)
    assert baseline.repeatability["study"].of("joules_per_output_token", now) == spread.of_runs
    assert baseline.repeatability["study"].of("mfu", now) is None
    assert baseline.repeatability["study"].of("joules_per_output_token", {**now, "cpu_model": "another"}) is None

    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "study: 6 equal runs" in said
    assert "gates on this machine use it" in said
    assert "estimated" not in said
    for file in runs.rglob("result.json"):
        file.write_text(file.read_text().replace('"measured": true', '"measured": false'))
    assert main(arguments) == 0
    assert "energy is estimated, not measured: gates do not judge it" in capsys.readouterr().out
    for file in runs.rglob("b-*/*/result.json"):
        result = json.loads(file.read_text())
        result["runner"]["device_ids"] = ["0", "1"]
        file.write_text(json.dumps(result))
    assert main(arguments) == 0
    assert "no gate uses it, because the experiments' devices differ" in capsys.readouterr().out


def test_too_few_runs_and_another_study_are_refused(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.yaml").write_text(STUDY.replace("name: study", "name: other"))
    assert main(["aa", str(tmp_path / "study.yaml"), "--runs", "2"]) == 2
    assert main(["aa", str(tmp_path / "other.yaml"), "--from", str(runs)]) == 2
    said = capsys.readouterr().err
    assert "--runs 2: 3 are needed at least" in said
    assert "no valid result of study 'other'" in said
