"""Baselines and the judgement of an experiment against them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_llem.engines.protocol import Capabilities
from pytest_llem.errors import EngineError, JsonValue, SettingsError, StoreError
from pytest_llem.job.condition_names import CONDITIONS
from pytest_llem.job.measurement import EngineFacts
from pytest_llem.job.report import Note
from pytest_llem.results.attempts import get_or_measure
from pytest_llem.results.baseline_reference import open_baseline
from pytest_llem.results.baselines import MAX_RUNS, Baseline, baseline_of, baseline_path, read_baseline, save_baseline
from pytest_llem.results.comparability import common_conditions, conditions, differences
from pytest_llem.results.energy_schema import CalibrationSection, ThermalSection
from pytest_llem.results.gate_report import GATE, GateReport, gates_line, write_gate
from pytest_llem.results.judging import judge_experiment
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.metrics import metric
from pytest_llem.results.reading import load
from pytest_llem.results.schema import Result
from pytest_llem.results.state import Outcome
from pytest_llem.results.store import RunStore
from pytest_llem.study.limits import Budget, Comparison, FailIf, parse_fail_if

if TYPE_CHECKING:
    from tests.unit.results.conftest import Bench, Worker

    MakeWorker = Callable[..., Worker]
    Runs = Callable[..., list[Outcome]]

NOISE = (1.00, 1.01, 0.99, 1.005, 0.995)
COMPARE = Comparison((FailIf("joules_per_output_token", 0.05),))


@pytest.fixture
def run(tmp_path: Path, bench: Bench, key: CycleKey, worker: MakeWorker) -> Runs:
    """Measures a run of five cycles: `run("name", watts)`; `change` alters each measurement."""

    def measure(
        name: str, watts: float = 10.0, change: dict[str, object] | None = None, of: CycleKey = key, invalid: int = 0
    ) -> list[Outcome]:
        store = RunStore.create(tmp_path / "out", name, environment={"hostname": "here"})
        outcomes = []
        for cycle, noise in enumerate(NOISE, 1):
            measurement = replace(bench.measurement(watts * noise), **(change or {}))  # type: ignore[arg-type]
            if cycle <= invalid:
                measurement = replace(measurement, invalid=(Note("throttled", "1 s"),))
            each = replace(of, cycle=cycle)
            inner = worker(each, measurement)
            inner.run_id = name
            outcomes.append(get_or_measure(store, each, inner))
        return outcomes

    return measure


def against(outcomes: Sequence[Outcome], baseline: Baseline, **options: object) -> GateReport:
    return judge_experiment(outcomes, (), COMPARE, baseline, **options)  # type: ignore[arg-type]


def stored(outcomes: Sequence[Outcome]) -> Baseline:
    return open_baseline(str(outcomes[0].directory.parents[2]), Path("llem-baselines"))


def test_a_regression_beyond_the_limit_fails_with_a_table(run: Runs) -> None:
    report = against(run("now", 12.0), stored(run("before")))
    assert report.failed
    (row,) = report.rows
    assert row.status == "fail"
    assert row.ratio == pytest.approx(1.2)
    assert row.baseline == pytest.approx(10 * 2 / 24, rel=1e-3)
    for part in ("joules_per_output_token", "fail", "0.8333 J", "+20.0 %", "+5 %", "rose by 20.0 %"):
        assert part in report.text()


def test_equal_runs_pass(run: Runs) -> None:
    report = against(run("now"), stored(run("before")))
    assert (report.status, report.failed, report.skip_reason()) == ("pass", False, "")


def test_a_report_names_its_baseline_with_run_date_and_commit(run: Runs, tmp_path: Path) -> None:
    """`gate.json` told numbers of a baseline, and a reader had to find out which runs, of when, they were."""
    first, second = "20261101T080000Z-aaaaaaaa", "nightly"
    git: dict[str, str | bool] = {"commit": "4f2a", "dirty": False}
    for name, known in ((first, git), (second, None)):
        results = [outcome.result for outcome in run(name) if outcome.result is not None]
        for result in results:
            result.environment.host["git"] = {**known} if known else None
        save_baseline("main", results, tmp_path / "baselines")
    report = against(run("now"), open_baseline("main", tmp_path / "baselines"))
    write_gate(tmp_path, report)
    baseline = json.loads((tmp_path / GATE).read_text())["baseline"]
    assert baseline["name"] == "main"
    assert baseline["runs"][0] == {"run_id": first, "started_at": "2026-11-01T08:00:00+00:00", **git}
    assert (baseline["runs"][1]["run_id"], baseline["runs"][1]["commit"]) == (second, None)
    assert baseline["runs"][1]["started_at"] == results[0].measured_from
    assert judge_experiment(run("budget"), (Budget("joules_per_output_token", "<=", 1.0),)).baseline is None


def test_where_higher_is_better_the_ratio_still_reads_as_the_metric(run: Runs) -> None:
    compare = Comparison((FailIf("tokens_per_joule", -0.05),))
    report = judge_experiment(run("now", 12.0), (), compare, stored(run("before")))
    (row,) = report.rows
    assert row.status == "fail"
    assert row.ratio is not None
    assert row.ci_low is not None
    assert row.ci_high is not None
    assert row.ratio == pytest.approx(1 / 1.2)
    assert row.ci_low < row.ratio < row.ci_high


def test_other_work_is_not_comparable_and_named(run: Runs) -> None:
    report = against(run("now", change={"prompts_hash": "q"}), stored(run("before")))
    assert report.status == "not_comparable"
    assert not report.failed
    assert "prompts_hash: p -> q" in report.skip_reason()
    strict = against(run("again", change={"prompts_hash": "q"}), stored(run("third")), strict=True)
    assert strict.failed


def test_a_named_difference_can_be_allowed(run: Runs, bench: Bench) -> None:
    newer = {"engine": replace(bench.measurement().engine, version="6.0")}
    now, before = run("now", change=newer), stored(run("before"))
    assert "engine_version: 5.23 -> 6.0" in against(now, before).skip_reason()
    assert against(now, before, allow={"engine_version"}).status == "pass"


def test_another_meter_matters_to_energy_alone(run: Runs, bench: Bench) -> None:
    other = {"energy": replace(bench.energy(), meter="zeus")}
    compare = Comparison((FailIf("joules_per_output_token", 0.05), FailIf("output_tokens_per_s", -0.05)))
    report = judge_experiment(run("now", change=other), (), compare, stored(run("before")))
    assert [row.status for row in report.rows] == ["not_comparable", "pass"]


def test_a_measurement_is_never_its_own_baseline(run: Runs) -> None:
    """Reused results compared with the run that they come from would pass for ever."""
    now = run("now", 12.0)
    assert "the same measurements" in against(now, stored(now)).skip_reason()


def test_an_unknown_experiment_is_not_comparable_and_an_unknown_study_an_error(run: Runs, key: CycleKey) -> None:
    before = stored(run("before"))
    other = run("other", of=replace(key, experiment_id="batch_size:2", config_hash="f" * 16))
    assert "has no valid cycle of this experiment" in against(other, before).skip_reason()
    changed = run("changed", of=replace(key, config_hash="e" * 16))
    assert "another configuration" in against(changed, before).skip_reason()
    with pytest.raises(StoreError, match="no baseline of study 'new'"):
        against(run("new", of=replace(key, study="new")), before)


def test_a_renamed_experiment_is_found_by_its_configuration(run: Runs, key: CycleKey) -> None:
    before = stored(run("before"))
    assert against(run("now", of=replace(key, experiment_id="renamed")), before).status == "pass"


def test_invalid_cycles_are_never_judged(run: Runs) -> None:
    before = stored(run("before"))
    assert against(run("two-left", invalid=3), before).status == "inconclusive"
    report = against(run("three-left", 12.0, invalid=2), before)
    assert report.rows[0].status == "fail"
    assert "not used: c1 invalid, c2 invalid" in report.rows[0].reason


def test_budgets_need_no_baseline(run: Runs) -> None:
    outcomes = run("now")
    fits = judge_experiment(outcomes, [Budget("avg_power_w", "<=", 11.0)])
    breaks = judge_experiment(outcomes, [Budget("avg_power_w", "<", 9.0), Budget("mfu", ">=", 0.5)])
    assert fits.status == "pass"
    assert [row.status for row in breaks.rows] == ["fail", "inconclusive"]
    assert "did not measure it" in breaks.rows[1].reason


def test_saving_keeps_a_bounded_number_of_runs_in_a_small_file(run: Runs, tmp_path: Path) -> None:
    directory = tmp_path / "llem-baselines"
    results = [outcome.result for outcome in run("run-x") if outcome.result]
    for number in range(MAX_RUNS + 2):
        named = [result.model_copy(update={"run_id": f"run-{number:02}"}) for result in results]
        save_baseline("main", named, directory)
    path = baseline_path(directory, "main", "study")
    runs = read_baseline(path).experiments["batch_size:1"].runs
    assert [entry.run_id for entry in runs] == [f"run-{number:02}" for number in range(2, MAX_RUNS + 2)]
    assert '"avg_power_w": [10.0, 10.1, 9.9, 10.05, 9.95]' in path.read_text()
    assert path.stat().st_size < 4000 * MAX_RUNS


def test_only_what_ran_is_touched(run: Runs, key: CycleKey, tmp_path: Path) -> None:
    first = [outcome.result for outcome in run("one") if outcome.result]
    other = replace(key, experiment_id="batch_size:2", config_hash="f" * 16)
    second = [outcome.result for outcome in run("two", of=other) if outcome.result]
    save_baseline("main", [*first, *second], tmp_path)
    before = json.loads(baseline_path(tmp_path, "main", "study").read_text())
    save_baseline("main", [result.model_copy(update={"run_id": "three"}) for result in second], tmp_path)
    after = json.loads(baseline_path(tmp_path, "main", "study").read_text())
    assert after["experiments"]["batch_size:1"] == before["experiments"]["batch_size:1"]
    assert [entry["run_id"] for entry in after["experiments"]["batch_size:2"]["runs"]] == ["two", "three"]


def test_invalid_and_failing_results_are_not_saved_unless_forced(run: Runs, key: CycleKey, tmp_path: Path) -> None:
    invalid = [outcome.result for outcome in run("one", invalid=1) if outcome.result]
    refused = save_baseline("main", invalid, tmp_path)
    assert refused.refused == {("study", key.experiment_id): "1 of 5 cycles invalid"}
    assert not refused.files
    forced = save_baseline("main", invalid, tmp_path, force=True)
    assert forced.saved == (("study", key.experiment_id),)
    (entry,) = read_baseline(forced.files[0]).experiments.values()
    assert len(entry.runs[0].values["avg_power_w"]) == 4
    failing = save_baseline("other", invalid[1:], tmp_path, failing=[("study", key.experiment_id)])
    assert failing.refused == {("study", key.experiment_id): "failed"}


def test_saved_baselines_are_found_by_name_directory_and_file(run: Runs, tmp_path: Path) -> None:
    outcomes = run("before")
    results = [outcome.result for outcome in outcomes if outcome.result]
    directory = tmp_path / "llem-baselines"
    (file,) = save_baseline("main", results, directory).files
    now = run("now", 12.0)
    references = ["main", str(directory / "main"), str(file), str(outcomes[0].directory.parents[2])]
    assert {against(now, open_baseline(reference, directory)).status for reference in references} == {"fail"}
    result_file = outcomes[0].directory / "result.json"
    assert open_baseline(str(result_file), directory).find("study", "batch_size:1", "0123456789abcdef") is not None


def test_missing_baselines_and_wrong_names_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StoreError) as caught:
        open_baseline("gone", tmp_path)
    assert caught.value.fix is not None
    assert "--llem-save-baseline=gone" in caught.value.fix
    with pytest.raises(SettingsError, match="no name for a baseline"):
        save_baseline("../up", [], tmp_path)


def test_loaded_results_are_typed_and_tabular(run: Runs, key: CycleKey, tmp_path: Path, worker: MakeWorker) -> None:
    outcomes = run("one", invalid=1)
    failed = replace(key, cycle=6)
    get_or_measure(RunStore.open(outcomes[0].directory.parents[2]), failed, worker(failed, EngineError("gone")))
    run("two")
    results = load(tmp_path / "out")
    assert (len(results), len(results.valid)) == (10, 9)
    table = results.to_table()
    assert table.column_names[:3] == ["run_id", "source_run", "study"]
    assert table["config.settings.batch_size"].to_pylist() == [1] * 10
    assert table.schema.field("avg_power_w").metadata == {b"unit": b"W"}
    assert len(load(outcomes[0].directory.parents[2])) == 5
    assert [result.cycle for result in load(outcomes[1].directory / "result.json")] == [2]
    with pytest.raises(StoreError, match="no results here"):
        load(tmp_path / "nowhere")


def test_runs_of_a_folder_become_baseline_runs(run: Runs, tmp_path: Path) -> None:
    run("one")
    run("two")
    entry = baseline_of("x", load(tmp_path / "out")).studies["study"].experiments["batch_size:1"]
    assert [(each.run_id, len(each.values["avg_power_w"])) for each in entry.runs] == [("one", 5), ("two", 5)]


@pytest.mark.parametrize(("limit", "told"), [(0.05, True), (0.08, False)])
def test_another_board_compares_only_beyond_both_gain_errors(limit: float, told: bool) -> None:
    """Two boards of unknown gain (5 % each) differ by up to 7.1 %: a limit of 5 % would compare boards, not code."""
    before: dict[str, JsonValue] = {"device_ids": ["GPU-1"], "device_count": 1}
    now: dict[str, JsonValue] = {"device_ids": ["GPU-2"], "device_count": 1}
    found = differences(before, now, metric("energy_j"), limit=limit)
    assert bool(found) is told
    assert differences(before, now, metric("energy_j"), limit=limit, gain=(0.01, 0.01)) == []
    assert differences(before, {**now, "device_count": 2}, metric("energy_j"), limit=0.5)


def test_runs_of_another_configuration_leave_the_baseline(run: Runs, key: CycleKey, tmp_path: Path) -> None:
    for name, config_hash in (("one", "a" * 16), ("two", "b" * 16)):
        outcomes = run(name, of=replace(key, config_hash=config_hash))
        save_baseline("main", [outcome.result for outcome in outcomes if outcome.result], tmp_path)
    (entry,) = read_baseline(baseline_path(tmp_path, "main", "study")).experiments.values()
    assert [each.run_id for each in entry.runs] == ["two"]


def test_a_limit_in_the_metrics_unit_is_judged_against_the_baselines_level(run: Runs) -> None:
    """0.833 J a token before, 0.167 J more now: within a limit of 0.3 J, beyond one of 0.05 J."""
    baseline, now = stored(run("before")), run("now", 12.0)

    def judged(text: str) -> GateReport:
        return judge_experiment(now, (), Comparison((parse_fail_if("joules_per_output_token", text),)), baseline)

    loose, close = judged("0.3 J"), judged("0.05 J")
    assert [loose.status, close.status] == ["pass", "fail"]
    assert "+0.05 J" in close.text()
    assert close.rows[0].ratio == pytest.approx(1.2)


def test_a_limit_in_the_metrics_unit_where_higher_is_better(run: Runs, bench: Bench) -> None:
    slow = {"requests": bench.measurement(output_tokens=3).requests}
    baseline = stored(run("before"))
    compare = Comparison((parse_fail_if("output_tokens_per_s", "-1/s"), parse_fail_if("output_tokens_per_s", "-5/s")))
    report = judge_experiment(run("now", 10.0, slow), (), compare, baseline, allow={"output_tokens"})
    assert [row.status for row in report.rows] == ["fail", "pass"]
    whole = Comparison((parse_fail_if("output_tokens_per_s", "-50/s"),))
    report = judge_experiment(run("again"), (), whole, baseline)
    assert report.skip_reason() == ("output_tokens_per_s: inconclusive: the limit is as large as the baseline itself")


def test_a_study_may_allow_a_difference_by_name(run: Runs) -> None:
    measurement_engine = EngineFacts("transformers", "9.9", {"dtype": "float32"}, Capabilities(token_times=True))
    baseline, now = stored(run("before")), run("now", 10.0, {"engine": measurement_engine})
    limits = COMPARE.fail_if
    assert judge_experiment(now, (), COMPARE, baseline).status == "not_comparable"
    assert judge_experiment(now, (), Comparison(limits, allow=("engine_version",)), baseline).status == "pass"


def test_every_condition_has_its_name_in_the_list(run: Runs) -> None:
    (*_, last) = run("now")
    assert last.result is not None
    assert tuple(conditions(last.result)) == CONDITIONS


def test_an_unsettled_die_is_not_compared_with_a_settled_one(run: Runs) -> None:
    """Cycles that are equally cold agree with each other, and not with the sustained figure."""
    (*_, last) = run("now")
    assert last.result is not None
    settled = last.result.model_copy(update={"thermal": ThermalSection(state="settled")})
    cold = last.result.model_copy(update={"thermal": ThermalSection(state="unsettled")})
    before = common_conditions([settled, settled])
    assert differences(before, conditions(cold), metric("energy_j"), 0.05) == ["thermal_state: settled -> unsettled"]
    assert differences(before, conditions(cold), metric("ttft_p50_s"), 0.05) == []
    assert differences(before, common_conditions([settled, cold]), metric("energy_j"), 0.05) != []
    assert conditions(last.result)["thermal_state"] is None, "as in a baseline that is older than the condition"


def test_what_a_cache_held_is_a_condition(run: Runs) -> None:
    """The same traffic costs less from a warm cache; a baseline from before there was a choice allowed no hits."""
    (*_, last) = run("now")
    assert last.result is not None
    held = {
        cache: conditions(last.result.model_copy(update={"workload": replace(last.result.workload, cache=cache)}))
        for cache in (None, "cold", "warm")
    }
    assert differences(held["cold"], held["warm"], metric("ttft_p50_s"), 0.05) == ["cache: cold -> warm"]
    older = {name: value for name, value in held[None].items() if name != "cache"}
    assert differences(older, held[None], metric("ttft_p50_s"), 0.05) == []
    assert differences(older, held["cold"], metric("ttft_p50_s"), 0.05) == ["cache: none -> cold"]


def traced(result: Result, hash: str, estimator: str) -> Result:
    """The result as if it came from a calibrated GPU."""
    device = replace(result.energy.devices[0], id="GPU-1", kind="gpu")
    made = CalibrationSection(
        device="GPU-1", id="GPU-1@day", hash=hash, made_at=None, valid_until=None, expired=True, conditions={}
    )
    windows = tuple(replace(window, estimator=estimator) for window in result.energy.windows)
    energy = replace(result.energy, devices=(device,), calibrations=(made,), windows=windows)
    return result.model_copy(update={"energy": energy})


def test_another_calibration_or_estimator_is_another_condition_of_energy(run: Runs) -> None:
    (*_, last) = run("now")
    assert last.result is not None
    before = common_conditions([traced(last.result, "a" * 64, "counter_outer_edge")] * 3)
    odd = traced(last.result, "a" * 64, "counter_interpolated")
    recalibrated = conditions(traced(last.result, "b" * 64, "counter_outer_edge"))

    assert differences(before, recalibrated, metric("energy_j"), 0.05) == [
        f"calibration: GPU-1@day {'a' * 12} -> GPU-1@day {'b' * 12}"
    ]
    assert differences(before, recalibrated, metric("ttft_p50_s"), 0.05) == []
    assert len(differences(before, conditions(odd), metric("energy_j"), 0.05)) == 1
    assert before == common_conditions([traced(last.result, "a" * 64, "counter_outer_edge")] * 2 + [odd])
    assert not differences(before, {**recalibrated, "device_ids": ["other"]}, metric("energy_j"), 0.2), (
        "other boards, by their gains"
    )


def other_settings(outcomes: list[Outcome], **settings: int) -> list[Outcome]:
    """The same cycles, as of the same id under changed engine settings."""
    changed = []
    for outcome in outcomes:
        assert outcome.result is not None
        config = {**outcome.result.experiment.config, "settings": {**settings}}
        experiment = replace(outcome.result.experiment, config=config, config_hash="e" * 16)  # type: ignore[arg-type]
        result = outcome.result.model_copy(update={"experiment": experiment})
        changed.append(replace(outcome, key=replace(outcome.key, config_hash="e" * 16), result=result))
    return changed


def test_the_same_id_under_changed_settings_names_what_changed(run: Runs, tmp_path: Path) -> None:
    """Batch size 4 -> 1 under the same id costs 4x, and was skipped as 'another configuration'."""
    results = [outcome.result for outcome in run("before") if outcome.result is not None]
    save_baseline("main", results, tmp_path / "baselines")
    now = other_settings(run("now", 40.0), batch_size=4, fused=True)
    before = open_baseline("main", tmp_path / "baselines")
    report = against(now, before)
    assert report.status == "not_comparable"
    assert report.rows[0].reason == "batch_size 1 -> 4; fused unset -> True"
    assert "where the change is meant: compare: {match: id}" in report.text()
    assert gates_line([report]) == "gates: 1 not comparable (batch_size 1 -> 4); baseline main (1 run of 2023-11-14)"
    by_id = judge_experiment(now, (), replace(COMPARE, match="id"), before)
    assert by_id.status == "fail"
    assert by_id.rows[0].ratio == pytest.approx(4.0)
    assert "match: id" not in by_id.text()
    assert "batch_size 1 -> 4" in by_id.rows[0].reason
    same = judge_experiment(run("third"), (), replace(COMPARE, match="id"), before)
    assert same.status == "pass"


def test_a_baseline_of_an_older_version_has_no_settings_and_loads(run: Runs, key: CycleKey, tmp_path: Path) -> None:
    results = [outcome.result for outcome in run("before") if outcome.result is not None]
    (path,) = save_baseline("main", results, tmp_path).files
    data = json.loads(path.read_text())
    del data["experiments"][key.experiment_id]["settings"]
    path.write_text(json.dumps(data))
    before = open_baseline("main", tmp_path)
    assert against(run("now"), before).status == "pass"
    changed = against(other_settings(run("then"), batch_size=4), before)
    assert "another configuration; this baseline does not keep its settings" in changed.rows[0].reason


def test_one_baseline_run_says_what_it_cannot_decide(run: Runs, tmp_path: Path) -> None:
    now = run("now", 12.0)
    (row,) = against(now, stored(run("before"))).rows
    assert row.baseline_runs == 1
    assert "not from what a whole run shares" in row.basis
    for name in ("again", "third"):
        run(name)
    several = open_baseline(str(tmp_path / "out"), Path("llem-baselines"))
    (row,) = against(now, several).rows
    assert (row.baseline_runs, row.status) == (3, "fail")
    assert row.basis.startswith("3 baseline runs: ")


def test_a_budget_in_joules_includes_gain_and_sensor(run: Runs, bench: Bench) -> None:
    """10.5 W is within the gain error of a board, and was a failure with the bound of the scatter alone."""
    outcomes = run("now", 10.0)
    gain = {"energy": replace(bench.energy(10.5), gain_uncertainty_rel=0.05)}
    (unsure,) = judge_experiment(run("board", 10.5, gain), [Budget("avg_power_w", "<=", 10.2)]).rows
    assert unsure.status == "inconclusive"
    assert "for gain and sensor" in unsure.reason
    (over,) = judge_experiment(outcomes, [Budget("avg_power_w", "<=", 9.0)]).rows
    (speed,) = judge_experiment(outcomes, [Budget("output_tokens_per_s", ">=", 11.5)]).rows
    assert (over.status, speed.status) == ("fail", "pass")
    assert "gain" not in speed.reason
