"""OpenTelemetry for `llem export`: OTLP JSON (`MetricsData`, a line per result), as a collector's file receiver reads.

`exports` loads it by name; names, units and attributes of the conventions must stay. Points have the time of the
measure window; where an older result does not know it, that of its derivation, which `llem.time` says. Latencies are
gauges with the attribute `llem.statistic` (histograms in the conventions; a result holds statistics), `hw.energy` is
a delta sum and `hw.power` the window's mean, per leased device. An estimate is no `hw.energy`, but
`llem.estimated_energy`. What was not measured is absent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path

from pytest_llem import __version__
from pytest_llem.errors import JsonValue
from pytest_llem.job.files import write_text
from pytest_llem.results.exports.load_shape import CLIENT
from pytest_llem.results.performance_schema import Distribution
from pytest_llem.results.reading import Results
from pytest_llem.results.schema import Result

DELTA = 1
"""`AGGREGATION_TEMPORALITY_DELTA` in the OTLP metrics protocol."""
LATENCIES = {
    "gen_ai.server.time_to_first_token": "ttft_s",
    "gen_ai.server.time_per_output_token": "tpot_s",
    "gen_ai.server.request.duration": "e2el_s",
}
TYPES = {"gpu": "gpu", "cpu": "cpu", "dram": "memory"}
"""`hw.type` by a device's kind; a process is no hardware."""
GPU_FACTS = {"llem.gpu.power_limit": "W", "llem.gpu.sm_clock": "Hz", "llem.gpu.memory_clock": "Hz"}
"""With their units: the limit in force, and the clocks' medians under load."""
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def export(results: Results, out: Path) -> None:
    """All valid results as JSON lines."""
    write_text(out, "".join(json.dumps(metrics_data(result)) + "\n" for result in results.valid))


def metrics_data(result: Result) -> dict[str, JsonValue]:
    """One result as an OTLP `MetricsData` object."""
    host = result.environment.host.get("hostname")
    resource: dict[str, JsonValue] = {
        "service.name": "pytest-llem",
        "host.name": host if isinstance(host, str) else None,
        "llem.study": result.study,
        "llem.experiment": result.experiment.id,
        "llem.config_hash": result.experiment.config_hash,
        "llem.cycle": result.cycle,
        "llem.attempt": result.attempt,
        "llem.run_id": result.run_id,
        "llem.source_run": result.source_run,
        "llem.meter": result.energy.meter,
        "llem.energy_measured": result.energy.measured,
        "llem.time": "measured" if result.measured_to else "derived",
        **_model(result),
    }
    scope: JsonValue = {"name": "pytest_llem", "version": __version__}
    metrics: JsonValue = [{"scope": scope, "metrics": [*_latencies(result), *_energy(result)]}]
    return {"resourceMetrics": [{"resource": {"attributes": _attributes(resource)}, "scopeMetrics": metrics}]}


def _model(result: Result) -> dict[str, JsonValue]:
    """The attributes that the conventions require of `gen_ai` metrics."""
    model, settings = result.experiment.config.get("model"), result.experiment.config.get("settings")
    chat = result.engine.name == CLIENT and isinstance(settings, Mapping) and settings.get("api") == "chat"
    return {
        "gen_ai.operation.name": "chat" if chat else "text_completion",
        "gen_ai.provider.name": result.engine.name,
        "gen_ai.request.model": model if isinstance(model, str) else None,
    }


def _latencies(result: Result) -> list[JsonValue]:
    metrics: list[JsonValue] = []
    for name, section in LATENCIES.items():
        distribution: Distribution | None = getattr(result.latency, section)
        if distribution is not None:
            known = {name: value for name, value in distribution.statistics.items() if value is not None}
            common: dict[str, JsonValue] = {**_model(result), "llem.n": distribution.n}
            points = [_point(result, value, {**common, "llem.statistic": name}) for name, value in known.items()]
            metrics.append(_gauge(name, "s", points))
    return metrics


def _energy(result: Result) -> list[JsonValue]:
    duration, energy = result.throughput.duration_s or result.timing.get("measure_s"), result.energy
    joules: list[JsonValue] = []
    watts: list[JsonValue] = []
    for device in energy.devices:
        if device.energy_j is not None and device.leased:
            attributes: dict[str, JsonValue] = {"hw.id": device.id, "hw.type": TYPES.get(device.kind)}
            joules.append(_point(result, device.energy_j, attributes))
            if duration:
                watts.append(_point(result, device.energy_j / duration, {**attributes, "llem.statistic": "mean"}))
    metrics: list[JsonValue] = []
    if joules:
        total: JsonValue = {"dataPoints": joules, "aggregationTemporality": DELTA, "isMonotonic": True}
        name = "hw.energy" if energy.measured else "llem.estimated_energy"
        metrics.append({"name": name, "unit": "J", "sum": total})
    if watts:
        metrics.append(_gauge("hw.power" if energy.measured else "llem.estimated_power", "W", watts))
    metrics += _gpus(result)
    quality = result.quality
    figures: dict[str, tuple[str, float | None]] = {
        "llem.joules_per_output_token": ("J/{token}", energy.joules_per_output_token),
        "llem.joules_per_output_token.uncertainty": ("J/{token}", energy.joules_per_output_token_uncertainty),
    }
    if quality is not None:
        figures |= {
            "llem.joules_per_correct_answer": ("J/{answer}", quality.joules_per_correct_answer),
            "llem.joules_per_correct_answer.uncertainty": ("J/{answer}", quality.joules_per_correct_answer_uncertainty),
            "llem.accuracy": ("1", quality.accuracy),
        }
    known = {name: (unit, value) for name, (unit, value) in figures.items() if value is not None}
    metrics += [_gauge(name, unit, [_point(result, value, {})]) for name, (unit, value) in known.items()]
    return metrics


def _gpus(result: Result) -> list[JsonValue]:
    """How each GPU was set while it was measured; the conventions have no names for it."""
    read: dict[str, list[JsonValue]] = {}
    for gpu in result.device.gpus:
        hertz = [None if clock is None else clock * 1e6 for clock in (gpu.sm_clock_mhz, gpu.memory_clock_mhz)]
        facts = (min(gpu.power_limits_w, default=None), *hertz)
        for name, value in zip(GPU_FACTS, facts, strict=True):
            if value is not None:
                attributes: dict[str, JsonValue] = {"hw.id": gpu.id, "hw.type": "gpu"}
                read.setdefault(name, []).append(_point(result, value, attributes))
    return [_gauge(name, GPU_FACTS[name], points) for name, points in read.items()]


def _gauge(name: str, unit: str, points: list[JsonValue]) -> JsonValue:
    return {"name": name, "unit": unit, "gauge": {"dataPoints": points}}


def _point(result: Result, value: float, attributes: Mapping[str, JsonValue]) -> JsonValue:
    point: dict[str, JsonValue] = {"asDouble": value, "attributes": _attributes(attributes)}
    if result.measured_from is not None:
        point["startTimeUnixNano"] = _unix_ns(result.measured_from)
    return {**point, "timeUnixNano": _unix_ns(result.measured_to or result.created_at)}


def _unix_ns(moment: str) -> str:
    return str((datetime.fromisoformat(moment) - EPOCH) // timedelta(microseconds=1) * 1000)


def _attributes(values: Mapping[str, JsonValue]) -> list[JsonValue]:
    kinds = {bool: "boolValue", int: "intValue", str: "stringValue"}
    return [
        {"key": key, "value": {kinds[type(value)]: str(value) if type(value) is int else value}}
        for key, value in values.items()
        if value is not None
    ]
