"""`llem history add`: puts runs into a history's folder.

`cli` calls it by name. Other subverbs lie beside what they show.
"""

from __future__ import annotations

import argparse
import sys

from pytest_llem.errors import StoreError
from pytest_llem.results.history.adding import Added, add_whole_run, whole_runs_at
from pytest_llem.results.terminal import counted, show


def add_runs(options: argparse.Namespace) -> int:
    """Add each run, and say what became of it; a run without a valid cycle does not keep the others out.

    Raises `StoreError` where no run could be added.
    """
    runs = [run for path in options.runs for run in whole_runs_at(path)]
    added: list[Added] = []
    problems: list[str] = []
    for run in counted(runs, "adding"):
        try:
            added += add_whole_run(run, options.to)
        except StoreError as error:
            problems.append(error.message)
    if not added:
        raise StoreError("\n".join(problems), fix="see llem list for what became of the runs")
    for each in added:
        many = f"{each.experiments} experiment{'s' * (each.experiments != 1)}"
        why = " (it holds measurements that this run lacks)" if each.outcome == "kept" else ""
        show(f"{each.path}: {each.outcome}, {many}{why}")
    for problem in problems:
        sys.stderr.write(f"llem: not added: {problem}\n")
    return 0
