"""Whether other tools read what `llem export` writes: OTLP's protobuf classes, OpenTelemetry's conventions, LoadGen.

`python tests/benchmarks/export_formats.py RESULTS` wants `pip install opentelemetry-proto
opentelemetry-semantic-conventions mlcommons-loadgen`. It exits 1 when a line is no `MetricsData`, when a metric that is
not this package's own has a name, unit or type of hardware that the conventions lack, or when a key of an MLPerf entry
is none that LoadGen writes to its summary for that scenario.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from pytest_llem.results.exports import export
from pytest_llem.results.reading import load

OWN = (
    "llem.",
    "energy_",
    "run_id",
    "cycle",
    "deviations",
    "requests_per_s",
    "output_tokens_per_s",
    "Average power",
    "Energy per",
)
"""What is this package's, or MLPerf Power's, whose keys no log of LoadGen has; uncertainties as well."""


def opentelemetry_problems(lines: list[str]) -> Iterator[str]:
    parse = resolve_name("google.protobuf.json_format:Parse")
    message = resolve_name("opentelemetry.proto.metrics.v1.metrics_pb2:MetricsData")
    types = {
        each.value for each in resolve_name("opentelemetry.semconv._incubating.attributes.hw_attributes:HwTypeValues")
    }
    units: dict[str, str] = {}
    for name in ("gen_ai_metrics", "hw_metrics"):
        module = import_module(f"opentelemetry.semconv._incubating.metrics.{name}")
        made = re.findall(r'name=(\w+),.*?unit="([^"]+)"', inspect.getsource(module), re.DOTALL)
        units |= {getattr(module, constant): unit for constant, unit in made}
    for line in lines:
        data = parse(line, message())
        for metric in (entry for scope in data.resource_metrics[0].scope_metrics for entry in scope.metrics):
            if not metric.name.startswith(OWN) and units.get(metric.name) != metric.unit:
                yield f"{metric.name} in {metric.unit}: the conventions have {units.get(metric.name)}"
            points = (metric.sum if metric.HasField("sum") else metric.gauge).data_points
            kinds = {each.value.string_value for p in points for each in p.attributes if each.key == "hw.type"}
            yield from (f"{metric.name}: no hw.type {kind}" for kind in kinds - types)


def loadgen_keys(scenario: str) -> set[str]:
    """The keys of LoadGen's summary, from a test of a fraction of a second on a system that answers at once."""
    loadgen: Any = import_module("mlperf_loadgen")

    def answer(samples: Any) -> None:
        for sample in samples:
            loadgen.FirstTokenComplete([loadgen.QuerySampleResponse(sample.id, 0, 0)])
            loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(sample.id, 0, 0, 5)])

    settings, logs = loadgen.TestSettings(), loadgen.LogSettings()
    settings.scenario, settings.mode = getattr(loadgen.TestScenario, scenario), loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms, settings.use_token_latencies, settings.server_target_qps = 200, True, 100
    with tempfile.TemporaryDirectory() as folder:
        logs.log_output.outdir = folder
        system = loadgen.ConstructSUT(answer, lambda: None)
        library = loadgen.ConstructQSL(10, 10, lambda _: None, lambda _: None)
        loadgen.StartTestWithLogSettings(system, library, settings, logs)
        text = (Path(folder) / "mlperf_log_summary.txt").read_text()
    return {re.sub(r"\s+", " ", line.partition(":")[0]).strip() for line in text.splitlines() if ":" in line}


def mlperf_problems(entries: list[dict[str, Any]]) -> Iterator[str]:
    known = {scenario: loadgen_keys(scenario) for scenario in ("Offline", "Server", "SingleStream", "MultiStream")}
    latencies = {key for keys in known.values() for key in keys if "latency (ns)" in key or "utput" in key}
    for entry in entries:
        keys = known[entry["Scenario"] or "Server"] | latencies
        unknown = [key for key in entry if key not in keys and not key.startswith(OWN) and "uncertainty" not in key]
        yield from (f"{entry['Scenario']}: LoadGen writes no {key!r}" for key in unknown)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    results = load(parser.parse_args().results)
    with tempfile.TemporaryDirectory() as folder:
        otel, mlperf = Path(folder) / "otel.jsonl", Path(folder) / "mlperf.json"
        export(results, "otel", otel)
        export(results, "mlperf", mlperf)
        lines, entries = otel.read_text().splitlines(), json.loads(mlperf.read_text())
    problems = dict.fromkeys([*opentelemetry_problems(lines), *mlperf_problems(entries)])
    scenarios = sorted({str(entry["Scenario"]) for entry in entries})
    print(f"{len(lines)} OTLP lines, {len(entries)} MLPerf entries ({', '.join(scenarios)}): {len(problems)} problems")
    print(*problems, sep="\n")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
