"""Tokens per second of the measured loop against a bare `generate` loop, in one run.

Run: `OMP_NUM_THREADS=1 python tests/benchmarks/measured_loop.py [ROUNDS]`. Both loops run the same batches of the
built-in model in turn. Compared are the lower deciles of their CPU times: disturbance by other programs only ever adds
to a time. Wanted: at least 0.99. The tiny model is the hardest case, because its steps take under a millisecond.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import GenerationConfig

from pytest_llem.engines import open_engine
from pytest_llem.engines.protocol import Engine, Request
from pytest_llem.job.config import Decoding, ExperimentConfig, MeasurementSettings, WorkloadSettings
from pytest_llem.job.events import EventLog
from pytest_llem.job.job import DeviceSet
from pytest_llem.worker.heartbeat import Heartbeat
from pytest_llem.worker.repeats import RepeatRunner
from pytest_llem.worker.windows import OpenWindow
from pytest_llem.workload.build import build_workload

BATCH, PROMPTS, INPUT, OUTPUT = 4, 8, 64, 32


def config() -> ExperimentConfig:
    return ExperimentConfig(
        model="builtin:tiny-llama",
        engine="transformers",
        dtype="float32",
        weights="real",
        workload=WorkloadSettings("synthetic", PROMPTS, INPUT, OUTPUT, 0),
        decoding=Decoding(),
        measurement=MeasurementSettings(1.0),
        settings={"batch_size": BATCH},
    )


def bare(model: Any, batches: list[torch.Tensor], generation: GenerationConfig) -> float:
    started = time.process_time()
    for batch in batches:
        model.generate(batch, attention_mask=torch.ones_like(batch), generation_config=generation)
    return time.process_time() - started


def measured(runner: RepeatRunner) -> float:
    runner.empty_caches()
    started = time.process_time()
    runner.measure(0.0, OpenWindow())
    return time.process_time() - started


def main(rounds: int) -> None:
    settings = config()
    engine: Engine = open_engine("transformers")
    engine.prepare(settings, DeviceSet("cpu"))
    engine.load()
    loaded: Any = engine
    model = loaded._engine.model
    requests: tuple[Request, ...] = build_workload(settings.workload, engine.tokenizer()).requests
    ids = [torch.tensor([r.token_ids for r in requests[i : i + BATCH]]) for i in range(0, PROMPTS, BATCH)]
    generation = GenerationConfig(do_sample=False, max_new_tokens=OUTPUT, eos_token_id=None, pad_token_id=0)
    with TemporaryDirectory() as directory:
        events = EventLog(Path(directory) / "events.jsonl")
        with Heartbeat(events, 5.0) as heartbeat:
            runner = RepeatRunner(engine, requests, events, heartbeat)
            for _ in range(5):
                bare(model, ids, generation)
                measured(runner)
            times: dict[str, list[float]] = {"bare": [], "measured": []}
            for index in range(rounds):
                # The first of a pair finds other caches than the second: take turns.
                if index % 2:
                    times["measured"].append(measured(runner))
                    times["bare"].append(bare(model, ids, generation))
                else:
                    times["bare"].append(bare(model, ids, generation))
                    times["measured"].append(measured(runner))
        events.close()
    plain, own = (statistics.quantiles(times[name], n=10)[0] for name in ("bare", "measured"))
    print(f"tokens per CPU second: bare {PROMPTS * OUTPUT / plain:.0f}, measured {PROMPTS * OUTPUT / own:.0f}")
    print(f"measured loop / bare loop: {plain / own:.4f} ({rounds} rounds)")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
