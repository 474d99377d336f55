"""An engine that writes down what is asked of it, a meter that does too, and a cycle with them."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pytest_llem.energy.protocol import Meter
from pytest_llem.engines.protocol import (
    CacheState,
    Capabilities,
    Completion,
    DeviceMemory,
    Engine,
    ModelShape,
    Progress,
    Quiesced,
    Request,
)
from pytest_llem.errors import JsonValue, OutOfMemoryError
from pytest_llem.job.config import (
    Decoding,
    ExperimentConfig,
    IdleSettings,
    MeasurementSettings,
    WarmupSettings,
    WorkloadSettings,
)
from pytest_llem.job.events import EventLog
from pytest_llem.job.job import Deadlines, DeviceSet, Job, JobDir, MeterSettings
from pytest_llem.job.measurement import EnergyReport, Measurement, Window
from pytest_llem.worker.cycle import run_cycle


class LetterTokenizer:
    bos_id: int | None = None

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))

    def chat(self, text: str) -> list[int]:
        return self.encode(text)


class ScriptedEngine(Engine):
    """Answers at once; `calls` holds what happened, and the attributes what to do differently."""

    name: ClassVar[str] = "scripted"

    def __init__(self) -> None:
        self.capabilities = Capabilities(token_times=True, prefix_cache=True)
        self.calls: list[str] = []
        self.cached_tokens: int | None = 0
        self.missing_tokens = self.lost_input_tokens = 0
        self.cache_state: CacheState = "cleared"
        self.read_back: dict[str, JsonValue] = {"dtype": "float32", "batch_size": 2}
        self.fail_in: str | None = None
        self.on_generate: Callable[[], None] = lambda: time.sleep(0.001)

    def _note(self, call: str) -> None:
        self.calls.append(call)
        if self.fail_in == call:
            raise OutOfMemoryError(f"no memory in {call}", fix="less")

    def prepare(self, config: ExperimentConfig, devices: DeviceSet) -> str:
        self._note("prepare")
        return "1.0"

    def load(self) -> None:
        self._note("load")

    def tokenizer(self) -> LetterTokenizer:
        return LetterTokenizer()

    def generate(self, requests: Sequence[Request], progress: Progress) -> list[Completion]:
        self._note("generate")
        self.on_generate()
        now = time.monotonic_ns()
        progress(len(requests), len(requests))
        return [
            Completion(
                r.index,
                len(r.token_ids) - self.lost_input_tokens,
                (7,) * (r.max_new_tokens - self.missing_tokens),
                now - 1000,
                now,
                "length",
                cached_tokens=self.cached_tokens,
            )
            for r in requests
        ]

    def reset(self) -> CacheState:
        self._note("reset")
        return self.cache_state

    def quiesce(self) -> Quiesced:
        self._note("quiesce")
        return "synchronized"

    def effective(self) -> Mapping[str, JsonValue]:
        return self.read_back

    def shape(self) -> ModelShape | None:
        return None

    def reset_peak_memory(self) -> None:
        self._note("reset_peak_memory")

    def memory(self) -> tuple[DeviceMemory, ...]:
        self._note("memory")
        return ()

    def shutdown(self) -> None:
        self.calls.append("shutdown")


class RecordingMeter(Meter):
    name: ClassVar[str] = "recording"
    sees_standstill: ClassVar[bool] = True

    def __init__(self) -> None:
        self.marks: list[int] = []
        self.stops: list[tuple[Window, ...]] = []

    def start(self) -> None:
        self.marks.append(time.monotonic_ns())

    def mark(self) -> int:
        self.marks.append(time.monotonic_ns())
        return self.marks[-1]

    def power_w(self) -> float | None:
        return 10.0

    def stop(self, windows: Sequence[Window]) -> EnergyReport:
        self.stops.append(tuple(windows))
        return EnergyReport("recording", True, "cpu_package", "worker", (), ())


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> ScriptedEngine:
    made = ScriptedEngine()
    monkeypatch.setattr("pytest_llem.worker.engine_slot.open_engine", lambda _name: made)
    return made


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> RecordingMeter:
    made = RecordingMeter()
    monkeypatch.setattr("pytest_llem.worker.cycle.open_meter", lambda *_: made)
    return made


def make_job(**changes: Any) -> Job:
    config = ExperimentConfig(
        model="m",
        engine="scripted",
        dtype="float32",
        weights="real",
        workload=WorkloadSettings("synthetic", prompts=4, input_tokens=5, output_tokens=3, seed=0),
        decoding=Decoding(),
        measurement=MeasurementSettings(0.01, WarmupSettings(1, 3, 1.0, 10.0, 2), IdleSettings(0.001, 0.0)),
        settings={"batch_size": 2},
    )
    config = dataclasses.replace(config, **changes)
    return Job("run", "study", "id", "hash", config, 1, 1, DeviceSet("cpu"), MeterSettings("auto"), Deadlines(60.0))


def run(job: Job, path: Path) -> Measurement:
    job_dir = JobDir(path)
    events = EventLog(job_dir.events)
    try:
        return run_cycle(job, job_dir, events, start_method="spawn", isolation="process")
    finally:
        events.close()


def codes(measurement: Measurement) -> list[str]:
    return [note.code for note in measurement.invalid]


def read_events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
