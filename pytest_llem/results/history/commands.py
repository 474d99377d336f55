"""`llem history add`: puts runs into a history's folder.

`cli` calls it by name. Other subverbs lie beside what they show.
"""

from __future__ import annotations

import argparse

from pytest_llem.results.history.files import add_run
from pytest_llem.results.terminal import show


def add_runs(options: argparse.Namespace) -> int:
    """Add each run, and print the files."""
    for run in options.runs:
        for file in add_run(run, options.to):
            show(f"{file}")
    return 0
