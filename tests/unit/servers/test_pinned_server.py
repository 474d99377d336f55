"""A server that is started for a study has the CPUs and sees the devices of its experiment."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from pytest_llem.engines.builtin import builtin_path
from pytest_llem.job.config import DeviceSettings, ExperimentConfig
from pytest_llem.job.job import Deadlines, DeviceSet, Job, MeterSettings
from pytest_llem.servers.spec import ServerSpec
from pytest_llem.servers.starting import begin_server

FIRST = min(os.sched_getaffinity(0))
SAYS = "import json, os; print(json.dumps([sorted(os.sched_getaffinity(0)), os.environ['CUDA_VISIBLE_DEVICES']]))"


def test_a_server_is_pinned_and_pytest_is_not(tmp_path: Path) -> None:
    """Its client was pinned instead, and the server computed on all CPUs and the GPU."""
    before = os.sched_getaffinity(0)
    config = ExperimentConfig(
        model=str(builtin_path("builtin:tiny-llama")),
        engine="openai",
        device=DeviceSettings(kind="cpu", cpus=str(FIRST)),
        settings={"command": [sys.executable, "-c", SAYS]},
    )
    job = Job("r", "s", "e", "0" * 16, config, 1, 1, DeviceSet("cpu"), MeterSettings("none"), Deadlines(60))
    spec = ServerSpec.of(config, job.devices)
    log = tmp_path / "server.log"

    server = begin_server(spec, job, {}, None, lambda text: None)(1, log)
    try:
        deadline = time.monotonic() + 120
        while server.ended() is None and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        server.stop(0.0)

    assert json.loads(log.read_text().splitlines()[-1]) == [[FIRST], ""]
    assert os.sched_getaffinity(0) == before
    assert spec != ServerSpec.of(replace(config, device=DeviceSettings(kind="cpu")), job.devices), "it would be kept"
