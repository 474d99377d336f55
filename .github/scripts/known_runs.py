"""Prints how many earlier runs a study's next one may be compared with: `known_runs.py STUDY HISTORY`.

Those of the segment that was added to last, of the experiment and metric that has fewest: after a change of settings
or machine that was merged, counting begins anew.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pytest_llem.errors import LlemError
from pytest_llem.results.history.files import read_history
from pytest_llem.results.history.series import series
from pytest_llem.study import load_study


def known_runs(study_file: str, history: Path) -> int:
    """How many; 0 where the history lacks the study."""
    study = load_study(Path(study_file))
    entries = read_history(history).of_study(study.name)
    limits = {
        limit.metric
        for experiment in study.experiments
        if experiment.gates.compare is not None
        for limit in experiment.gates.compare.fail_if
    }
    metrics = limits or {name for entry in entries for name in entry.metrics}
    newest = (
        max(each.segments, key=lambda segment: segment.entries[-1].run.at)
        for metric in metrics
        for each in series(entries, metric)
    )
    return min((len(segment.entries) for segment in newest), default=0)


if __name__ == "__main__":
    try:
        known = known_runs(sys.argv[1], Path(sys.argv[2]))
    except LlemError:  # which pytest says better
        known = 0
    sys.stdout.write(f"{known}\n")
