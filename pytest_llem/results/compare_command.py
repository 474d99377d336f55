"""The verb `llem compare`: opens what is to be compared, runs against a baseline or the settings inside a run.

`cli` calls it. The judgements are those of `compare` and `effects`; this reads arguments, prints, and never writes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pytest_llem.errors import SettingsError
from pytest_llem.job.metric_names import check_condition
from pytest_llem.job.wire import encode
from pytest_llem.results import compare, compare_axis
from pytest_llem.results.baselines import required_cycles
from pytest_llem.results.reading import MeasurementId, Results, load, load_rows, measurement_id, shared_measurements
from pytest_llem.results.terminal import show
from pytest_llem.results.whole_runs import by_whole_run
from pytest_llem.study.limits import parse_limit

OF_BASELINES = {"fail_if": "--fail-if", "allow": "--allow", "strict": "--strict"}
"""Options that judge against a baseline, which a comparison inside a run does not have."""


def compare_results(options: argparse.Namespace) -> int:
    """`llem compare`: print the table; 1 when a limit is exceeded (or, strict, not judged), 2 if none was looked at."""
    if options.by is not None:
        return _inside_a_run(options)
    if not options.others:
        raise SettingsError(
            f"{options.baseline} alone has nothing to be compared with",
            fix="name a second one: llem compare A B; or compare the settings inside it: llem compare A --by AXIS",
        )
    if options.reference is not None:
        raise SettingsError("--reference is a value of the axis that --by names", fix="add --by AXIS, or leave it out")
    others: list[tuple[str, Results]] = []
    for path in options.others:
        others += by_whole_run(path, required_cycles(path, load_rows(path)))
    limits = [parse_limit(text) for text in options.fail_if]
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


def _inside_a_run(options: argparse.Namespace) -> int:
    """`--by AXIS`: print what the values of an axis do, paired over the other axes."""
    unused = [name for attribute, name in OF_BASELINES.items() if getattr(options, attribute)]
    if options.others or unused:
        what = "one run" if options.others else f"no {', '.join(unused)}"
        raise SettingsError(
            f"--by compares the settings inside a run: it takes {what}",
            fix="leave the rest out; or leave out --by, and the first run is the baseline of the others",
        )
    path = Path(options.baseline)
    results = required_cycles(path, load(path))
    found = compare_axis.by_axis(path, results, options.by, metrics=options.metric, reference=options.reference)
    if options.format == "json":
        show(json.dumps(encode(found), indent=2, allow_nan=False))
    else:
        show("\n".join(compare_axis.lines(found, markdown=options.format == "markdown")))
    return 0
