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
        ("pytorch: {allow_tf32: true}", "3:11", "NVIDIA_TF32_OVERRIDE"),
        ("serving_mode: server", "3:1", "engine: openai"),
        ("tensorrt: {calib: {calib_batches: 512}}", "3:12", "quantised model"),
        ("tensorrt: {sampling: {min_tokens: 10}}", "3:23", "ignore_eos"),
        ("pytorch: {batching_strategy: sorted_dynamic}", "3:11", "continuous_batching"),
        ("traffic_simulation: {enabled: true, target_qps: 2}", "3:1", "workload.arrival"),
        ("parallelism: {strategy: expert, degree: 2}", "3:25", "tensor_parallel"),
        ("tensorrt: {engine_path: /e}", "3:12", "as model"),
    ],
)
def test_word_without_counterpart_says_what_to_write(load: Load, text: str, position: str, remedy: str) -> None:
    with pytest.raises(StudyError) as caught:
        load(f"model: gpt2\nbackend: pytorch\n{text}\n")

    assert f"study.yaml:{position}: " in caught.value.message
    assert "has no counterpart here" in caught.value.message
    assert remedy in caught.value.message


@pytest.mark.parametrize(
    ("text", "listed"),
    [
        ("output: {results_dir: x, save_timeseries: true}", "output (results go to --llem-out)"),
        ("vllm: {engine: {swap_space: 8}}", "vllm.engine.swap_space (vLLM has removed it)"),
        ("execution: {shuffle_seed: 3}", "execution.shuffle_seed (the order"),
        ("execution: {cycle_gap_seconds: 9, config_gap_seconds: 3}", "execution.cycle_gap_seconds (the gap"),
        ("tensorrt: {build_cache: {max_records: 5}}", "tensorrt.build_cache (it caches"),
        ("measurement: {gpu_telemetry: {enabled: true}}", "measurement.gpu_telemetry (power and clocks"),
        ("execution: {gpu_telemetry: true}", "execution.gpu_telemetry (power and clocks"),
        ("energy: {backend: nvml, gpu_telemetry: [power]}", "energy.gpu_telemetry (power and clocks"),
        ("pytorch: {cache_implementation: sliding_window}", "pytorch.cache_implementation (sliding_window is static"),
        ("timeseries: {enabled: true, sample_interval_ms: 50}", "timeseries (power and clocks"),
        ("study_execution: {experiment_order: latin_square}", "experiment_order (latin_square is balanced"),
    ],
)
def test_what_changes_no_measurement_is_listed_in_one_notice(load: Load, text: str, listed: str) -> None:
    study = load(f"model: gpt2\nbackend: pytorch\n{text}\n")

    notice = next(notice for notice in study.notices if notice.code == "older_words")
    assert listed in notice.message
    assert sum("to no effect" in other.message for other in study.notices) == 1


@pytest.mark.parametrize("text", ["output: {results_dir: x}", "vllm: {swap_space: 8}", "gpu_telemetry: true"])
def test_in_a_study_of_this_project_such_a_word_stays_an_error(load: Load, text: str) -> None:
    with pytest.raises(StudyError, match=r"study\.yaml:2:\d+: .*has no counterpart here"):
        load(f"model: gpt2\n{text}\n")


def test_gap_between_experiments_is_the_cooldown_and_one_between_cycles_where_there_is_no_other(load: Load) -> None:
    both = load("model: gpt2\nbackend: pytorch\nexecution: {experiment_gap_seconds: 5.0, cycle_gap_seconds: 15.0}\n")
    one = load("model: gpt2\nbackend: pytorch\nexecution: {experiment_gap_seconds: null, cycle_gap_seconds: 15.0}\n")
    assert (both.execution.cooldown, one.execution.cooldown) == (5.0, 15.0)


def test_points_that_an_engine_cannot_run_are_left_out_as_there(load: Load) -> None:
    study = load(
        """\
        model: gpt2
        backend: pytorch
        sweep: {precision: [fp32, bf16], pytorch.attn_implementation: [sdpa, flash_attention_2]}
        """
    )
    assert (len(study.experiments), len(study.invalid)) == (3, 1)
    assert "flash_attention_2 cannot be combined" in next(n.message for n in study.notices if n.code == "invalid")


def test_caches_that_transformers_dropped_are_swept_once(load: Load) -> None:
    study = load(
        """\
        model: gpt2
        backend: pytorch
        sweep:
          caching:
            - pytorch.use_cache: true
              pytorch.cache_implementation: [static, offloaded_static, sliding_window]
        """
    )
    caches = [experiment.config.settings["cache_implementation"] for experiment in study.experiments]
    assert caches == ["static", "offloaded_static"]


def test_newest_runners_images_and_orchestration(load: Load) -> None:
    study = load(
        """\
        task: {model: org/m, dataset: {n_prompts: 2}}
        serving_mode: offline
        runners: {transformers: process, vllm: container}
        images: {vllm: "vllm/vllm-openai:v0.9.2"}
        harness: {transformers: {batch_size: 4, torch_compile: true, torch_compile_mode: reduce-overhead}}
        measurement: {baseline: {enabled: false}, warmup: {enabled: false}}
        study_execution: {gpu_indices: [1], deduplicate_equivalent: true, experiment_gap_seconds: null}
        """
    )
    config = study.experiments[0].config
    assert study.runners == {"transformers": "local", "vllm": "docker:vllm/vllm-openai:v0.9.2"}
    assert config.settings["batch_size"] == 4
    assert isinstance(config.settings["compile"], dict)
    assert config.settings["compile"]["mode"] == "reduce-overhead"
    assert (config.measurement.idle.duration_s, config.measurement.warmup.max_repeats) == (0, 0)
    assert config.device.gpus == (1,)


def test_problem_with_a_renamed_word_is_placed_where_it_was_written(load: Load) -> None:
    with pytest.raises(StudyError, match=r"study\.yaml:3:4: workload\.prompts: expected an integer"):
        load("model: gpt2\nbackend: pytorch\nn: many\nsweep: {pytorch.batch_size: [1]}\n")


def test_word_set_twice_in_old_and_new_is_refused(load: Load) -> None:
    with pytest.raises(
        StudyError, match=r"2:1: n sets workload\.prompts, which is set already|n sets workload\.prompts"
    ):
        load("workload: {prompts: 3}\nn: 4\nmodel: gpt2\n")


def test_first_generation_of_the_transformers_engine(load: Load) -> None:
    study = load(
        """\
        config_name: every section off
        model_name: org/m
        dataset: {name: ai_energy_score, sample_size: 10, split: train}
        max_input_tokens: 512
        max_output_tokens: 128
        min_output_tokens: 0
        gpus: [0, 1]
        fp_precision: float16
        is_encoder_decoder: false
        task_type: text_generation
        batching: {batch_size: 4, strategy: static, max_tokens_per_batch: null}
        parallelism: {strategy: none, degree: 1}
        decoder: {temperature: 0.7, min_p: 0.05, no_repeat_ngram_size: 0, beam_search: {enabled: false, num_beams: 1}}
        traffic_simulation: {enabled: false, target_qps: 1.0}
        quantization: {quantization: true, load_in_8bit: true, load_in_4bit: false}
        schedule: {enabled: false, total_duration: 24h}
        streaming: true
        io: {results_dir: null}
        num_cycles: 4
        query_rate: 1.0
        random_seed: null
        save_outputs: false
        baseline: {enabled: true, required: false, duration_sec: 20.0}
        timeseries: {enabled: true, save: true, sample_interval_ms: 100}
        pytorch: {use_bettertransformer: false, torch_compile: reduce-overhead, assisted_generation: null, extra: {}}
        extra_metadata: {}
        """
    )
    config = study.experiments[0].config
    assert (study.name, study.execution.cycles, config.model) == ("every-section-off", 4, "org/m")
    assert (config.workload.dataset, config.workload.prompts, config.workload.split) == ("aienergyscore", 10, "train")
    assert (config.dtype, config.device.gpus, config.measurement.idle.duration_s) == ("float16", (0, 1), 20.0)
    assert (config.decoding.do_sample, config.decoding.temperature, config.decoding.min_p) == (True, 0.7, 0.05)
    assert config.settings["batch_size"] == 4
    assert isinstance(config.settings["quantization"], dict)
    assert config.settings["quantization"]["load_in_8bit"] is True
    assert isinstance(config.settings["compile"], dict)
    assert config.settings["compile"]["mode"] == "reduce-overhead"
    [notice] = [notice.message for notice in study.notices if notice.code == "older_words"]
    for word in ("streaming", "io", "query_rate", "save_outputs", "baseline.required", "timeseries"):
        assert f" {word} (" in notice
    assert "schedule" not in notice


def test_first_generation_of_vllm_and_tensorrt(load: Load) -> None:
    vllm = load(
        """\
        config_name: v
        model_name: org/m
        backend: vllm
        num_input_prompts: 5
        parallelism: {strategy: tensor_parallel, degree: 2}
        vllm:
          swap_space: 8.0
          distributed_backend: mp
          attention: {backend: FLASH_ATTN, flash_version: null}
          speculative: {method: ngram, num_tokens: 5, prompt_lookup_max: 2}
          lora: {enabled: false, max_loras: 1}
          load_format: safetensors
        """
    )
    settings = vllm.experiments[0].config.settings
    assert (settings["tensor_parallel_size"], settings["distributed_executor_backend"]) == (2, "mp")
    assert isinstance(settings["speculative"], dict)
    assert (settings["attention_backend"], settings["speculative"]["num_speculative_tokens"]) == ("FLASH_ATTN", 5)
    assert settings["extra"] == {"load_format": "safetensors"}

    tensorrt = load(
        """\
        config_name: t
        model_name: org/m
        backend: tensorrt
        tensorrt: {tp_size: 2, pp_size: 1, quantization: {method: int4_awq}, kv_cache_type: paged, engine_path: null,
          enable_kv_cache_reuse: true, gpu_memory_utilization: 0.85, force_rebuild: false, draft_model: null}
        """
    )
    settings = tensorrt.experiments[0].config.settings
    assert settings["tensor_parallel_size"] == 2
    assert settings["quant_config"] == {"quant_algo": "W4A16_AWQ"}
    assert settings["kv_cache_config"] == {"free_gpu_memory_fraction": 0.85, "enable_block_reuse": True}


def test_files_before_the_first_release(load: Load) -> None:
    study = load(
        '{"config_name": "c1", "model_name": "org/m", "is_encoder_decoder": false,'
        ' "inference_type": "purely_generative", "num_input_prompts": 16, "gpu_list": [0], "num_processes": 1,'
        ' "batching_options": {"batch_size": 16}, "sharding_config": {"strategy": "none", "num_shards": 1},'
        ' "latency_simulation": {"enabled": false}, "decoder_temperature": 0.5, "fp_precision": "float32",'
        ' "quantization": false, "backend": "pytorch"}'
    )
    config = study.experiments[0].config
    assert (config.workload.prompts, config.settings["batch_size"], config.dtype) == (16, 16, "float32")
    assert (config.device.gpus, config.decoding.temperature) == ((0,), 0.5)


def test_groups_and_sampling_of_an_engine_stay_with_it(load: Load) -> None:
    study = load(
        """\
        task: {model: org/m}
        sweep:
          transformers.sampling.temperature: [0.5]
          vllm.sampling.temperature: [0.7, 0.9]
          vllm.decoding:
            - {}
            - vllm.sampling.top_k: 20
              vllm.sampling.presence_penalty: 0.6
        """
    )
    decoding = [
        (each.engine, each.config.decoding.temperature, each.config.decoding.top_k) for each in study.experiments
    ]
    assert decoding == [
        ("transformers", 0.5, None),
        *(("vllm", 0.7, None), ("vllm", 0.7, 20), ("vllm", 0.9, None), ("vllm", 0.9, 20)),
    ]
    assert [notice.code for notice in study.notices] == ["older_words"]


def test_an_engine_of_its_own_is_run_beside_those_of_the_sweep(load: Load) -> None:
    study = load("backend: pytorch\nmodel: org/m\nsweep: {vllm.engine.enforce_eager: [true, false]}\n")
    assert [experiment.engine for experiment in study.experiments] == ["transformers", "vllm", "vllm"]


def test_shared_sampling_of_one_engine_among_several_is_an_error(load: Load) -> None:
    with pytest.raises(StudyError, match=r"2:19: vllm\.sampling\.temperature is for vllm alone there"):
        load(
            """\
            task: {model: org/m}
            vllm: {sampling: {temperature: 0.7}}
            sweep: {transformers.batch_size: [1], vllm.engine.enforce_eager: [true]}
            """
        )
    assert load("engine: vllm\ntask: {model: org/m}\nvllm: {sampling: {temperature: 0.7}}\n").experiments


def test_section_of_an_entry_stands_alone_and_sampling_is_its_own(load: Load) -> None:
    study = load(
        """\
        model: gpt2
        backend: pytorch
        dataset: aienergyscore
        decoder: {preset: deterministic}
        pytorch: {batch_size: 8, attn_implementation: eager}
        passthrough_kwargs: {low_memory: true}
        experiments:
          - {pytorch: {num_beams: 4}, decoder: {do_sample: false}}
          - {decoder: {temperature: 0.7}}
          - {dataset: {n: 50, input_len: 256, output_len: 64, seed: 42}}
        """
    )
    beams, sampled, synthetic = (experiment.config for experiment in study.experiments)
    assert (beams.settings["batch_size"], beams.settings["num_beams"]) == (1, 4)
    assert beams.settings["extra"] == {"low_memory": True}
    assert (sampled.settings["batch_size"], sampled.decoding.do_sample, sampled.decoding.temperature) == (8, True, 0.7)
    assert (synthetic.decoding.do_sample, synthetic.settings["batch_size"]) == (False, 8)
    assert (synthetic.workload.dataset, synthetic.workload.input_tokens) == ("synthetic", 256)
    assert (sampled.workload.dataset, beams.workload.dataset) == ("aienergyscore", "aienergyscore")


def test_every_section_of_an_entry_takes_the_place_of_the_shared_one(load: Load) -> None:
    study = load(
        """\
        engine: vllm
        task: {model: org/a, random_seed: 3, dataset: {source: aienergyscore, n_prompts: 50}, max_output_tokens: 16}
        measurement: {warmup: {n_prompts: 7}, baseline: {duration_seconds: 12}}
        vllm: {engine_params: {max_num_seqs: 8}, sampling_params: {temperature: 0.7, max_tokens: 16}}
        passthrough_kwargs: {a: 1, c: {d: 1}}
        experiments:
          - {vllm: {engine_params: {enforce_eager: true}}, measurement: {baseline: {duration_seconds: 3}}}
          - {task: {model: org/b, dataset: {n_prompts: 9}}, passthrough_kwargs: {b: 1, c: {e: 2}}}
        """
    )
    first, second = (experiment.config for experiment in study.experiments)
    assert (first.settings.get("max_num_seqs"), first.settings["extra"]) == (None, {"a": 1, "c": {"d": 1}})
    assert (first.decoding.do_sample, first.decoding.temperature, first.workload.output_tokens) == (False, None, 16)
    assert (first.measurement.idle.duration_s, first.measurement.warmup.max_repeats) == (3, 10)
    assert (second.workload.dataset, second.workload.prompts, second.seed) == ("synthetic", 9, 0)
    assert (second.model, second.measurement.warmup.max_repeats) == ("org/b", 7)
    assert second.settings["extra"] == {"b": 1, "c": {"e": 2}}
    assert [notice.code for notice in study.notices] == ["older_words"]


@pytest.mark.parametrize(
    "engines",
    [
        "backend: [pytorch, vllm]",
        "sweep: {backend: [pytorch, vllm]}",
        "sweep: {vllm.engine.enforce_eager: [true]}",
        "sweep: {vllm: {engine: {enforce_eager: [true]}}, harness.transformers.batch_size: [2]}",
        "experiments: [{backend: vllm}, {n: 3}]",
        "backend: vllm\nexperiments: [{passthrough_kwargs: {a: 1}}]",
    ],
)
def test_passed_on_arguments_reach_every_engine(load: Load, engines: str) -> None:
    study = load(f"model: gpt2\npassthrough_kwargs: {{a: 1}}\n{engines}\n")
    assert {each.engine: each.config.settings["extra"] for each in study.experiments}["vllm"] == {"a": 1}
    assert all(each.config.settings["extra"] == {"a": 1} for each in study.experiments)
    assert [notice.code for notice in study.notices] == ["older_words"]


def test_what_samples_in_a_sweep_or_an_entry_does_so_alone(load: Load) -> None:
    def temperatures(text: str) -> list[float | None]:
        decoding = [each.config.decoding for each in load(f"task: {{model: gpt2}}\n{text}").experiments]
        return [(each.temperature or 1.0) if each.do_sample else None for each in decoding]

    beams = (
        "{transformers.sampling.do_sample: false, transformers.sampling.temperature: 0.0, transformers.num_beams: 4}"
    )
    sampled = "{transformers.sampling.temperature: [0.5, 0.9]}"
    assert temperatures(f"sweep: {{transformers.decoding: [{{}}, {beams}]}}") == [None, None]
    assert temperatures(f"sweep: {{transformers.decoding: [{{}}, {beams}, {sampled}]}}") == [None, None, 0.5, 0.9]
    axes = "vllm.sampling.temperature: [0.5], vllm.sampling.top_p: [0.8, 0.9]"
    assert temperatures(f"sweep: {{transformers.batch_size: [2], {axes}}}") == [None, 0.5, 0.5]
    assert temperatures(f"sweep: {{vllm.g: [{{vllm.sampling.do_sample: false}}], {axes}}}") == [None]
    greedy = "{engine: vllm}, {decoder: {preset: deterministic}}"
    assert temperatures(f"sweep: {{decoder.temperature: [0.5]}}\nexperiments: [{greedy}]") == [0.5, None, None]
    shared = "decoder: {do_sample: false}\nexperiments: [{decoder: {preset: standard}}, {decoder: {top_k: 4}}]"
    assert temperatures(shared) == [1.0, 1.0]


def test_names_of_its_data_sets_are_those_of_the_hub(load: Load) -> None:
    datasets = ("alpaca", "{name: alpaca}", "{name: ai-energy-score}")
    [first, second, third] = [load(f"model_name: m\ndataset: {dataset}\n").experiments for dataset in datasets]
    assert first[0].config.workload.dataset == second[0].config.workload.dataset == "tatsu-lab/alpaca"
    assert third[0].config.workload.dataset == "aienergyscore"


def test_yes_and_no_are_the_booleans_there_that_they_are_in_yaml_1_1(load: Load) -> None:
    study = load(
        """\
        model: gpt2
        backend: vllm
        warmup: {enabled: no}
        decoder: {do_sample: yes}
        passthrough_kwargs: {enable_lora: off, name: "no"}
        experiments: [{vllm: {enforce_eager: on}}]
        """
    )
    [config] = [experiment.config for experiment in study.experiments]
    assert (config.measurement.warmup.max_repeats, config.decoding.do_sample) == (0, True)
    assert config.settings["extra"] == {"enable_lora": False, "name": "no"}
    assert config.settings["enforce_eager"] is True
