"""Every wrong study gives one message with place, key and remedy."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_llem.errors import SettingsError, StudyError
from pytest_llem.study import Overrides, Study, load_study

Load = Callable[..., Study]

WRONG = {
    "unknown key": ("model: m\nbatchsize: 4\n", "2:1", "unknown setting 'batchsize'", "transformers.batch_size"),
    "nothing near at the top": ("model: m\nvalidity: {}\n", "2:1", "unknown setting 'validity'", ", sweep"),
    "typo at the top": ("model: m\nengin: vllm\n", "2:1", "unknown setting 'engin'", "did you mean 'engine'?"),
    "typo in depth": (
        "model: m\ntransformers:\n  quantization: {load_in_4bits: true}\n",
        "3:18",
        "transformers.quantization.load_in_4bits",
        "did you mean 'transformers.quantization.load_in_4bit'?",
    ),
    "a name that goes on": ("model: m\nworkload: {answer: a}\n", "2:12", "unknown", "mean 'workload.answer_column'?"),
    "neither name nor mapping": ("model: m\nworkload: {score: true}\n", "2:19", "a text or a mapping", "true"),
    "a kind of device by its usual name": (
        "model: m\ndevice: {kind: gpu}\n",
        "2:16",
        "device.kind: the text 'gpu' is not accepted",
        "did you mean 'cuda'?",
    ),
    "a limit with its unit": (
        "model: m\ndevice: {power_limit_w: 300W}\n",
        "2:25",
        "expected a number or 'default'",
        "got the text '300W'",
    ),
    "a limit of nothing": ("model: m\ndevice: {power_limit_w: 0}\n", "2:25", "greater than 0 or 'default'", "number 0"),
    "a misspelt default": ("model: m\ndevice: {sm_clock_mhz: defualt}\n", "2:24", "or 'default'", "mean 'default'?"),
    "wrong type": ("model: m\ntransformers:\n  batch_size: four\n", "3:15", "expected an integer", "'four'"),
    "out of range": ("model: m\nworkload: {prompts: 0}\n", "2:21", "greater than or equal to 1", "0"),
    "control character behind others": ("model: m\ntitle: é\x01\n", "2:9", "control characters are not allowed", ""),
    "number for a text": ("model: 7\n", "1:8", "model: expected a text", "7"),
    "section is no mapping": ("model: m\nworkload: 4\n", "2:11", "workload: expected a mapping", "dataset"),
    "percentile of nothing": ("model: m\npercentiles: [0, 50]\n", "2:15", "percentiles: expected", "greater than 0"),
    "percentile of all": ("model: m\npercentiles: [50, 100]\n", "2:19", "percentiles: expected", "less than 100"),
    "percentile twice": ("model: m\npercentiles: [90, 90]\n", "2:19", "90 stands there twice", "percentiles: [90]"),
    "unsorted percentiles": (
        "model: m\npercentiles: [50, 99.9, 90]\n",
        "2:25",
        "90 comes after 99.9",
        "write percentiles: [50, 90, 99.9]",
    ),
    "too fine a percentile": ("model: m\npercentiles: [99.9999]\n", "2:15", "more than three decimals", "99.999"),
    "no list of percentiles": ("model: m\npercentiles: 95\n", "2:14", "percentiles: expected a list", "95"),
    "gate on a percentile beyond all": (
        'model: m\nexpect: {ttft_p100_s: "<= 1"}\n',
        "2:10",
        "unknown metric 'ttft_p100_s'",
        "above 0 and below 100",
    ),
    "gate on a percentile in another spelling": (
        'model: m\nexpect: {ttft_p99.9_s: "<= 1"}\n',
        "2:10",
        "unknown metric",
        "did you mean 'ttft_p99_9_s'?",
    ),
    "unknown engine": ("model: m\nengine: vlm\n", "2:9", "unknown engine 'vlm'", "did you mean 'vllm'?"),
    "unknown engine in a sweep": ("model: m\nsweep: {engine: [vllm, sgland]}\n", "2:24", "sgland", "'sglang'"),
    "empty sweep": ("model: m\nsweep: {}\n", "2:1", "the sweep is empty", "take sweep out"),
    "null sweep": ("model: m\nsweep:\n", "2:1", "sweep: expected a mapping", "null"),
    "axis without values": ("model: m\nsweep: {dtype: []}\n", "2:16", "dtype has no values", "write a list"),
    "wrong value on an axis": ("model: m\nsweep: {dtype: [float32, int3]}\n", "2:26", "'int3'", "float16"),
    "unknown axis in a section that is there": (
        "model: m\nsweep: {measurement.warmup.iterations: [1]}\n",
        "2:9",
        "unknown setting 'measurement.warmup.iterations'",
        "known here: min_repeats, max_repeats",
    ),
    "unknown axis": ("model: m\nsweep: {decodin.temperature: [1]}\n", "2:9", "decodin.temperature", "did you mean"),
    "unknown setting in a group": ("model: m\nsweep: {g: [{}, {batch_sise: 1}]}\n", "2:18", "batch_sise", "batch_size"),
    "two axes for one setting": (
        "model: m\nsweep: {seed: [1], g: [{seed: 2}]}\n",
        "2:20",
        "seed is set by two axes",
        "group of both",
    ),
    "no model": ("dtype: float32\n", "1:1", "no model", "builtin:tiny-llama"),
    "experiment without model": ("experiments: [{model: m}, {seed: 1}]\n", "1:27", "has no model", "name one"),
    "no experiments": ("model: m\nexperiments: []\n", "2:14", "experiments", "take experiments out"),
    "same id twice": ("model: m\nexperiments: [{id: a, seed: 1}, {id: a, seed: 2}]\n", "2:38", "'a'", "rename one"),
    "bad id": ("model: m\nexperiments: [{id: a b}]\n", "2:20", "id", "a b"),
    "processes that transformers lacks": (
        "model: m\nsweep: {transformers.tensor_parallel_size: [1, 2]}\n",
        "2:48",
        "transformers.tensor_parallel_size 2: transformers needs a process per device",
        "transformers.device_map: auto",
    ),
    "settled without repeats to settle under": (
        "model: m\nmeasurement: {warmup: {max_repeats: 0, thermal: settled}}\n",
        "2:37",
        "thermal settled cannot be combined",
        "leave max_repeats out",
    ),
    "text that YAML reads as a number": ("model: m\nrevision: 12e45\n", "2:11", "expected a text, got", "(quote it)"),
    "text that YAML reads as a boolean": (
        "model: m\nworkload: {split: true}\n",
        "2:19",
        "got the boolean",
        "(quote it)",
    ),
    "no where anything goes": (
        "model: m\nengine: vllm\nvllm: {extra: {enable_lora: no}}\n",
        "3:29",
        "vllm.extra.enable_lora: no is no boolean here, but a text that engines take for true",
        "write true or false, or quote it",
    ),
    "off in a list where anything goes": (
        "model: m\ntransformers: {extra: {a: {b: [1, {c: Off}]}}}\n",
        "2:31",
        "transformers.extra.a.b: Off is no boolean here",
        "quote it",
    ),
    "yes on an axis": (
        "model: m\nengine: vllm\nsweep: {vllm.extra.x: [yes, 1]}\n",
        "3:24",
        "vllm.extra.x: yes",
        "quote",
    ),
    "on for Ray": (
        "model: m\nray: {runtime_env: {config: {eager_install: on}}}\n",
        "2:29",
        "on is no boolean",
        "quote",
    ),
    "a runner like no other": (
        "model: m\nrunners: {vllm: nonsense}\n",
        "2:17",
        "unknown runner 'nonsense'",
        "local, docker",
    ),
    "runner without image": (
        "model: m\nrunners: {vllm: 'docker:'}\n",
        "2:17",
        "nothing after the colon",
        "docker:IMAGE",
    ),
    "runner with too much": ("model: m\nrunners: {vllm: local:x}\n", "2:17", "local takes nothing", "docker:IMAGE"),
    "image with a blank": ("model: m\nrunners: {vllm: 'docker:a b'}\n", "2:17", "blanks or", "docker:IMAGE"),
    "unknown meter": ("model: m\nmeter: nvlm\n", "2:8", "unknown meter 'nvlm'", "did you mean 'nvml'?"),
    "typo in docker": ("model: m\ndocker: {lifecyle: session}\n", "2:10", "docker.lifecyle", "'lifecycle'"),
    "no size": ("model: m\ndocker:\n  memory: much\n", "3:11", "a size like 512m or 16g", "'much'"),
    "no lifecycle": ("model: m\ndocker: {lifecycle: forever}\n", "2:21", "docker.lifecycle", "ephemeral, session"),
    "bad name": ("model: m\nname: a/b\n", "2:7", "name", "a/b"),
    "exclude unknown": ("model: m\nsweep: {seed: [1, 2]}\nexclude: [{sead: 1}]\n", "3:12", "sead", "'seed'"),
    "exclude wrong value": ("model: m\nsweep: {seed: [1, 2]}\nexclude: [{seed: one}]\n", "3:18", "integer", "'one'"),
    "exclude everything": (
        "model: m\nsweep: {seed: [1, 2]}\nexclude: [{seed: [1, 2]}]\n",
        "2:1",
        "nothing is left",
        "relax exclude",
    ),
    "unknown metric": ("model: m\nexpect: {joules_per_output_tokn: <= 1}\n", "2:10", "unknown metric", "did you mean"),
    "budget without operator": ("model: m\nexpect: {energy_j: 5}\n", "2:20", "not a budget", '"<= 5"'),
    "change without percent": ("model: m\ncompare: {fail_if: {energy_j: 5}}\n", "2:31", "not a change", "5%"),
    "harmless direction": (
        "model: m\ncompare: {fail_if: {output_tokens_per_s: 5%}}\n",
        "2:42",
        "allows no worsening",
        "turn the sign",
    ),
    "unknown runner": ("model: m\nrunners: {vllm: dokcer}\n", "2:17", "dokcer", "'docker'"),
    "unknown execution key": ("model: m\nexecution: {cycels: 3}\n", "2:13", "execution.cycels", "'cycles'"),
    "unknown order": ("model: m\nexecution: {order: random}\n", "2:20", "'random'", "shuffled"),
    "combination": (
        "model: m\ntransformers: {num_beams: 2, prompt_lookup_num_tokens: 3}\n",
        "2:56",
        "transformers.prompt_lookup_num_tokens 3 cannot be combined with transformers.num_beams 2",
        "use num_beams 1",
    ),
    "arrivals of two kinds": (
        "model: m\nengine: vllm\nworkload: {arrival: {process: poisson, rate_per_s: 4, concurrency: 2}}\n",
        "3:21",
        "workload.arrival: concurrency has no effect with process poisson",
        "leave concurrency out",
    ),
    "gamma without a shape": (
        "model: m\nengine: vllm\nworkload: {arrival: {process: gamma, rate_per_s: 4}}\n",
        "3:21",
        "workload.arrival: process gamma needs burstiness",
        "give burstiness",
    ),
    "a schedule with a rate": (
        "model: m\nengine: vllm\nworkload: {arrival: {process: schedule, file: t.txt, rate_per_s: 4}}\n",
        "3:21",
        "workload.arrival: rate_per_s has no effect with process schedule",
        "leave rate_per_s out",
    ),
    "a schedule of nothing": (
        "model: m\nengine: vllm\nworkload: {arrival: {process: schedule}}\n",
        "3:21",
        "process schedule without a file takes the times of a data set, and workload.dataset synthetic has none",
        "give file",
    ),
    "cache of an engine that keeps none": (
        "model: m\nworkload: {cache: warm}\n",
        "2:19",
        "workload.cache warm cannot be combined with engine transformers, which keeps no prefix cache",
        "leave workload.cache out",
    ),
    "cache that is off": (
        "model: m\nengine: vllm\nvllm: {enable_prefix_caching: false}\nworkload: {cache: cold}\n",
        "4:19",
        "workload.cache cold cannot be combined with vllm.enable_prefix_caching false",
        "change vllm.enable_prefix_caching",
    ),
    "cache that nothing empties": (
        "model: m\nengine: tensorrt_llm\nworkload: {cache: cold}\n",
        "3:19",
        "engine tensorrt_llm, whose prefix cache nothing empties",
        "use warm",
    ),
    "warm without a warm-up": (
        "model: m\nengine: vllm\nworkload: {cache: warm}\nmeasurement: {warmup: {max_repeats: 0}}\n",
        "3:19",
        "workload.cache warm cannot be combined with measurement.warmup.max_repeats 0",
        "leave max_repeats out",
    ),
    "strings in two places": (
        "model: m\nengine: openai\nopenai: {base_url: 'http://h/v1', extra: {stop: [a]}}\nworkload: {stop: [Q]}\n",
        "3:49",
        "openai.extra.stop ['a'] cannot be combined with workload.stop ['Q']",
        "name every stop string in workload.stop",
    ),
    "strings that continuous batching passes over": (
        "model: m\ntransformers: {continuous_batching: true}\nworkload: {ignore_eos: false, stop: [Q]}\n",
        "2:37",
        "transformers.continuous_batching true cannot be combined with workload.stop ['Q']",
        "it ends no answers at stop strings",
    ),
    "key in an address": (
        "model: m\nengine: openai\nopenai: {base_url: 'http://h/v1?api-key=s'}\n",
        "3:20",
        "openai.base_url holds a user name, a password or a query",
        "openai.api_key_env",
    ),
    "address that is none": (
        "model: m\nengine: openai\nopenai: {base_url: 'http://h:99999/v1'}\n",
        "3:20",
        "openai.base_url 'http://h:99999/v1' is not the URL of a server: Port out of range",
        "http://HOST:PORT/v1",
    ),
    "duplicate key": ("model: m\nseed: 1\nseed: 2\n", "3:1", "'seed' appears twice", "keep one"),
    "syntax": ("model: [m\n", "2:1", "YAML syntax error", ""),
    "tab": ("model: m\n\tseed: 1\n", "2:1", "YAML syntax error", "spaces"),
    "not a mapping": ("- 1\n", "1:1", "expected a mapping of settings", "key: value"),
    "empty": ("", "1:1", "empty", "model"),
    "tag": ("model: !!python/object:os.system x\n", "1:8", "tag", "plain values"),
    "unset variable": ("model: ${NO_SUCH}\n", "1:8", "NO_SUCH is not set", "${NO_SUCH:-value}"),
    "secret variable": ("model: m\nname: ${MY_API_KEY}\n", "2:7", "MY_API_KEY sounds secret", "api_key_env"),
    "credential": ("model: m\ntags: [hf_abcdefghijklmnopqrstuvwxyz12345678]\n", "2:8", "a credential", "api_key_env"),
    "missing base": ("base: nope.yaml\nmodel: m\n", "1:7", "nope.yaml", "relative to this file"),
    "own base": ("base: study.yaml\nmodel: m\n", "1:7", "a base of itself", "circle"),
    "recursive alias": ("model: &a [*a]\n", "1:8", "contains itself", "write"),
    "range that never ends": ("model: m\nsweep: {seed: {range: [5, 1, 1]}}\n", "2:15", "never gets", "turn the sign"),
    "absurd range": ("model: m\nsweep: {seed: {range: [1, 1000000000]}}\n", "2:15", "1,000,000,000 values", "step"),
}


@pytest.mark.parametrize("case", WRONG)
def test_message_names_place_key_and_remedy(load: Load, tmp_path: Path, case: str) -> None:
    text, position, what, remedy = WRONG[case]

    with pytest.raises(StudyError) as caught:
        load(text)

    first = caught.value.message.splitlines()[0]
    assert first.startswith(f"{tmp_path / 'study.yaml'}:{position}: ")
    assert what in first
    assert remedy in first


def test_all_problems_are_reported_and_the_first_one_leads(load: Load) -> None:
    with pytest.raises(StudyError) as caught:
        load("model: m\nseed: one\nworkload: {promts: 3}\nsweep: {dtype: [float3]}\n")

    assert [re.sub(r"^.*?:(\d+):.*", r"\1", line) for line in caught.value.message.splitlines()] == ["2", "3", "4"]
    assert caught.value.details["count"] == 3


def test_problem_in_a_base_is_placed_in_the_base(load: Load, tmp_path: Path) -> None:
    (tmp_path / "common.yaml").write_text("workload:\n  prompts: many\n")

    with pytest.raises(StudyError, match=r"common\.yaml:2:12: workload\.prompts"):
        load("base: common.yaml\nmodel: m\n")


def test_missing_file_is_a_study_error(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"nothing\.yaml:1:1: cannot be read"):
        load_study(tmp_path / "nothing.yaml")


def test_not_utf8_is_placed(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"model: m\ntitle: caf\xe9\n")

    with pytest.raises(StudyError, match=r"latin\.yaml:2:11: not UTF-8"):
        load_study(path)


def test_alias_bomb_is_refused_with_its_size(load: Load) -> None:
    """Ten levels of ten aliases each would be ten thousand million values."""
    levels = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 11)]

    with pytest.raises(StudyError, match=r"[0-9,]{13,} values once its aliases are written out"):
        load("\n".join(levels))


@pytest.mark.parametrize("text", ["[" * 100_000, "a: " + "{b: " * 5_000, "- " * 5_000])
def test_deep_nesting_is_refused_and_does_not_end_the_process(load: Load, text: str) -> None:
    """libyaml's composer recurses in C: a file of brackets once ended Python with a segmentation fault."""
    with pytest.raises(StudyError, match=r"nested deeper|syntax error"):
        load(text)


def test_absurd_product_is_refused_with_its_count(load: Load) -> None:
    with pytest.raises(StudyError, match=r"1,000,000,000 points: 1,000 seed x 1,000 workload\.seed x 1,000"):
        load(
            """\
            model: m
            sweep:
              seed: {range: [1, 1000]}
              workload.seed: {range: [1, 1000]}
              workload.prompts: {range: [1, 1000]}
            """
        )


@pytest.mark.parametrize("overrides", [Overrides(cycles=0), Overrides(order="random"), Overrides(fail_if={"x": "5%"})])
def test_wrong_command_line_is_a_settings_error(load: Load, overrides: Overrides) -> None:
    with pytest.raises(SettingsError):
        load("model: m\n", overrides=overrides)


def test_quoted_words_and_words_where_a_text_is_wanted_are_texts(load: Load) -> None:
    study = load("model: 'no'\ntitle: yes\ntags: [on]\ntransformers: {extra: {a: 'no', b: nothing, c: false}}\n")

    assert study.title == "yes"
    assert study.experiments[0].config.settings["extra"] == {"a": "no", "b": "nothing", "c": False}


def test_a_user_there_is_not_is_no_traceback(load: Load) -> None:
    """`~nobody-here` was a RuntimeError."""
    study = load("model: ~nobody-here/x\nworkload: {dataset: ~nobody-here/y.txt}\ndocker: {mounts: [~nobody-here]}\n")

    assert "~nobody-here" in study.experiments[0].config.model
