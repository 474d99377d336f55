"""`-n auto` starts as many workers as can measure at a time, by the kind of device that the experiments ask for."""

from __future__ import annotations

from pathlib import Path

import pytest

import pytest_llem.machine.devices
from pytest_llem.session.xdist.workers import worker_limit
from pytest_llem.study import load_study


@pytest.mark.parametrize(
    ("text", "workers", "said"),
    [
        ("", 4, "4 GPUs visible, an experiment needs 1"),
        ("device: {kind: cpu}", 1, "no experiment asks for a GPU, and measurements on the CPU would disturb"),
        ("sweep: {device.kind: [cpu, cuda]}", 4, "4 GPUs visible, an experiment needs 1"),
        ("device: {kind: cuda, gpus: 2}\ntransformers: {device_map: auto}", 2, "an experiment needs 2"),
    ],
)
def test_the_kind_and_number_of_devices_decide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, workers: int, said: str
) -> None:
    """A study of the CPU on a machine with four GPUs had four workers, of which three only waited."""
    monkeypatch.setattr(pytest_llem.machine.devices, "gpu_uuids", lambda: ("GPU-1", "GPU-2", "GPU-3", "GPU-4"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    path = tmp_path / "s.yaml"
    path.write_text(f"model: builtin:tiny-llama\n{text}")

    limit = worker_limit([load_study(path, env={})])

    assert limit.workers == workers
    assert said in str(limit)
