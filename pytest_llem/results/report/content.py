"""Gathers the content of a report as plain rows: experiments, cycles, axes, power traces, problems.

`build` calls it; `page` and `charts` show what it returns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median

import pyarrow.parquet as pq

from pytest_llem.errors import JsonValue, StoreError
from pytest_llem.job.job import JobDir
from pytest_llem.results.gates import MIN_CYCLES
from pytest_llem.results.judging import GateReport, read_gates
from pytest_llem.results.layout import MANIFEST, CycleKey, run_directories
from pytest_llem.results.manifest import ManifestItem, read_manifest
from pytest_llem.results.metrics import METRICS
from pytest_llem.results.reading import Cell, Results, read_result, result_files
from pytest_llem.results.schema import Result
from pytest_llem.results.statistics import mean_interval
from pytest_llem.results.summary import estimate
from pytest_llem.results.terminal import ShowProgress, silent

TABLE_METRICS = (
    "joules_per_output_token",
    "output_tokens_per_s",
    "energy_j",
    "avg_power_w",
    "ttft_p50_s",
    "tpot_p50_s",
    "peak_memory_bytes",
    "mfu",
)

MAX_TRACES = 120
"""Chosen: with `POINTS` each, they add about a megabyte to the page."""


@dataclass(frozen=True)
class ExperimentRow:
    """One experiment of one run: `metrics` holds median and half interquartile range per metric.

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
    metrics: Mapping[str, tuple[float, float | None]]
    interval: tuple[float, float] | None
    phases: Mapping[str, float]
    idle_j: float | None
    net_j: float | None
    settings: Mapping[str, Cell]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Content:
    """The content of a report."""

    results: Results
    experiments: tuple[ExperimentRow, ...]
    axes: tuple[str, ...]
    traces: Mapping[str, PowerTrace]
    left_out_traces: int
    problems: tuple[ManifestItem, ...]
    gates: Mapping[str, tuple[GateReport, ...]] = field(default_factory=dict)
    environments: Mapping[str, Mapping[str, JsonValue]] = field(default_factory=dict)


def gather_content(paths: Sequence[Path], *, progress: ShowProgress = silent) -> Content:
    """Read runs, folders of runs or files; `StoreError` when one of them holds nothing.

    A run of which nothing succeeded has no results, and problems to show. `progress` sees each file as it is read.
    """
    files = [file for path in paths for file in _result_files(path)]
    results = Results(tuple(read_result(file) for file in progress(files, "reading")))
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.run_id, result.study, result.experiment.id), []).append(result)
    # Shards of one run have no experiment in common, so that their labels need no run.
    several = len({key[1:] for key in groups}) < len(groups)
    settings = {id(result): row for result, row in zip(results, results.rows(), strict=True)}
    runs = {run.name: run for path in paths for run in _runs(path)}
    traces, left_out = _traces(results, runs)
    manifests = {name: read_manifest(run / MANIFEST) for name, run in runs.items()}
    requested = {path.resolve() for path in paths}
    whole = [name for name, run in runs.items() if requested & {run.resolve(), run.parent.resolve()}]
    planned = Counter(
        (manifests[name].run_id, item.study, item.experiment_id) for name in whole for item in manifests[name].items
    )
    rows = tuple(
        _experiment(key, group, settings[id(group[0])], several, max(planned[key], len(group)))
        for key, group in groups.items()
    )
    return Content(
        results=results,
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
        if (path / MANIFEST).exists() and read_manifest(path / MANIFEST).items:
            return []
        raise


def _runs(path: Path) -> list[Path]:
    for candidate in (path, *path.parents):
        if (candidate / MANIFEST).exists():
            return [candidate]
    return run_directories(path)


def _experiment(
    key: tuple[str, str, str], results: Sequence[Result], row: Mapping[str, Cell], several_runs: bool, total: int
) -> ExperimentRow:
    valid = [result for result in results if result.validity.valid]
    first = (valid or list(results))[0]
    metrics: dict[str, tuple[float, float | None]] = {}
    for name, metric in METRICS.items():
        summary = estimate([value for result in valid if (value := metric.of(result)) is not None])
        if summary is not None:
            metrics[name] = (summary.median, summary.half_iqr)
    headline = [v for result in valid if (v := result.energy.joules_per_output_token) is not None and v > 0]
    bound = mean_interval(headline, 0.05) if len(headline) >= MIN_CYCLES else None
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
        metrics=metrics,
        interval=(bound.low, bound.high) if bound else None,
        phases=_phases(valid),
        idle_j=_share(valid, net=False),
        net_j=_share(valid, net=True),
        settings={name: cell for name, cell in row.items() if name.startswith("config.")},
        notes=tuple(dict.fromkeys(notes)),
    )


def _phases(valid: Sequence[Result]) -> dict[str, float]:
    """Median joules per output token of each phase that was separated."""
    energies: dict[str, list[float]] = {}
    for result in valid:
        for phase in result.energy.phases:
            if phase.energy_per_repeat_j is not None and result.workload.output_tokens:
                energies.setdefault(phase.name, []).append(phase.energy_per_repeat_j / result.workload.output_tokens)
    return {name: median(values) for name, values in energies.items()}


def _share(valid: Sequence[Result], *, net: bool) -> float | None:
    """Median joules per output token above idle, or of the idle device."""
    values: list[float] = []
    for result in valid:
        energy = result.energy
        if energy.energy_j is not None and energy.energy_above_idle_j is not None and result.tokens.output:
            above = max(0.0, energy.energy_above_idle_j)
            values.append((above if net else energy.energy_j - above) / result.tokens.output)
    return median(values) if values else None


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


POINTS = 240
"""Chosen: enough to show the edges of windows."""


@dataclass(frozen=True)
class PowerTrace:
    """Seconds from the first window's start, watts and device per point, and the windows as name, start, end."""

    points: tuple[tuple[float, float, str], ...]
    windows: tuple[tuple[str, float, float], ...]


def power_trace(path: Path, result: Result) -> PowerTrace | None:
    """The readings of `power.parquet` as mean power per interval; `None` when there are none.

    Where the sensor gives no power, the counter's differences are used. Each point is the mean of the readings of
    its interval, so that thinning keeps the energy.
    """
    table = pq.read_table(path, columns=["t_ns", "device", "power_w", "counter_mj"]).to_pylist()
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
    points = [
        ((time - origin) / 1e9, watts, device)
        for device, readings in by_device.items()
        for time, watts in _thinned(readings)
    ]
    windows = [
        (window.name, (window.start_ns - origin) / 1e9, (window.end_ns - origin) / 1e9)
        for window in result.energy.windows
    ]
    return PowerTrace(tuple(points), tuple(windows))


def _thinned(readings: list[tuple[int, float]]) -> list[tuple[float, float]]:
    size = -(-len(readings) // POINTS)
    groups = [readings[start : start + size] for start in range(0, len(readings), size)]
    return [
        (sum(time for time, _ in group) / len(group), sum(watts for _, watts in group) / len(group)) for group in groups
    ]
