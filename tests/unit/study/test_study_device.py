"""Which device an experiment runs on: what a study may ask for, and how the command line stands for what it leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_llem.errors import StudyError
from pytest_llem.job.config import AskedKind
from pytest_llem.study import Overrides, Study, load_study


def load(directory: Path, text: str, device: AskedKind = "auto") -> Study:
    path = directory / "s.yaml"
    path.write_text(f"model: builtin:tiny-llama\n{text}")
    return load_study(path, overrides=Overrides(device=device), env={})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("device: {kind: cpu, power_limit_w: 300}", "device.power_limit_w cannot be combined with device.kind cpu"),
        (
            "device: {kind: rocm, sm_clock_mhz: default}",
            "device.sm_clock_mhz cannot be .* with device.kind rocm",
        ),
        ("device: {kind: cpu, gpus: 2}", "2:16: .*device.gpus 2 cannot be combined with device.kind cpu"),
        ("device: {kind: cuda, cpus: 0-3}", "2:16: .*device.cpus 0-3 cannot be combined with device.kind cuda"),
        ("device: {gpus: [1], numa_node: 0}", "device.numa_node 0 cannot be combined with device.gpus"),
        ("device: {cpus: 3-0}", "2:16: .*'3-0' is no CPU or range of CPUs"),
        ("engine: sglang\ndevice: {kind: cpu}", "3:16: .*kind cpu .*engine sglang, which computes on cuda or rocm"),
        ("engine: tensorrt_llm\ndevice: {kind: cpu}", "engine tensorrt_llm, which computes on cuda"),
        ("engine: openai\nopenai: {base_url: 'http://h:1'}\ndevice: {kind: cpu}", "4:16: .*has its devices already"),
        ("engine: openai\nopenai: {base_url: 'http://h:1'}\ndevice: {cpus: '0'}", "that server runs already"),
        ("engine: openai\nopenai: {base_url: 'http://h:1'}\ndevice: {gpus: 2}", "name the server's GPUs"),
        ("engine: vllm\nvllm: {tensor_parallel_size: 4}\ndevice: {gpus: 2}", "gpus 2 is less than the 4"),
        ("engine: vllm\ndevice: {gpus: 2}", "gpus 2 is more than the 1 .*the others would idle"),
        ("device: {gpus: 2}", "transformers.device_map null: one GPU would have the model"),
    ],
)
def test_what_cannot_be_is_refused_at_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        load(tmp_path, text)


@pytest.mark.parametrize(
    "text",
    [
        "device: {cpus: 0-3, numa_node: 0}",
        "device: {kind: cuda, gpus: 2}\ntransformers: {device_map: auto}",
        "engine: vllm\nvllm: {tensor_parallel_size: 2}\ndevice: {gpus: 2}",
        "engine: vllm\nvllm: {tensor_parallel_size: 2}\ndevice: {gpus: [0, 1, 3]}",
        "engine: openai\nopenai: {command: [serve, '{model}', '{port}']}\ndevice: {kind: cpu, cpus: '1'}",
    ],
)
def test_what_can_be_is_loaded(tmp_path: Path, text: str) -> None:
    load(tmp_path, text)


def test_the_command_line_stands_for_what_the_study_leaves_open(tmp_path: Path) -> None:
    """A result of --llem-device=cpu is that of `device.kind: cpu`: with another hash it would never be resumed."""
    told = load(tmp_path, "", "cpu").experiments[0]
    said = load(tmp_path, "device: {kind: cpu}").experiments[0]
    open_ = load(tmp_path, "").experiments[0]

    assert told.config_hash == said.config_hash != open_.config_hash
    assert told.config.device.kind == "cpu"
    assert told.id == open_.id
    assert load(tmp_path, "device: {kind: cpu}", "cuda").experiments[0].config_hash == said.config_hash


def test_it_does_so_in_sweeps_and_entries_too(tmp_path: Path) -> None:
    swept = load(tmp_path, "sweep: {device.kind: [auto, cuda]}", "cpu").experiments
    assert [each.config.device.kind for each in swept] == ["cpu", "cuda"]

    listed = load(
        tmp_path,
        "device: {kind: cuda}\nexperiments: [{id: a, device: null}, {id: b, device: {kind: auto}}, {id: c, seed: 1}]",
        "cpu",
    )
    assert [each.config.device.kind for each in listed.experiments] == ["cpu", "cuda"]
    assert [each.reason for each in listed.duplicates] == ["does the same as a"]


def test_two_points_that_it_makes_equal_are_one(tmp_path: Path) -> None:
    study = load(tmp_path, "sweep: {device.kind: [auto, cpu]}", "cpu")
    assert [each.id for each in study.experiments] == ["kind:auto"]
    assert study.duplicates[0].id == "kind:cpu"


def test_an_engine_that_cannot_follow_it_is_refused_and_says_whose_wish_it_was(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"engine sglang.*leave --llem-device=cpu out"):
        load(tmp_path, "engine: sglang", "cpu")
