"""The verbs of `llem` that read stored results: each takes parsed arguments and returns an exit code."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from pytest_llem.decode import encode
from pytest_llem.errors import SettingsError
from pytest_llem.results import compare, listing
from pytest_llem.results.collection import Results, load
from pytest_llem.results.exports import export
from pytest_llem.results.progress import counted
from pytest_llem.results.reading import read_result, result_files
from pytest_llem.results.report.build import write_figures, write_report
from pytest_llem.results.shards import by_whole_run
from pytest_llem.study.limits import FailIf, check_condition, parse_fail_if


def compare_runs(options: argparse.Namespace) -> int:
    """`llem compare`: print the table; 1 when a limit is exceeded (or, strict, not judged)."""
    others: list[tuple[str, Results]] = []
    for path in options.others:
        others += by_whole_run(path, load(path))
    limits = [fail_if(text) for text in options.fail_if]
    for name in options.allow:
        check_condition(name)
    rows = compare.compare(
        load(options.baseline),
        others,
        metrics=options.metric,
        limits=limits,
        alpha=options.alpha,
        allow=set(options.allow),
    )
    if options.format == "json":
        text = json.dumps(encode(rows), indent=2, allow_nan=False)
    else:
        text = "\n".join(compare.lines(rows, markdown=options.format == "markdown"))
    sys.stdout.write(text + "\n")
    return int(compare.failed(rows, strict=options.strict))


def report(options: argparse.Namespace) -> int:
    """`llem report`: write the page and, where asked for, the figures."""
    write_report(options.paths, options.out, baseline=options.baseline, title=options.title, watch=counted)
    sys.stdout.write(f"{options.out}\n")
    if options.figures is not None:
        for file in write_figures(options.paths, options.figures, watch=counted):
            sys.stdout.write(f"{file}\n")
    return 0


def list_all(options: argparse.Namespace) -> int:
    """`llem list`: print the runs."""
    rows = listing.list_runs(options.out)
    text = json.dumps(encode(rows), indent=2) if options.json else "\n".join(listing.lines(rows))
    sys.stdout.write(text + "\n")
    return 0


def export_results(options: argparse.Namespace) -> int:
    """`llem export`: write results in another tool's format."""
    export(read_all(options.paths), options.format, options.out)
    sys.stdout.write(f"{options.out}\n")
    return 0


def read_all(paths: Sequence[Path]) -> Results:
    """The results of runs, folders of runs or files, with a count on the terminal while it takes long."""
    files = [file for path in paths for file in result_files(path)]
    return Results(tuple(read_result(file) for file in counted(files, "reading")))


def fail_if(text: str) -> FailIf:
    """`METRIC:LIMIT` or `METRIC:LIMIT:RESOLUTION` as a limit; `SettingsError` for anything else."""
    name, _, rest = text.partition(":")
    limit, _, resolution = rest.partition(":")
    if not rest:
        raise SettingsError(f"{text!r} is no limit", fix="write METRIC:LIMIT, e.g. joules_per_output_token:5%")
    return parse_fail_if(name, limit, resolution or None)
