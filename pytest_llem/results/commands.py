"""The verbs of `llem` that read stored results: each takes parsed arguments and returns an exit code.

`cli` calls them by name. They must never change a run; the shards of one run (`--llem-shard=K/N`) are read as one.
"""

from __future__ import annotations

import argparse

from pytest_llem.results.exports import export
from pytest_llem.results.reading import load_all
from pytest_llem.results.report.charts.figures import write_figures
from pytest_llem.results.report.page import write_report
from pytest_llem.results.terminal import counted, show


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
    export(load_all(options.paths, counted), options.format, options.out, dict(options.set))
    show(f"{options.out}")
    return 0
