"""Scores the stored answers of a cycle again: its result with new scores, and the questions that they change.

`llem score` calls it, and the session for results that it takes over from earlier runs. It must write nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from pytest_llem.errors import LlemError, SettingsError
from pytest_llem.job.answers import Answered, read_answers
from pytest_llem.job.config import WorkloadSettings
from pytest_llem.job.job import JobDir
from pytest_llem.results.notes import answer_notes
from pytest_llem.results.quality_schema import QualitySection
from pytest_llem.results.resume import Reuse
from pytest_llem.results.schema import Result
from pytest_llem.results.scored import Scored, score_answers, to_keep
from pytest_llem.results.sections.quality import derive_quality
from pytest_llem.scoring.registry import scorer_of

FOLLOW = ("answers_cut", "answers_not_scored")
"""Warnings that follow from scores."""


@dataclass(frozen=True)
class Changed:
    """A question whose mean score over the repeats of a cycle is another one than before, `None` where it had none."""

    cycle: int
    question: str
    before: float | None
    after: float


@dataclass(frozen=True)
class Rescored:
    """A cycle with new scores: its result as it would be, its answers as they are to be kept, and what changed."""

    directory: Path
    result: Result
    quality: QualitySection
    answers: Sequence[Answered]
    changed: Sequence[Changed]


def rescored(result: Result, directory: Path, settings: WorkloadSettings) -> Rescored:
    """A cycle with new scores. Raises `LlemError` where its answers, a key or the scorer do not allow that."""
    scorer = scorer_of(settings)
    if scorer is None:
        raise SettingsError("its study names no scorer", fix="name one by --score")
    before = read_answers(JobDir(directory).answers)
    for answer in before:
        try:
            scorer.check(answer.target)
        except LlemError as problem:
            raise problem.restated(f"question {answer.question!r}: {problem.message}") from None
    answers = score_answers(scorer, before)
    quality = derive_quality(settings, scorer, answers, None, result.energy, _requests(directory, answers))
    kept = [note for note in result.warnings if note.code not in FOLLOW]
    update = {"quality": quality, "warnings": (*kept, *answer_notes(Scored(scorer, answers)))}
    again = result.model_copy(update=update)
    kept_answers = to_keep(settings, answers)
    return Rescored(directory, again, quality, kept_answers, _changed(result, quality, answers))


def scored_now(found: Reuse, settings: WorkloadSettings) -> Reuse:
    """An earlier result with the scores that the study's scorer gives today; without it where that is not possible."""
    if found.result is None or found.result.quality is None or found.directory is None:
        return found
    known = found.result.quality
    try:
        scorer = scorer_of(settings)
        if (
            scorer is not None
            and known.scores
            and (known.scorer, known.scorer_version) == (scorer.name, scorer.version)
        ):
            return found
        again = rescored(found.result, found.directory, settings)
    except LlemError as problem:
        return Reuse(None, f"its answers cannot be scored again: {problem.message}")
    return Reuse(again.result, None, found.directory, again.answers)


def _requests(directory: Path, answers: Sequence[Answered]) -> int:
    """How many requests the energy is of; where no table says so, as many as there are answers."""
    table = JobDir(directory).requests
    return pq.read_metadata(table).num_rows if table.is_file() else sum(answer.repeats for answer in answers)


def _changed(result: Result, quality: QualitySection, answers: Sequence[Answered]) -> list[Changed]:
    names = [*dict.fromkeys(answer.question for answer in answers)]
    known = result.quality.scores if result.quality is not None else ()
    before = known if len(known) == len(names) else [None] * len(names)
    each = zip(names, before, quality.scores, strict=True)
    return [Changed(result.cycle, name, old, new) for name, old, new in each if old != new]
