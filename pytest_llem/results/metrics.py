"""The metrics of a result by name: where each of `job.metric_names` lies in it.

Gates, baselines, summaries, tables and the report find metrics here. What a name means must stay: baselines hold it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pytest_llem.job.metric_names import METRIC_NAMES, MetricName, metric_name
from pytest_llem.results.schema import Distribution, Result
from pytest_llem.results.sections.performance import LEAST_VALUES

Getter = Callable[[Result], "float | None"]


@dataclass(frozen=True)
class Metric(MetricName):
    """A metric, and where it lies in a result."""

    of: Getter


def metric(name: str) -> Metric:
    """The metric called `name`; `SettingsError` with a suggestion for any other name."""
    return METRICS[metric_name(name).name]


def is_energy(name: str) -> bool:
    """Whether a metric comes from a meter, whose conditions must then match for a comparison."""
    return name.endswith("_w") or name.startswith(("energy", "joules", "wh_per")) or name == "tokens_per_joule"


def _peak_memory(result: Result) -> float | None:
    peaks = [device.peak_allocated_bytes for device in result.memory.devices]
    return None if not peaks or None in peaks else float(sum(peak or 0 for peak in peaks))


_GETTERS: dict[str, Getter] = {
    "joules_per_output_token": lambda r: r.energy.joules_per_output_token,
    "output_tokens_per_s": lambda r: r.throughput.output_tokens_per_s,
    "energy_j": lambda r: r.energy.energy_j,
    "avg_power_w": lambda r: r.energy.avg_power_w,
    "energy_above_idle_j": lambda r: r.energy.energy_above_idle_j,
    "idle_power_w": lambda r: r.energy.idle_power_w,
    "joules_per_total_token": lambda r: r.energy.joules_per_total_token,
    "joules_per_request": lambda r: r.energy.joules_per_request,
    "wh_per_1000_queries": lambda r: r.energy.wh_per_1000_queries,
    "tokens_per_joule": lambda r: r.energy.tokens_per_joule,
    "total_tokens_per_s": lambda r: r.throughput.total_tokens_per_s,
    "requests_per_s": lambda r: r.throughput.requests_per_s,
    "peak_memory_bytes": _peak_memory,
    "mfu": lambda r: r.compute.mfu,
    "load_s": lambda r: r.timing.get("load_s"),
}


def _getter(name: str) -> Getter:
    """A metric's own getter, else that of a statistic of a latency: `ttft_p50_s`."""
    section, _, statistic = name.removesuffix("_s").partition("_")

    def latency(result: Result) -> float | None:
        distribution: Distribution | None = getattr(result.latency, f"{section}_s")
        value: float | None = getattr(distribution, statistic, None)
        return value

    return _GETTERS.get(name, latency)


METRICS = {name: Metric(**vars(entry), of=_getter(name)) for name, entry in METRIC_NAMES.items()}


NOT_MEASURED = "this run did not measure it"


def why_absent(name: str, result: Result) -> str:
    """Why a valid result has no such metric, in words for a user."""
    section, _, statistic = name.removesuffix("_s").partition("_")
    found: Distribution | None = getattr(result.latency, f"{section}_s", None)
    if found is None or found.n is None or statistic not in LEAST_VALUES:
        return NOT_MEASURED
    return (
        f"{name} takes at least {LEAST_VALUES[statistic]} values, and there were {found.n}: more workload.prompts, "
        "or a longer measurement.min_duration_s"
    )
