"""What the client of OpenAI-compatible servers makes of an answer's bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pytest_llem.engines.openai.answers import Answer
from pytest_llem.engines.openai.events import RequestFailedError
from pytest_llem.engines.protocol import Completion, Request

REQUEST = Request(0, (1, 2, 3), 8)
USAGE = {"prompt_tokens": 3, "completion_tokens": 8}


def event(text: str = "w", **fields: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "text": text}], **fields}).encode()


END = b'data: {"choices": [{"index": 0, "text": "", "finish_reason": "length"}]}'
COUNTS = b"data: " + json.dumps({"choices": [], "usage": USAGE}).encode()
DONE = b"data: [DONE]"


def streamed(*events: bytes, end: bytes = b"\n\n") -> Completion:
    return completed(b"".join(line + end for line in events))


def completed(*parts: bytes) -> Completion:
    answer = Answer("completions")
    for number, part in enumerate(parts, start=1):
        answer.feed(part, number)
    answer.close(len(parts) + 1)
    return answer.read(answer.completion(REQUEST, 0, sent_tokens=3))


def failure(*events: bytes) -> str:
    with pytest.raises(RequestFailedError) as caught:
        streamed(*events)
    str(caught.value).encode()
    return caught.value.kind


WORDS = [event()] * 8


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r", b"\n"])
def test_every_end_of_line_of_the_standard_ends_a_line(end: bytes) -> None:
    """And a server that leaves out the blank line between events is understood as well."""
    done = streamed(*WORDS, END, COUNTS, DONE, end=end)
    assert (done.text, done.generated, done.finish_reason) == ("w" * 8, 8, "length")


def test_a_byte_order_mark_does_not_hide_the_first_event() -> None:
    done = streamed(b"\xef\xbb\xbf" + event("first"), *WORDS[1:], END, COUNTS, DONE)
    assert done.text == "first" + "w" * 7
    answer = Answer("completions")
    answer.whole(b"\xef\xbb\xbf" + json.dumps({"choices": [{"text": "w"}], "usage": USAGE}).encode(), 1)
    assert answer.read(answer.completion(REQUEST, 0, sent_tokens=3)).text == "w"


@pytest.mark.parametrize(
    "between",
    [b"data:", b"data: ", b"data", b": ping", b"event: ping\nid: 4\nretry: 10", b'data: {"type": "ping"}', b"data: {}"],
)
def test_what_is_no_part_of_the_answer_is_passed_over(between: bytes) -> None:
    """Servers and proxies keep a connection alive with such."""
    done = streamed(between, *[part for word in WORDS for part in (word, between)], END, COUNTS, DONE)
    assert (done.text, done.generated) == ("w" * 8, 8)


def test_usage_is_found_however_many_events_without_it_come_behind() -> None:
    assert streamed(*WORDS, END, COUNTS, *[b'data: {"type": "ping"}'] * 9, DONE).generated == 8


def test_usage_may_come_in_an_event_without_choices() -> None:
    assert streamed(*WORDS, END, b"data: " + json.dumps({"usage": USAGE}).encode(), DONE).generated == 8


def test_the_lines_of_one_event_are_joined_whenever_they_come() -> None:
    lines = b"".join(
        b"data: " + line + b"\n" for line in json.dumps(json.loads(event()[6:]), indent=1).encode().split(b"\n")
    )
    whole = (lines + b"\n") * 8 + END + b"\n\n" + COUNTS + b"\n\n" + DONE + b"\n\n"
    assert completed(whole).text == "w" * 8
    done = completed(*[whole[at : at + 7] for at in range(0, len(whole), 7)])
    assert done.text == "w" * 8
    # A piece is there with the last of its lines.
    assert done.first_token_ns == -(-(len(lines) - 1) // 7)


def test_a_usage_before_the_last_text_counts_nothing() -> None:
    early = {"prompt_tokens": 3, "completion_tokens": 2}
    assert failure(event("w", usage=early), event("w w w"), END, DONE) == "wrong_usage"
    assert streamed(event("w", usage=early), event("w w w"), END, COUNTS, DONE).generated == 8


def test_the_last_usage_counts() -> None:
    """Some servers state it in every event: an earlier one made 7 tokens of 8, or a contradiction of a good answer."""
    so_far = [event(usage={"prompt_tokens": 3, "completion_tokens": n}) for n in range(1, 9)]
    assert streamed(*so_far, END, DONE).generated == 8
    end = END[:-1] + b', "usage": {"prompt_tokens": 3, "completion_tokens": 7}}'
    assert streamed(*so_far[:7], event(), end, COUNTS, DONE).generated == 8


@pytest.mark.parametrize("name", ["completion_tokens", "prompt_tokens"])
@pytest.mark.parametrize("count", [10**30, 1e30, 8.0, -1, True, "8", [8], float("nan")])
def test_a_count_that_cannot_be_is_wrong_usage(name: str, count: Any) -> None:
    usage = b"data: " + json.dumps({"choices": [], "usage": {**USAGE, name: count}}).encode()
    assert failure(*WORDS, END, usage, DONE) == "wrong_usage"


@pytest.mark.parametrize(
    "odd",
    [
        b"data: " + b'{"choices": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        b'data: {"choices": [{"text": "\\ud800"}]}',
        b'data: {"choices": [{"text": "\xed\xa0\x80"}]}',
        b'data: {"choices": [{"text": "\xff"}]}',
        b"data: null",
        b"data: [1]",
        b'data: {"choices": 1}',
        b'data: {"choices": [{"text": {"a": 1}}]}',
        b'data: {"choices": [{"text": "w", "token_ids": ["x"]}]}',
        b'data: {"choices": [{"text": "w", "token_ids": [1e400]}]}',
        b'data: {"choices": [], "usage": [8]}',
        b'data: {"choices": [{"text": ' + b"1" * 5000 + b"}]}",
        b"data: {",
    ],
    ids=[
        "deep",
        "surrogate",
        "raw-surrogate",
        "latin-1",
        "null",
        "list",
        "number",
        "object",
        "ids",
        "infinite",
        "usage",
        "digits",
        "torn",
    ],
)
def test_an_event_that_is_none_of_this_api_is_malformed(odd: bytes) -> None:
    assert failure(odd, *WORDS, END, COUNTS, DONE) == "malformed"
    assert failure(*WORDS, odd, END, COUNTS, DONE) == "malformed"


@pytest.mark.parametrize(
    ("events", "kind"),
    [
        ((*WORDS, b'data: {"choices": [{"text": "", "finish_reason": "abort"}]}', COUNTS, DONE), "server_error"),
        ((*WORDS, b'event: error\ndata: {"message": "out of memory"}', END, COUNTS, DONE), "server_error"),
        ((*WORDS, b'data: {"type": "error", "message": "out of memory"}', END, COUNTS, DONE), "server_error"),
        ((b"<html>please log in</html>",), "malformed"),
        ((COUNTS, DONE), "malformed"),
        ((*WORDS, END, DONE), "no_usage"),
    ],
)
def test_an_answer_that_is_none_says_why(events: tuple[bytes, ...], kind: str) -> None:
    assert failure(*events) == kind


def test_an_answer_of_one_endless_event_is_read_in_one_go() -> None:
    """Each of its pieces was once held against all before it: minutes for a few megabytes."""
    parts = [b"data: {" + b"x" * 50 + b"\n"] * 20_000
    with pytest.raises(RequestFailedError):
        completed(*parts, b"\n")


def test_a_connection_that_is_closed_within_an_event_was_dropped() -> None:
    with pytest.raises(RequestFailedError) as caught:
        completed(b"\n\n".join(WORDS), b'data: {"choices": [{"te')
    assert caught.value.kind == "dropped"
    # A last line that lacks only its end is an event.
    assert completed(b"\n\n".join([*WORDS, END, COUNTS])).generated == 8


@pytest.mark.parametrize(
    "odd", [b"", b"\n\n", b"data:\n\n", b": ping\n\n", b"event: x\n", b'data: {"choices":\ndata: []}\n\n', b"\r\n"]
)
def test_events_that_come_at_once_are_those_that_come_one_by_one(odd: bytes) -> None:
    """Many in one piece are cut in another way than a few, which must be the same events to the last byte."""
    whole = (
        b"".join(part + b"\n\n" for part in (WORDS + WORDS[1:])) + odd + b"\n\n".join((event("z"), END, COUNTS, DONE))
    )
    whole += b"\n\n"

    def read(first: int, size: int) -> tuple[object, ...]:
        answer = Answer("completions")
        answer.feed(whole[:first], 7)
        for begin in range(first, len(whole), size):
            answer.feed(whole[begin : begin + size], 7)
        answer.close(7)
        done = answer.read(answer.completion(Request(0, (1,), 16), 0, sent_tokens=3))
        return done.text, done.chunk_times_ns, answer.done

    usage = json.dumps({"completion_tokens": 16}).encode()
    whole = whole.replace(json.dumps({"completion_tokens": 8}).encode()[1:-1], usage[1:-1])
    one_by_one = read(1, 1)
    assert one_by_one[0] == "w" * 15 + "z"
    assert {read(first, 9_999) for first in (0, len(event()) + 2, 100, 600, 900)} == {one_by_one}


def by_llama_cpp(text: str | None, count: int | None, *, delta: str = "content") -> bytes:
    """An event of a chat as llama.cpp sends it: `count` is how many tokens there are by then."""
    timings = {} if count is None else {"timings": {"predicted_n": count, "predicted_ms": 1.0 * count}}
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": {delta: text}}], **timings}).encode() + b"\n\n"


def test_a_last_token_without_a_text_of_its_own_has_come_with_the_usage() -> None:
    """A token that ends within a letter has no text yet. In a chat, llama.cpp tells of the last one beside the usage
    only: one such answer made itl null for the whole cycle, and its tpot and e2el were a token too short.
    """
    usage = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}, "timings": {"predicted_n": 4}}
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}
    events = [
        by_llama_cpp(None, None, delta="role"),
        *(by_llama_cpp("w", count) for count in (1, 2, 3)),
        *(b"data: " + json.dumps(event).encode() + b"\n\n" for event in (end, usage)),
        DONE + b"\n\n",
    ]
    answer = Answer("chat", timed=True)
    for now_ns, part in enumerate(events, start=10):
        answer.feed(part, now_ns)
    answer.close(99)
    done = answer.read(answer.completion(REQUEST, 0, sent_tokens=3))
    assert (done.first_token_ns, done.token_times_ns, done.end_ns) == (11, (11, 12, 13, 15), 15)


def test_the_words_of_a_called_tool_are_part_of_the_answer() -> None:
    """Tokens as any others: without them an answer that ends in a call would end, for its latencies, before that."""
    call = {"tool_calls": [{"index": 0, "function": {"name": "sum", "arguments": '{"a": '}}]}
    more = {"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]}
    parts = [{"content": "so"}, call, more]
    answer = Answer("chat")
    for now_ns, delta in enumerate(parts, start=1):
        answer.feed(b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode() + b"\n\n", now_ns)
    answer.feed(END + b"\n\n" + COUNTS + b"\n\n" + DONE + b"\n\n", 9)
    answer.close(9)
    done = answer.read(answer.completion(REQUEST, 0, sent_tokens=3))
    assert (done.first_token_ns, done.end_ns, done.text) == (1, 3, 'sosum{"a": 1}')
    assert done.said == "so"


def test_thoughts_are_tokens_and_not_what_is_said() -> None:
    """A scorer that looks for words would find them in what the model thought and did not say."""
    parts = [{"reasoning_content": "Paris or Rome?"}, {"content": "Rome"}]
    answer = Answer("chat")
    for now_ns, delta in enumerate(parts, start=1):
        answer.feed(b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode() + b"\n\n", now_ns)
    answer.feed(END + b"\n\n" + COUNTS + b"\n\n" + DONE + b"\n\n", 9)
    answer.close(9)
    done = answer.read(answer.completion(REQUEST, 0, sent_tokens=3))
    assert (done.text, done.said) == ("Paris or Rome?Rome", "Rome")
