"""The names of conditions that a comparison needs equal, and that `compare.allow` may leave out.

`study` and `results.commands` check names against them; `results.comparability` says how each is read. They are
published and stay, because studies and baselines hold them.
"""

from __future__ import annotations

from pytest_llem.job.metric_names import require_listed

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
    "cache",
    "arrivals_hash",
    "isolation",
    "runner",
    "device_kind",
    "device_count",
    "device_models",
    "device_ids",
    "cpus",
    "numa_node",
    "power_limit_w",
    "driver_major",
    "cpu_model",
    "meter",
    "scope",
    "energy_measured",
    "metered_devices",
    "calibration",
    "estimator",
    "slo",
    "questions",
    "scorer",
    "thermal_state",
)
"""Every condition that must be equal before energies are compared."""


def check_condition(name: str) -> None:
    """Raises `SettingsError` with a suggestion when `compare.allow` may not hold this name."""
    require_listed("condition", name, (*CONDITIONS, ESTIMATED_ENERGY))
