"""The scorers that a study or another package brings: an expression, a function of a file, a registered function.

`registry` makes them. They run in a process of their own, which `own_process` ends where an answer takes too long.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import EntryPoint
from typing import Any

from pytest_llem.errors import JsonValue, ScoringError, SettingsError, WorkloadError
from pytest_llem.job.files import expanded, reason
from pytest_llem.job.registered import package
from pytest_llem.job.request import Question
from pytest_llem.scoring.own_process import Failed, outputs_of
from pytest_llem.scoring.scorer import Scorer
from pytest_llem.scoring.texts import accepted, normalised

GROUP = "pytest_llem.scorers"


class GivenScorer(Scorer):
    """Scores in a process of its own; `_what` is what `own_process` runs there."""

    remedy: str
    _what: dict[str, Any]

    def score(self, text: str, question: Question) -> float:
        """The score of one answer, in a process for it alone."""
        return self.score_all([(text, question)])[0]

    def score_all(self, answers: Sequence[tuple[str, Question]]) -> list[float]:
        """The scores of many answers, all in one process."""
        try:
            outputs = outputs_of(self._what, [(text, question.target, question.id) for text, question in answers])
        except Failed as problem:
            raise self._error(problem, [question for _, question in answers]) from None
        except OSError as problem:
            raise self._error(Failed(f"no process for it: {problem}"), []) from None
        return [self._score(output, question.target) for output, (_, question) in zip(outputs, answers, strict=True)]

    def _score(self, output: Any, target: JsonValue) -> float:
        del target
        return float(output)

    def _error(self, problem: Failed, questions: Sequence[Question]) -> ScoringError:
        question = "" if problem.at is None else f", question {questions[problem.at].id!r}"
        return ScoringError(f"scorer {self.name}{question}: {problem.text}", fix=self.remedy)


class RegexScorer(GivenScorer):
    """What an expression finds first in an answer equals the key, by the normalisation of `exact`.

    The first of its groups that took part counts, of an expression without groups the whole match.
    """

    version = "1"
    remedy = "correct the expression: a repeat within a repeat, as in (a+)+, can take forever"

    def __init__(self, expression: str) -> None:
        self.name = f"regex: {expression}"
        try:
            re.compile(expression)
        except (re.error, OverflowError, RecursionError) as problem:
            fix = "correct it; docs.python.org/3/library/re.html has the syntax, and backslashes need single quotes"
            raise SettingsError(f"workload.score: no regular expression {expression!r}: {problem}", fix=fix) from None
        self._what = {"regex": expression}

    def check(self, target: JsonValue) -> None:
        """As `exact` reads keys."""
        if not accepted(target):
            fix = "write a text, a number, or a list of them: any of these is then right"
            raise WorkloadError(f"no answer key for the scorer {self.name}: {target!r}", fix=fix)

    def _score(self, output: str | None, target: JsonValue) -> float:
        return float(output is not None and normalised(output) in map(normalised, accepted(target)))


class FunctionScorer(GivenScorer):
    """A function of an answer and its key, of a file or of another package; any key is one for it."""

    def check(self, target: JsonValue) -> None:
        """Only that there is a key."""
        if target is None:
            raise WorkloadError(f"no answer key for the scorer {self.name}", fix="write one, in whatever form it takes")

    def load(self) -> None:
        """Import it."""
        self.score_all([])

    def rehearse(self, question: Question) -> None:
        """Score a key as its own answer: whatever is wrong with the function itself shows."""
        entries = accepted(question.target)
        self.score(entries[0] if entries else "", question)


class FileScorer(FunctionScorer):
    """FILE:FUNCTION, read when it is first used: its version is the file as it runs."""

    def __init__(self, named: str) -> None:
        file, _, self._function = named.rpartition(":")
        if not file or not self._function.isidentifier():
            text = f"workload.score: python: {named!r} names no function of a file"
            raise SettingsError(text, fix="write FILE:FUNCTION, such as grading.py:grade")
        self._path = expanded(file).absolute()
        self.name = f"python: {self._path.name}:{self._function}"  # the same from another checkout
        self.remedy = f"correct {self._path.name}"

    @cached_property
    def _source(self) -> bytes:
        try:
            return self._path.read_bytes()
        except (OSError, ValueError) as problem:
            text = f"workload.score: python: {reason(problem).lower()}: {self._path}"
            raise SettingsError(text, fix="correct the path; a relative one starts at the study") from None

    @cached_property
    def version(self) -> str:  # type: ignore[override]
        """SHA-256 of the file."""
        return hashlib.sha256(self._source).hexdigest()

    @cached_property
    def _what(self) -> dict[str, Any]:  # type: ignore[override]
        source = base64.b64encode(self._source).decode()
        return {"file": str(self._path), "source": source, "function": self._function}


class RegisteredScorer(FunctionScorer):
    """A function that another package registers; its version is that of the package."""

    def __init__(self, point: EntryPoint) -> None:
        self.name = point.name
        self.version = package(point)
        self.remedy = f"correct {point.value}, or uninstall the package"
        self._what = {"module": point.module, "function": point.attr}
