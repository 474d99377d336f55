"""`llem import`: other tools' results as results of a run, with the energy that a run of `llem attach` has.

`cli` calls `import_results` by name. All is read and checked before anything is written.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

from pytest_llem.errors import JsonValue, SettingsError
from pytest_llem.job.config import SloSettings
from pytest_llem.job.job import DeviceSet, MeterSettings
from pytest_llem.job.measurement import (
    Capabilities,
    EngineFacts,
    Measurement,
    MemoryPeaks,
    RequestRecord,
    WarmupOutcome,
    WorkerFacts,
    write_measurement,
)
from pytest_llem.results.attach.command import figures
from pytest_llem.results.attach.record import Recording, key_of
from pytest_llem.results.attach.work import Circumstances, KnownWork, result_of
from pytest_llem.results.imports import aiperf, guidellm, vllm_bench
from pytest_llem.results.imports.benchmark import Benchmark, BenchmarkFile
from pytest_llem.results.imports.joined import AttachedRun, failures, join
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.requests_table import requests_table, write_parquet
from pytest_llem.results.sections.performance import latency
from pytest_llem.results.terminal import show

STUDY = "imported"
UNKNOWN = "unknown"


def import_results(options: argparse.Namespace) -> int:
    """Read the file, join it with its energy, and write a run; one result for each benchmark of the file."""
    source = BenchmarkFile.read(options.file)
    found = read(source)
    if options.name is not None and len(found) > 1:
        fix = "leave --name out: each is called by its load"
        raise SettingsError(f"{options.file} holds {len(found)} benchmarks, which one name cannot tell apart", fix=fix)
    beside = AttachedRun.of(options.power) if options.power is not None else None
    joined = [join(each, beside) if beside is not None else (_unmeasured(), each.requests or ()) for each in found]
    configs = [_config(each) for each in found]
    keys = _keys([options.name or each.name for each in found], configs)
    words = ["llem", "import", str(options.file), *(() if beside is None else ("--power", str(options.power)))]
    environment = {} if beside is None else cast("dict[str, JsonValue]", beside.result.environment.host)
    recording = Recording(options.out, keys, words, environment=environment)
    for benchmark, (measurement, requests), config, key in zip(found, joined, configs, keys, strict=True):
        job_dir = recording.begin(key)
        about = Circumstances(
            recording.store.run_id,
            key,
            config,
            DeviceSet("cpu") if beside is None else beside.devices,
            MeterSettings("none") if beside is None else beside.meter,
            environment,
            "import",
            _facts(source, benchmark, beside),
            known=beside is not None,
        )
        write_measurement(job_dir.measurement, measurement)
        samples = job_dir.samples if beside is None else beside.directory.samples
        result = result_of(about, measurement, _work(benchmark, requests), samples)
        if requests:
            write_parquet(job_dir.requests, requests_table(requests, SloSettings()))
        recording.end(key, result)
        show(f"{key.experiment_id}: {'; '.join(figures(result))}")
        for reason in result.validity.reasons:
            show(f"  NOT VALID: {reason.code}: {reason.message}")
    recording.finish()
    show(f"{recording.store.run_dir}")
    return 0


def _keys(names: Sequence[str], configs: Sequence[dict[str, JsonValue]]) -> list[CycleKey]:
    """A key for each: those of one configuration are its cycles, several under one name get numbers."""
    found = [key_of(STUDY, name, config) for name, config in zip(names, configs, strict=True)]
    hashes: dict[str, list[str]] = {}
    for key in found:
        if key.config_hash not in hashes.setdefault(key.experiment_id, []):
            hashes[key.experiment_id].append(key.config_hash)
    keys: list[CycleKey] = []
    for key in found:
        alike = hashes[key.experiment_id]
        name = key.experiment_id + (f"-{alike.index(key.config_hash) + 1}" if len(alike) > 1 else "")
        cycle = 1 + sum(each.config_hash == key.config_hash and each.experiment_id == name for each in keys)
        keys.append(replace(key, experiment_id=name, cycle=cycle))
    return keys


def read(source: BenchmarkFile) -> list[Benchmark]:
    """What the file holds. Raises `StoreError` for one of no known tool, or that no such tool writes."""
    try:
        found = _read(source)
    except (AttributeError, TypeError, ValueError) as problem:
        raise source.refused(f"not as its tool writes it: {problem}") from None
    for each in found:
        each.check(source)
    return found


def _read(source: BenchmarkFile) -> list[Benchmark]:
    if source.path.suffix == ".csv":
        raise source.refused("a CSV has no times of single requests", fix="import the JSON that lies beside it")
    if source.path.suffix == ".jsonl":
        first = next(source.lines(), {})
        if aiperf.is_record(first):
            return aiperf.benchmarks(source)
        if not vllm_bench.is_it(first):
            raise source.refused("no lines that are known here")
        return [each for line in source.lines() for each in vllm_bench.benchmarks(source, line)]
    data = source.object()
    if guidellm.is_it(data):
        return guidellm.benchmarks(source, data)
    if aiperf.is_summary(data):
        return aiperf.benchmarks(source)
    if vllm_bench.is_it(data):
        return vllm_bench.benchmarks(source, data)
    raise source.refused("no file of a benchmark that is known here")


def _config(benchmark: Benchmark) -> dict[str, JsonValue]:
    return {"benchmark": benchmark.tool, "model": benchmark.model, **benchmark.settings}


def _work(benchmark: Benchmark, requests: tuple[RequestRecord, ...]) -> KnownWork:
    good = [each for each in requests if each.error is None]
    return KnownWork(
        benchmark.duration_s,
        benchmark.input_tokens,
        benchmark.output_tokens,
        None,
        benchmark.succeeded,
        benchmark.failed,
        latency(good) if good else benchmark.latency,
        benchmark.load_shape,
        benchmark.notes,
        failures(benchmark),
    )


def _facts(source: BenchmarkFile, benchmark: Benchmark, beside: AttachedRun | None) -> Mapping[str, JsonValue]:
    imported: dict[str, JsonValue] = {
        "file": source.path.name,
        "sha256": source.sha256,
        "tool": benchmark.tool,
        "version": benchmark.version,
        "date": benchmark.date,
        "figures": benchmark.own,
    }
    return {"imported": imported, "power": None if beside is None else beside.result.run_id}


def _unmeasured() -> Measurement:
    """Of a file alone nothing is known but what stands in it."""
    return Measurement(
        engine=EngineFacts(UNKNOWN, UNKNOWN, {}, Capabilities()),
        worker=WorkerFacts(0, UNKNOWN, UNKNOWN, ""),
        windows=(),
        repeats=(),
        requests=(),
        prompts_hash="",
        warmup=WarmupOutcome(0, 0.0, converged=False, reason="none", cv=None),
        memory=MemoryPeaks((), None, None),
        timing={},
    )
