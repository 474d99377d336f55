"""vLLM in a process of its own, with settings given as JSON: prints what it generated and what it left as JSON."""

from __future__ import annotations

import json
import sys

import psutil

from pytest_llem.engines import open_engine
from pytest_llem.job.config import Decoding, ExperimentConfig, MeasurementSettings, WorkloadSettings
from pytest_llem.job.job import DeviceSet
from tests.engines.engine_cases import generate, ids, requests_of


def main(settings: str, output_tokens: str) -> None:
    config = ExperimentConfig(
        model="builtin:tiny-llama",
        engine="vllm",
        dtype="float32",
        weights="real",
        workload=WorkloadSettings("synthetic", 1, 8, 4, 0),
        decoding=Decoding(),
        measurement=MeasurementSettings(1.0),
        settings={"enforce_eager": True, **json.loads(settings)},
    )
    engine = open_engine("vllm")
    engine.prepare(config, DeviceSet("cpu"))
    engine.load()
    engine.reset_statistics()
    completions = generate(engine, requests_of(30, 31, 32, output=int(output_tokens)))
    found = {
        "ids": ids(completions),
        "statistics": engine.statistics(),
        "processes": len(_processes()),
        "cache": engine.reset(),
        "quiesced": engine.quiesce(),
        "effective": engine.effective(),
    }
    engine.shutdown()
    print(json.dumps({**found, "left": _processes()}))


def _processes() -> list[str]:
    """Children of this process that run, Python's own resource tracker aside."""
    children = [child for child in psutil.Process().children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]
    return [line for line in (" ".join(child.cmdline()) for child in children) if "resource_tracker" not in line]


if __name__ == "__main__":
    main(*sys.argv[1:])
