"""Files of LLenergyMeasure load with the meaning that they have there."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pytest_llem.errors import StudyError
from pytest_llem.study import Study

Load = Callable[..., Study]


def test_older_experiment_file(load: Load) -> None:
    study = load(
        """\
        model: gpt2
        backend: pytorch
        n: 100
        precision: bf16
        max_input_tokens: 512
        max_output_tokens: 128
        random_seed: 42
        dataset: aienergyscore
        dataset_order: grouped
        decoder: {temperature: 0.7, top_k: 40}
        pytorch: {batch_size: 4, load_in_4bit: true, bnb_4bit_quant_type: nf4, torch_compile: true, tp_size: 1}
        warmup: {enabled: true, n_warmup: 5, thermal_floor_seconds: 30}
        baseline: {enabled: true, duration_seconds: 20}
        energy: {backend: nvml}
        lora: {adapter_id: org/a, merge_weights: false}
        passthrough_kwargs: {low_memory: true}
        runners: {pytorch: local, tensorrt: docker}
        execution: {n_cycles: 5, cycle_order: shuffled}
        """
    )

    config = study.experiments[0].config
    assert (config.engine, config.dtype, config.seed, config.lora) == ("transformers", "bfloat16", 42, "org/a")
    workload = config.workload
    assert (workload.dataset, workload.prompts, workload.order, workload.seed) == ("aienergyscore", 100, "grouped", 42)
    assert (workload.input_tokens, workload.output_tokens) == (512, 128)
    assert (config.decoding.do_sample, config.decoding.temperature, config.decoding.top_k) == (True, 0.7, 40)
    settings = config.settings
    assert (settings["batch_size"], settings["tensor_parallel_size"]) == (4, 1)
    assert settings["extra"] == {"low_memory": True}
    assert isinstance(settings["compile"], dict)
    assert isinstance(settings["quantization"], dict)
    assert (settings["compile"]["mode"], settings["quantization"]["bnb_4bit_quant_type"]) == ("default", "nf4")
    assert (config.measurement.warmup.min_repeats, config.measurement.warmup.max_repeats) == (5, 5)
    assert (config.measurement.idle.duration_s, config.measurement.idle.max_wait_s) == (20.0, 30.0)
    assert study.runners == {"transformers": "local", "tensorrt_llm": "docker"}
    assert (study.execution.cycles, study.execution.order, study.meter) == (5, "shuffled", "nvml")
    assert [notice.code for notice in study.notices] == ["older_words"]


def test_older_sweep(load: Load) -> None:
    study = load(
        """\
        model: gpt2
        backend: pytorch
        sweep:
          precision: [fp16, bf16]
          pytorch.batch_size: [1, 2]
          n: [50]
          random_seed: [1, 2]
          decoder.temperature: [0.0, 0.7]
        """
    )

    assert len(study.experiments) == 16
    first, last = study.experiments[0].config, study.experiments[-1].config
    assert (first.dtype, first.workload.prompts, first.seed, first.workload.seed) == ("float16", 50, 1, 1)
    assert not first.decoding.do_sample
    assert (last.dtype, last.settings["batch_size"], last.workload.seed) == ("bfloat16", 2, 2)
    assert (last.decoding.do_sample, last.decoding.temperature) == (True, 0.7)


def test_newer_study_with_groups_and_engines_named_by_its_sweep(load: Load) -> None:
    study = load(
        """\
        study_name: newer
        task:
          model: org/m
          random_seed: 7
          dataset: {source: prompts.jsonl, n_prompts: 50, order: shuffled}
          max_input_tokens: 256
        measurement:
          energy_sampler: zeus
          baseline: {duration_seconds: 10}
          warmup: {convergence_detection: true, cv_threshold: 0.1, max_prompts: 9, window_size: 4, min_prompts: 2}
        study_execution: {n_cycles: 2, experiment_order: interleave, shuffle_seed: null, experiment_gap_seconds: 10.0}
        sampling_preset: standard
        sweep:
          transformers.dtype: [float32]
          vllm.dtype: [float16, bfloat16]
          transformers.batch_size: {pow2: {min: 1, max: 4}}
          vllm.engine.enforce_eager: [true]
          transformers.compile_quant:
            - {}
            - transformers.load_in_4bit: true
              transformers.bnb_4bit_quant_type: [nf4, fp4]
            - transformers.torch_compile: true
              transformers.torch_compile_mode: max-autotune
        experiments:
          - {engine: vllm, vllm: {engine: {cpu_offload_gb: 4}}, dataset: {n_prompts: 5}, runners: {vllm: docker}}
        """
    )

    assert len(study.experiments) == 3 * 4 + 2 + 1
    warmup = study.experiments[0].config.measurement.warmup
    assert (warmup.cv, warmup.max_repeats, warmup.window, warmup.min_repeats) == (0.1, 9, 4, 2)
    vllm = [experiment.config for experiment in study.experiments if experiment.engine == "vllm"]
    assert [config.dtype for config in vllm] == ["float16", "bfloat16", None]
    assert (vllm[2].settings["cpu_offload_gb"], vllm[2].workload.prompts) == (4.0, 5)
    assert (study.name, study.meter, study.runners) == ("newer", "zeus", {"vllm": "docker"})
    assert (study.execution.order, study.execution.cooldown) == ("interleaved", 10.0)
    decoding = vllm[0].decoding
    assert (decoding.do_sample, decoding.top_p, decoding.top_k) == (True, 0.95, 50)


def test_newest_sections_of_engine_and_sampling_params(load: Load) -> None:
    study = load(
        """\
        serving_mode: offline
        engine: tensorrt
        task: {model: org/m}
        tensorrt:
          engine_params: {max_batch_size: 8, backend: trt, fast_build: true}
          sampling_params: {temperature: 0.5}
        offline: {warmup: {n_prompts: 3}}
        """
    )

    config = study.experiments[0].config
    assert config.engine == "tensorrt_llm"
    assert (config.settings["max_batch_size"], config.settings["backend"]) == (8, "tensorrt")
    assert (config.decoding.do_sample, config.decoding.temperature) == (True, 0.5)
    assert config.measurement.warmup.max_repeats == 3


@pytest.mark.parametrize(
    ("text", "position", "remedy"),
    [
        ("output: {results_dir: x}", "3:1", "--llem-out"),
        ("pytorch: {allow_tf32: true}", "3:11", "NVIDIA_TF32_OVERRIDE"),
        ("vllm: {engine: {swap_space: 8}}", "3:17", "vLLM has removed it"),
        ("serving_mode: server", "3:1", "engine: openai"),
        ("execution: {shuffle_seed: 3}", "3:13", "study's hash"),
        ("tensorrt: {engine_path: /e}", "3:12", "as model"),
    ],
)
def test_word_without_counterpart_says_what_to_write(load: Load, text: str, position: str, remedy: str) -> None:
    with pytest.raises(StudyError) as caught:
        load(f"model: gpt2\nbackend: pytorch\n{text}\n")

    assert f"study.yaml:{position}: " in caught.value.message
    assert "has no counterpart here" in caught.value.message
    assert remedy in caught.value.message


def test_problem_with_a_renamed_word_is_placed_where_it_was_written(load: Load) -> None:
    with pytest.raises(StudyError, match=r"study\.yaml:3:4: workload\.prompts: expected an integer"):
        load("model: gpt2\nbackend: pytorch\nn: many\nsweep: {pytorch.batch_size: [1]}\n")


def test_word_set_twice_in_old_and_new_is_refused(load: Load) -> None:
    with pytest.raises(
        StudyError, match=r"2:1: n sets workload\.prompts, which is set already|n sets workload\.prompts"
    ):
        load("workload: {prompts: 3}\nn: 4\nmodel: gpt2\n")
