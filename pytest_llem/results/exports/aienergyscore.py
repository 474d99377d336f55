"""AI Energy Score for `llem export`: GPU watt-hours per 1000 queries of an experiment, the mean of its valid cycles.

`exports` loads it by name. It must keep to the documented definition: energy of preprocessing, prefill and decode of
1000 prompts, batch 1, float16, on one H100 80GB, mean of ten runs. The measure window holds tokenised prompts, so it
lacks preprocessing (its code and its document differ there too). Its uncertainty is expanded, at 95 %. `phases_wh` is
per 1000 queries, where phases were separated. `deviations` must list every difference from the method: with an empty
list, a score is comparable.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

from pytest_llem.errors import JsonValue
from pytest_llem.job.files import write_json
from pytest_llem.results.comparability import conditions
from pytest_llem.results.metrics import METRICS
from pytest_llem.results.reading import Results
from pytest_llem.results.sections.energy import JOULES_PER_WH
from pytest_llem.results.uncertainty import budget_of_experiment

PROMPTS, CYCLES, DATASET = 1000, 10, "EnergyStarAI/text_generation"


def export(results: Results, out: Path) -> None:
    """All experiments that measured energy as one JSON list."""
    entries = [score(group.valid) for group in results.by_experiment().values() if group.valid]
    write_json(out, [entry for entry in entries if entry["wh_per_1000_queries"] is not None])


def score(results: Results) -> dict[str, JsonValue]:
    """The valid cycles of one experiment as a score."""
    budget = budget_of_experiment(METRICS["wh_per_1000_queries"], results)
    first = results[0]
    model = first.experiment.config.get("model")
    return {
        "model": model if isinstance(model, str) else None,
        "task": "text_generation",
        "wh_per_1000_queries": budget.value if budget else None,
        "wh_per_1000_queries_uncertainty": budget.uncertainty if budget else None,
        "coverage_factor": budget.coverage_factor if budget else None,
        "gain_uncertainty_rel": budget.gain_uncertainty_rel if budget else None,
        "phases_wh": _phases(results),
        "cycles": budget.n if budget else 0,
        "meter": first.energy.meter,
        "measured": first.energy.measured,
        "experiment": first.experiment.id,
        "study": first.study,
        "deviations": [*_deviations(results)],
    }


def _phases(results: Results) -> dict[str, JsonValue]:
    phases: dict[str, JsonValue] = {}
    for index, phase in enumerate(results[0].energy.phases):
        energies = [result.energy.phases[index].energy_per_repeat_j for result in results]
        measured = [energy for energy in energies if energy is not None]
        requests = results[0].workload.requests
        phases[phase.name] = fmean(measured) / requests * 1000 / JOULES_PER_WH if measured and requests else None
    return phases


def _deviations(results: Results) -> Iterator[str]:
    first = results[0]
    workload = first.experiment.config.get("workload")
    dataset = workload.get("dataset") if isinstance(workload, dict) else None
    batch = first.engine.effective.get("batch_size")
    dtype = str(first.engine.effective.get("dtype")).removeprefix("torch.")
    devices = str(conditions(first)["device_models"])
    yield "preprocessing is not in the measured window"
    if dataset not in ("aienergyscore", DATASET):
        yield f"data set {dataset}, not {DATASET}"
    if first.workload.requests != PROMPTS:
        yield f"{first.workload.requests} prompts, not {PROMPTS}"
    if batch != 1:
        yield f"batch size {batch}, not 1"
    if dtype != "float16":
        yield f"dtype {dtype}, not float16"
    if "H100" not in devices or len(first.runner.device_ids) != 1:
        yield f"devices {devices}, not one H100 80GB"
    if len(results) < CYCLES:
        yield f"{len(results)} valid cycles, not {CYCLES}"
    if first.energy.scope != "gpu_board":
        yield f"energy of {first.energy.scope}, not of the GPU"
    if not first.energy.measured:
        yield "energy is estimated, not measured"
