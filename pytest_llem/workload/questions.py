"""Questions: what their rows hold of answers, and how examples and a system's prompt stand in front of them.

`texts` reads rows with it, and `build` makes prompts. Ids must stay the same whatever rows a study asks, because
comparisons pair questions by them; texts are joined as lm-evaluation-harness does it, because scores are compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

from pytest_llem.errors import JsonValue, WorkloadError
from pytest_llem.job.config import WorkloadSettings
from pytest_llem.job.request import Example, Question

ID = "id"
"""The column of ids, where a data set has one."""

TARGET_DELIMITER, FEWSHOT_DELIMITER = " ", "\n\n"
"""Between a question and its answer, and between examples: the defaults of lm-evaluation-harness (`TaskConfig`)."""


class TextRow(NamedTuple):
    """A row of a data set: where it stands, its number from 1, and its text, `None` where `column` has none."""

    where: str
    number: int
    row: Any
    column: str | None
    text: str | None


def example_of(entry: TextRow, settings: WorkloadSettings) -> Example:
    """A row as an example for the model. Raises `WorkloadError` where its question or answer is absent."""
    target = _target(entry, settings)
    answer = target[0] if isinstance(target, list) else target
    if isinstance(answer, (list, Mapping)):
        text = f"{entry.where}: the answer in column {settings.answer_column} is no text, and so no example"
        raise _wrong(text, "write a text, a number or a list of these, or set workload.few_shot: 0", settings)
    return Example(_text(entry), str(answer))


def question_of(entry: TextRow, settings: WorkloadSettings) -> Question:
    """What the answer to a row is scored by. Raises `WorkloadError` where its question or answer is absent."""
    _text(entry)
    given = entry.row.get(ID) if isinstance(entry.row, Mapping) else None
    usable = (isinstance(given, str) and given.strip()) or (isinstance(given, int) and not isinstance(given, bool))
    return Question(str(given) if usable else str(entry.number), _target(entry, settings), entry.where)


def require_own_ids(questions: Sequence[Question]) -> None:
    """Raise `WorkloadError` for an id that two questions have."""
    seen: dict[str, Question] = {}
    for question in questions:
        if (other := seen.setdefault(question.id, question)) is not question:
            raise WorkloadError(
                f"{question.where}: the id {question.id!r} is that of {other.where} as well",
                fix=f"give each question an {ID} of its own, or rename the column: without it the row's number is one",
            )


def require_not_shown(asked: Iterable[tuple[str, Question | None]], examples: Sequence[Example]) -> None:
    """Raise `WorkloadError` for a question that stands among the examples, with its answer."""
    shown = {example.question.strip() for example in examples}
    for text, question in asked:
        if question is not None and text.strip() in shown:
            raise WorkloadError(
                f"{question.where}: one of the first {len(examples)} rows (workload.few_shot) asks the same, and is in "
                "front of it with its answer",
                fix="remove one of the rows, or lower workload.few_shot",
            )


def _text(entry: TextRow) -> str:
    if entry.text is None:
        column = f" in column {entry.column}" if entry.column else ""
        raise WorkloadError(f"{entry.where}: no question{column}", fix="write the question, or remove the row")
    return entry.text


def _target(entry: TextRow, settings: WorkloadSettings) -> JsonValue:
    column = settings.answer_column or ""
    if not isinstance(entry.row, Mapping) or column not in entry.row:
        names = sorted(map(str, entry.row)) if isinstance(entry.row, Mapping) else []
        near = get_close_matches(column, names, n=1)
        raise _wrong(
            f"{entry.where}: no column {column}, which should hold the answer",
            f"did you mean {near[0]!r}?"
            if near
            else f"write it into this row, or set workload.answer_column to one of: {', '.join(names) or 'none here'}",
            settings,
        )
    value = entry.row[column]
    if _is_blank(value):
        fix = "write the answer, or remove the row: no answer would ever be right"
        raise WorkloadError(f"{entry.where}: no answer in column {column}", fix=fix)
    if not _is_plain(value):
        text = f"{entry.where}: the answer in column {column} is of the type {type(value).__name__}"
        raise _wrong(text, "write a text, a number, or a list of these", settings)
    return value  # type: ignore[no-any-return]


def _wrong(text: str, fix: str, settings: WorkloadSettings) -> WorkloadError:
    return WorkloadError(text, fix=fix, details={"setting": "workload.answer_column"})


def _is_blank(value: Any) -> bool:
    """Whether a value is the absence of one, also as tables write it (NaN), or a list with such an entry."""
    if isinstance(value, list):
        return not value or any(map(_is_blank, value))
    if isinstance(value, str):
        return not value.strip()
    return value is None or value == {} or (isinstance(value, float) and math.isnan(value))


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and (entry is None or _is_plain(entry)) for key, entry in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return isinstance(value, (str, bool, int)) or (isinstance(value, float) and math.isfinite(value))


def as_text(text: str, settings: WorkloadSettings, examples: Sequence[Example]) -> str:
    """A question behind the system's prompt and the examples, as one text."""
    front = [] if settings.system_prompt is None else [settings.system_prompt]
    answered = [f"{example.question}{TARGET_DELIMITER}{example.answer}" for example in examples]
    return FEWSHOT_DELIMITER.join((*front, *answered, text))


def as_chat(text: str, settings: WorkloadSettings, examples: Sequence[Example]) -> tuple[Mapping[str, JsonValue], ...]:
    """The same as messages, each example as a turn of the user's and one of the assistant's."""
    said = [] if settings.system_prompt is None else [("system", settings.system_prompt)]
    for example in examples:
        said += [("user", example.question), ("assistant", example.answer)]
    return tuple({"role": role, "content": content} for role, content in (*said, ("user", text)))
