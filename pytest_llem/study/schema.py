"""What a study file may say: the published schema.

The loader checks documents key by key against these models (see `fields`), so that every problem has a place; the
models also give the JSON Schema for editors and the reference in the documentation.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from pytest_llem.study.model import Isolation, Order
from pytest_llem.study.sections.docker import Docker
from pytest_llem.study.sections.openai import OpenAI
from pytest_llem.study.sections.ray import Ray
from pytest_llem.study.sections.section import (
    Dtype,
    Fraction,
    Name,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
)
from pytest_llem.study.sections.sglang import SGLang
from pytest_llem.study.sections.tensorrt_llm import TensorRTLLM
from pytest_llem.study.sections.transformers import Transformers
from pytest_llem.study.sections.validity import Validity
from pytest_llem.study.sections.vllm import VLLM

Preset = Literal["greedy", "deterministic", "standard", "creative", "factual"]
Phase = Literal["prefill", "decode"]


class LengthDistribution(Section):
    """Token lengths drawn per prompt from the workload's seed."""

    distribution: Literal["uniform", "lognormal"] = Field(description="Kind of distribution.")
    low: PositiveInt = Field(description="Smallest length in tokens.", examples=[16])
    high: PositiveInt = Field(description="Largest length in tokens.", examples=[512])
    mean: PositiveFloat | None = Field(None, description="Mean length in tokens; lognormal only.", examples=[128.0])
    sigma: PositiveFloat | None = Field(None, description="Standard deviation of the log; lognormal only.")


class Arrivals(Section):
    """How requests arrive at an engine that serves."""

    process: Literal["constant", "poisson", "burst", "concurrency"] = Field(description="Kind of arrivals.")
    rate_per_s: PositiveFloat | None = Field(None, description="Requests per second; constant and poisson.")
    burst_size: PositiveInt | None = Field(None, description="Requests per burst; burst only.")
    concurrency: PositiveInt | None = Field(None, description="Requests in flight; concurrency only.")


class Workload(Section):
    """What the engine is fed in one repeat."""

    dataset: Name = Field(
        "synthetic",
        description="`synthetic`, a file (.jsonl, .json, .csv, .txt, .parquet), or a data set's name.",
        examples=["synthetic", "prompts.jsonl"],
    )
    prompts: PositiveInt = Field(32, description="Prompts per repeat.", examples=[32])
    input_tokens: PositiveInt | LengthDistribution | None = Field(
        128, description="Tokens per prompt; null keeps a data set's own lengths.", examples=[128]
    )
    output_tokens: PositiveInt | LengthDistribution = Field(64, description="Tokens to generate.", examples=[64])
    seed: NonNegativeInt = Field(0, description="Seed of the prompts and lengths.")
    ignore_eos: bool = Field(True, description="Generate exactly `output_tokens`, so that runs do the same work.")
    column: Name | None = Field(None, description="Column of the data set that holds the prompts.", examples=["text"])
    split: Name | None = Field(None, description="Split of the data set.", examples=["train"])
    revision: Name | None = Field(None, description="Revision of the data set.")
    order: Literal["interleaved", "grouped", "shuffled"] = Field(
        "interleaved", description="Order of prompts from several sources."
    )
    chat_template: bool = Field(False, description="Wrap each prompt in the model's chat template.")
    arrival: Arrivals | None = Field(None, description="Arrivals at an engine that serves; null sends all at once.")


class Decoding(Section):
    """How the next token is chosen. Greedy unless `do_sample`."""

    preset: Preset | None = Field(None, description="Named set of the settings below, which override it.")
    do_sample: bool = Field(False, description="Sample instead of taking the most likely token.")
    temperature: Annotated[float, Field(ge=0, le=100)] | None = Field(
        None, description="Temperature of the softmax; sampling only. 0 is greedy.", examples=[0.7]
    )
    top_k: NonNegativeInt | None = Field(None, description="Tokens to sample from; sampling only.", examples=[50])
    top_p: Fraction | None = Field(None, description="Probability mass to sample from; sampling only.")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="Least probability relative to the likeliest token; sampling only."
    )
    repetition_penalty: PositiveFloat | None = Field(None, description="Penalty on tokens seen; 1 is none.")


class Warmup(Section):
    """Repeats of the workload before the measure window."""

    min_repeats: NonNegativeInt = Field(1, description="Least repeats.")
    max_repeats: NonNegativeInt = Field(10, description="Most repeats; 0 is no warm-up.")
    max_s: NonNegativeFloat = Field(60.0, description="Most seconds.")
    cv: NonNegativeFloat = Field(0.05, description="Converged when durations vary by at most this (std/mean).")
    window: PositiveInt = Field(3, description="Repeats over which `cv` is taken.")


class Idle(Section):
    """The idle window with the model loaded."""

    duration_s: NonNegativeFloat = Field(2.0, description="Seconds of quiet; 0 measures no idle power.")
    max_wait_s: NonNegativeFloat = Field(30.0, description="Most seconds to wait for power to settle.")
    reuse: Literal["never", "matching"] = Field(
        "never", description="`matching` takes an earlier cycle's idle power where the GPU's conditions match."
    )


class Measurement(Section):
    """How the workload is measured."""

    min_duration_s: PositiveFloat = Field(10.0, description="The workload repeats until the window is this long.")
    warmup: Warmup = Field(default_factory=Warmup, description="Warm-up before the window.")
    idle: Idle = Field(default_factory=Idle, description="Idle window before the warm-up.")
    phases: list[Phase] = Field(
        default_factory=list, description="Phases measured in windows of their own.", examples=[["prefill"]]
    )


class ModelChoice(Section):
    """Which model an experiment runs."""

    model: Name = Field(description="Hub id, local path, or builtin:NAME.", examples=["builtin:tiny-llama"])


class PlainSettings(Section):
    """The settings of an experiment that stand at the top, beside `model`."""

    revision: Name | None = Field(None, description="Revision of the model on the hub.", examples=["main"])
    engine: Name = Field("transformers", description="Inference engine.", examples=["transformers", "vllm", "openai"])
    dtype: Dtype | None = Field(None, description="Type of the weights; null is the checkpoint's own.")
    weights: Literal["real", "dummy"] = Field("real", description="`dummy` builds random weights of the model's shape.")
    trust_remote_code: bool = Field(False, description="Run code that the model's repository ships.")
    lora: Name | None = Field(None, description="LoRA adapter: hub id or path.")
    seed: NonNegativeInt = Field(0, description="Seed of sampling and of dummy weights.")


class CommonSettings(PlainSettings):
    """What a study's shared part and its explicit experiments may both set."""

    workload: Workload = Field(default_factory=Workload, description="What the engine is fed.")
    decoding: Decoding = Field(default_factory=Decoding, description="How tokens are chosen.")
    measurement: Measurement = Field(default_factory=Measurement, description="How it is measured.")
    transformers: Transformers = Field(default_factory=Transformers, description="Hugging Face transformers.")
    vllm: VLLM = Field(default_factory=VLLM, description="vLLM.")
    sglang: SGLang = Field(default_factory=SGLang, description="SGLang.")
    tensorrt_llm: TensorRTLLM = Field(default_factory=TensorRTLLM, description="TensorRT-LLM.")
    openai: OpenAI = Field(default_factory=OpenAI, description="Any OpenAI-compatible server.")


class ExperimentSettings(CommonSettings, ModelChoice):
    """Everything that makes an experiment: shared settings of a study, and what `sweep` may reach."""


class Compare(Section):
    """Comparison with a baseline, which the command line names."""

    fail_if: dict[str, str | float] = Field(
        default_factory=dict,
        description="Metric to the change that fails: in percent of the baseline, or in the metric's own unit.",
        examples=[{"joules_per_output_token": "5%", "output_tokens_per_s": "-5%", "ttft_p99_s": "0.05 s"}],
    )
    resolution: dict[str, str | float] = Field(
        default_factory=dict,
        description="Smallest change that matters, per metric; needed where a limit is 0 or below.",
        examples=[{"joules_per_output_token": "1%"}],
    )
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = Field(0.05, description="Error rate of each one-sided bound.")
    allow: list[str] = Field(
        default_factory=list,
        description="Conditions that may differ from the baseline's, by name.",
        examples=[["engine_version", "driver_major"]],
    )


Expect = dict[str, str | float]


class Execution(Section):
    """How often and in which order; nothing here changes what an experiment measures."""

    cycles: Annotated[int, Field(ge=1, le=10_000)] = Field(3, description="Repetitions of each experiment.")
    order: Order = Field("sequential", description="Order of experiments and cycles.")
    timeout_s: PositiveFloat = Field(1800.0, description="Longest time of one cycle.")
    load_timeout_s: PositiveFloat | None = Field(None, description="Longest time to load the engine.")
    cooldown: Literal["auto"] | NonNegativeFloat = Field(
        "auto", description="Seconds between cycles; `auto` waits until power and temperature settle."
    )
    residual_memory_bytes: NonNegativeInt = Field(
        100_000_000,
        description="Most memory that may be in use on a leased GPU before a cycle.",
        examples=[100_000_000],
    )
    retries: Annotated[int, Field(ge=0, le=100)] = Field(1, description="Further attempts at an invalid cycle.")
    isolation: Isolation = Field(
        "process", description="A fresh process per cycle, per experiment, or per loaded engine."
    )
    target_ci: Fraction | None = Field(
        None, description="Add cycles until the headline's interval is this narrow (relative half-width)."
    )
    max_cycles: Annotated[int, Field(ge=1, le=10_000)] = Field(10, description="Most cycles with `target_ci`.")
    headline: Name = Field("joules_per_output_token", description="Metric of the summary and of `target_ci`.")


class EntryHead(Section):
    """What names an explicit experiment."""

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:+-]+$", max_length=120)] | None = Field(
        None, description="Name of the experiment in test ids.", examples=["eager"]
    )
    tags: list[Name] = Field(default_factory=list, description="Words for `-k`, beside the study's.")


class ExplicitExperiment(CommonSettings, EntryHead):
    """One entry of `experiments`: settings over the shared ones."""

    model: Name | None = Field(None, description="Hub id, local path, or builtin:NAME; null is the shared one.")
    expect: Expect = Field(default_factory=dict, description="Budgets of this experiment, over the shared ones.")
    compare: Compare = Field(default_factory=Compare, description="Comparison of this experiment.")


class StudyHead(Section):
    """What names a study and says how it is treated as a whole."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=80)] | None = Field(
        None, description="Name of the study; default is the file's stem.", examples=["batch-size"]
    )
    title: str | None = Field(None, description="One line for reports.")
    tags: list[Name] = Field(default_factory=list, description="Words for `-k`.")
    on_invalid: Literal["error", "skip"] = Field("error", description="What to do with a point its engine cannot run.")
    meter: Name | None = Field(
        None, description="auto, a meter's name, or none; the command line stands above it.", examples=["nvml"]
    )
    runners: dict[str, str] = Field(
        default_factory=dict,
        description="Runner per engine: local, docker, docker:IMAGE, ray.",
        examples=[{"vllm": "docker"}],
    )
    docker: Docker = Field(default_factory=Docker, description="How containers are made.")
    ray: Ray = Field(default_factory=Ray, description="What cycles ask of a Ray cluster.")


class StudyMeasurement(Measurement):
    """How the workload is measured, and what counts as valid: limits are for the whole study and in no hash."""

    validity: Validity = Field(default_factory=Validity, description="Limits of what counts as valid.")


class StudyFile(CommonSettings, StudyHead):
    """A study: shared settings, a sweep or explicit experiments, execution and gates."""

    model: Name | None = Field(
        None,
        description="Hub id, local path, or builtin:NAME; every experiment needs one.",
        examples=["builtin:tiny-llama"],
    )

    measurement: StudyMeasurement = Field(default_factory=StudyMeasurement, description="How it is measured.")
    base: Name | list[Name] | None = Field(
        None, description="File(s) merged below this one, relative to it.", examples=["common.yaml"]
    )
    sweep: dict[str, JsonValue] | None = Field(
        None,
        description="Cartesian product in written order: dotted paths to lists, or named groups of mappings.",
        examples=[{"transformers.batch_size": [1, 4], "dtype": ["float32", "bfloat16"]}],
    )
    exclude: list[dict[str, JsonValue]] = Field(
        default_factory=list,
        description="Points of the sweep to leave out; each matches where all its settings match.",
        examples=[[{"dtype": "float32", "transformers.batch_size": 16}]],
    )
    experiments: list[ExplicitExperiment] | None = Field(
        None, description="Explicit experiments, each merged over the shared settings."
    )
    execution: Execution = Field(default_factory=Execution, description="Cycles, order, limits.")
    expect: Expect = Field(
        default_factory=dict, description="Budgets.", examples=[{"joules_per_output_token": "<= 0.5"}]
    )
    compare: Compare = Field(default_factory=Compare, description="Comparison with a baseline.")
