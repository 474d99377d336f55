"""Finds the scorer that a workload asks for: one of this package, of another, or of the user's own file.

`session` and the worker call it before anything is measured, `results` afterwards. Names are published and stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint

from pytest_llem.errors import SettingsError, WorkloadError
from pytest_llem.job.config import ScoreBy, WorkloadSettings
from pytest_llem.job.redaction import hidden, redacted
from pytest_llem.job.registered import registered
from pytest_llem.job.request import Question
from pytest_llem.scoring.given import GROUP, FileScorer, RegexScorer, RegisteredScorer
from pytest_llem.scoring.lm_eval import TaskScorer
from pytest_llem.scoring.numbers import Numeric
from pytest_llem.scoring.scorer import Scorer
from pytest_llem.scoring.texts import TEXT_SCORERS

SCORERS: Mapping[str, Scorer] = {**TEXT_SCORERS, "numeric": Numeric()}
"""The scorers of this package by their names."""
HIDDEN = (
    "its id or its answer key holds what looks like a credential, which is hidden (***) in every file that is written: "
    "any other hidden answer would be taken for it"
)


@cache
def registered_scorers() -> Mapping[str, EntryPoint]:
    """Those of other packages, none imported. `SettingsError` for a name that is there already."""
    return registered(GROUP, "scorer", SCORERS)


def scorer_of(settings: WorkloadSettings) -> Scorer | None:
    """The scorer, `None` where answers are not scored. Raises `SettingsError` where there is no such scorer.

    A task's is loaded with the task, for which see `load_task`.
    """
    if settings.task is not None:
        return TaskScorer(settings.task, settings.include_path)
    score = settings.score
    if score is None:
        return None
    if isinstance(score, ScoreBy):
        return _given(score)
    if score in SCORERS:
        return SCORERS[score]
    points = registered_scorers()
    if score in points:
        return RegisteredScorer(points[score])
    raise SettingsError(f"workload.score: unknown scorer {score!r}", fix=_instead(score, [*SCORERS, *points]))


def _instead(score: str, names: Sequence[str]) -> str:
    """What to write in place of an unknown name: one like it, or what `llem score` takes as a study writes it."""
    kind, _, given = score.partition(":")
    if given and kind in ("regex", "python"):
        return f"write score: {{{kind}: {given.strip()!r}}}"
    near = get_close_matches(score.lower(), names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"use one of: {', '.join(names)}, or regex: or python:"


def _given(score: ScoreBy) -> Scorer:
    if score.regex is not None and score.python is None:
        return RegexScorer(score.regex)
    if score.python is not None and score.regex is None:
        return FileScorer(score.python)
    raise SettingsError("workload.score: one of regex and python says how", fix="write score: {regex: 'is (\\w+)'}")


def require_keys(settings: WorkloadSettings, questions: Sequence[Question]) -> None:
    """Raise `WorkloadError` for the first answer key that the scorer cannot read, or no file keeps, with where it is.

    Workers call it as well: where a package that registers the scorer is lacking, any key will do. A task brings keys
    that it can read.
    """
    try:
        scorer = scorer_of(settings) if settings.task is None else None
    except SettingsError:
        scorer = None
    if scorer is None:
        return
    secrets = hidden()
    for question in questions:
        try:
            if redacted([question.id, question.target], secrets) != [question.id, question.target]:
                raise WorkloadError(HIDDEN, fix="write it otherwise, or leave the question out")
            scorer.check(question.target)
        except WorkloadError as problem:
            text = f"{question.where}: {problem.message}".removeprefix(": ")
            raise WorkloadError(text, fix=problem.fix, details={"setting": "workload.answer_column"}) from None
