"""The sweep language: axes, groups, ranges, exclusions, explicit experiments, bases."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from pytest_llem.errors import StudyError
from pytest_llem.study import Study
from tests.installed import forget

Load = Callable[..., Study]


def ids(study: Study) -> list[str]:
    return [experiment.id for experiment in study.experiments]


def test_product_in_written_order(load: Load) -> None:
    study = load("model: m\nsweep: {transformers.batch_size: [1, 4], dtype: [float32, bfloat16]}\n")

    assert ids(study) == [
        "batch_size:1-dtype:float32",
        "batch_size:1-dtype:bfloat16",
        "batch_size:4-dtype:float32",
        "batch_size:4-dtype:bfloat16",
    ]
    assert study.experiments[3].config.settings["batch_size"] == 4
    assert study.experiments[3].config.dtype == "bfloat16"


def test_study_without_sweep_is_one_experiment_named_after_the_study(load: Load) -> None:
    assert ids(load("model: m\n", name="my study!.yaml")) == ["my-study"]


def test_group_sets_fields_together_and_expands_inner_lists(load: Load) -> None:
    study = load(
        """\
        model: m
        sweep:
          dtype: [float16]
          quantization:
            - {}
            - {transformers.quantization: {load_in_8bit: true}}
            - {transformers.quantization.load_in_4bit: true, transformers.quantization.bnb_4bit_quant_type: [nf4, fp4]}
        """
    )

    assert ids(study) == [
        "dtype:float16-quantization:none",
        "dtype:float16-load_in_8bit:true",
        "dtype:float16-load_in_4bit:true-bnb_4bit_quant_type:nf4",
        "dtype:float16-load_in_4bit:true-bnb_4bit_quant_type:fp4",
    ]
    quantization = study.experiments[2].config.settings["quantization"]
    assert isinstance(quantization, dict)
    assert (quantization["load_in_4bit"], quantization["bnb_4bit_quant_type"]) == (True, "nf4")


def test_section_as_an_axis_takes_mappings_and_null(load: Load) -> None:
    study = load("model: m\nsweep: {transformers.quantization: [null, {load_in_4bit: true}]}\n")

    assert ids(study) == ["quantization:none", "load_in_4bit:true"]
    assert "quantization" not in study.experiments[0].config.settings


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("{range: [1, 64], scale: log2}", [1, 2, 4, 8, 16, 32, 64]),
        ("{range: [2, 8, 3]}", [2, 5, 8]),
        ("{range: [3, 1, -1]}", [3, 2, 1]),
        ("[1, {range: [4, 6]}, 9]", [1, 4, 5, 6, 9]),
        ("{linspace: [1, 9, 3]}", [1, 5, 9]),
        ("7", [7]),
    ],
)
def test_ranges(load: Load, value: str, expected: list[int]) -> None:
    study = load(f"model: m\nsweep: {{transformers.batch_size: {value}}}\n")

    assert [experiment.config.settings["batch_size"] for experiment in study.experiments] == expected


def test_linspace_of_fractions_is_tidy(load: Load) -> None:
    study = load("model: m\nengine: vllm\nsweep: {vllm.gpu_memory_utilization: {linspace: [0.1, 0.3, 3]}}\n")

    assert ids(study) == [f"gpu_memory_utilization:{value}" for value in ("0.1", "0.2", "0.3")]


def test_list_valued_setting_takes_a_list_as_one_value(load: Load) -> None:
    one = load("model: m\nsweep: {measurement.phases: [prefill, decode]}\n")
    several = load("model: m\nsweep: {measurement.phases: [[], [prefill], [prefill, decode]]}\n")

    assert [experiment.config.measurement.phases for experiment in one.experiments] == [("prefill", "decode")]
    assert ids(several) == ["phases:none", "phases:prefill", "phases:prefill+decode"]


def test_exclude_is_a_partial_match_over_effective_values(load: Load) -> None:
    study = load(
        """\
        model: m
        dtype: float32
        sweep: {transformers.batch_size: [1, 4, 16], seed: [0, 1]}
        exclude:
          - {dtype: float32, transformers.batch_size: [4, 16], seed: 1}
          - {transformers.batch_size: 99}
        """
    )

    assert ids(study) == ["batch_size:1-seed:0", "batch_size:1-seed:1", "batch_size:4-seed:0", "batch_size:16-seed:0"]
    assert [point.id for point in study.excluded] == ["batch_size:4-seed:1", "batch_size:16-seed:1"]
    assert str(study.excluded[0].location).endswith("study.yaml:5:5")
    assert [notice.code for notice in study.notices] == ["unused_exclusion"]


def test_sweep_comes_before_experiments_which_merge_over_the_shared_settings(load: Load) -> None:
    """Top-level `model` beside `experiments` must not add an experiment of its own."""
    study = load(
        """\
        model: m
        transformers: {batch_size: 2, num_beams: 2}
        sweep: {seed: [1, 2]}
        experiments:
          - {id: eager, transformers: {attn_implementation: eager}}
          - {transformers.batch_size: 8}
        """
    )

    assert ids(study) == ["seed:1", "seed:2", "eager", "batch_size:8"]
    settings = study.experiments[2].config.settings
    assert (settings["batch_size"], settings["num_beams"], settings["attn_implementation"]) == (2, 2, "eager")


def test_only_experiments_run_when_there_is_no_sweep(load: Load) -> None:
    assert ids(load("model: m\nexperiments: [{id: one, seed: 1}]\n")) == ["one"]


def test_bases_merge_below_the_file_in_a_chain(load: Load, tmp_path: Path) -> None:
    (tmp_path / "root.yaml").write_text("model: root\nworkload: {prompts: 3, seed: 3}\n")
    (tmp_path / "common.yaml").write_text("base: root.yaml\nworkload: {prompts: 5}\nsweep: {seed: [1, 2]}\n")

    study = load("base: common.yaml\nmodel: mine\nsweep: {dtype: [float32]}\n")

    workload = study.experiments[0].config.workload
    assert (study.experiments[0].config.model, workload.prompts, workload.seed) == ("mine", 5, 3)
    assert ids(study) == ["seed:1-dtype:float32", "seed:2-dtype:float32"]


def test_placeholders_take_the_type_that_the_setting_wants(load: Load) -> None:
    study = load(
        "model: ${MODEL}\nworkload: {prompts: '${N:-32}', revision: '${REV}'}\nseed: ${SEED:-7}\ntitle: $${x}\n",
        env={"MODEL": "org/m", "REV": "123", "N": ""},
    )

    config = study.experiments[0].config
    assert (config.model, config.workload.prompts, config.seed) == ("org/m", 32, 7)
    assert study.title == "${x}"


def test_yaml_1_2_scalars(load: Load) -> None:
    """YAML 1.1 reads `no` as false and `1e-3` as text."""
    study = load("model: no\nmeasurement: {min_duration_s: 1e-3}\nseed: 0o17\n")

    config = study.experiments[0].config
    assert (config.model, config.measurement.min_duration_s, config.seed) == ("no", 0.001, 15)


def test_merge_keys_and_anchors(load: Load) -> None:
    study = load(
        """\
        model: m
        sweep:
          q:
            - &four {transformers.quantization.load_in_4bit: true}
            - {<<: *four, transformers.quantization.bnb_4bit_quant_type: nf4}
        """
    )

    assert ids(study) == ["load_in_4bit:true", "load_in_4bit:true-bnb_4bit_quant_type:nf4"]


def test_extra_passes_through_at_any_depth(load: Load) -> None:
    study = load(
        """\
        model: m
        transformers: {extra: {watermarking_config: {bias: 2.5, seeding: x}}}
        sweep: {transformers.extra.watermarking_config.bias: [1.5, 2.5]}
        """
    )

    extra = study.experiments[0].config.settings["extra"]
    assert extra == {"watermarking_config": {"bias": 1.5, "seeding": "x"}}
    assert ids(study) == ["bias:1.5", "bias:2.5"]


def test_invalid_points_are_an_error_that_names_them(load: Load) -> None:
    with pytest.raises(StudyError, match=r":4:\d+: invalid: cache_implementation:static-use_cache:false"):
        load(
            """\
            model: m
            sweep:
              transformers.cache_implementation: [null,
                                                  static]
              transformers.use_cache: [true, false]
            """
        )


def test_invalid_points_are_listed_when_the_study_skips_them(load: Load) -> None:
    study = load(
        """\
        model: m
        on_invalid: skip
        sweep: {transformers.cache_implementation: [null, static], transformers.use_cache: [true, false]}
        experiments: [{id: bad, transformers: {num_beams: 3, continuous_batching: true}}]
        """
    )

    assert len(study.experiments) == 3
    assert [point.id for point in study.invalid] == ["cache_implementation:static-use_cache:false", "bad"]
    assert "cannot be combined with transformers.use_cache false" in study.invalid[0].reason
    (told,) = [notice.message for notice in study.notices if notice.code == "invalid"]
    assert told.startswith("left out: cache_implementation:static-use_cache:false: ")
    assert told.endswith(", and 1 more")


def test_axes_of_other_engines_do_not_multiply(load: Load) -> None:
    study = load(
        """\
        model: m
        engine: transformers
        transformers: {num_beams: 2}
        sweep:
          engine: [transformers, vllm]
          transformers.batch_size: [1, 2]
          vllm.max_num_seqs: [8, 16, 32]
        """
    )

    assert ids(study) == [
        "engine:transformers-batch_size:1",
        "engine:transformers-batch_size:2",
        "engine:vllm-max_num_seqs:8",
        "engine:vllm-max_num_seqs:16",
        "engine:vllm-max_num_seqs:32",
    ]
    assert "num_beams" not in study.experiments[2].keywords
    assert not study.notices


def test_written_order_holds_when_the_engine_is_not_the_first_axis(load: Load) -> None:
    study = load("model: m\nsweep: {seed: [1, 2], engine: [vllm, transformers], transformers.batch_size: [1, 2]}\n")

    assert ids(study) == [
        "seed:1-engine:vllm",
        "seed:1-engine:transformers-batch_size:1",
        "seed:1-engine:transformers-batch_size:2",
        "seed:2-engine:vllm",
        "seed:2-engine:transformers-batch_size:1",
        "seed:2-engine:transformers-batch_size:2",
    ]


def test_group_over_several_engines_counts_only_what_its_point_runs(load: Load) -> None:
    study = load(
        """\
        model: m
        sweep:
          engine: [transformers, vllm]
          sizes:
            - {transformers.batch_size: 1, vllm.max_num_seqs: 4}
            - {transformers.batch_size: 1, vllm.max_num_seqs: 8}
        """
    )

    assert [experiment.keywords.get("max_num_seqs") for experiment in study.experiments] == [None, 4, 8]
    assert len(study.duplicates) == 1


def test_axis_of_an_engine_that_nothing_runs_is_noticed(load: Load) -> None:
    study = load("model: m\nsweep: {vllm.max_num_seqs: [8, 16], seed: [1, 2]}\n")

    assert ids(study) == ["seed:1", "seed:2"]
    assert [notice.message for notice in study.notices] == [
        "the sweep of vllm.max_num_seqs does nothing with engine transformers"
    ]


def test_argument_below_a_shared_one_replaces_it_where_another_point_clears_it(load: Load) -> None:
    text = "model: m\nengine: vllm\n{}sweep: {{vllm.extra.x.y: [null, 1]}}\n"
    shared, plain = (load(text.format(part)).experiments for part in ("vllm: {extra: {x: 5}}\n", ""))

    assert [experiment.config.settings["extra"] for experiment in shared] == [{"x": 5}, {"x": {"y": 1}}]
    assert shared[1].config_hash == plain[1].config_hash
    assert "x" not in shared[1].keywords


def test_locate_finds_where_a_setting_was_written(load: Load) -> None:
    study = load("model: m\ntransformers:\n  num_beams: 2\nsweep: {dtype: [float32]}\n")

    assert str(study.locate("transformers.num_beams")).endswith(":3:3")
    assert str(study.locate("dtype")).endswith(":4:9")
    assert str(study.locate("seed")).endswith(":1:1")


def test_engine_of_another_package_has_a_section_that_may_hold_anything(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pytest_llem import engines

    points = {"theirs": EntryPoint("theirs", "theirs:Engine", engines.ENTRY_POINT_GROUP)}
    monkeypatch.setattr(engines, "registered", lambda *_: points)
    forget()
    try:
        study = load("model: m\nengine: theirs\ntheirs: {speed: {up: 3}}\nsweep: {theirs.speed.down: [1, 2]}\n")
    finally:
        forget()

    assert ids(study) == ["down:1", "down:2"]
    assert study.experiments[1].config.settings == {"speed": {"up": 3, "down": 2}}


def test_group_named_after_an_engine_is_that_engines_alone(load: Load) -> None:
    study = load(
        """\
        model: m
        sweep:
          engine: [transformers, vllm]
          vllm.load: [{}, {workload.prompts: 4}]
          transformers.load: [{workload.prompts: 2}]
          transformers.nothing: [{}]
        """
    )
    points = [(experiment.engine, experiment.config.workload.prompts) for experiment in study.experiments]
    assert points == [("transformers", 2), ("vllm", 32), ("vllm", 4)]
    assert not study.notices


def test_group_that_sets_the_engine_is_no_engines_alone(load: Load) -> None:
    study = load("model: m\nengine: vllm\nsweep: {vllm.modes: [{engine: vllm}, {engine: transformers}]}\n")
    assert [experiment.engine for experiment in study.experiments] == ["vllm", "transformers"]


def test_a_part_of_the_arrivals_is_swept_beside_what_all_share(load: Load) -> None:
    """It was an unknown setting: whole arrivals had to be listed, and ids were digests of them."""
    study = load(
        """\
        model: m
        engine: vllm
        workload: {arrival: {process: gamma, burstiness: 0.5}}
        sweep: {workload.arrival.rate_per_s: [4, {range: [8, 16], scale: log2}], dtype: [float16]}
        """
    )
    assert ids(study) == [f"rate_per_s:{rate}-dtype:float16" for rate in (4, 8, 16)]
    assert str(study.axes[0].values) == "(4, 8, 16)"
    arrival = study.experiments[1].config.workload.arrival
    assert arrival is not None
    assert (arrival.process, arrival.burstiness, arrival.rate_per_s) == ("gamma", 0.5, 8)
    alone = load("model: m\nengine: vllm\nsweep: {workload.arrival.rate_per_s: [4]}\n").experiments[0]
    written = load("model: m\nengine: vllm\nworkload: {arrival: {process: poisson, rate_per_s: 4}}\n").experiments[0]
    assert alone.config_hash == written.config_hash


@pytest.mark.parametrize(
    ("axis", "place", "text"),
    [
        ("rate_per_s: [4, -1]", "4:36", "workload.arrival.rate_per_s: expected greater than 0"),
        ("rate_per_s: []", "4:32", "workload.arrival.rate_per_s has no values"),
        ("rat: [4]", "4:26", "workload.arrival.rat: unknown key 'rat'"),
    ],
)
def test_a_wrong_part_of_the_arrivals_is_named_at_its_value(load: Load, axis: str, place: str, text: str) -> None:
    with pytest.raises(StudyError, match=f"{place}: sweep: {re.escape(text)}"):
        load(f"model: m\nengine: vllm\nsweep:\n  workload.arrival.{axis}\n")
