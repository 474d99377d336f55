"""Prints how many earlier runs the next may be compared with: `known_runs.py STUDY HISTORY [METRIC:LIMIT...]`.

Those of the segment that was added to last, of the study's experiment and limit that has fewest: after a change of
settings or machine that was merged, counting begins anew. The limits are those of the command line above the study's.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pytest_llem.errors import LlemError
from pytest_llem.results.history.files import read_history
from pytest_llem.results.history.series import in_segments
from pytest_llem.study import Overrides, load_study


def known_runs(study_file: str, history: Path, limits: Sequence[str] = ()) -> int:
    """How many; 0 where the history lacks one of the experiments."""
    stated = {metric.strip(): limit.strip() for metric, _, limit in (each.partition(":") for each in limits)}
    study = load_study(Path(study_file), overrides=Overrides(fail_if=stated))
    compared = {each.id: {limit.metric for limit in each.compare.fail_if} for each in study.experiments if each.compare}
    # A run with a baseline and without any limit is judged by its headline.
    compared = compared or {each.id: {study.execution.headline} for each in study.experiments}
    entries = read_history(history).of_study(study.name)
    known = []
    for metric in set().union(*compared.values()):
        newest = {each.experiment_id: each.segments for each in in_segments(entries, metric)}
        for name, metrics in compared.items():
            if metric in metrics:
                segments = newest.get(name, ())
                last = max(segments, key=lambda segment: segment.entries[-1].run.at, default=None)
                known.append(0 if last is None else len(last.entries))
    return min(known, default=0)


if __name__ == "__main__":
    try:
        known = known_runs(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
    except LlemError:  # which pytest says better
        known = 0
    sys.stdout.write(f"{known}\n")
