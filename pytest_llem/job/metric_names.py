"""The names that a study may give limits for: metrics with their units, and conditions of a comparison.

`study` checks budgets and gates against them, and `results.commands` a command line's conditions; `results.metrics` and
`results.comparability` say how each is read. A published name stays, because studies and baselines hold it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from pytest_llem.errors import SettingsError


@dataclass(frozen=True)
class MetricName:
    """One number of a result: its unit, and which direction is better."""

    name: str
    unit: str
    higher_is_better: bool
    description: str


_NAMES = (
    MetricName("joules_per_output_token", "J", False, "Energy per output token"),
    MetricName("output_tokens_per_s", "1/s", True, "Output token throughput"),
    MetricName("energy_j", "J", False, "Energy of the measure windows"),
    MetricName("avg_power_w", "W", False, "Mean power of the measure windows"),
    MetricName("energy_above_idle_j", "J", False, "Energy above idle"),
    MetricName("idle_power_w", "W", False, "Idle power, model loaded"),
    MetricName("joules_per_total_token", "J", False, "Energy per token"),
    MetricName("joules_per_request", "J", False, "Energy per request"),
    MetricName("wh_per_1000_queries", "Wh", False, "Energy per 1000 requests"),
    MetricName("tokens_per_joule", "1/J", True, "Output tokens per joule"),
    MetricName("total_tokens_per_s", "1/s", True, "Token throughput"),
    MetricName("requests_per_s", "1/s", True, "Request throughput"),
    MetricName("peak_memory_bytes", "B", False, "Peak allocated memory, summed over devices"),
    MetricName("mfu", "1", True, "Model FLOPs utilisation"),
    MetricName("load_s", "s", False, "Time to load the engine"),
    *(
        MetricName(f"{short}_{statistic}_s", "s", False, f"{short}, {statistic}")
        for short in ("ttft", "tpot", "itl", "e2el")
        for statistic in ("mean", "p50", "p90", "p99")
    ),
)

METRIC_NAMES = {entry.name: entry for entry in _NAMES}
"""Every metric by name, in the order of tables."""

ESTIMATED_ENERGY = "estimated_energy"
"""In `compare.allow`: energy that no sensor measured is judged all the same."""

CONDITIONS = (
    "engine",
    "engine_version",
    "dtype",
    "quantization",
    "model_revision",
    "model_fingerprint",
    "lora_fingerprint",
    "prompts_hash",
    "input_tokens",
    "output_tokens",
    "load_shape",
    "isolation",
    "runner",
    "device_kind",
    "device_count",
    "device_models",
    "device_ids",
    "power_limit_w",
    "driver_major",
    "cpu_model",
    "meter",
    "scope",
    "energy_measured",
    "metered_devices",
    "calibration",
    "estimator",
    "thermal_state",
)
"""Every condition that must be equal before energies are compared."""


def metric_name(name: str) -> MetricName:
    """The metric called `name`; `SettingsError` with a suggestion for any other name."""
    _require_listed("metric", name, tuple(METRIC_NAMES))
    return METRIC_NAMES[name]


def check_condition(name: str) -> None:
    """Raises `SettingsError` with a suggestion when `compare.allow` may not hold this name."""
    _require_listed("condition", name, (*CONDITIONS, ESTIMATED_ENERGY))


def _require_listed(kind: str, name: str, names: Sequence[str]) -> None:
    if name not in names:
        close = get_close_matches(name, names, n=1)
        fix = f"did you mean {close[0]!r}?" if close else f"use one of: {', '.join(names)}"
        raise SettingsError(f"unknown {kind} {name!r}", fix=fix, details={kind: name})
