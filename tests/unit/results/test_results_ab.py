"""Judging pairs of cycles that were measured in turn."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_llem.cli import main, parser
from pytest_llem.errors import SettingsError
from pytest_llem.results.ab import Side, comparison_of, failed, judged, lines
from pytest_llem.results.attempts import get_or_measure
from pytest_llem.results.gates import judge_pairs, judge_ratio
from pytest_llem.results.judging import judge_in_turn
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.schema import Result
from pytest_llem.results.store import RunStore
from pytest_llem.study.limits import Comparison, parse_fail_if
from pytest_llem.study.loader import load_study

if TYPE_CHECKING:
    from tests.unit.results.conftest import Bench, Worker


def in_turn(rng: random.Random, cycles: int, change: float, drift: float) -> tuple[list[float], list[float]]:
    """Two sides whose common level wanders by `drift` (relative standard deviation) from pair to pair."""
    first, second = [], []
    for _ in range(cycles):
        level = rng.lognormvariate(0, drift)
        first.append(level * rng.lognormvariate(0, 0.005))
        second.append(level * rng.lognormvariate(0, 0.005) * (1 + change))
    return first, second


def test_pairs_find_a_change_that_drift_hides_from_two_samples() -> None:
    """A machine that wanders by 10 % while both are measured: 4 % worse is beyond a limit of 2 %."""
    rng = random.Random(1)
    trials = [in_turn(rng, 5, 0.04, 0.1) for _ in range(200)]
    assert sum(judge_pairs(*trial, 0.02).status == "fail" for trial in trials) > 180
    assert sum(judge_ratio(*trial, 0.02).status == "fail" for trial in trials) < 20


def test_pairs_fail_falsely_in_five_of_a_hundred_at_the_limit() -> None:
    rng = random.Random(2)
    trials = [in_turn(rng, 5, 0.02, 0.1) for _ in range(2000)]
    failed = sum(judge_pairs(*trial, 0.02).status == "fail" for trial in trials) / len(trials)
    assert failed == pytest.approx(0.05, abs=0.015)


def test_pairs_must_be_whole_and_three() -> None:
    with pytest.raises(SettingsError, match="2 cycles cannot be paired with 3"):
        judge_pairs([1.0, 1.0], [1.0, 1.0, 1.0], 0.05)
    assert judge_pairs([1.0, 1.0], [1.0, 1.0], 0.05).reason == "there are 2 pairs of valid cycles, a verdict needs 3"


@pytest.fixture
def side(bench: Bench, key: CycleKey) -> Callable[..., list[Result]]:
    def side(*watts: float, prompts_hash: str = "p") -> list[Result]:
        return [
            bench.result(bench.measurement(power_w, prompts_hash=prompts_hash), replace(key, cycle=cycle))
            for cycle, power_w in enumerate(watts, 1)
        ]

    return side


COMPARISON = Comparison((parse_fail_if("joules_per_output_token", "5%"), parse_fail_if("tokens_per_joule", "-5%")))


def test_a_side_that_is_worse_in_every_pair_fails(side: Callable[..., list[Result]]) -> None:
    report = judge_in_turn(side(10.0, 12.0, 14.0), side(11.0, 13.2, 15.4), COMPARISON)
    assert [row.status for row in report.rows] == ["fail", "fail"]
    assert [row.ratio for row in report.rows] == pytest.approx([1.1, 1 / 1.1])
    assert report.failed


def test_only_pairs_of_the_same_work_are_judged(side: Callable[..., list[Result]]) -> None:
    same = judge_in_turn(side(10.0, 12.0, 14.0, 9.0), side(10.0, 12.0, 14.0), COMPARISON)
    assert same.status == "pass"
    assert same.rows[0].basis == "3 pairs of cycles in turn"
    other = judge_in_turn(side(10.0, 12.0, 14.0), side(10.0, 12.0, 14.0, prompts_hash="q"), COMPARISON)
    assert other.status == "not_comparable"
    assert "prompts_hash: p -> q" in other.rows[0].reason


def test_two_equal_sides_and_too_few_cycles_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = tmp_path / "study.yaml"
    study.write_text("model: builtin:tiny-llama\n")
    assert main(["ab", str(study)]) == 2
    assert main(["ab", str(study), "--b=-v", "--cycles", "2"]) == 2
    said = capsys.readouterr().err
    assert "both sides are the same" in said
    assert "--cycles 2: 3 are needed at least" in said


def test_studies_without_a_common_id_are_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A single experiment is called as its file is, and all cycles of both were measured for nothing."""
    studies = [tmp_path / f"{name}.yaml" for name in ("before", "after")]
    for study in studies:
        study.write_text("model: builtin:tiny-llama\n")
    assert main(["ab", *map(str, studies), f"--out={tmp_path / 'out'}"]) == 2
    assert "before.yaml has before and " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_estimate_of_energy_is_judged_only_where_the_study_says_so(bench: Bench, key: CycleKey) -> None:
    report = replace(bench.energy(), meter="estimate", measured=False)
    estimate = replace(bench.measurement(), energy=report)
    estimates = [bench.result(estimate, replace(key, cycle=cycle)) for cycle in (1, 2, 3)]
    (row, _) = judge_in_turn(estimates, estimates, COMPARISON).rows
    assert row.status == "inconclusive"
    assert "estimated by the meter estimate, not measured" in row.reason
    assert judge_in_turn(estimates, estimates, replace(COMPARISON, allow=("estimated_energy",))).status == "pass"


def test_the_study_says_how_it_is_judged_where_no_option_does(tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(
        "model: builtin:tiny-llama\ncompare: {fail_if: {ttft_p50_s: 10%}, alpha: 0.01, allow: [estimated_energy]}\n"
    )
    stated = comparison_of([load_study(study)] * 2, parser().parse_args(["ab", str(study)]))
    assert stated == Comparison((parse_fail_if("ttft_p50_s", "10%"),), 0.01, ("estimated_energy",))
    options = ["--alpha", "0.1", "--allow", "dtype", "--fail-if", "mfu:-5%"]
    asked = comparison_of([load_study(study)] * 2, parser().parse_args(["ab", str(study), *options]))
    assert asked == Comparison((parse_fail_if("mfu", "-5%"),), 0.1, ("estimated_energy", "dtype"))


def test_both_sides_end_with_a_line_of_gates_and_what_differs_is_said_once(
    tmp_path: Path, bench: Bench, key: CycleKey, worker: Callable[..., Worker]
) -> None:
    sides = []
    for name, dtype in (("a", "float32"), ("b", "bfloat16")):
        store = RunStore.create(tmp_path / name, "run-1", environment={})
        for cycle in (1, 2, 3):
            each, measurement = replace(key, cycle=cycle, config_hash=dtype), bench.measurement()
            engine = replace(measurement.engine, effective={"dtype": dtype})
            get_or_measure(store, each, worker(each, replace(measurement, engine=engine)))
            file = store.directory(each) / "result.json"
            result = json.loads(file.read_text())
            result["experiment"]["config"]["dtype"] = None if name == "a" else dtype
            file.write_text(json.dumps(result))
        sides.append(Side(name.upper(), "study.yaml", (), "python", str(tmp_path / name)))
    found = judged(sides[0], sides[1], 3, COMPARISON, strict=False)
    said = [*lines(found)]
    assert said[-1] == "gates: 2 passed"
    assert [line for line in said if "dtype" in line] == ["differs: dtype float32 -> bfloat16"]
    assert not failed(found, strict=True)
    gone = replace(found, missing=["batch_size:2"])
    assert failed(gone, strict=True), "its cycles all failed on one side, and nobody judged it"
    assert not failed(gone, strict=False)
