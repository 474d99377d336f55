"""What a search found, and how it is told on a terminal.

`command` makes and prints it. The names of `bisect.json` stay; texts are for people and may change.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pytest_llem.bisect.search import Ending, LevelChange
from pytest_llem.results.metrics import Metric

NAMED = 10
"""Commits that are listed. Chosen: what fits on a screen with all else."""


@dataclass(frozen=True)
class SuspectCommits:
    """Commits that no further build can tell apart, oldest first, and the probability that the change is in them."""

    commits: tuple[str, ...]
    subjects: tuple[str, ...]
    probability: float


@dataclass(frozen=True)
class CommitLevel:
    """What was measured of a commit: `ratio` is its level over that of GOOD."""

    commit: str
    runs: int
    ratio: float


@dataclass(frozen=True)
class Bisected:
    """`bisect.json`. `change` is the level from the first suspect on over that before it, with a 95 % interval, and
    `difference` that of the ends alone; `null` before both were measured.

    `noise` is the relative standard deviation between runs of equal commits, with what was assumed of it, as
    `noise_from` says. `second` is where
    one change does not explain the levels, from one commit to another. `builds` and `runs` are those of this search,
    `stored_runs` those of a history.
    """

    ending: Ending
    good: str
    bad: str
    commits: int
    metric: str
    experiments: tuple[str, ...]
    suspects: tuple[SuspectCommits, ...]
    change: LevelChange | None
    difference: LevelChange | None
    noise: float
    assumed_noise: float
    noise_from: str
    builds: int
    runs: int
    stored_runs: int
    levels: tuple[CommitLevel, ...]
    skipped: Mapping[str, str]
    second: tuple[str, str] | None = None
    notes: tuple[str, ...] = ()


def percent(ratio: float) -> str:
    """A ratio as a change: `+7.9 %`."""
    return f"{100 * (ratio - 1):+.1f} %"


def sized(change: LevelChange | None) -> str:
    """A change with its interval."""
    if change is None:
        return "not measured"
    return f"{percent(change.ratio)} (95 % interval {percent(change.low)} to {percent(change.high)})"


def lines(found: Bisected, measure: Metric, options: argparse.Namespace) -> Iterator[str]:
    """What was found, for a terminal."""
    effort = f"{found.runs} runs" + (f" and {found.builds} builds" if found.builds else "")
    if found.stored_runs:
        effort += f", and {found.stored_runs} runs of the history"
    first, *others = found.suspects
    if found.ending == "no_difference":
        yield f"nothing to find: good and bad do not differ in {found.metric}, {sized(found.difference)}, by {effort}"
    elif found.ending == "several":
        yield f"no single commit: after one change, most probably {named(first)}, another remains, by {effort}"
        yield from parts(found)
    else:
        yield f"{'found' if found.ending == 'found' else 'not decided'}: {named(first)}, by {effort}"
    if found.change is not None and found.ending in ("found", "undecided"):
        worse = (found.change.ratio < 1) == measure.higher_is_better
        yield f"{found.metric} {sized(found.change)} from it on: {'worse' if worse else 'better'}"
        noise = f"{100 * found.noise:.1f} % ({100 * found.assumed_noise:.1f} % {found.noise_from}, and what was seen)"
        yield f"good to bad: {sized(found.difference)}; equal runs differ by {noise}"
    if len(first.commits) > 1 and found.ending == "found":
        yield "no build tells these apart, oldest first:"
        for sha, subject in [*zip(first.commits, first.subjects, strict=True)][:NAMED]:
            yield f"  {sha[:10]}  {subject}{'  (skipped)' if sha in found.skipped else ''}"
        if len(first.commits) > NAMED:
            yield f"  and {len(first.commits) - NAMED} more"
    if found.ending == "undecided" or first.probability < options.confidence:
        yield from (f"or: {named(each)}" for each in others[:3] if found.ending != "no_difference")
    if found.skipped:
        yield f"skipped, because they could not be measured: {', '.join(sha[:10] for sha in [*found.skipped][:NAMED])}"
    yield from (f"note: {note}" for note in found.notes)


def named(suspects: SuspectCommits) -> str:
    """A commit with its probability and subject."""
    sha, count = suspects.commits[-1][:10], len(suspects.commits)
    which = f"{sha} ({suspects.subjects[-1]})" if count == 1 else f"one of {count} commits up to {sha}"
    likely = (
        "over 99.9" if suspects.probability > 0.999 else f"{100 * suspects.probability:.1f}"
    )  # 100 % is never known
    return f"{which} with {likely} %"


def parts(found: Bisected) -> Iterator[str]:
    """How to go on where one change does not explain the levels: both sides of a commit between the changes."""
    levels = {level.commit: level for level in found.levels}
    for level in found.levels:
        yield f"  {level.commit[:10]}  {percent(level.ratio):>8}  {level.runs} run{'s' * (level.runs > 1)}"
    inner = [each for each in levels.values() if each.commit not in (found.good, found.bad)]
    if inner and found.difference:
        half = math.log(found.difference.ratio) / 2
        middle = min(inner, key=lambda each: abs(math.log(each.ratio) - half)).commit[:10]
        yield f"search the parts; what was measured is used again: llem bisect {found.good[:10]}..{middle} ..."
        yield f"and llem bisect {middle}..{found.bad[:10]} ..."
