"""How often a gate would have failed on equal runs: each of the last ones, judged as a new one against those before it.

`judging` calls it with its own judgement; reports show the answer beside the verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pytest_llem.results.baselines import BaselineRun
from pytest_llem.results.gates import Status

REPLAYED = 20
"""Newest runs that are judged again. Chosen: a gate that fails in one of twenty is seen, and they are soon judged."""
BEFORE = 20
"""Runs before it that each is held against, as many as a history gives a new run."""


def replayed(
    equal: Sequence[BaselineRun], judge: Callable[[Sequence[BaselineRun], BaselineRun], Status]
) -> tuple[int, ...]:
    """Of runs of one level, from old to new: how many of the last fail, and how many were judged; `()` if none.

    A run that fails is no baseline of the later ones, as in the history itself. `judge` takes the runs before, and one.
    """
    held: list[BaselineRun] = []
    failed = judged = 0
    for number, run in enumerate(equal):
        if held and number >= len(equal) - REPLAYED:
            status = judge(held[-BEFORE:], run)
            judged += status != "not_comparable"
            if status == "fail":
                failed += 1
                continue
        held.append(run)
    return (failed, judged) if judged else ()
