"""The metrics of a result by name: what a study's budgets, gates, summaries and exports may refer to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches

from pytest_llem.errors import SettingsError
from pytest_llem.results.schema import Distribution, Result

Getter = Callable[[Result], "float | None"]


@dataclass(frozen=True)
class Metric:
    """One number of a result: its unit, which direction is better, and where it lies."""

    name: str
    unit: str
    higher_is_better: bool
    of: Getter
    description: str


def metric(name: str) -> Metric:
    """The metric called `name`; `SettingsError` with a suggestion for any other name."""
    try:
        return METRICS[name]
    except KeyError:
        close = get_close_matches(name, METRICS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"use one of: {', '.join(METRICS)}"
        raise SettingsError(f"unknown metric {name!r}", fix=hint, details={"metric": name}) from None


def is_energy(name: str) -> bool:
    """Whether a metric rests on a meter, so that the meter's conditions must match before it is compared."""
    return name.endswith("_w") or name.startswith(("energy", "joules", "wh_per")) or name == "tokens_per_joule"


def _latency(section: str, statistic: str) -> Getter:
    def get(result: Result) -> float | None:
        found: Distribution | None = getattr(result.latency, section)
        return None if found is None else float(getattr(found, statistic))

    return get


def _peak_memory(result: Result) -> float | None:
    peaks = [device.peak_allocated_bytes for device in result.memory.devices]
    return None if not peaks or None in peaks else float(sum(peak or 0 for peak in peaks))


def _metrics() -> dict[str, Metric]:
    found = [
        Metric(
            "joules_per_output_token", "J", False, lambda r: r.energy.joules_per_output_token, "Energy per output token"
        ),
        Metric(
            "output_tokens_per_s", "1/s", True, lambda r: r.throughput.output_tokens_per_s, "Output token throughput"
        ),
        Metric("energy_j", "J", False, lambda r: r.energy.energy_j, "Energy of the measure windows"),
        Metric("avg_power_w", "W", False, lambda r: r.energy.avg_power_w, "Mean power of the measure windows"),
        Metric("energy_above_idle_j", "J", False, lambda r: r.energy.energy_above_idle_j, "Energy above idle"),
        Metric("idle_power_w", "W", False, lambda r: r.energy.idle_power_w, "Idle power, model loaded"),
        Metric("joules_per_total_token", "J", False, lambda r: r.energy.joules_per_total_token, "Energy per token"),
        Metric("joules_per_request", "J", False, lambda r: r.energy.joules_per_request, "Energy per request"),
        Metric("wh_per_1000_queries", "Wh", False, lambda r: r.energy.wh_per_1000_queries, "Energy per 1000 requests"),
        Metric("tokens_per_joule", "1/J", True, lambda r: r.energy.tokens_per_joule, "Output tokens per joule"),
        Metric("total_tokens_per_s", "1/s", True, lambda r: r.throughput.total_tokens_per_s, "Token throughput"),
        Metric("requests_per_s", "1/s", True, lambda r: r.throughput.requests_per_s, "Request throughput"),
        Metric("peak_memory_bytes", "B", False, _peak_memory, "Peak allocated memory, summed over devices"),
        Metric("mfu", "1", True, lambda r: r.compute.mfu, "Model FLOPs utilisation"),
        Metric("load_s", "s", False, lambda r: r.timing.get("load_s"), "Time to load the engine"),
    ]
    for short in ("ttft", "tpot", "itl", "e2el"):
        for statistic in ("mean", "p50", "p90", "p99"):
            found.append(
                Metric(f"{short}_{statistic}_s", "s", False, _latency(f"{short}_s", statistic), f"{short}, {statistic}")
            )
    return {entry.name: entry for entry in found}


METRICS = _metrics()
