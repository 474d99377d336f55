"""What a run's manifest holds of its studies: enough for a reader of the results to tell experiments apart."""

from __future__ import annotations

from pathlib import Path

from pytest_llem.session.experiment_cycle import ExperimentCycle
from pytest_llem.session.run_results import study_plans
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
