"""Ids, keywords, hashes and order: what names an experiment, and what does not."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import groupby

import pytest

from pytest_llem.errors import StudyError
from pytest_llem.job.config import ExperimentConfig
from pytest_llem.job.wire import decode, encode
from pytest_llem.study import Experiment, Study

Load = Callable[..., Study]


def only(study: Study) -> Experiment:
    assert len(study.experiments) == 1
    return study.experiments[0]


def test_hashes_are_pinned_across_releases(load: Load) -> None:
    """A changed hash makes every stored result and baseline incomparable: change `HASH_VERSION` knowingly."""
    plain = only(load("model: builtin:tiny-llama\n"))
    rich = only(
        load(
            """\
            model: org/m
            engine: vllm
            dtype: bfloat16
            decoding: {do_sample: true, temperature: 0.7}
            workload: {prompts: 8, input_tokens: {distribution: uniform, low: 4, high: 9}}
            vllm: {gpu_memory_utilization: 0.9, extra: {load_format: safetensors}}
            """
        )
    )

    assert plain.config_hash == "7225d8a7595d5fd06e236f3f1511404f78d725b370989cf4458ee606f670afdf"
    assert rich.config_hash == "e954a6d778f04b4eab61d0e1a07985264d143c1add021c7ab4720c213a167be3"


def test_a_limit_of_settling_counts_only_where_a_study_waits(load: Load) -> None:
    def hash_of(warmup: str) -> str:
        return load(f"model: m\nmeasurement: {{warmup: {warmup}}}\n").experiments[0].config_hash

    assert hash_of("{thermal_max_s: 60}") == hash_of("{}")
    assert len({hash_of("{}"), hash_of("{thermal: settled}"), hash_of("{thermal: settled, thermal_max_s: 60}")}) == 3


def test_a_data_set_keeps_its_own_lengths_and_synthetic_prompts_their_hash(load: Load) -> None:
    """Left out, the 128 tokens of synthetic prompts cut a data set's; hashes name the same work as before."""

    def of(workload: str) -> Experiment:
        return only(load(f"model: m\nworkload: {workload}\n"))

    left_out, null, cut = (
        of("{dataset: p.jsonl}"),
        of("{dataset: p.jsonl, input_tokens: null}"),
        of("{dataset: p.jsonl, input_tokens: 128}"),
    )
    assert [e.config.workload.input_tokens for e in (left_out, null, cut)] == [None, None, 128]
    assert (
        left_out.config_hash == null.config_hash == "40945d71385fa77003f29fb1e411387df8aa297efa660e26f39be7fc43208e8b"
    )
    assert cut.config_hash == "4da69030ba16b5ec7fb93b4e81cae04f658c0a88f6d7f9403d8e9bd181b0b5e3"
    assert of("{}").config_hash == of("{input_tokens: 128}").config_hash
    assert of("{}").config.workload.input_tokens == 128


@pytest.mark.parametrize(
    ("shared", "sweep", "expected"),
    [
        ("{}", "{workload.dataset: [synthetic, p.jsonl]}", [128, None]),
        ("{dataset: p.jsonl}", "{workload.input_tokens: [null, 128, 64]}", [None, 128, 64]),
        ("{dataset: p.jsonl}", "{seed: [1, 2]}", [None, None]),
        ("{input_tokens: 128}", "{workload.dataset: [synthetic, p.jsonl]}", [128, 128]),
        ("{}", "{w: [{workload: {dataset: p.jsonl}}, {workload: {input_tokens: 32}}]}", [None, 32]),
    ],
)
def test_lengths_in_a_sweep_are_those_of_its_data_sets(
    load: Load, shared: str, sweep: str, expected: list[int | None]
) -> None:
    study = load(f"model: m\nworkload: {shared}\nsweep: {sweep}\n")
    assert [e.config.workload.input_tokens for e in study.experiments] == expected


def test_a_data_set_of_unset_lengths_is_not_held_against_the_context(load: Load) -> None:
    """128 and 64 tokens do not fit 150; how long the data set's prompts are, nobody knows here."""
    text = "model: m\nengine: vllm\nvllm: {max_model_len: 150}\nworkload: {dataset: p.jsonl}\n"
    assert only(load(text)).config.workload.input_tokens is None
    swept = load(f"{text}sweep: {{workload.dataset: [a.jsonl, b.jsonl]}}\n")
    assert len(swept.experiments) == 2
    with pytest.raises(StudyError, match="need 192 tokens"):
        load(text.replace("p.jsonl", "synthetic"))


SAME = {
    "defaults spelled out": "model: m\nseed: 0\nworkload: {prompts: 32}\ntransformers: {batch_size: 1}\n",
    "null for a default": "model: m\ndtype: null\n",
    "gates, tags, names, execution": (
        "model: m\nname: other\ntitle: t\ntags: [x]\nexecution: {cycles: 9}\nmeter: none\n"
        "expect: {energy_j: '<= 3'}\ncompare: {fail_if: {energy_j: 5%}}\nrunners: {transformers: docker}\n"
    ),
    "temperature under greedy decoding": "model: m\ndecoding: {temperature: 0.7, top_k: 3}\n",
    "temperature 0 is greedy": "model: m\ndecoding: {do_sample: true, temperature: 0.0}\n",
    "4-bit settings without 4-bit": "model: m\ntransformers: {quantization: {bnb_4bit_quant_type: nf4}}\n",
    "compile backend without compile": "model: m\ntransformers: {compile: {backend: eager}}\n",
    "another engine's section": "model: m\nvllm: {max_num_seqs: 3, extra: {x: 1}}\n",
    "an id": "model: m\nexperiments: [{id: mine}]\n",
    "key order": "engine: transformers\nmodel: m\n",
    "preset greedy": "model: m\ndecoding: {preset: greedy}\n",
    "the engine's own dtype of another engine": "model: m\nvllm: {dtype: float16}\n",
}


@pytest.mark.parametrize("case", SAME)
def test_hash_ignores_what_does_not_change_the_measurement(load: Load, case: str) -> None:
    assert only(load(SAME[case])).config_hash == only(load("model: m\n")).config_hash


def test_hash_of_a_preset_is_that_of_its_written_out_form(load: Load) -> None:
    preset = only(load("model: m\ndecoding: {preset: standard, top_k: 10}\n"))
    written = only(load("model: m\ndecoding: {do_sample: true, temperature: 1.0, top_p: 0.95, top_k: 10}\n"))

    assert preset.config_hash == written.config_hash
    assert preset.config == written.config
    assert preset.keywords["preset"] == "standard"


@pytest.mark.parametrize(
    "text",
    [
        "model: n\n",
        "model: m\nseed: 1\n",
        "model: m\nweights: dummy\n",
        "model: m\nworkload: {ignore_eos: false}\n",
        "model: m\nmeasurement: {min_duration_s: 3}\n",
        "model: m\ndecoding: {do_sample: true}\n",
        "model: m\ntransformers: {extra: {low_memory: true}}\n",
        "model: m\ntransformers: {dtype: float16}\n",
    ],
)
def test_hash_tells_different_measurements_apart(load: Load, text: str) -> None:
    assert only(load(text)).config_hash != only(load("model: m\n")).config_hash


def test_engine_dtype_stands_above_the_common_one(load: Load) -> None:
    own = only(load("model: m\ndtype: float32\ntransformers: {dtype: float16}\n"))
    common = only(load("model: m\ndtype: float16\n"))

    assert own.config_hash == common.config_hash
    assert (own.config.dtype, own.keywords["dtype"]) == ("float16", "float16")


def test_points_that_do_the_same_are_one_with_a_notice(load: Load) -> None:
    study = load("model: m\nsweep: {decoding.do_sample: [false, true], decoding.temperature: [0.5, 1.0]}\n")

    assert [experiment.id for experiment in study.experiments] == [
        "do_sample:false",
        "do_sample:true-temperature:0.5",
        "do_sample:true-temperature:1.0",
    ]
    assert [(point.id, point.reason) for point in study.duplicates] == [
        ("do_sample:false", "does the same as do_sample:false")
    ]
    dormant = next(notice for notice in study.notices if notice.code == "dormant")
    assert dormant.message.startswith("decoding.temperature does nothing under greedy decoding")
    assert "temperature" not in study.experiments[0].keywords


def test_settings_of_other_engines_are_noticed_last(load: Load) -> None:
    study = load("model: m\nvllm: {max_num_seqs: 3}\ndecoding: {top_k: 5}\nworkload: {column: text}\n")

    assert [notice.message.split()[0] for notice in study.notices] == [
        "decoding.top_k",
        "workload.column",
        "vllm.max_num_seqs",
    ]


def test_explicit_experiment_that_repeats_a_point_is_a_duplicate(load: Load) -> None:
    study = load("model: m\nsweep: {seed: [0, 1]}\nexperiments: [{id: again, seed: 1}, {id: new, seed: 2}]\n")

    assert [experiment.id for experiment in study.experiments] == ["seed:0", "seed:1", "new"]
    assert [point.reason for point in study.duplicates] == ["does the same as seed:1"]


def test_ids_do_not_change_when_an_axis_gets_more_values(load: Load) -> None:
    text = """\
        model: m
        sweep:
          model: [{more}/data/models/llama, org/Llama-3.1-8B]
          workload.input_tokens: [{{distribution: uniform, low: 4, high: 9}}, {more2}16]
          transformers.extra.names: [[a, b], {more3}[{long}]]
        """
    long = ", ".join(f"name{index}" for index in range(40))
    few = load(text.format(more="", more2="", more3="", long=long))
    many = load(
        text.format(
            more="/other/models/llama, ", more2="{distribution: uniform, low: 5, high: 9}, ", more3="[c], ", long=long
        )
    )

    named = {experiment.config_hash: experiment.id for experiment in many.experiments}
    assert [experiment.id for experiment in few.experiments] == [named[e.config_hash] for e in few.experiments]
    assert len({experiment.id for experiment in many.experiments}) == 27


def test_ids_are_unique_where_values_look_alike(load: Load) -> None:
    study = load("model: m\nsweep: {transformers.extra.x: [1, '1', 1.0, true, 'true', [1], null, 'null']}\n")

    names = [experiment.id for experiment in study.experiments]
    assert len(set(names)) == len(names) == 8


def test_ids_hold_only_what_k_accepts(load: Load) -> None:
    study = load(
        """\
        model: m
        sweep:
          model: ['a b', 'ünï', '/x/y', 'q=1', '(p)', 'org/name-1.5', '', 'x y']
        """.replace("'', ", "")
    )

    for experiment in study.experiments:
        assert re.fullmatch(r"[A-Za-z0-9_:+\-.\[\]\\/]+", experiment.id)


def test_keywords_are_names_unique_in_the_schema(load: Load) -> None:
    study = load(
        """\
        model: m
        engine: vllm
        seed: 3
        vllm: {tensor_parallel_size: 2, gpu_memory_utilization: 0.9, enforce_eager: true}
        workload: {seed: 4}
        """
    )

    assert only(study).keywords == {
        "model": "m",
        "engine": "vllm",
        "seed": 3,
        "vllm_tensor_parallel_size": 2,
        "gpu_memory_utilization": "0.9",
        "enforce_eager": True,
        "workload_seed": 4,
    }


def test_resolved_config_spells_out_defaults_and_survives_json(load: Load) -> None:
    config = only(load("model: m\nworkload: {output_tokens: {distribution: uniform, low: 2, high: 5}}\n")).config

    assert (config.engine, config.workload.prompts, config.measurement.warmup.window) == ("transformers", 32, 3)
    assert config.settings["use_cache"] is True
    assert decode(ExperimentConfig, encode(config)) == config


def test_relative_paths_start_at_the_study(load: Load, tmp_path: object) -> None:
    config = only(load("model: ./models/a\nworkload: {dataset: prompts.jsonl}\n")).config

    assert config.model == f"{tmp_path}/models/a"
    assert config.workload.dataset == f"{tmp_path}/prompts.jsonl"


def test_orders(load: Load) -> None:
    study = load("model: m\nexecution: {cycles: 2}\nsweep: {seed: [1, 2]}\n")

    def order(name: str) -> list[tuple[str, int]]:
        return [(experiment.id, cycle) for experiment, cycle in study.schedule(order=name)]  # type: ignore[arg-type]

    assert order("sequential") == [("seed:1", 1), ("seed:1", 2), ("seed:2", 1), ("seed:2", 2)]
    assert order("interleaved") == [("seed:1", 1), ("seed:2", 1), ("seed:1", 2), ("seed:2", 2)]


def test_shuffled_order_is_a_permutation_per_cycle_and_the_same_anywhere(load: Load) -> None:
    text = "model: m\nexecution: {{order: shuffled, cycles: 3}}\nname: {name}\nsweep: {{seed: {{range: [1, 8]}}}}\n"
    study, renamed = load(text.format(name="a")), load(text.format(name="b"), name="elsewhere.yaml")

    rounds = [
        [experiment.id for experiment, _ in cycle] for _, cycle in groupby(study.schedule(), key=lambda item: item[1])
    ]
    assert [sorted(names) for names in rounds] == [sorted(f"seed:{seed}" for seed in range(1, 9))] * 3
    assert len({tuple(names) for names in rounds}) == 3
    assert [(e.id, c) for e, c in study.schedule()] == [(e.id, c) for e, c in renamed.schedule()]
    assert rounds[0] == [f"seed:{seed}" for seed in (5, 4, 7, 8, 3, 1, 6, 2)]


def test_command_line_stands_above_the_study_and_user_defaults_below(load: Load) -> None:
    from pytest_llem.study import Overrides

    text = "model: m\nexecution: {cycles: 4}\n"
    study = load(text, execution={"cycles": 2, "order": "shuffled", "retries": 0})
    overridden = load(text, overrides=Overrides(cycles=7, order="interleaved"))

    assert (study.execution.cycles, study.execution.order, study.execution.retries) == (4, "shuffled", 0)
    assert (overridden.execution.cycles, overridden.execution.order) == (7, "interleaved")


def test_gates_merge_per_experiment_and_with_the_command_line(load: Load) -> None:
    from pytest_llem.study import Overrides

    study = load(
        """\
        model: m
        expect: {joules_per_output_token: "<= 0.5"}
        compare: {fail_if: {output_tokens_per_s: -5%}, alpha: 0.01}
        experiments:
          - {id: plain}
          - {id: strict, seed: 1, expect: {joules_per_output_token: "<= 0.25", ttft_p90_s: "< 1"}, tags: [x]}
        """,
        overrides=Overrides(fail_if={"joules_per_output_token": "3%"}),
    )

    plain, strict = study.experiments
    assert [str(budget) for budget in plain.expect] == ["joules_per_output_token <= 0.5"]
    assert [str(budget) for budget in strict.expect] == ["joules_per_output_token <= 0.25", "ttft_p90_s < 1"]
    assert plain.compare is not None
    assert [(limit.metric, limit.limit) for limit in plain.compare.fail_if] == [
        ("output_tokens_per_s", -0.05),
        ("joules_per_output_token", 0.03),
    ]
    assert (plain.compare.alpha, strict.tags) == (0.01, ("x",))
    ungated = only(load("model: m\n"))
    assert (ungated.expect, ungated.compare) == ((), None)


def test_allowed_differences_hold_for_limits_of_the_command_line_too(load: Load) -> None:
    from pytest_llem.study import Overrides

    text = "model: m\ncompare: {allow: [engine_version]}\n"
    assert only(load(text)).compare is None
    compare = only(load(text, overrides=Overrides(fail_if={"energy_j": "3%"}))).compare
    assert compare is not None
    assert compare.allow == ("engine_version",)


def test_an_unknown_difference_is_named_at_its_place(load: Load) -> None:
    from pytest_llem.errors import StudyError

    with pytest.raises(StudyError, match=r":2:19: compare.allow: unknown condition 'engine_versoin'"):
        load("model: m\ncompare: {allow: [engine_versoin]}\n")


def test_percentiles_are_those_chosen_and_those_that_limits_name_and_change_no_hash(load: Load) -> None:
    """A gate on a percentile that nobody had measured would never be judged, however many cycles it cost."""
    from pytest_llem.study import Overrides

    text = """
        model: m
        percentiles: [50, 95]
        execution: {headline: ttft_p75_s}
        expect: {tpot_p99_9_s: "<= 0.1", joules_per_request: "<= 1"}
        experiments:
          - {id: a, compare: {fail_if: {e2el_p98_s: 5%}}}
    """
    study = load(text, overrides=Overrides(fail_if={"ttft_p80_s": "5%"}))
    assert study.percentiles == (50.0, 75.0, 80.0, 95.0, 98.0, 99.9)
    plain = load("model: m\nexperiments: [{id: a}]\n")
    assert plain.percentiles == (50.0, 90.0, 99.0)
    assert plain.experiments[0].config_hash == study.experiments[0].config_hash
