"""Gathers the content of a report as plain rows: experiments, cycles, axes, power traces, problems.

`page` and `charts` call `gather_content`. Nothing else reads the rows: change them freely, with these two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import pyarrow.parquet as pq
from pyarrow import ArrowException

from pytest_llem.errors import JsonValue, StoreError
from pytest_llem.job.files import open_regular
from pytest_llem.job.job import JobDir
from pytest_llem.results.gate_report import GateReport, read_gates
from pytest_llem.results.layout import MANIFEST, CycleKey, run_directories
from pytest_llem.results.manifest import ManifestItem, current_manifest
from pytest_llem.results.reading import Cell, Results, read_result, result_files
from pytest_llem.results.repeatability import BASELINES
from pytest_llem.results.schema import Result
from pytest_llem.results.summary import MetricSummary, summarise_metrics
from pytest_llem.results.terminal import ShowProgress, silent

MAX_TRACES = 120
"""Chosen: with `POINTS` each, they add about a megabyte to the page."""
POINTS = 240
"""Points of a device's trace. Chosen: enough to show the edges of windows."""


@dataclass(frozen=True)
class ExperimentRow:
    """One experiment of one run, with `metrics` as in its summary.

    `label` names it in charts, with its run where there are several. `total` counts the cycles that the run planned;
    where only some of its results are shown, those.
    """

    key: str
    label: str
    run: str
    study: str
    experiment: str
    engine: str
    model: str
    valid: int
    total: int
    metrics: Mapping[str, MetricSummary]
    phases: Mapping[str, float]
    idle_j: float | None
    net_j: float | None
    settings: Mapping[str, Cell]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class PowerTrace:
    """Seconds from the first window's start, watts and device per point, and the windows as name, start, end."""

    points: tuple[tuple[float, float, str], ...]
    windows: tuple[tuple[str, float, float], ...]


@dataclass(frozen=True)
class Content:
    """The content of a report: `results` holds each measurement once, `rows` in every run that has it."""

    results: Results
    rows: Results
    experiments: tuple[ExperimentRow, ...]
    axes: tuple[str, ...]
    traces: Mapping[str, PowerTrace]
    left_out_traces: int
    problems: tuple[ManifestItem, ...]
    gates: Mapping[str, tuple[GateReport, ...]] = field(default_factory=dict)
    environments: Mapping[str, Mapping[str, JsonValue]] = field(default_factory=dict)


def gather_content(
    paths: Sequence[Path], *, baseline_dir: Path = BASELINES, progress: ShowProgress = silent
) -> Content:
    """Read runs, folders of runs or files; `StoreError` when one of them holds nothing.

    A run of which nothing succeeded has no results, and problems to show. `progress` sees each file as it is read.
    """
    files = [file for path in paths for file in _result_files(path)]
    every = Results(tuple(read_result(file) for file in progress(files, "reading")))
    results = every.distinct()
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.run_id, result.study, result.experiment.id), []).append(result)
    # Shards of one run have no experiment in common, so that their labels need no run.
    several = len({key[1:] for key in groups}) < len(groups)
    settings = {id(result): row for result, row in zip(results, results.rows(), strict=True)}
    runs = {run.name: run for path in paths for run in _runs(path)}
    traces, left_out = _traces(results, runs)
    manifests = {name: current_manifest(run) for name, run in runs.items()}
    requested = {path.resolve() for path in paths}
    whole = [name for name, run in runs.items() if requested & {run.resolve(), run.parent.resolve()}]
    planned = Counter(
        (manifests[name].run_id, item.study, item.experiment_id) for name in whole for item in manifests[name].items
    )
    rows = tuple(
        _experiment(key, group, settings[id(group[0])], several, max(planned[key], len(group)), baseline_dir)
        for key, group in groups.items()
    )
    return Content(
        results=results,
        rows=every,
        experiments=rows,
        axes=_axes(rows),
        traces=traces,
        left_out_traces=left_out,
        problems=tuple(
            item for manifest in manifests.values() for item in manifest.items if item.state not in ("valid", "pending")
        ),
        gates={name: reports for name, run in runs.items() if (reports := tuple(read_gates(run)))},
        environments={name: manifest.environment for name, manifest in manifests.items()},
    )


def _result_files(path: Path) -> list[Path]:
    try:
        return result_files(path)
    except StoreError:
        if (path / MANIFEST).exists() and current_manifest(path).items:
            return []
        raise


def _runs(path: Path) -> list[Path]:
    for candidate in (path, *path.parents):
        if (candidate / MANIFEST).exists():
            return [candidate]
    return run_directories(path)


def _experiment(
    key: tuple[str, str, str],
    results: Sequence[Result],
    row: Mapping[str, Cell],
    several_runs: bool,
    total: int,
    baseline_dir: Path,
) -> ExperimentRow:
    valid = [result for result in results if result.validity.valid]
    first = (valid or list(results))[0]
    idle_j, net_j = _split(valid)
    notes = [reason.code for result in results for reason in result.validity.reasons]
    notes += [warning.code for result in results for warning in result.warnings]
    model = first.experiment.config.get("model")
    return ExperimentRow(
        key="/".join(key),
        label=f"{key[2]} @{key[0]}" if several_runs else key[2],
        run=key[0],
        study=key[1],
        experiment=key[2],
        engine=f"{first.engine.name} {first.engine.version}",
        model=model if isinstance(model, str) else "",
        valid=len(valid),
        total=total,
        metrics=summarise_metrics(valid, baseline_dir),
        phases=_phases(valid),
        idle_j=idle_j,
        net_j=net_j,
        settings={name: cell for name, cell in row.items() if name.startswith("config.")},
        notes=tuple(dict.fromkeys(notes)),
    )


def _phases(valid: Sequence[Result]) -> dict[str, float]:
    """Mean joules per output token of each phase that was separated."""
    energies: dict[str, list[float]] = {}
    for result in valid:
        for phase in result.energy.phases:
            if phase.energy_per_repeat_j is not None and result.workload.output_tokens:
                energies.setdefault(phase.name, []).append(phase.energy_per_repeat_j / result.workload.output_tokens)
    return {name: fmean(values) for name, values in energies.items()}


def _split(valid: Sequence[Result]) -> tuple[float | None, float | None]:
    """Mean joules per output token of the idle device, and above idle."""
    idle: list[float] = []
    net: list[float] = []
    for result in valid:
        energy = result.energy
        if energy.energy_j is not None and energy.energy_above_idle_j is not None and result.tokens.output:
            above = max(0.0, energy.energy_above_idle_j)
            idle.append((energy.energy_j - above) / result.tokens.output)
            net.append(above / result.tokens.output)
    return (fmean(idle), fmean(net)) if idle else (None, None)


def _axes(rows: Sequence[ExperimentRow]) -> tuple[str, ...]:
    """Settings that differ between experiments and are few enough to compare by."""
    names = dict.fromkeys(name for row in rows for name in row.settings)
    return tuple(name for name in names if 1 < len({str(row.settings.get(name)) for row in rows}) <= 40)


def _traces(results: Results, runs: Mapping[str, Path]) -> tuple[dict[str, PowerTrace], int]:
    traces: dict[str, PowerTrace] = {}
    left_out = 0
    for result in results:
        run = runs.get(result.source_run or result.run_id)
        if run is None:
            continue
        key = CycleKey(result.study, result.experiment.id, result.experiment.config_hash, result.cycle)
        power = JobDir(run / key.directory).power
        if not power.exists():
            continue
        if len(traces) >= MAX_TRACES:
            left_out += 1
            continue
        trace = power_trace(power, result)
        if trace is not None:
            traces[f"{result.run_id}/{result.study}/{result.experiment.id}/c{result.cycle}"] = trace
    return traces, left_out


def power_trace(path: Path, result: Result) -> PowerTrace | None:
    """The readings of `power.parquet` as mean power per interval; `None` when there are none.

    Where the sensor gives no power, the counter's differences are used. Each point is the mean of the readings of
    its interval, so that thinning keeps the energy.
    """
    try:
        with open_regular(path) as stream:
            table = pq.read_table(stream, columns=["t_ns", "device", "power_w", "counter_mj"]).to_pylist()
    except (OSError, ArrowException) as problem:
        raise StoreError(f"{path}: not the readings of a cycle: {problem}", fix="remove the file") from None
    by_device: dict[str, list[tuple[int, float]]] = {}
    counters: dict[str, list[tuple[int, float]]] = {}
    for row in table:
        if row["power_w"] is not None:
            by_device.setdefault(row["device"], []).append((row["t_ns"], row["power_w"]))
        if row["counter_mj"] is not None:
            counters.setdefault(row["device"], []).append((row["t_ns"], row["counter_mj"]))
    for device, readings in counters.items():
        if device not in by_device:
            by_device[device] = [
                (later, (after - before) / 1e3 / ((later - earlier) / 1e9))
                for (earlier, before), (later, after) in pairwise(readings)
                if later > earlier and after >= before
            ]
    times = [time for readings in by_device.values() for time, _ in readings]
    if not times:
        return None
    origin = min([window.start_ns for window in result.energy.windows] or times)
    points: list[tuple[float, float, str]] = []
    for device, readings in by_device.items():
        size = -(-len(readings) // POINTS) or 1
        for start in range(0, len(readings), size):
            moments, watts = zip(*readings[start : start + size], strict=True)
            points.append(((sum(moments) / len(moments) - origin) / 1e9, sum(watts) / len(watts), device))
    windows = [(w.name, (w.start_ns - origin) / 1e9, (w.end_ns - origin) / 1e9) for w in result.energy.windows]
    return PowerTrace(tuple(points), tuple(windows))
