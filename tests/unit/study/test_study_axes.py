"""The axes of a sweep as tables and charts show them."""

from __future__ import annotations

import pickle
from collections.abc import Callable

from pytest_llem.results.axes import StudyAxes, differing
from pytest_llem.study import Study

Load = Callable[..., Study]
MODEL = "model: builtin:tiny-llama\nengine: transformers\n"


def test_points_have_the_values_that_the_user_wrote(load: Load) -> None:
    """A column per axis needs numbers as numbers; a named group is one axis, however many settings it sets."""
    study = load(
        MODEL
        + """\
sweep:
  transformers.batch_size: [1, 4]
  quantization:
    - {}
    - {transformers.quantization: {load_in_8bit: true}}
    - {transformers.quantization.load_in_4bit: true, transformers.quantization.bnb_4bit_quant_type: [nf4, fp4]}
"""
    )

    assert [(axis.name, axis.title) for axis in study.axes] == [
        ("transformers.batch_size", "batch_size"),
        ("quantization", "quantization"),
    ]
    assert study.axes[0].values == (1, 4)
    assert study.axes[1].values == (
        "none",
        "load_in_8bit",
        "load_in_4bit, bnb_4bit_quant_type=nf4",
        "load_in_4bit, bnb_4bit_quant_type=fp4",
    )
    assert [study.point(experiment) for experiment in study.experiments[:2]] == [(1, "none"), (1, "load_in_8bit")]
    again = pickle.loads(pickle.dumps(study))
    assert again.point(again.experiments[-1]) == (4, "load_in_4bit, bnb_4bit_quant_type=fp4")


def test_an_axis_of_another_engine_has_no_value(load: Load) -> None:
    """vLLM's `max_num_seqs` does nothing for transformers: its column stays empty, and is not the first value."""
    study = load(
        "model: builtin:tiny-llama\nsweep:\n  engine: [transformers, vllm]\n  vllm.max_num_seqs: [8, 16]\n"
        "  dtype: [null, float32]\n"
    )

    assert [axis.title for axis in study.axes] == ["engine", "max_num_seqs", "dtype"]
    assert {study.point(experiment) for experiment in study.experiments} == {
        ("transformers", None, "null"),
        ("transformers", None, "float32"),
        ("vllm", 8, "null"),
        ("vllm", 8, "float32"),
        ("vllm", 16, "null"),
        ("vllm", 16, "float32"),
    }


def test_a_group_of_one_setting_keeps_its_numbers_and_titles_are_told_apart(load: Load) -> None:
    """`batch: [{transformers.batch_size: 1}, ...]` is as ordered as the setting; like-named axes keep their paths."""
    study = load(MODEL + "sweep:\n  batch: [{transformers.batch_size: 1}, {transformers.batch_size: 2}]\n")
    assert study.axes[0].values == (1, 2)
    study = load(MODEL + "sweep: {workload.seed: [0, 1], seed: [0, 1]}\n")
    assert [axis.title for axis in study.axes] == ["workload.seed", "seed"]


def test_explicit_experiments_have_no_point_and_need_their_ids(load: Load) -> None:
    """Beside a sweep, an explicit experiment lies on no axis."""
    study = load(MODEL + "sweep: {transformers.batch_size: [1, 2]}\nexperiments: [{id: eager, dtype: float32}]\n")
    axes = StudyAxes((), {experiment.id: study.point(experiment) for experiment in study.experiments})
    assert axes.points["eager"] == (None,)
    assert axes.point("eager") == {}


def test_results_without_a_plan_differ_by_their_settings() -> None:
    """A folder of copied results has no run.json: what differs in their settings stands for the axes."""
    axes = differing(
        {"a": {"dtype": "float32", "x.batch_size": 1, "n": 3}, "b": {"dtype": "float32", "x.batch_size": 4}}
    )
    assert [(axis.name, axis.title, axis.values) for axis in axes.axes] == [
        ("x.batch_size", "batch_size", (1, 4)),
        ("n", "n", (3,)),
    ]
    assert axes.point("b") == {"x.batch_size": 4, "n": None}
    assert axes.axes[0].ordered
    assert axes.tells_apart(["a", "b"])
