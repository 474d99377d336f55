"""What this machine cannot run is told at collection, at the place of the setting, or skipped if the study says so."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

import pytest_llem.machine.device_checks
import pytest_llem.machine.devices
from pytest_llem.errors import DeviceError
from pytest_llem.machine.device_checks import Place, experiments_beyond
from pytest_llem.study import Study, load_study

HERE = Place("auto", here=("transformers", "vllm"))


def study(directory: Path, text: str) -> Study:
    path = directory / "s.yaml"
    path.write_text(f"model: builtin:tiny-llama\n{text}")
    return load_study(path, env={})


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pytest_llem.machine.devices, "gpu_uuids", lambda: ("GPU-1", "GPU-2"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    torch_for("cuda", monkeypatch)


def torch_for(kind: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pytest_llem.machine.device_checks, "torch_build", lambda: kind)


def test_a_kind_of_which_there_is_none_is_refused_where_it_stands(tmp_path: Path) -> None:
    text = "sweep:\n  device.kind: [cpu, cuda]\n"
    with pytest.raises(DeviceError, match=r"s\.yaml:3:22: kind:cuda: device\.kind cuda: no NVIDIA GPU is") as no:
        experiments_beyond(study(tmp_path, text), HERE)
    assert "on_invalid: skip" in str(no.value.fix)
    assert "--llem-device" not in str(no.value.fix)
    with pytest.raises(DeviceError) as no:  # asked for by the run, in a study that names none
        experiments_beyond(study(tmp_path, text), replace(HERE, kind="cuda"))
    assert "or leave --llem-device=cuda out" in str(no.value.fix)

    skipped = experiments_beyond(study(tmp_path, text + "on_invalid: skip\n"), HERE)
    assert skipped == {"kind:cuda": "device.kind cuda: no NVIDIA GPU is visible"}


@pytest.mark.usefixtures("two_gpus")
def test_with_gpus_both_kinds_run(tmp_path: Path) -> None:
    assert not experiments_beyond(study(tmp_path, "sweep: {device.kind: [auto, cpu, cuda]}"), HERE)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("kind", ["auto", "cuda"])
def test_a_gpu_that_is_named_need_not_be_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    named = study(tmp_path, f"device: {{kind: {kind}, gpus: [1]}}\n")
    assert not experiments_beyond(named, HERE)
    torch_for("cpu", monkeypatch)
    with pytest.raises(DeviceError, match="would run on cuda, and its torch was built for cpu"):
        experiments_beyond(named, HERE)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("build", "kind", "engine", "message"),
    [
        ("cpu", "auto", "transformers", "would run on cuda, and its torch was built for cpu"),
        ("cpu", "cuda", "vllm", "would run on cuda, and its torch was built for cpu"),
        ("cuda", "cpu", "vllm", "would run on cpu, and its torch was built for cuda"),
        ("cuda", "cpu", "transformers", None),
        ("cpu", "cpu", "vllm", None),
        (None, "auto", "transformers", None),
    ],
)
def test_an_engine_that_is_built_for_another_kind_is_told_before_a_gpu_is_leased(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build: str | None, kind: str, engine: str, message: str | None
) -> None:
    """A GPU was leased, and every cycle failed once the engine had been imported."""
    torch_for(build, monkeypatch)
    text = study(tmp_path, f"engine: {engine}\ndevice: {{kind: {kind}}}\n")
    if message is None:
        assert not experiments_beyond(text, HERE)
        return
    with pytest.raises(DeviceError, match=rf"s\.yaml:\d+:\d+: .*{message}"):
        experiments_beyond(text, HERE)
    assert not experiments_beyond(text, Place("auto")), "in an image there may be another build"


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("device: {cpus: '0'}", "2:16: .*pins an experiment on the CPU, and 2 GPUs would be taken"),
        ("device: {gpus: 3}\ntransformers: {device_map: auto}", "device.gpus needs 3 GPUs, 2 are visible"),
        ("device: {gpus: [2]}", "there is no GPU '2'"),
    ],
)
def test_what_does_not_go_with_the_gpus_here_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        experiments_beyond(study(tmp_path, text), HERE)


def test_a_number_of_gpus_is_not_forgotten_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch_for("cuda", monkeypatch)
    two = study(tmp_path, "device: {gpus: 2}\ntransformers: {device_map: auto}")
    with pytest.raises(DeviceError, match=r"device\.gpus needs 2 GPUs, 0 are visible"):
        experiments_beyond(two, HERE)
    with pytest.raises(DeviceError, match="needs 2 GPUs, and 0 are visible"):
        pytest_llem.machine.devices.demanded_devices(two.experiments[0].config)


def test_cpus_and_nodes_that_are_not_there_are_refused(tmp_path: Path) -> None:
    beyond = (os.cpu_count() or 1) + 500
    with pytest.raises(DeviceError, match=rf"2:27: .*there is no CPU {beyond}"):
        experiments_beyond(study(tmp_path, f"device: {{kind: cpu, cpus: '0,{beyond}'}}"), HERE)
    with pytest.raises(DeviceError, match=r"device\.numa_node 900: .* has no such node"):
        experiments_beyond(study(tmp_path, "device: {numa_node: 900}"), HERE)


def test_a_meter_of_gpus_cannot_measure_the_cpu(tmp_path: Path) -> None:
    """Its joules would be those of devices on which nothing computed."""
    for_cpu = study(tmp_path, "device: {kind: cpu}")
    with pytest.raises(DeviceError, match=r"2:16: .*the meter nvml, which reads NVIDIA GPUs"):
        experiments_beyond(for_cpu, Place("nvml"))
    assert not experiments_beyond(for_cpu, Place("estimate"))


def test_where_a_cluster_chooses_gpus_can_be_counted_and_not_named(tmp_path: Path) -> None:
    ray = Place("auto", elsewhere=("vllm",))
    counted = "engine: vllm\nvllm: {tensor_parallel_size: 2}\ndevice: {gpus: 2, kind: cuda}"
    assert not experiments_beyond(study(tmp_path, counted), ray)
    with pytest.raises(DeviceError, match="the runner ray, which chooses the GPUs"):
        experiments_beyond(study(tmp_path, "engine: vllm\ndevice: {gpus: [0]}"), ray)
