"""Writes `answers.jsonl`: what was answered to each question of a cycle, once no window is open any more.

`cycle` calls it at a cycle's end. Answers are not scored here: a scorer may be the user's own code, and fail.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from pytest_llem.engines.protocol import Completion, Request, Tokenizer
from pytest_llem.job.answers import THINK, Answered, before_stop, text_hash, write_answers
from pytest_llem.workload.build import Workload
from pytest_llem.workload.tokenizer import AnswerTokenizer

NOTHING = "the engine generated nothing"
END_TOKENS = 16
"""Chosen: more than any tokenizer makes of `<think>` and an end of line."""


class _Answer(NamedTuple):
    """What tells two answers to a question apart: repeats with all of it alike are one line."""

    text: str | None
    finish_reason: str
    input_tokens: int
    output_tokens: int
    error: str | None


def write_answered(
    path: Path, workload: Workload, completions: Iterable[Completion], tokenizer: Tokenizer, *, as_told: bool = False
) -> None:
    """Write the answers of all repeats, where the workload has questions; `as_told` as in `answered`."""
    if workload.questions:
        write_answers(path, answered(workload, completions, tokenizer, as_told=as_told))


def answered(
    workload: Workload, completions: Iterable[Completion], tokenizer: Tokenizer, *, as_told: bool = False
) -> Iterator[Answered]:
    """Each distinct answer to each question, in the order of the questions, with in how many repeats it was given.

    Where a prompt begins the thoughts, as templates of reasoning models do, the text begins with them: alone, thoughts
    that were cut off would look like an answer. `as_told` leaves the text as it is: a server that makes prompts of
    chats may leave thoughts out, and a task scores what the harness would see.
    """
    text_of = tokenizer.answer if isinstance(tokenizer, AnswerTokenizer) else tokenizer.decode
    requests = sorted(workload.requests, key=lambda request: request.index)
    found: dict[int, Counter[_Answer]] = {request.index: Counter() for request in requests}
    wanted = {
        request.index: (request, THINK if not as_told and _begins_thoughts(request, text_of) else "")
        for request in requests
    }
    for completion in completions:
        found[completion.index][_answer(*wanted[completion.index], completion, text_of)] += 1
    for request, question in zip(requests, workload.questions, strict=True):
        for answer, repeats in found[request.index].items():
            text = answer.text
            yield Answered(
                question=question.id,
                target=question.target,
                repeats=repeats,
                text=text,
                sha256=None if text is None else text_hash(text),
                finish_reason=answer.finish_reason,
                input_tokens=answer.input_tokens,
                output_tokens=answer.output_tokens,
                error=answer.error,
            )


def _begins_thoughts(request: Request, text_of: Callable[[tuple[int, ...]], str]) -> bool:
    """Whether a prompt ends with `<think>`, where answers show it, and so the end of thoughts."""
    end = text_of(request.token_ids[-END_TOKENS:]) if request.token_ids else request.text or ""
    return end.rstrip().endswith(THINK)


def _answer(request: Request, begun: str, completion: Completion, text_of: Callable[[tuple[int, ...]], str]) -> _Answer:
    error = completion.error or (None if completion.generated else NOTHING)
    text = None
    if error is None:
        told = completion.text if completion.said is None else completion.said
        text = told if told is not None else text_of(completion.output_ids)
        # A server's JSON may hold half of a surrogate pair, which is no text that a file could hold.
        text = begun + before_stop(text, request.stop).encode("utf-8", "replace").decode()
    return _Answer(text, completion.finish_reason, completion.input_tokens, completion.generated, error)
