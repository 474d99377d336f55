"""What a run's manifest holds of its studies, for readers who tell experiments apart and for crashes of an item."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pytest_llem.results.layout import CycleKey, WindowKey
from pytest_llem.results.state import begin
from pytest_llem.session.experiment_cycle import ExperimentCycle
from pytest_llem.session.run_plan import cycle_of_item, study_plans
from pytest_llem.study import load_study

STUDY = """\
model: builtin:tiny-llama
engine: transformers
sweep:
  dtype: [float32, bfloat16]
  beams: [{}, {transformers.num_beams: 2}]
experiments:
  - {id: long, workload.output_tokens: 8}
"""


def test_settings_that_differ_without_being_an_axis_are_named(tmp_path: Path) -> None:
    """Tables had no column for what a group sets, nor for explicit experiments."""
    (tmp_path / "study.yaml").write_text(STUDY)
    study = load_study(tmp_path / "study.yaml")
    [plan] = study_plans(ExperimentCycle(study, experiment, 1) for experiment in study.experiments)
    assert [axis.name for axis in plan.axes] == ["dtype", "beams"]
    assert plan.points["long"] == (None, None)
    assert set(plan.settings) == {"transformers.num_beams", "workload.output_tokens"}


SEARCH = """\
name: load
model: builtin:tiny-llama
engine: openai
openai: {base_url: "http://127.0.0.1:9/v1"}
slo: {e2el_s: 1}
sweep:
  workload.arrival.rate_per_s: {search: {low: 1, high: 8}}
"""


def test_an_item_is_about_its_cycle_or_window(tmp_path: Path) -> None:
    """A process that dies in a window must not be followed by one that measures the same window and dies as well."""
    path = tmp_path / "load.yaml"
    path.write_text(SEARCH)
    study = load_study(path)
    [experiment] = study.experiments
    plans = study_plans([ExperimentCycle(study, experiment, 2, step=3)])

    def of(name: str) -> list[CycleKey]:
        return list(cycle_of_item(f"load.yaml::{name}", plans, tmp_path))

    key = (study.name, experiment.id, experiment.config_hash, 2)
    assert of("test_experiment[rate_per_s:search-3-c2]") == [WindowKey(*key, 3)]
    assert of("test_experiment[rate_per_s:search-c2]") == [CycleKey(*key)]
    assert of("test_gate[rate_per_s:search]") == []
    assert of("test_experiment[another-c2]") == []


def test_cycles_that_confirm_a_gate_take_no_number_and_no_place_of_others(tmp_path: Path) -> None:
    """A later run that plans more cycles, and `target_ci`, would take them for their own."""
    path = tmp_path / "load.yaml"
    path.write_text(SEARCH + "execution: {cycles: 2, target_ci: 5%, max_cycles: 7, confirm: true}\n")
    study = load_study(path)
    [experiment] = study.experiments
    again = ExperimentCycle(study, experiment).once_more()
    assert [cycle.cycle for cycle in again] == [8, 9]
    assert not any(cycle.optional for cycle in again)
    window = replace(again[0], step=3)
    assert window.key.directory == again[0].key.directory / "search-3"
    assert again[0].key.directory.parts[-2:] == ("confirm", "c8")
    assert [begin(each.key, None).key for each in (again[0], window)] == [again[0].key, window.key]
