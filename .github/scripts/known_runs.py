"""Prints how many earlier runs a study's next one may be compared with: `known_runs.py STUDY HISTORY`.

Those of the segment that was added to last, of the study's experiment and limit that has fewest: after a change of
settings or machine that was merged, counting begins anew.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pytest_llem.errors import LlemError
from pytest_llem.results.history.files import read_history
from pytest_llem.results.history.series import in_segments
from pytest_llem.study import load_study

ENOUGH = 3
"""From so many on a gate is strict: the noise between runs is estimated from three."""


def known_runs(study_file: str, history: Path) -> int:
    """How many; 0 where the history lacks one of the experiments, and enough where none is compared with anything."""
    study = load_study(Path(study_file))
    compared = {each.id: each.gates.compare.fail_if for each in study.experiments if each.gates.compare is not None}
    entries = read_history(history).of_study(study.name)
    known = []
    for metric in {limit.metric for limits in compared.values() for limit in limits}:
        newest = {each.experiment_id: each.segments for each in in_segments(entries, metric)}
        for name, limits in compared.items():
            if metric in {limit.metric for limit in limits}:
                segments = newest.get(name, ())
                last = max(segments, key=lambda segment: segment.entries[-1].run.at, default=None)
                known.append(0 if last is None else len(last.entries))
    return min(known, default=ENOUGH)


if __name__ == "__main__":
    try:
        known = known_runs(sys.argv[1], Path(sys.argv[2]))
    except LlemError:  # which pytest says better
        known = 0
    sys.stdout.write(f"{known}\n")
