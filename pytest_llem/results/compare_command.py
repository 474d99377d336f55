"""The verb `llem compare`: opens what is to be compared, runs against a baseline or the settings inside a run.

`cli` calls it. The judgements are those of `compare` and `effects`; this reads arguments, prints, and never writes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pytest_llem.errors import SettingsError
from pytest_llem.job.condition_names import check_condition
from pytest_llem.job.wire import encode
from pytest_llem.results import compare, compare_axis
from pytest_llem.results.baseline_reference import saved_baseline
from pytest_llem.results.baselines import required_cycles
from pytest_llem.results.compared_sides import open_runs, open_side
from pytest_llem.results.reading import load, same_measurements
from pytest_llem.results.terminal import show
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
    limits = [parse_limit(text) for text in options.fail_if]
    for name in options.allow:
        check_condition(name)
    baseline = open_side(options.baseline, options.baseline_dir)
    others = [side for each in options.others for side in open_runs(each, options.baseline_dir)]
    if all(not baseline.independent(side) for side in others):
        held = {each for experiment in baseline.experiments.values() for each in experiment.measurements}
        shared = {
            each for side in others for experiment in side.experiments.values() for each in experiment.measurements
        }
        raise SettingsError(
            f"nothing to compare: {same_measurements(held & shared)}",
            fix="a run that reused results (--llem-resume), or was saved as this baseline, is no second measurement: "
            "measure again without it",
        )
    plans = [plan for each in (options.baseline, *options.others) for plan in compare_axis.plans_at(Path(each))]
    rows = compare.compare(
        baseline,
        others,
        metrics=options.metric or compare.headlines(plan for _, plan in plans),
        limits=limits,
        alpha=options.alpha,
        allow=options.allow,
        match=options.match,
        baseline_dir=options.baseline_dir,
    )
    if options.format == "json":
        show(json.dumps(encode(rows), indent=2, allow_nan=False))
    else:
        swept = [plan for _, plan in plans if plan.axes]
        axes = {
            study: compare_axis.axes_of_plans([plan for plan in swept if plan.name == study])
            for study in dict.fromkeys(plan.name for plan in swept)
        }
        stated = {"against": options.baseline, "alpha": options.alpha, "markdown": options.format == "markdown"}
        show("\n".join(compare.lines(rows, axes, **stated)))
    compare.require_compared(rows, baseline, others)
    return int(compare.failed(rows, strict=options.strict))


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
    if not path.exists() or saved_baseline(options.baseline, options.baseline_dir) is not None:
        raise SettingsError(
            f"--by compares the settings inside a run, and {path} is none",
            fix="name a run's directory or a results folder; of runs, a saved baseline keeps the values alone",
        )
    results = required_cycles(path, load(path))
    found = compare_axis.by_axis(path, results, options.by, metrics=options.metric, reference=options.reference)
    if options.format == "json":
        show(json.dumps(encode(found), indent=2, allow_nan=False))
    else:
        show("\n".join(compare_axis.lines(found, markdown=options.format == "markdown")))
    return 0
