"""AI Energy Score for `llem export`: GPU watt-hours per 1000 queries of an experiment, the mean of its valid cycles.

`exports` loads it by name. It must keep to the documented method (huggingface.github.io/AIEnergyScore): preprocess,
prefill and decode of 1000 prompts, batch 1, float16, on one H100 80GB, mean of ten runs. That names no output length,
sampling or warm-up: these are compared with the code it ships, the `energy_star` scenario of optimum-benchmark, as
`definition` says. `deviations` list every difference; they are never empty, and `settings_match` says whether there
are none but those of every export (`ALWAYS`). Its uncertainty is expanded, at 95 %; `phases_wh` is per 1000 queries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean

from pytest_llem.errors import JsonValue
from pytest_llem.job.files import write_json
from pytest_llem.job.gpu_setting import SETTING_NAMES
from pytest_llem.results.comparability import conditions
from pytest_llem.results.metrics import metric
from pytest_llem.results.reading import Results
from pytest_llem.results.schema import Result
from pytest_llem.results.sections.energy import JOULES_PER_WH
from pytest_llem.results.uncertainty import budget_of_experiment

PROMPTS, CYCLES, OUTPUT_TOKENS = 1000, 10, 100
"""Prompts and runs of the documented method; tokens per answer of the shipped code, which are forced to that number."""
DATASETS = ("aienergyscore", "EnergyStarAI/text_generation", "AIEnergyScore/text_generation")
"""This package's name for the data set, and its names on the hub."""
BOARD = "NVIDIA H100 80GB HBM3"
"""NVML's name of the H100 SXM with 80 GB; the PCIe and NVL boards have other names, and other power limits."""
DEFINITION = (
    "documented method; output length, sampling and warm-up, which it does not name, as in the energy_star scenario of "
    "optimum-benchmark"
)
ALWAYS = (
    "preprocessing is not in the measured window",
    "prefill and decode were measured together, not as two passes over the prompts of which the second is decode",
    "the warm-up is whole repeats of the workload until they converge, not answers of two tokens to the first prompt",
)
"""Differences of every export."""


def export(results: Results, out: Path) -> None:
    """All experiments that measured energy as one JSON list; runs on other boards are entries of their own."""
    groups: dict[tuple[str, ...], list[Result]] = {}
    for result in results.valid:
        key = (result.study, result.experiment.id, result.experiment.config_hash, str(_boards(result)))
        groups.setdefault(key, []).append(result)
    entries = [score(Results(tuple(group))) for group in groups.values()]
    write_json(out, [entry for entry in entries if entry["wh_per_1000_queries"] is not None])


def score(results: Results) -> dict[str, JsonValue]:
    """The valid cycles of one experiment as a score."""
    budget = budget_of_experiment(metric("wh_per_1000_queries"), results)
    cycles = budget.n if budget else 0
    first = results[0]
    model = first.experiment.config.get("model")
    found = dict.fromkeys(deviation for result in results for deviation in _deviations(result))
    if cycles < CYCLES:
        found[f"{cycles} valid cycles, not {CYCLES}"] = None
    deviations: list[JsonValue] = [*ALWAYS, *found]
    return {
        "model": model if isinstance(model, str) else None,
        "task": "text_generation",
        "wh_per_1000_queries": budget.value if budget else None,
        "wh_per_1000_queries_uncertainty": budget.uncertainty if budget else None,
        "coverage_factor": budget.coverage_factor if budget else None,
        "gain_uncertainty_rel": budget.gain_uncertainty_rel if budget else None,
        "phases_wh": _phases(results),
        "cycles": cycles,
        "meter": first.energy.meter,
        "measured": first.energy.measured,
        "experiment": first.experiment.id,
        "study": first.study,
        "definition": DEFINITION,
        "settings_match": not found,
        "deviations": deviations,
    }


def _phases(results: Results) -> dict[str, JsonValue]:
    energies: dict[str, list[float]] = {}
    for result in results:
        for phase in result.energy.phases:
            of_phase = energies.setdefault(phase.name, [])
            if phase.energy_per_repeat_j is not None and result.workload.requests:
                of_phase.append(phase.energy_per_repeat_j / result.workload.requests * 1000 / JOULES_PER_WH)
    return {name: fmean(values) if values else None for name, values in energies.items()}


def _deviations(result: Result) -> Iterator[str]:
    """What this cycle's settings and machine differ in."""
    config, work, energy = result.experiment.config, result.workload, result.energy
    names = ("workload", "decoding", "settings", "device")
    workload, decoding, settings, device = (_mapping(config.get(name)) for name in names)
    batch = result.engine.effective.get("batch_size")
    dtype = str(result.engine.effective.get("dtype")).removeprefix("torch.")
    if workload.get("dataset") not in DATASETS:
        yield f"data set {workload.get('dataset')}, not {DATASETS[1]}"
    if work.requests != PROMPTS:
        yield f"{work.requests} prompts, not {PROMPTS}"
    cut, length = work.prompts_truncated, workload.get("input_tokens")
    if cut.prompts if cut else length is not None:
        yield f"{cut.prompts if cut else 'all'} prompts cut to {length} tokens, not as long as the data set has them"
    if workload.get("chat_template"):
        yield "prompts in the model's chat template, not as they are"
    if workload.get("system_prompt") or workload.get("few_shot"):
        yield "a system prompt or examples before each prompt"
    if work.output_tokens != OUTPUT_TOKENS * (work.requests or 0) or not workload.get("ignore_eos", True):
        mean = (work.output_tokens or 0) / work.requests if work.requests else 0
        yield f"{mean:.4g} output tokens per prompt, not {OUTPUT_TOKENS} each"
    if decoding.get("do_sample"):
        yield "sampled answers, not greedy ones"
    if work.failed_requests:
        yield f"{work.failed_requests} requests failed"
    if batch != 1:
        yield f"batch size {batch}, not 1"
    if dtype != "float16":
        yield f"dtype {dtype}, not float16"
    if settings.get("quantization") is not None:
        yield "weights quantised while loading, not as the model's own configuration has them"
    if config.get("weights") == "dummy" or config.get("lora") is not None:
        yield "random weights or an adapter, not the model itself"
    if result.engine.name != "transformers":
        yield f"engine {result.engine.name}, not transformers"
    yield from _of_boards(result)
    for name in SETTING_NAMES:
        if device.get(name) not in (None, "default"):
            yield f"{name} {device[name]} set, not the board's own"
    if energy.scope != "gpu_board":
        yield f"energy of {energy.scope}, not of the GPU"
    if not energy.measured:
        yield "energy is estimated, not measured"
    elif energy.meter != "codecarbon":
        yield f"energy by the meter {energy.meter}, not by CodeCarbon's readings of power"


def _of_boards(result: Result) -> Iterator[str]:
    boards, count = _boards(result), len(result.runner.device_ids)
    shown = ", ".join(boards) or "none"
    if count != 1 or not any("H100" in board and "GH" not in board for board in boards):
        yield f"devices {count} x {shown}, not one H100 80GB"
    elif boards != [BOARD]:
        yield f"board {shown}: the method names an H100 80GB, which NVML calls {BOARD}"


def _boards(result: Result) -> list[str]:
    models = conditions(result)["device_models"]
    return [str(model) for model in models] if isinstance(models, list) else []


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}
