"""The verbs of `llem` that read stored results: each takes parsed arguments and returns an exit code.

`cli` calls them by name. They must never change a run; the shards of one run (`--llem-shard=K/N`) are read as one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pytest_llem.errors import SettingsError, StoreError
from pytest_llem.job.metric_names import check_condition
from pytest_llem.job.wire import encode
from pytest_llem.results import compare
from pytest_llem.results.baselines import required_cycles
from pytest_llem.results.exports import export
from pytest_llem.results.layout import MANIFEST, run_directories
from pytest_llem.results.manifest import Manifest, read_manifest, shard_of
from pytest_llem.results.reading import (
    MeasurementId,
    Results,
    load,
    load_all,
    load_rows,
    measurement_id,
    shared_measurements,
)
from pytest_llem.results.report.charts.figures import write_figures
from pytest_llem.results.report.page import write_report
from pytest_llem.results.terminal import counted, show
from pytest_llem.study.limits import FailIf, parse_fail_if


def compare_runs(options: argparse.Namespace) -> int:
    """`llem compare`: print the table; 1 when a limit is exceeded (or, strict, not judged), 2 if none was looked at."""
    others: list[tuple[str, Results]] = []
    for path in options.others:
        others += by_whole_run(path, required_cycles(path, load_rows(path)))
    limits = [fail_if(text) for text in options.fail_if]
    for name in options.allow:
        check_condition(name)
    baseline = required_cycles(options.baseline, load(options.baseline))
    if all(not independent(results, baseline) for _, results in others):
        raise SettingsError(
            f"nothing to compare: {shared_measurements(baseline.valid, [r for _, rs in others for r in rs.valid])}",
            fix="a run that reused results (--llem-resume) is no second measurement: measure again without it",
        )
    rows = compare.compare(
        baseline,
        others,
        metrics=options.metric,
        limits=limits,
        alpha=options.alpha,
        allow=options.allow,
        match=options.match,
        baseline_dir=options.baseline_dir,
    )
    if options.format == "json":
        show(json.dumps(encode(rows), indent=2, allow_nan=False))
    else:
        show("\n".join(compare.lines(rows, markdown=options.format == "markdown")))
    compare.require_compared(rows, baseline, Results(tuple(result for _, results in others for result in results)))
    return int(compare.failed(rows, strict=options.strict))


def independent(results: Results, baseline: Results) -> bool:
    """Whether an experiment that both sides have shares no measurement between them, or there is none in both."""
    held: dict[tuple[str, str], set[MeasurementId]] = {}
    for result in baseline.valid:
        for name in (result.experiment.config_hash, result.experiment.id):
            held.setdefault((result.study, name), set()).add(measurement_id(result))
    both = [
        known.isdisjoint(map(measurement_id, group))
        for (study, experiment_id), group in results.valid.by_experiment().items()
        if (known := held.get((study, group[0].experiment.config_hash)) or held.get((study, experiment_id)))
    ]
    return any(both) or not both


def report(options: argparse.Namespace) -> int:
    """`llem report`: write the page and, with `--figures`, the figures."""
    write_report(options.paths, options.out, baseline=options.baseline, title=options.title, progress=counted)
    show(f"{options.out}")
    if options.figures is not None:
        for file in write_figures(options.paths, options.figures, progress=counted):
            show(f"{file}")
    return 0


def export_results(options: argparse.Namespace) -> int:
    """`llem export`: write results in another tool's format."""
    export(load_all(options.paths, counted), options.format, options.out)
    show(f"{options.out}")
    return 0


def fail_if(text: str) -> FailIf:
    """`METRIC:LIMIT` or `METRIC:LIMIT:RESOLUTION` as a limit; `SettingsError` for anything else."""
    name, _, rest = text.partition(":")
    limit, _, resolution = rest.partition(":")
    if not rest:
        raise SettingsError(f"{text!r} is no limit", fix="write METRIC:LIMIT, e.g. joules_per_output_token:5%")
    return parse_fail_if(name, limit, resolution or None)


def whole_runs(manifests: Sequence[Manifest]) -> list[list[Manifest]]:
    """Runs with the shards of one run joined, in the order of the first of each.

    Shards belong together when they have the same split of the same studies. If a shard occurs twice, because a study
    was run again, the older ones form one run and the newer ones another. Raises `StoreError` for shards of the same
    studies and count that were split differently: together they lack experiments and repeat others.
    """
    groups: list[list[Manifest]] = []
    splits: dict[tuple[int, tuple[str, ...]], Mapping[str, str]] = {}
    for manifest in sorted(manifests, key=lambda manifest: manifest.run_id):
        shard = shard_of(manifest)
        if shard is None:
            groups.append([manifest])
            continue
        kind = (shard.count, tuple(sorted(shard.splits)))
        if splits.setdefault(kind, shard.splits) != shard.splits:
            raise StoreError(
                f"run {manifest.run_id} is shard {shard}, and was split in another way than the other shards of "
                f"{', '.join(kind[1])}",
                fix="run all shards of the same study file, with the same --llem-shard-times or without",
            )
        for group in groups:
            first, present = shard_of(group[0]), _indices(group)
            if first and (first.splits, first.count) == (shard.splits, shard.count) and shard.index not in present:
                group.append(manifest)
                break
        else:
            groups.append([manifest])
    return groups


def by_whole_run(path: Path, results: Results) -> list[tuple[str, Results]]:
    """The rows at `path` by run, shards joined and named after the first; an incomplete run lists its shards."""
    root = path.parent if path.name == MANIFEST else path
    directories = [root] if (root / MANIFEST).exists() else run_directories(root) if root.is_dir() else []
    manifests = [read_manifest(directory / MANIFEST) for directory in directories]
    named: list[tuple[str, Results]] = []
    covered: set[str] = set()
    for group in whole_runs(manifests):
        ids = {manifest.run_id for manifest in group}
        covered |= ids
        part = results.where(lambda result, ids=ids: result.run_id in ids)  # type: ignore[misc]
        if part:
            named.append((_name(group), part))
    rest = dict.fromkeys(result.run_id for result in results if result.run_id not in covered)
    return named + [(run, results.of_run(run)) for run in rest]


def _indices(group: Sequence[Manifest]) -> list[int]:
    return sorted(shard.index for shard in map(shard_of, group) if shard is not None)


def _name(group: Sequence[Manifest]) -> str:
    first, present = shard_of(group[0]), _indices(group)
    if first is None:
        return group[0].run_id
    if len(present) == first.count:
        return f"{group[0].run_id} (all of {first.count} shards)"
    return f"{group[0].run_id} (shard{'s' * (len(present) > 1)} {', '.join(map(str, present))} of {first.count})"
