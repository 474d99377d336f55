"""A measurement that several runs hold, because `--llem-resume` reused it, counts once wherever runs are read."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_llem.cli import main
from pytest_llem.results.aa import values_of
from pytest_llem.results.attempts import get_or_measure
from pytest_llem.results.baselines import baseline_of, read_baseline, save_baseline
from pytest_llem.results.compared_sides import open_runs
from pytest_llem.results.gate_power import measured_noise
from pytest_llem.results.judging import judge_experiment
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.manifest import rebuild_manifest
from pytest_llem.results.metrics import metric
from pytest_llem.results.reading import load, load_all, load_rows, measurement_id, recorded_durations
from pytest_llem.results.report.content import gather_content
from pytest_llem.results.resume import Reuse
from pytest_llem.results.schema import Result
from pytest_llem.results.state import Outcome
from pytest_llem.results.store import RunStore
from pytest_llem.results.summary import summarise, summary_csv
from pytest_llem.results.terminal import silent
from pytest_llem.session.study_tests import properties
from pytest_llem.study.limits import Comparison, FailIf

if TYPE_CHECKING:
    from tests.unit.results.conftest import Bench, Worker

    MakeWorker = Callable[..., Worker]
    Run = Callable[..., list[Outcome]]

NOISE = (1.00, 1.02, 0.98)
LIMIT = FailIf("joules_per_output_token", 0.05)


@pytest.fixture
def second(key: CycleKey) -> CycleKey:
    return CycleKey(key.study, "batch_size:2", "f" * 16, 1)


@pytest.fixture
def run(tmp_path: Path, bench: Bench, worker: MakeWorker) -> Run:
    """`run(name, cycles, earlier)`: measures the cycles of `cycles`, but reuses those that the run `earlier` holds."""

    def held(earlier: str | None) -> dict[tuple[str, int], Result]:
        found = load_rows(tmp_path / "out" / earlier) if earlier else ()
        return {(result.experiment.config_hash, result.cycle): result for result in found}

    def measure(
        name: str, cycles: dict[CycleKey, int], earlier: str | None = None, watts: float = 10.0
    ) -> list[Outcome]:
        store = RunStore.create(tmp_path / "out", name, environment={"hostname": "here"})
        before = held(earlier)
        outcomes = []
        for key, count in cycles.items():
            for cycle, noise in enumerate(NOISE[:count], 1):
                each = replace(key, cycle=cycle)
                inner = worker(each, bench.measurement(watts * noise))
                inner.run_id = name
                reusable = before.get((key.config_hash, cycle))
                reuse = (lambda found=reusable: Reuse(found, None)) if reusable else None
                outcomes.append(get_or_measure(store, each, inner, reuse=reuse))
        rebuild_manifest(store.run_dir, finished=True)
        return outcomes

    return measure


@pytest.fixture
def out(tmp_path: Path, run: Run, key: CycleKey, second: CycleKey) -> Path:
    """Six measurements in three runs: `r1` was interrupted after four, `r2` went on, `r3` reused all six: 16 rows."""
    run("r1", {key: 3, second: 1})
    run("r2", {key: 3, second: 3}, earlier="r1")
    run("r3", {key: 3, second: 3}, earlier="r2")
    return tmp_path / "out"


def test_a_folder_of_runs_has_a_row_per_measurement(out: Path) -> None:
    """16 rows for six measurements, and each reused one weighed double in a mean."""
    results = load(out)
    assert len(load_rows(out)) == 16
    assert len(results) == len({measurement_id(result) for result in results}) == 6
    assert {result.run_id for result in results} == {"r3"}
    assert sorted(result.source_run or result.run_id for result in results) == ["r1"] * 4 + ["r2"] * 2


def test_a_run_that_was_asked_for_keeps_its_own_rows(out: Path) -> None:
    for run, rows in (("r1", 4), ("r2", 6), ("r3", 6)):
        results = load(out / run)
        assert [result.run_id for result in results] == [run] * rows


def test_a_renamed_experiment_is_the_same_measurement_and_another_attempt_is_not(bench: Bench, key: CycleKey) -> None:
    result = bench.result(key=key)
    renamed = result.model_copy(update={"run_id": "r2", "source_run": "run-1"})
    assert measurement_id(renamed) == measurement_id(result)
    assert measurement_id(result.model_copy(update={"attempt": 2})) != measurement_id(result)


def test_exports_hold_each_measurement_once(out: Path, tmp_path: Path) -> None:
    main(["export", str(out), "--format", "csv", "-o", str(tmp_path / "all.csv")])
    with (tmp_path / "all.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == 6
    main(
        ["export", *(str(out / run) for run in ("r1", "r2", "r3", "r1")), "--format", "otel", "-o", str(tmp_path / "o")]
    )
    assert len((tmp_path / "o").read_text().splitlines()) == 6


def test_a_folder_of_exports_that_is_written_again_holds_each_measurement_once(out: Path, tmp_path: Path) -> None:
    for path in (out / "r1", out / "r2", out):
        main(["export", str(path), "--format", "vllm-bench", "-o", str(tmp_path / "bench")])
    assert len(list((tmp_path / "bench").iterdir())) == 6


def test_a_report_of_a_folder_shows_each_measurement_once(out: Path, tmp_path: Path) -> None:
    content = gather_content([out])
    assert len(content.results) == 6
    assert sorted((row.run, row.valid, row.total) for row in content.experiments) == [("r3", 3, 3), ("r3", 3, 3)]
    assert main(["report", str(out), "-o", str(tmp_path / "r.html")]) == 0
    assert "6 of 6 cycles valid" in (tmp_path / "r.html").read_text()


def test_a_report_compares_whole_runs(out: Path, tmp_path: Path, run: Run, key: CycleKey, second: CycleKey) -> None:
    """Rows that a later run holds too are still part of the run that is compared."""
    run("r0", {key: 3, second: 3}, watts=8.0)
    main(["report", str(out), "-o", str(tmp_path / "r.html"), "--baseline", str(out / "r0")])
    text = (tmp_path / "r.html").read_text()
    assert all(f"{run}" in text for run in ("r1", "r2", "r3"))
    assert text.count("+25.0 %") == 3 * 2


def test_durations_weigh_each_measurement_once(out: Path, second: CycleKey) -> None:
    """The first cycle, which three runs hold, weighed more than the others: 3.57 s."""
    for path in out.glob("r*/*/*/c*/result.json"):
        data = json.loads(path.read_text())
        data["timing"]["cycle_s"] = 7.0 if data["cycle"] == 1 else 1.0
        path.write_text(json.dumps(data))
    assert recorded_durations(out)[second.config_hash] == pytest.approx(3.0)


def test_a_comparison_with_its_own_resume_is_refused(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It passed: both sides were the same numbers. Experiments of one side alone make it no comparison."""
    gate = ["--fail-if", "joules_per_output_token:5%"]
    for baseline, other in (("r2", "r3"), ("r3", "r2"), ("r2", "r2"), ("r3", "r1"), ("r1", "r3")):
        assert main(["compare", str(out / baseline), str(out / other), *gate]) == 2
        assert "the same measurements" in capsys.readouterr().err


def test_an_experiment_that_shares_measurements_is_not_compared(
    out: Path, run: Run, key: CycleKey, second: CycleKey, capsys: pytest.CaptureFixture[str]
) -> None:
    run("r4", {key: 2, second: 3}, watts=20.0)
    run("r5", {key: 2}, earlier="r4")
    run("r6", {key: 3, second: 3}, earlier="r5")
    gate = ["--fail-if", "joules_per_output_token:5%", "--format", "json"]
    assert main(["compare", str(out / "r4"), str(out / "r6"), *gate]) == 0
    rows = json.loads(capsys.readouterr().out)
    verdicts = {(row["experiment_id"], row["verdict"]) for row in rows if row["limit_text"]}
    assert ("batch_size:1", "not_comparable") in verdicts
    assert ("batch_size:2", "not_comparable") not in verdicts
    (shared,) = {row["differs"][0] for row in rows if row["experiment_id"] == "batch_size:1"}
    assert shared == "the same measurements on both sides: c1, c2 of run r4"
    assert all(row["ci_low"] is None for row in rows if row["experiment_id"] == "batch_size:1")
    assert main(["compare", str(out / "r4"), str(out / "r6"), *gate, "--strict"]) == 1


def test_a_folder_on_the_right_is_compared_run_by_run(
    out: Path, run: Run, key: CycleKey, second: CycleKey, capsys: pytest.CaptureFixture[str]
) -> None:
    run("r0", {key: 3, second: 3}, watts=8.0)
    assert main(["compare", str(out / "r0"), str(out), "--metric", "joules_per_output_token", "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    whole = {row["run"]: row["ratio"] for row in rows if row["experiment_id"] == "batch_size:1"}
    assert {run: whole[run] for run in ("r1", "r2", "r3")} == dict.fromkeys(("r1", "r2", "r3"), pytest.approx(1.25))
    assert "c1, c2, c3 of run r0" in str([row["differs"] for row in rows if row["run"] == "r0"])


def test_a_gate_against_the_measurements_under_judgement_is_not_comparable(
    out: Path, run: Run, key: CycleKey, second: CycleKey
) -> None:
    now = run("r4", {key: 3, second: 3}, earlier="r1", watts=20.0)
    report = judge_experiment(now[3:], (), Comparison((LIMIT,)), baseline_of("r1", load(out / "r2")))
    assert report.status == "not_comparable"
    assert "the same measurements on both sides: c1 of run r1" in report.skip_reason()
    others = judge_experiment(now[3:], (), Comparison((LIMIT,)), baseline_of("x", load_rows(out)))
    assert others.status == "not_comparable"


def test_a_saved_baseline_holds_each_measurement_once(
    tmp_path: Path, run: Run, key: CycleKey, second: CycleKey
) -> None:
    """The resumed run was added as a second run: two runs of the same numbers, with no spread between them."""
    first = run("r1", {key: 3, second: 2})
    resumed = run("r2", {key: 3, second: 3}, earlier="r1", watts=20.0)
    part = run("r3", {key: 1}, earlier="r2")
    saved = [
        save_baseline("main", [each.result for each in outcomes if each.result], tmp_path / "baselines")
        for outcomes in (first, resumed, part)
    ]
    held = read_baseline(tmp_path / "baselines" / "main" / "study.json").experiments
    assert {name: [len(run.measurements) for run in each.runs] for name, each in held.items()} == {
        "batch_size:1": [3],
        "batch_size:2": [3],
    }
    (mixed,) = held["batch_size:2"].runs
    assert (mixed.run_id, mixed.measurements) == ("r2", ("r1/c1/1", "r1/c2/1", "r2/c3/1"))
    assert "holds the same measurements" in saved[2].refused["study", "batch_size:1"]
    assert not saved[2].saved


def test_a_folder_as_a_baseline_holds_each_measurement_once(out: Path, key: CycleKey) -> None:
    baseline = baseline_of("out", load_rows(out))
    assert [len(run.values["energy_j"]) for run in baseline.studies[key.study].experiments["batch_size:1"].runs] == [3]


def test_noise_is_that_of_the_runs_that_measured(out: Path) -> None:
    """The noise of a run that was resumed whole was that of no cycle at all."""
    for path in (out, out / "r3"):
        (noise,) = measured_noise(open_runs(str(path), Path("none")), metric("joules_per_output_token"))
        assert (noise.runs, noise.cycles) == (1, 3)


def test_equal_runs_are_those_that_measured(out: Path) -> None:
    """A folder with a resumed run had none left of what that reused: its rows were those of the run that resumed."""
    (runs,) = values_of(metric("energy_j"), load_all([out, out / "r1"], silent).valid)
    assert {name: len(values) for name, values in runs.items()} == {"r1": 3}


def test_a_summary_counts_the_cycles_that_an_earlier_run_measured(out: Path, key: CycleKey, second: CycleKey) -> None:
    store = RunStore.open(out / "r2")
    keys = [replace(each, cycle=cycle) for each in (key, second) for cycle in (1, 2, 3)]
    rows = list(summarise(keys, store.outcome))
    assert [(row.cycles_valid, row.cycles_reused) for row in rows] == [(3, 3), (3, 1)]
    assert [row["cycles_reused"] for row in csv.DictReader(summary_csv(rows).splitlines())] == ["3", "1"]


def test_a_reused_cycle_names_the_run_that_measured_it_in_junit(run: Run, key: CycleKey, tmp_path: Path) -> None:
    (measured,) = run("r1", {key: 1})
    (reused,) = run("r2", {key: 1}, earlier="r1")
    assert "llem_source_run" not in dict(properties(measured, tmp_path))
    assert dict(properties(reused, tmp_path))["llem_source_run"] == "r1"
