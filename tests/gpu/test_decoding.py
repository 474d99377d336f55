"""Token generation on a real GPU: what the sampler costs it, and the energy of a Llama's shape of 8 billion parameters.

The model has dummy weights, so that nothing is downloaded: energy and speed do not depend on their values.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import pytest

from pytest_llem.energy import registry
from pytest_llem.energy.gpu_meter import NvmlMeter
from pytest_llem.engines import open_engine
from pytest_llem.job.config import Decoding, ExperimentConfig, MeasurementSettings, WorkloadSettings
from pytest_llem.job.job import DeviceSet, MeterSettings
from pytest_llem.workload.build import build_workload

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 32000,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
BATCHES = (8, 64)
CYCLES = 3
INPUT_TOKENS, OUTPUT_TOKENS = 512, 128
PAIRS = 15
MAX_SLOWDOWN = 0.005

STUDY = """
name: llama-8b-shape
model: {model}
weights: dummy
dtype: {dtype}
engine: {engine}
workload: {{dataset: synthetic, input_tokens: {input_tokens}, output_tokens: {output_tokens}}}
measurement: {{min_duration_s: {seconds}, phases: [prefill]}}
sweep:
  batch:
{batches}
execution: {{cycles: {cycles}, isolation: experiment}}
"""


@pytest.mark.gpu(takes_s=60)
def test_the_sampler_does_not_slow_token_generation(
    gpu_uuid: str, on_gpu: bool, results: list[str], tmp_path: Path
) -> None:
    """The smallest model spends the greatest share of a step on the CPU: the worst case. Sampler stopped and running in
    turn, so that whatever else changes falls on both alike."""
    config = ExperimentConfig(
        model="builtin:tiny-llama",
        engine="transformers",
        dtype="float32",
        weights="real",
        workload=WorkloadSettings("synthetic", 4, 32, 64, 0),
        decoding=Decoding(),
        measurement=MeasurementSettings(1.0),
        settings={"batch_size": 4},
    )
    engine = open_engine("transformers")
    engine.prepare(config, DeviceSet("cuda", (gpu_uuid,)) if on_gpu else DeviceSet("cpu"))
    engine.load()
    requests = build_workload(config.workload, engine.tokenizer()).requests
    meter = registry.open_meter(MeterSettings("nvml"), DeviceSet("cuda", (gpu_uuid,)), tmp_path)
    assert isinstance(meter, NvmlMeter)
    meter.start()
    assert meter.sampler_pid is not None

    def tokens_per_s() -> float:
        begin = time.monotonic()
        made = sum(len(done.output_ids) for done in engine.generate(requests, lambda done, total: None))
        engine.quiesce()
        return made / (time.monotonic() - begin)

    tokens_per_s()
    ratios: list[float] = []
    for _ in range(PAIRS if on_gpu else 3):
        os.kill(meter.sampler_pid, signal.SIGSTOP)
        alone = tokens_per_s()
        os.kill(meter.sampler_pid, signal.SIGCONT)
        ratios.append(alone / tokens_per_s())
    meter.stop([])
    engine.shutdown()

    slowdown = median(ratios) - 1
    results.append(
        f"### Overhead\n\nToken generation beside the sampler is {slowdown:+.2%} slower ({len(ratios)} pairs).\n"
    )
    if on_gpu:
        assert slowdown < MAX_SLOWDOWN


@pytest.mark.gpu(takes_s=150)
@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_energy_per_token_of_an_8b_shape(
    engine: str, gpu_uuid: str, on_gpu: bool, results: list[str], tmp_path: Path
) -> None:
    """Through a study, as a user would: one result per batch size and cycle."""
    pytest.importorskip(engine)
    found = study_results(engine, tmp_path, gpu_uuid, on_gpu)

    results.append(f"### Llama shape of 8 billion parameters, dummy weights, bfloat16, {engine}\n")
    results.append(f"{INPUT_TOKENS} tokens in, {OUTPUT_TOKENS} out. Scatter: coefficient of variation over cycles.\n")
    results.append(
        "| batch | J per token | scatter | bound (k=2) | tokens/s | MFU | prefill J | decode J | mean power | valid |"
    )
    results.append("|" + "---|" * 10)
    for batch in sorted(found):
        results.append(line(batch, found[batch]))
    reasons = {note["code"] for cycles in found.values() for cycle in cycles for note in cycle["validity"]["reasons"]}
    results.append(f"\nReasons against single cycles: {', '.join(sorted(reasons)) or 'none'}.\n")
    assert sorted(found) == sorted(BATCHES)
    for cycles in found.values():
        assert all(cycle["energy"]["joules_per_output_token"] is not None for cycle in cycles)


def study_results(engine: str, directory: Path, gpu_uuid: str, on_gpu: bool) -> dict[int, list[dict[str, Any]]]:
    """Run the study in a pytest of its own; the valid and invalid results of each batch size."""
    model = directory / "llama-8b-shape"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({**LLAMA_8B, **({} if on_gpu else SMALL)}))
    size_setting = {"transformers": "transformers.batch_size", "vllm": "vllm.max_num_seqs"}[engine]
    batches = "\n".join(f"    - {{{size_setting}: {size}, workload.prompts: {size}}}" for size in BATCHES)
    text = STUDY.format(
        engine=engine,
        model=model,
        dtype="bfloat16" if on_gpu else "float32",
        input_tokens=INPUT_TOKENS if on_gpu else 16,
        output_tokens=OUTPUT_TOKENS if on_gpu else 8,
        seconds=5 if on_gpu else 0.2,
        cycles=CYCLES if on_gpu else 2,
        batches=batches,
    )
    study = directory / "study.yaml"
    study.write_text(text)
    command = [sys.executable, "-m", "pytest", f"--llem-study={study}", f"--llem-out={directory / 'out'}"]
    command += ["--llem-meter=nvml", "-p", "no:cacheprovider", "-q", f"--rootdir={directory}"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": gpu_uuid if on_gpu else ""}
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True)
    found: dict[int, list[dict[str, Any]]] = {}
    for path in sorted((directory / "out").rglob("result.json")):
        result = json.loads(path.read_text())
        found.setdefault(int(result["experiment"]["config"]["workload"]["prompts"]), []).append(result)
    assert found, f"{done.stdout}\n{done.stderr}"
    return found


def line(batch: int, cycles: list[dict[str, Any]]) -> str:
    """One batch size's row of the table."""

    def mean(*path: str) -> float | None:
        values = [value for cycle in cycles if (value := at(cycle, *path)) is not None]
        return fmean(values) if values else None

    per_token = [cycle["energy"]["joules_per_output_token"] for cycle in cycles]
    scatter = stdev(per_token) / fmean(per_token) if len(per_token) > 1 else None
    bounds = [
        cycle["energy"]["uncertainty_j"] / cycle["energy"]["energy_j"]
        for cycle in cycles
        if cycle["energy"]["uncertainty_j"] is not None
    ]
    phases = {
        name: [
            phase["energy_per_repeat_j"]
            for cycle in cycles
            for phase in cycle["energy"]["phases"]
            if phase["name"] == name
        ]
        for name in ("prefill", "decode")
    }
    shown = {name: [value for value in values if value is not None] for name, values in phases.items()}
    valid = sum(cycle["validity"]["valid"] for cycle in cycles)
    cells = [
        str(batch),
        written(fmean(per_token), ".4g"),
        written(scatter, ".2%"),
        written(fmean(bounds) if bounds else None, ".2%"),
        written(mean("throughput", "output_tokens_per_s"), ".0f"),
        written(mean("compute", "mfu"), ".1%"),
        *(written(fmean(values) if values else None, ".4g") for values in shown.values()),
        written(mean("energy", "avg_power_w"), ".0f") + " W",
        f"{valid} of {len(cycles)}",
    ]
    return "| " + " | ".join(cells) + " |"


def at(result: dict[str, Any], *path: str) -> float | None:
    """A number at a path of sections; `None` where one of them is missing."""
    value: Any = result
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return float(value) if isinstance(value, (int, float)) else None


def written(value: float | None, form: str) -> str:
    """A number for a cell."""
    return "-" if value is None else format(value, form)
