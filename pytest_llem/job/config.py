"""One fully resolved experiment, as the worker gets it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pytest_llem.errors import JsonValue

Weights = Literal["real", "dummy"]

DeviceKind = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Lengths:
    """Token lengths drawn per prompt: `uniform` uses `low..high`, `lognormal` `mean` and `sigma` (of the log)
    clipped to `low..high`. A fixed length is written as a plain integer instead."""

    distribution: Literal["uniform", "lognormal"]
    low: int
    high: int
    mean: float | None = None
    sigma: float | None = None


@dataclass(frozen=True)
class Arrival:
    """How requests arrive at an engine that serves: `constant` and `poisson` at `rate_per_s`, `burst` in groups of
    `burst_size`, `concurrency` with a fixed number of requests in flight."""

    process: Literal["constant", "poisson", "burst", "concurrency"]
    rate_per_s: float | None = None
    burst_size: int | None = None
    concurrency: int | None = None


@dataclass(frozen=True)
class WorkloadSettings:
    """What the engine is fed in one repeat. `input_tokens` of `None` keeps a data set's own prompt lengths."""

    dataset: str
    prompts: int
    input_tokens: int | Lengths | None
    output_tokens: int | Lengths
    seed: int
    ignore_eos: bool = True
    column: str | None = None
    split: str | None = None
    revision: str | None = None
    order: Literal["interleaved", "grouped", "shuffled"] = "interleaved"
    chat_template: bool = False
    arrival: Arrival | None = None


@dataclass(frozen=True)
class Decoding:
    """How the next token is chosen. Greedy when `do_sample` is false; `None` leaves a setting to the engine."""

    do_sample: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True)
class WarmupSettings:
    """Repeats of the measured workload before the measure window: at least `min_repeats`, then until the coefficient
    of variation of the last `window` repeat durations is at most `cv`, at most `max_repeats` or `max_s` seconds."""

    min_repeats: int = 1
    max_repeats: int = 10
    max_s: float = 60.0
    cv: float = 0.05
    window: int = 3


@dataclass(frozen=True)
class IdleSettings:
    """The idle window with the model loaded: `duration_s` of quiet, after waiting at most `max_wait_s` for power to
    settle; a duration of 0 measures no idle power. With `reuse` of `matching` that of an earlier cycle is taken where
    the device's conditions match."""

    duration_s: float = 2.0
    max_wait_s: float = 30.0
    reuse: Literal["never", "matching"] = "never"


@dataclass(frozen=True)
class MeasurementSettings:
    """How the workload is measured: repeated until `min_duration_s`, with extra windows for `phases`."""

    min_duration_s: float
    warmup: WarmupSettings = field(default_factory=WarmupSettings)
    idle: IdleSettings = field(default_factory=IdleSettings)
    phases: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExperimentConfig:
    """One fully resolved configuration, every default spelled out.

    `settings` is the section of the study that belongs to `engine`; `trust_remote_code` is off unless the study
    says otherwise. `dtype` of `None` means the checkpoint's own.
    """

    model: str
    engine: str
    dtype: str | None
    weights: Weights
    workload: WorkloadSettings
    decoding: Decoding
    measurement: MeasurementSettings
    settings: Mapping[str, JsonValue]
    seed: int = 0
    revision: str | None = None
    trust_remote_code: bool = False
    lora: str | None = None
