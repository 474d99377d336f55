"""What an engine is given and gives back: one request, and what became of it; and the texts that requests are made of.

Workloads make requests, engines complete them, and the worker records both. Fields may be added with a default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pytest_llem.errors import JsonValue


@dataclass(frozen=True)
class Request:
    """One prompt, as token ids, and how many tokens to generate at most (exactly, when `ignore_eos`).

    `text` is the prompt of a data set that is sent whole; there may be no token ids beside it (see `TextOnly`).

    Requests of one `session` are its turns (from 1), each sent `think_s` after the answer to the one before. `due_s` is
    when a data set says that it arrives, in seconds from the start at the workload's speed.

    `messages` are those of a chat, with the `tools` offered in it, for engines that send them as they are; there may be
    no token ids beside them. For other engines a chat is in `token_ids`, by the model's template.

    An answer ends at the first of the `stop` strings, which is no part of its text.
    """

    index: int
    token_ids: tuple[int, ...]
    max_new_tokens: int
    ignore_eos: bool = True
    text: str | None = None
    session: str | None = None
    turn: int | None = None
    due_s: float | None = None
    think_s: float = 0.0
    messages: tuple[Mapping[str, JsonValue], ...] | None = None
    tools: tuple[Mapping[str, JsonValue], ...] | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Question:
    """What an answer is scored by: the question's id, its answer key (`target`), and where that stands.

    `id` is unique within the workload, and the same in every run of the same data set.
    """

    id: str
    target: JsonValue
    where: str = ""


@dataclass(frozen=True)
class Example:
    """A question with its answer, in front of those that are asked."""

    question: str
    answer: str


@dataclass(frozen=True)
class Recorded:
    """One request as a data set of sessions or a trace recorded it.

    `at_ns` is when it arrived, on a clock of the data set's own, and `think_s` the wait after the answer to the turn
    before. A session has `messages` with `tools`, and the text of the `answer` where there was one. A trace has lengths
    instead: `prompt_tokens`, `answer_tokens`, and in `blocks` the names of the prompt's blocks (`workload.traces`),
    which requests share whose prompts begin alike.
    """

    session: str | None = None
    turn: int | None = None
    at_ns: int | None = None
    think_s: float = 0.0
    messages: tuple[Mapping[str, JsonValue], ...] | None = None
    tools: tuple[Mapping[str, JsonValue], ...] | None = None
    answer: str | None = None
    prompt_tokens: int | None = None
    answer_tokens: int | None = None
    blocks: tuple[int | str, ...] = ()


@dataclass(frozen=True)
class Texts:
    """What was read of a data set: its texts in the order of the prompts, or the requests that it recorded.

    `skipped` counts rows that were passed over because there is nothing to send. Of sessions and traces `broken` of the
    `lines` cannot be read; `faults` says what is wrong with the first of these, and where, `remedy` what to do.

    Where answers are scored, `questions` has one entry for each of the texts. `stop` are strings at which a task ends
    answers, and `output_tokens` how long it lets them become. `examples` and the system's prompt are put in front of
    each text when the requests are built; a task's texts hold both already, or in place of texts there are its `chats`.
    """

    texts: tuple[str, ...]
    skipped: int
    format: str = "texts"
    recorded: tuple[Recorded, ...] = ()
    lines: int = 0
    broken: int = 0
    faults: tuple[str, ...] = ()
    remedy: str | None = None
    questions: tuple[Question, ...] = ()
    stop: tuple[str, ...] = ()
    output_tokens: int | None = None
    examples: tuple[Example, ...] = ()
    chats: tuple[tuple[Mapping[str, JsonValue], ...], ...] = ()


@dataclass(frozen=True)
class Completion:
    """What became of one request. Times are CLOCK_MONOTONIC nanoseconds.

    `output_ids` ends at the end-of-sequence token and holds no padding. `token_times_ns` has one entry per output
    token, or is `None` where the engine cannot say. A failed request has an `error` and counts nowhere else.

    `finish_reason` is `stop` (end of sequence), `length` (as many tokens as asked for), `error`, or a server's word.

    A server that answers with text has no ids: then `output_tokens` is the number it stated, and `text` the answer.
    Where it tells thoughts or tool calls apart from what it says, `text` has all of it and `said` that alone.
    `first_token_ns` is for those who know when the answer began, but not the time of each token. `chunk_times_ns` has
    one entry per arrival; `None` where those are the distinct `token_times_ns`, or not known. `failure` is the class of
    an `error` (`timeout`, `http_429`, ...).

    `due_ns` is when the request arrived by its schedule and `sent_ns` when it was sent, `None` for engines that do not
    send; `start_ns` is the earlier one, so that a wait for a busy client counts. `retries` counts what was sent again.
    """

    index: int
    input_tokens: int
    output_ids: tuple[int, ...]
    start_ns: int
    end_ns: int
    finish_reason: str
    token_times_ns: tuple[int, ...] | None = None
    cached_tokens: int | None = None
    error: str | None = None
    output_tokens: int | None = None
    text: str | None = None
    first_token_ns: int | None = None
    failure: str | None = None
    chunk_times_ns: tuple[int, ...] | None = None
    due_ns: int | None = None
    sent_ns: int | None = None
    retries: int = 0
    said: str | None = None

    @property
    def generated(self) -> int:
        """How many tokens were generated."""
        return len(self.output_ids) if self.output_tokens is None else self.output_tokens
