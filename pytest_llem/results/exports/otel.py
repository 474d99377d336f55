"""OpenTelemetry for `llem export`: OTLP JSON (`MetricsData`, a line per result), as a collector's file receiver reads.

`exports` loads it by name; names and units of the conventions must stay. Resource: `service.name`, `host.name`,
`gen_ai.request.model`, `gen_ai.provider.name` and the `llem.*` identity of the result. Metrics, as gauges at the
result's time, with the attribute `llem.statistic` (mean, p50, p90, p99) for latencies:
`gen_ai.server.time_to_first_token`, `gen_ai.server.time_per_output_token`, `gen_ai.server.request.duration` in s
(histograms in the conventions; a result holds statistics), `hw.energy` in J (a delta sum over the measure windows) and
`hw.power` in W with `hw.id` per device, and `llem.joules_per_output_token` with its `.uncertainty` (k=2). What was not
measured is absent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from pytest_llem import __version__
from pytest_llem.errors import JsonValue
from pytest_llem.job.files import write_text
from pytest_llem.results.reading import Results
from pytest_llem.results.schema import Distribution, Result

DELTA = 1
"""`AGGREGATION_TEMPORALITY_DELTA` in the OTLP metrics protocol."""
LATENCIES = {
    "gen_ai.server.time_to_first_token": "ttft_s",
    "gen_ai.server.time_per_output_token": "tpot_s",
    "gen_ai.server.request.duration": "e2el_s",
}


def export(results: Results, out: Path) -> None:
    """All valid results as JSON lines."""
    write_text(out, "".join(json.dumps(metrics_data(result)) + "\n" for result in results.valid))


def metrics_data(result: Result) -> dict[str, JsonValue]:
    """One result as an OTLP `MetricsData` object."""
    model = result.experiment.config.get("model")
    host = result.environment.host.get("hostname")
    resource = {
        "service.name": "pytest-llem",
        "host.name": host if isinstance(host, str) else None,
        "gen_ai.request.model": model if isinstance(model, str) else None,
        "gen_ai.provider.name": result.engine.name,
        "llem.study": result.study,
        "llem.experiment": result.experiment.id,
        "llem.config_hash": result.experiment.config_hash,
        "llem.cycle": result.cycle,
        "llem.run_id": result.run_id,
        "llem.meter": result.energy.meter,
        "llem.energy_measured": result.energy.measured,
    }
    scope: JsonValue = {"name": "pytest_llem", "version": __version__}
    metrics: JsonValue = [{"scope": scope, "metrics": [*_latencies(result), *_energy(result)]}]
    return {"resourceMetrics": [{"resource": {"attributes": _attributes(resource)}, "scopeMetrics": metrics}]}


def _latencies(result: Result) -> list[JsonValue]:
    metrics: list[JsonValue] = []
    for name, section in LATENCIES.items():
        distribution: Distribution | None = getattr(result.latency, section)
        if distribution is not None:
            values = {name: value for name, value in asdict(distribution).items() if name != "n" and value is not None}
            points = [_point(result, value, {"llem.statistic": statistic}) for statistic, value in values.items()]
            metrics.append(_gauge(name, "s", points))
    return metrics


def _energy(result: Result) -> list[JsonValue]:
    duration = result.timing.get("measure_s")
    energy: list[JsonValue] = []
    power: list[JsonValue] = []
    for device in result.energy.devices:
        if device.energy_j is not None and device.leased:
            attributes = {"hw.id": device.id, "hw.type": device.kind}
            energy.append(_point(result, device.energy_j, attributes))
            if duration:
                power.append(_point(result, device.energy_j / duration, attributes))
    metrics: list[JsonValue] = []
    if energy:
        total: JsonValue = {"dataPoints": energy, "aggregationTemporality": DELTA, "isMonotonic": True}
        metrics.append({"name": "hw.energy", "unit": "J", "sum": total})
    if power:
        metrics.append(_gauge("hw.power", "W", power))
    if result.energy.joules_per_output_token is not None:
        points = [_point(result, result.energy.joules_per_output_token, {})]
        metrics.append(_gauge("llem.joules_per_output_token", "J/{token}", points))
    if result.energy.joules_per_output_token_uncertainty is not None:
        points = [_point(result, result.energy.joules_per_output_token_uncertainty, {})]
        metrics.append(_gauge("llem.joules_per_output_token.uncertainty", "J/{token}", points))
    return metrics


def _gauge(name: str, unit: str, points: list[JsonValue]) -> JsonValue:
    return {"name": name, "unit": unit, "gauge": {"dataPoints": points}}


def _point(result: Result, value: float, attributes: Mapping[str, JsonValue]) -> JsonValue:
    end_ns = int(datetime.fromisoformat(result.created_at).timestamp()) * 10**9
    duration = result.timing.get("measure_s") or 0.0
    return {
        "asDouble": value,
        "startTimeUnixNano": str(end_ns - round(duration * 1e9)),
        "timeUnixNano": str(end_ns),
        "attributes": _attributes(attributes),
    }


def _attributes(values: Mapping[str, JsonValue]) -> list[JsonValue]:
    kinds = {bool: "boolValue", int: "intValue", str: "stringValue"}
    return [
        {"key": key, "value": {kinds[type(value)]: str(value) if type(value) is int else value}}
        for key, value in values.items()
        if value is not None
    ]
