"""The settings of one experiment, each declared once: the study reads and publishes them, the worker runs by them.

A worker gets an `ExperimentConfig`, every default spelled out; engines, workloads, servers and runners read it as well.
A new setting needs a default that changes nothing, because hashes hold only what differs from the defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Literal

from pytest_llem.errors import JsonValue, SettingsError
from pytest_llem.job.gpu_setting import SETTING_NAMES, SettingName
from pytest_llem.job.setting import (
    Dtype,
    Fraction,
    Limits,
    Name,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Share,
    Text,
    about,
    section,
    setting,
)

Weights = Literal["real", "dummy"]
GpuKind = Literal["cuda", "rocm"]
DeviceKind = Literal["cpu", "cuda", "rocm"]
AskedKind = Literal["auto", "cpu", "cuda", "rocm"]
Default = Literal["default"]
Phase = Literal["prefill", "decode"]
SteadyRule = Literal["full", "ml_energy"]
SYNTHETIC = "synthetic"
"""The data set that is made of a seed."""

TEXT_LINES = (".txt", ".text", ".md")
JSON_LINES = (".jsonl", ".ndjson")
PARQUET = ".parquet"
DATA_FILES = (*JSON_LINES, ".json", ".csv", PARQUET, *TEXT_LINES)
"""Endings that make a `workload.dataset` a file's name, relative to the study, rather than that of a data set."""


@dataclass(frozen=True)
class Lengths:
    """Token lengths drawn per prompt from the workload's seed.

    `uniform` uses `low..high`, `lognormal` `mean` and `sigma` (of the log) clipped to `low..high`. A fixed length is
    written as a plain integer instead.
    """

    distribution: Literal["uniform", "lognormal"] = field(metadata=about("Kind of distribution."))
    low: PositiveInt = field(metadata=about("Smallest length in tokens.", [16]))
    high: PositiveInt = field(metadata=about("Largest length in tokens.", [512]))
    mean: PositiveFloat | None = setting(None, "Mean length in tokens; lognormal only.", [128.0])
    sigma: PositiveFloat | None = setting(None, "Standard deviation of the log; lognormal only.")


@dataclass(frozen=True)
class Arrival:
    """How requests arrive at an engine that serves.

    `constant`, `poisson` and `gamma` arrive at `rate_per_s`, `burst` in groups of `burst_size`, `ramp` at a rate that
    goes in a straight line to `end_rate_per_s`, `schedule` at given times; `concurrency` keeps a fixed number of
    requests in flight.
    """

    process: Literal["constant", "poisson", "gamma", "burst", "ramp", "schedule", "concurrency"] = field(
        metadata=about("Kind of arrivals.")
    )
    rate_per_s: PositiveFloat | None = setting(None, "Requests per second; of a ramp those at its start.")
    burstiness: PositiveFloat | None = setting(
        None, "Shape of the gaps' gamma distribution; 1 is poisson, less comes in bursts; gamma only."
    )
    end_rate_per_s: PositiveFloat | None = setting(None, "Requests per second at the end; ramp only.")
    file: Name | None = setting(
        None,
        "Text file of the times in seconds, one a line, relative to the study; null takes those that the data set "
        "recorded; schedule only.",
        ["arrivals.txt"],
    )
    burst_size: PositiveInt | None = setting(None, "Requests per burst; burst only.")
    concurrency: PositiveInt | None = setting(None, "Requests in flight, or sessions open; concurrency only.")
    seed: NonNegativeInt | None = setting(
        None, "Seed of the times; null is that of the workload; poisson, gamma and ramp only."
    )


@dataclass(frozen=True)
class ScoreBy:
    """Scores answers by what the study gives: an expression to look for, or a function to call."""

    regex: Text | None = setting(
        None,
        "Regular expression whose first group, or else whole match, the answer key has to equal.",
        [r"answer is (\w+)"],
    )
    python: Name | None = setting(
        None,
        "FILE:FUNCTION, relative to the study, that gives a score from 0 to 1 for an answer and its key.",
        ["grading.py:grade"],
    )


@dataclass(frozen=True)
class WorkloadSettings:
    """What the engine is fed in one repeat."""

    dataset: Name = setting(
        SYNTHETIC,
        "`synthetic`, a file of prompts, sessions or a trace (.jsonl, .ndjson, .json, .csv, .parquet, .txt, .text, "
        ".md), or a data set's name.",
        [SYNTHETIC, "prompts.jsonl"],
    )
    prompts: PositiveInt = setting(32, "Prompts per repeat; of sessions and traces requests.", [32])
    input_tokens: PositiveInt | Lengths | None = setting(
        128,
        "Tokens per prompt; a data set's longer prompts are cut to it. Null keeps its own lengths, and is its default.",
        [128],
    )
    output_tokens: PositiveInt | Lengths | None = setting(
        64,
        "Tokens to generate, unless the data set recorded how many. Null takes a task's own limit, and is its default.",
        [64],
    )
    seed: NonNegativeInt = setting(0, "Seed of the prompts and lengths.")
    ignore_eos: bool = setting(
        True,
        "Generate exactly `output_tokens`, so that runs do the same work. The default is false with `score`, `task` or "
        "`stop`, where answers end on their own.",
    )
    column: Name | None = setting(None, "Column of the data set that holds the prompts.", ["text"])
    split: Name | None = setting(None, "Split of the data set.", ["train"])
    revision: Name | None = setting(None, "Revision of the data set.")
    order: Literal["interleaved", "grouped", "shuffled"] = setting(
        "interleaved", "Order of prompts from several sources."
    )
    chat_template: bool = setting(False, "Wrap each prompt in the model's chat template.")
    arrival: Arrival | None = setting(None, "Arrivals at an engine that serves; null sends all at once.")
    speed: PositiveFloat = setting(1.0, "How many times faster than recorded a data set's or schedule's times pass.")
    cache: Literal["cold", "warm"] | None = setting(
        None,
        "Prefix cache as a part of the experiment: `cold` is emptied before each repeat, `warm` holds what the warm-up "
        "left. Null allows no hits, but is `cold` for sessions and traces.",
    )

    score: Name | ScoreBy | None = setting(
        None,
        "How answers are scored once the window has closed: `exact`, `contains`, `choice`, `numeric`, a registered "
        "scorer, or by `regex` or `python`. Null scores none.",
        ["numeric"],
    )
    answer_column: Name | None = setting(None, "Column of the data set that holds the answer keys.", ["answer"])
    task: Name | None = setting(
        None,
        "Task that gives prompts, stop strings and scoring, instead of a data set: `lm_eval:NAME`.",
        ["lm_eval:gsm8k"],
    )
    include_path: Name | None = setting(
        None, "Directory of the user's own task files, relative to the study; tasks only."
    )
    few_shot: NonNegativeInt | None = setting(
        0,
        "Examples with their answers before each question: the data set's first rows, or a task's own. Null takes as "
        "many as a task says, and is its default.",
    )
    system_prompt: Text | None = setting(None, "Message of the system before each question.")
    stop: tuple[Text, ...] = setting((), "Strings at which an answer ends, none of which it then holds.", [["\n\n"]])
    keep_answers: bool = setting(True, "Keep the text of scored answers; else their hash alone.")

    @property
    def scored(self) -> bool:
        """Whether answers are scored."""
        return self.score is not None or self.task is not None

    @property
    def times_file(self) -> str | None:
        """The file of arrival times, if there is one."""
        return None if self.arrival is None else self.arrival.file


@dataclass(frozen=True)
class Decoding:
    """How the next token is chosen. Greedy unless `do_sample`.

    `None` leaves a setting to the engine.
    """

    do_sample: bool = setting(False, "Sample instead of taking the most likely token.")
    temperature: Annotated[float, Limits(ge=0, le=100)] | None = setting(
        None, "Temperature of the softmax; sampling only. 0 is greedy.", [0.7]
    )
    top_k: NonNegativeInt | None = setting(None, "Tokens to sample from; sampling only.", [50])
    top_p: Fraction | None = setting(None, "Probability mass to sample from; sampling only.")
    min_p: Annotated[float, Limits(ge=0, le=1)] | None = setting(
        None, "Least probability relative to the likeliest token; sampling only."
    )
    repetition_penalty: PositiveFloat | None = setting(None, "Penalty on tokens seen; 1 is none.")


@dataclass(frozen=True)
class WarmupSettings:
    """Repeats of the workload before the measure window.

    At least `min_repeats`, then until the coefficient of variation of the last `window` repeat durations is at most
    `cv`, at most `max_repeats` or `max_s` seconds.
    """

    min_repeats: NonNegativeInt = setting(1, "Least repeats.")
    max_repeats: NonNegativeInt = setting(10, "Most repeats; 0 is no warm-up.")
    max_s: NonNegativeFloat = setting(60.0, "Most seconds.")
    cv: NonNegativeFloat = setting(0.05, "Converged when durations vary by at most this (std/mean).")
    window: PositiveInt = setting(3, "Repeats over which `cv` is taken.")
    thermal: Literal["settled", "repeatable"] = setting(
        "repeatable", "`settled` goes on until each GPU has the temperature that the load keeps."
    )
    thermal_max_s: NonNegativeFloat = setting(900.0, "Most seconds of a warm-up until `settled`.")


@dataclass(frozen=True)
class IdleSettings:
    """The idle window with the model loaded."""

    duration_s: NonNegativeFloat = setting(2.0, "Seconds of quiet; 0 measures no idle power.")
    max_wait_s: NonNegativeFloat = setting(30.0, "Most seconds to wait for power to settle.")
    reuse: Literal["never", "matching"] = setting(
        "never", "`matching` takes an earlier cycle's idle power where the GPU's conditions match."
    )


@dataclass(frozen=True)
class MeasurementSettings:
    """How the workload is measured."""

    min_duration_s: PositiveFloat = setting(10.0, "The workload repeats until the window is this long.")
    warmup: WarmupSettings = section(WarmupSettings, "Warm-up before the window.")
    idle: IdleSettings = section(IdleSettings, "Idle window before the warm-up.")
    phases: tuple[Phase, ...] = setting((), "Phases measured in windows of their own.", [["prefill"]])
    steady_state: SteadyRule = setting(
        "full", "Where a served load is steady: while the engine is `full`, or as the `ml_energy` benchmark has it."
    )


@dataclass(frozen=True)
class DeviceSettings:
    """Which of the machine's devices an experiment runs on, and how its GPUs are set while it does (docs/device.md).

    A setting of a GPU is made for the cycle and put back after it; `default` is the board's own, null leaves it alone.
    """

    kind: AskedKind = setting(
        "auto", "Kind of device: NVIDIA GPUs are `cuda`, AMD's `rocm`; `auto` takes the visible GPUs, else the CPU."
    )
    gpus: PositiveInt | tuple[NonNegativeInt | Name, ...] = setting(
        (),
        "GPUs to lease: how many of the visible ones, or which, by index in PCI order or UUID, as many as the engine "
        "needs; of a server that runs already, all that it computes on. Without any as many visible ones as the engine "
        "needs, or those that hold a process of the server.",
        [2, [0], [0, 1]],
    )
    cpus: Name | None = setting(None, "CPUs that an experiment on the CPU may use; null is all.", ["0-3", "0,2,4-7"])
    numa_node: NonNegativeInt | None = setting(
        None, "NUMA node whose CPUs and memory an experiment on the CPU uses; null is any."
    )
    power_limit_w: PositiveFloat | Default | None = setting(None, "Power limit of each GPU in watts.", [400])
    sm_clock_mhz: PositiveInt | Default | None = setting(None, "SM clock that each GPU is locked to, in MHz.", [1410])
    memory_clock_mhz: PositiveInt | Default | None = setting(
        None, "Memory clock that each GPU is locked to, in MHz.", [1593]
    )
    power_profile: Name | None = setting(
        None, "Workload power profile of each GPU, where its board has such.", ["max_q", "llm_inference"]
    )

    @property
    def named(self) -> tuple[int | str, ...]:
        """The GPUs that are given by name."""
        return self.gpus if isinstance(self.gpus, tuple) else ()

    @property
    def gpu_settings(self) -> dict[SettingName, float | str]:
        """What the study asks of each GPU, by setting; empty where it leaves them alone."""
        asked = {name: getattr(self, name) for name in SETTING_NAMES}
        return {name: value for name, value in asked.items() if value is not None}


@dataclass(frozen=True)
class SloSettings:
    """Latencies that a request has to keep to be good, and the share of the requests that must be (docs/load.md)."""

    ttft_s: PositiveFloat | None = setting(None, "Longest time to the first token.", [0.5])
    tpot_s: PositiveFloat | None = setting(None, "Longest time per output token after the first.", [0.05])
    itl_s: PositiveFloat | None = setting(None, "Longest gap between two arrivals of an answer.")
    e2el_s: PositiveFloat | None = setting(None, "Longest time to the end of the answer.", [10])
    at: Fraction = setting(0.99, "Share of the requests that must be good.", ["99%"])


@dataclass(frozen=True)
class ModelChoice:
    """Which model an experiment runs."""

    model: Name = field(metadata=about("Hub id, local path, or builtin:NAME.", ["builtin:tiny-llama"]))


@dataclass(frozen=True)
class CommonSettings:
    """The settings of an experiment beside its model, whatever its engine."""

    revision: Name | None = setting(None, "Revision of the model on the hub.", ["main"])
    engine: Name = setting("transformers", "Inference engine.", ["transformers", "vllm", "openai"])
    dtype: Dtype | None = setting(None, "Type of the weights; null is the checkpoint's own.")
    weights: Weights = setting("real", "`dummy` builds random weights of the model's shape.")
    trust_remote_code: bool = setting(False, "Run code that the model's repository ships.")
    lora: Name | None = setting(None, "LoRA adapter: hub id or path.")
    seed: NonNegativeInt = setting(0, "Seed of sampling and of dummy weights.")
    workload: WorkloadSettings = section(WorkloadSettings, "What the engine is fed.")
    decoding: Decoding = section(Decoding, "How tokens are chosen.")
    measurement: MeasurementSettings = section(MeasurementSettings, "How it is measured.")
    device: DeviceSettings = section(DeviceSettings, "Which devices it runs on.")
    slo: SloSettings = section(SloSettings, "Which requests count as served in time.")


@dataclass(frozen=True)
class ExperimentConfig(CommonSettings, ModelChoice):
    """One fully resolved configuration; `settings` is the section of the study that belongs to `engine`."""

    settings: Mapping[str, JsonValue] = field(default_factory=dict)


@dataclass(frozen=True)
class Thresholds:
    """Limits of what counts as valid, for all experiments of the study.

    Shares are of the measure windows' time or energy. A power cap that bites is a property of the configuration and
    repeatable, so it is invalid only when asked for; below its threshold it is noted. Clocks vary with temperature and
    power by some percent on their own. The pytest side judges `temperature_drift_c` and `failed_requests_rel`.
    """

    # All chosen. uncertainty_rel: with more, a window says little about any effect worth measuring. gap_periods: so few
    # missed steps leave the total right. residual_memory_bytes: above other users' contexts, below any model.
    # throttled_thermal_rel: less is within the noise of the counters. clocks_rel: below the distance of two performance
    # states. counter_rel: the board's own gain error. suspended_s: far above the jitter of the clocks.
    # temperature_drift_c: leakage then differs by percents.
    uncertainty_rel: PositiveFloat = setting(
        0.25, "Largest uncertainty of the measure windows, as a share of their energy."
    )
    gap_periods: PositiveFloat = setting(4.0, "Longest gap between two counter steps, in periods.")
    gap_s: PositiveFloat = setting(1.0, "Longest gap between two readings of a sensor without a counter.")
    residual_memory_bytes: NonNegativeFloat = setting(
        2.0**30, "Device memory that may be in use before the engine is loaded."
    )
    throttled_thermal_rel: NonNegativeFloat = setting(0.01, "Share of the measured time with clocks held down by heat.")
    throttled_power_rel: NonNegativeFloat = setting(
        1.1, "The same by the power limit; above 1 is never, as a limit is a repeatable condition."
    )
    clocks_rel: NonNegativeFloat = setting(0.3, "Variation of the SM clock while measured.")
    suspended_s: NonNegativeFloat = setting(0.01, "Seconds that the machine may have slept.")
    temperature_drift_c: NonNegativeFloat = setting(10.0, "Difference in temperature between cycles that is warned of.")
    cpu_contended_warn_rel: NonNegativeFloat = setting(
        0.05, "Share of the demanded CPU time that was waited for or stolen, from which on it is warned of."
    )
    cpu_contended_rel: NonNegativeFloat = setting(
        0.2, "The same from which on a result of the CPU is invalid; with GPUs it is only warned of. 1 is never."
    )
    counter_rel: PositiveFloat = setting(
        0.05, "Disagreement of a GPU's energy counter with its power readings, beyond what their scatter explains."
    )
    failed_requests_rel: Share = setting(
        0.0,
        "Share of the requests that may fail, which are in no average either way, and of a trace's lines that may be "
        "broken.",
    )

    @classmethod
    def of(cls, overrides: Mapping[str, float]) -> Thresholds:
        """The defaults with the user's values; `SettingsError` for a name that does not exist."""
        names = [limit.name for limit in fields(cls)]
        for name in overrides:
            if name not in names:
                raise SettingsError(f"unknown threshold {name!r}", fix=f"use one of: {', '.join(names)}")
        return cls(**overrides)
