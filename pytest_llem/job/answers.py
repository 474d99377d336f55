"""`answers.jsonl`: what was answered to each question of a cycle, and how it was scored.

The worker writes it once the last window has closed, and the pytest side writes it again with scores; `llem score`
reads it. The fields are published (docs/quality.md): they may be added to, and keep their meaning.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_llem.errors import JsonValue, StoreError
from pytest_llem.job.files import parse_object, write_text
from pytest_llem.job.redaction import redacted
from pytest_llem.job.wire import decode, encode


@dataclass(frozen=True)
class Answered:
    """One answer to a question, and in how many `repeats` it was given word for word.

    `text` is `None` where answers are not kept, and where the request failed, which then has an `error`. `sha256` is
    that of the text in UTF-8. Lengths are in tokens. `score` is from 0 to 1, and `None` until the answer is scored.
    """

    question: str
    target: JsonValue
    repeats: int
    text: str | None
    sha256: str | None
    finish_reason: str
    input_tokens: int
    output_tokens: int
    error: str | None = None
    score: float | None = None


THINK, ANSWERS = "<think>", "</think>"
"""Between these stands what models think before they answer."""


def before_stop(text: str, stop: Sequence[str]) -> str:
    """The text up to the first of the `stop` strings; all of it where it holds none."""
    return text[: min((text.find(string) for string in stop if string in text), default=len(text))]


def without_thoughts(text: str) -> str:
    """What a model says behind its thoughts, where these stand in the text: up to the last `</think>`.

    Thoughts that were begun and not ended are not followed by an answer.
    """
    _, end, behind = text.rpartition(ANSWERS)
    if end:
        return behind.lstrip()
    return "" if text.lstrip().startswith(THINK) else text


def text_hash(text: str) -> str:
    """The `sha256` of an answer."""
    return hashlib.sha256(text.encode()).hexdigest()


def write_answers(path: Path, answers: Iterable[Answered]) -> None:
    """Write the file whole, atomically, redacted."""
    lines = (json.dumps(redacted(encode(answer)), ensure_ascii=False) for answer in answers)
    write_text(path, "".join(f"{line}\n" for line in lines))


def read_answers(path: Path) -> list[Answered]:
    """The answers of a cycle, in the order of its questions. Raises `StoreError` where the file is absent or broken."""
    return [*each_answer(path)]


def each_answer(path: Path) -> Iterator[Answered]:
    """The same one by one, as they are read."""
    try:
        with path.open(encoding="utf-8", newline="\n") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield decode(Answered, parse_object(line, f"{path}:{number}"), f"{path}:{number}")
    except (OSError, UnicodeDecodeError) as problem:
        raise StoreError(f"{path}: {problem}", fix="measure with workload.score, which writes it") from None
