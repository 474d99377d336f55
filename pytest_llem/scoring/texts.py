"""The scorers that hold an answer's text against the key's: `exact` and `contains`.

`registry` finds them. Both fold case, trim, and see runs of white space as one blank; `exact` also drops punctuation at
the end. A key that is a list names several right answers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from pytest_llem.errors import JsonValue, WorkloadError
from pytest_llem.job.request import Question
from pytest_llem.scoring.scorer import Scorer


def normalised(text: str) -> str:
    """A text as it is compared."""
    return re.sub(r"\s+", " ", text).strip().casefold()


def accepted(target: JsonValue) -> list[str]:
    """The right answers that a key names; empty where it names none."""
    entries = target if isinstance(target, list) else [target]
    texts = [str(entry) for entry in entries if isinstance(entry, (str, int, float)) and not isinstance(entry, bool)]
    return texts if len(texts) == len(entries) and all(text.strip() for text in texts) else []


class TextScorer(Scorer):
    """Holds an answer against every accepted one, as `matches` says."""

    version = "1"

    def __init__(self, name: str, matches: Callable[[str, str], bool]) -> None:
        self.name = name
        self._matches = matches

    def check(self, target: JsonValue) -> None:
        """A text, a number, or a list of these."""
        if not accepted(target):
            raise WorkloadError(f"no answer key for the scorer {self.name}: {target!r}", fix="write a text, or a list")

    def score(self, text: str, question: Question) -> float:
        """1 where any of the accepted answers matches."""
        given = normalised(text)
        return float(any(self._matches(given, normalised(target)) for target in accepted(question.target)))


def _equal(given: str, wanted: str) -> bool:
    return given.rstrip(".!?") == wanted.rstrip(".!?")


TEXT_SCORERS: Mapping[str, Scorer] = {
    scorer.name: scorer
    for scorer in (
        TextScorer("exact", _equal),
        TextScorer("contains", lambda given, wanted: wanted in given),
    )
}
"""The scorers of texts by their names."""
