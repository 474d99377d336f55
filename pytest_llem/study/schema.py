"""What a study file and a user's file may hold, as declarations, and their JSON Schema for editors.

The loader, `parts`, `settings` and `fields` check by them, `llem schema` and `published` publish them. A key goes only
after a release that still reads it. An engine declares its own section, so a new one changes nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Annotated, Literal, TypeVar

from pytest_llem.engines import shipped_engines
from pytest_llem.errors import JsonValue
from pytest_llem.job.config import AskedKind, CommonSettings, Decoding, MeasurementSettings, ModelChoice, Thresholds
from pytest_llem.job.percentiles import STANDARD
from pytest_llem.job.setting import Limits, Name, section, setting
from pytest_llem.study.declared import model_of
from pytest_llem.study.limits import Match
from pytest_llem.study.model import Execution
from pytest_llem.study.optimize import Certainty
from pytest_llem.study.report_settings import ReportSettings
from pytest_llem.study.runner_settings import DockerSettings, RaySettings

T = TypeVar("T")
Preset = Literal["greedy", "deterministic", "standard", "creative", "factual"]


@dataclass(frozen=True)
class PresetChoice:
    """The named set of decoding settings that a study may start from."""

    preset: Preset | None = setting(None, "Named set of the settings below, which override it.")


@dataclass(frozen=True)
class PresetDecoding(Decoding, PresetChoice):
    """How the next token is chosen. Greedy unless `do_sample`."""


def _with_engines(settings: type[T]) -> type[T]:
    """Adds a section per engine of this package, in their order, to a class that is about to become a dataclass."""
    for info in shipped_engines().values():
        if info.settings is not None:
            declaration = resolve_name(info.settings)
            settings.__annotations__[info.name] = declaration
            setattr(settings, info.name, section(declaration, f"{info.title}."))
    return settings


@dataclass(frozen=True)
@_with_engines
class SharedSettings(CommonSettings):
    """What a study's shared part and its explicit experiments may both set."""

    decoding: PresetDecoding = section(PresetDecoding, "How tokens are chosen.")


@dataclass(frozen=True)
class ExperimentSettings(SharedSettings, ModelChoice):
    """Everything that makes an experiment: shared settings of a study, and what `sweep` may reach."""


@dataclass(frozen=True)
class Compare:
    """Comparison with a baseline, which the command line names."""

    fail_if: Mapping[str, str | float] = section(
        dict,
        "Metric to the change that fails: in percent of the baseline, or in the metric's own unit.",
        [{"joules_per_output_token": "5%", "output_tokens_per_s": "-5%", "ttft_p99_s": "0.05 s"}],
    )
    resolution: Mapping[str, str | float] = section(
        dict,
        "Smallest change that matters, per metric; needed where a limit is 0 or below.",
        [{"joules_per_output_token": "1%"}],
    )
    alpha: Annotated[float, Limits(gt=0, lt=0.5)] = setting(0.05, "Error rate of each one-sided bound.")
    allow: tuple[str, ...] = setting(
        (),
        "Conditions that may differ from the baseline's, by name; `estimated_energy` judges what no sensor measured.",
        [["engine_version", "driver_major"]],
    )
    match: Match = setting(
        "config", "What makes the baseline's experiment the same: its `config`, or its `id` under changed settings."
    )


Expect = Mapping[str, str | float]
Percentile = Annotated[float, Limits(gt=0, lt=100)]


@dataclass(frozen=True)
class Objective:
    """What the best setting is best in, and what it must keep."""

    minimize: Name | None = setting(None, "Metric of which the best has least.", ["joules_per_output_token"])
    maximize: Name | None = setting(None, "Metric of which the best has most.", ["output_tokens_per_s"])
    subject_to: Expect = section(
        dict, "Limits that a setting must keep, per metric.", [{"ttft_p99_s": "<= 0.5", "accuracy": ">= 60%"}]
    )


@dataclass(frozen=True)
class OptimizeSettings(Certainty, Objective):
    """A race over the study's settings: which is best in a metric, within limits of others."""


@dataclass(frozen=True)
class EntryHead:
    """What names an explicit experiment."""

    id: Annotated[str, Limits(pattern=r"^[A-Za-z0-9_.:+-]+$", max_length=120)] | None = setting(
        None, "Name of the experiment in test ids.", ["eager"]
    )
    tags: tuple[Name, ...] = setting((), "Words for `-k`, beside the study's.")


@dataclass(frozen=True)
class ExplicitExperiment(SharedSettings, EntryHead):
    """One entry of `experiments`: settings over the shared ones."""

    model: Name | None = setting(None, "Hub id, local path, or builtin:NAME; null is the shared one.")
    expect: Expect = section(dict, "Budgets of this experiment, over the shared ones.")
    compare: Compare = section(Compare, "Comparison of this experiment.")


@dataclass(frozen=True)
class StudyHead:
    """What names a study and says how it is treated as a whole."""

    name: Annotated[str, Limits(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=80)] | None = setting(
        None, "Name of the study; default is the file's stem.", ["batch-size"]
    )
    title: str | None = setting(None, "One line for reports.")
    tags: tuple[Name, ...] = setting((), "Words for `-k`.")
    percentiles: tuple[Percentile, ...] = setting(
        STANDARD,
        "Percentiles of each latency, in rising order; 50, 90 and 99 are always stated, as are those that a gate "
        "or the headline names.",
        [[50, 90, 95, 99, 99.9]],
    )
    on_invalid: Literal["error", "skip"] = setting("error", "What to do with a point its engine cannot run.")
    meter: Name | None = setting(None, "auto, a meter's name, or none; the command line stands above it.", ["nvml"])
    runners: Mapping[str, str] = section(
        dict, "Runner per engine: local, docker, docker:IMAGE, ray.", [{"vllm": "docker"}]
    )
    docker: DockerSettings = section(DockerSettings, "How containers are made.")
    ray: RaySettings = section(RaySettings, "What cycles ask of a Ray cluster.")


@dataclass(frozen=True)
class StudyMeasurement(MeasurementSettings):
    """How the workload is measured, and what counts as valid: limits are for the whole study and in no hash."""

    validity: Thresholds = section(Thresholds, "Limits of what counts as valid.")


@dataclass(frozen=True)
class StudyDocument(SharedSettings, StudyHead):
    """A study: shared settings, a sweep or explicit experiments, execution and gates."""

    model: Name | None = setting(
        None, "Hub id, local path, or builtin:NAME; every experiment needs one.", ["builtin:tiny-llama"]
    )

    measurement: StudyMeasurement = section(StudyMeasurement, "How it is measured.")
    base: Name | tuple[Name, ...] | None = setting(
        None, "File(s) merged below this one, relative to it.", ["common.yaml"]
    )
    sweep: Mapping[str, JsonValue] | None = setting(
        None,
        "Cartesian product in written order: dotted paths to lists, or named groups of mappings.",
        [{"transformers.batch_size": [1, 4], "dtype": ["float32", "bfloat16"]}],
    )
    exclude: tuple[Mapping[str, JsonValue], ...] = setting(
        (),
        "Points of the sweep to leave out; each matches where all its settings match.",
        [[{"dtype": "float32", "transformers.batch_size": 16}]],
    )
    experiments: tuple[ExplicitExperiment, ...] | None = setting(
        None, "Explicit experiments, each merged over the shared settings."
    )
    execution: Execution = section(Execution, "Cycles, order, limits.")
    expect: Expect = section(dict, "Budgets.", [{"joules_per_output_token": "<= 0.5"}])
    compare: Compare = section(Compare, "Comparison with a baseline.")
    report: ReportSettings = section(ReportSettings, "Grams of CO2e and money beside joules.")
    optimize: OptimizeSettings = section(OptimizeSettings, "Which setting is best, found by a race over all of them.")


@dataclass(frozen=True)
class UserFile:
    """The per-user file `llem/config.yaml`."""

    out: Name = setting("llem-results", "Directory of the artifacts.")
    meter: Name = setting("auto", "auto, a meter's name, or none.")
    device: AskedKind = setting("auto", "Kind of device of experiments that leave `device.kind` auto.")
    baseline_dir: Name = setting("llem-baselines", "Directory of saved baselines.")
    run: Literal["always", "explicit"] = setting("always", "Whether plain pytest runs tests that need a result.")
    strict: bool = setting(False, "Inconclusive and not-comparable gates fail instead of being skipped.")
    runners: Mapping[str, str] = section(dict, "Runner per engine.", [{"vllm": "docker"}])
    execution: Execution = section(Execution, "Defaults for studies that do not say.")
    validity: Thresholds = section(Thresholds, "The same for their `measurement.validity`.")
    percentiles: tuple[Percentile, ...] = setting(STANDARD, "The same for their `percentiles`.")


DIALECT = "https://json-schema.org/draft/2020-12/schema"


def build_schema(which: Literal["study", "config"]) -> dict[str, object]:
    """The JSON Schema of a study file, or of a user's `config.yaml`."""
    if which == "config":
        return {"$schema": DIALECT, **model_of(UserFile).model_json_schema()}
    schema = {"$schema": DIALECT, **model_of(StudyDocument).model_json_schema(), "title": "pytest-llem study"}
    # Dotted paths pass an editor's check; the loader knows which of them exist.
    for section_schema in (schema, *schema["$defs"].values()):
        if section_schema.get("additionalProperties") is False:
            section_schema["patternProperties"] = {r"^[a-z_]+\..+$": {"description": "A setting by its dotted path."}}
    return schema
