"""How an experiment's answers turned out, over its valid cycles, and some of the wrong ones.

`content` gathers it for the report's rows. Counts are of one repeat, the mean over all of them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean

from pytest_llem.errors import JsonValue, StoreError
from pytest_llem.job.answers import Answered, each_answer
from pytest_llem.job.job import JobDir
from pytest_llem.results.quality_schema import QualitySection
from pytest_llem.results.schema import Result

MOST = 10
"""Wrong answers that are shown of an experiment. Chosen: enough to see why they are; the file has all."""
VERSION = 12
"""Characters of a version, which may be a file's hash. Chosen: as of a commit."""
ENDS = 160
"""Characters of each end of a long answer: how it begins, and what it comes to."""


@dataclass(frozen=True)
class WrongAnswer:
    """An answer that scored less than 1: its text without the middle of a long one, or why it has none."""

    question: str
    key: str
    text: str | None
    why: str
    score: float


@dataclass(frozen=True)
class AnswersOf:
    """The answers of an experiment. `right`, `cut` and `failed` are questions of a repeat, `None` where not known.

    `unstable` are those whose score was not the same in all repeats and cycles, at least. `asked` is the same for
    experiments with the same questions and scorer, and `alike` for those with the same scores on each. `wrong` has some
    answers of its first valid cycle.
    """

    scorer: str
    questions: int
    right: float | None
    cut: float
    failed: float
    unstable: int
    reason: str | None
    asked: Hashable
    alike: Hashable
    wrong: tuple[WrongAnswer, ...] = ()


def answers_of(valid: Sequence[tuple[Result, Path | None]]) -> AnswersOf | None:
    """What the valid cycles of an experiment say, each with its directory; `None` where nothing was scored."""
    scored = [(of, result, directory) for result, directory in valid if (of := result.quality) is not None]
    if not scored:
        return None
    sections = [of for of, _, _ in scored]
    first = sections[0]
    version = first.scorer_version
    accuracies = [of.accuracy for of in sections if of.accuracy is not None]
    answers = sum(of.answers for of in sections) or 1
    per_repeat = first.questions / answers
    return AnswersOf(
        scorer=f"{first.scorer} (version {version if ' ' in version else version[:VERSION]})",
        questions=first.questions,
        right=fmean(accuracies) * first.questions if accuracies else None,
        cut=sum(of.cut for of in sections) * per_repeat,
        failed=sum(result.workload.failed_requests or 0 for _, result, _ in scored) * per_repeat,
        unstable=max(_unstable(sections), *(of.unstable for of in sections)),
        reason=next((of.reason for of in sections if of.reason is not None), None),
        asked=(asked := _asked(sections)),
        alike=asked and _alike(sections),
        wrong=_wrong(scored[0][2]),
    )


def _unstable(sections: Sequence[QualitySection]) -> int:
    """Questions whose score differs between cycles."""
    return sum(len(set(each)) > 1 for each in zip(*(of.scores for of in sections), strict=False))


def _asked(sections: Sequence[QualitySection]) -> Hashable:
    """What was asked and how it was scored; `None` where cycles differ in that, or have no scores."""
    asked = {(of.questions_hash, of.scorer, of.scorer_version) for of in sections if of.scores}
    return asked.pop() if len(asked) == 1 else None


def _alike(sections: Sequence[QualitySection]) -> Hashable:
    return tuple(fmean(each) for each in zip(*(of.scores for of in sections if of.scores), strict=True))


def _wrong(directory: Path | None) -> tuple[WrongAnswer, ...]:
    """Some of a cycle's wrong answers; none where their texts were not kept, or the file is gone."""
    if directory is None:
        return ()
    with suppress(StoreError):
        wrong = (each for each in each_answer(JobDir(directory).answers) if each.score is not None and each.score < 1)
        return tuple(_shown(each) for each in islice(wrong, MOST) if each.text is not None or each.error is not None)
    return ()


def _shown(answer: Answered) -> WrongAnswer:
    text = answer.text
    if text is not None and len(text) > 2 * ENDS:
        text = f"{text[:ENDS]} … {text[-ENDS:]}"
    why = answer.error or ("cut" if answer.finish_reason == "length" else "")
    return WrongAnswer(answer.question, _key(answer.target), text, why, answer.score or 0.0)


def _key(target: JsonValue) -> str:
    """An answer key as text; those of a list are alternatives."""
    text = " | ".join(map(str, target)) if isinstance(target, list) else str(target)
    return text if len(text) <= ENDS else f"{text[:ENDS]} …"
