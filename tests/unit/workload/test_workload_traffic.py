"""Sessions and traces: recognised by their first row, replayed as recorded, and never read for what they are not."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pytest_llem.errors import LlemError, WorkloadError
from pytest_llem.job.config import Arrival, Lengths, WorkloadSettings
from pytest_llem.job.request import Recorded, Texts
from pytest_llem.workload.texts import read_rows
from pytest_llem.workload.traffic import require_few_broken

USER, ANSWER = {"role": "user", "content": "a question"}, {"role": "assistant", "content": "an answer"}
SYSTEM = {"role": "system", "content": "be brief"}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}],
}
RESULT = {"role": "tool", "tool_call_id": "1", "content": ""}
MOONCAKE = {"timestamp": 0, "input_length": 700, "output_length": 5, "hash_ids": [0, 1]}


def write(path: Path, content: str | Sequence[Any]) -> Path:
    path.write_text(content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content))
    return path


def read(path: Path, prompts: int, **changes: Any) -> Texts:
    base = WorkloadSettings(str(path), prompts=prompts, input_tokens=None)
    return read_rows(dataclasses.replace(base, **changes))


def plain(texts: Texts) -> list[tuple[Any, ...]]:
    return [
        (one.session, one.turn, one.at_ns, one.think_s, one.prompt_tokens, one.answer_tokens) for one in texts.recorded
    ]


def test_each_answer_of_a_session_was_one_to_all_before_it(tmp_path: Path) -> None:
    """System and tool messages are replayed as they were, and an answer may be a call."""
    row = {
        "session_id": "s",
        "timestamp": 2000,
        "tools": [{"type": "function", "function": {"name": "look"}}],
        "messages": [SYSTEM, {**USER, "weight": 1}, CALL, {**RESULT, "delay": 40}, ANSWER, {**USER, "delay": 1500.5}],
    }
    texts = read(write(tmp_path / "s.jsonl", [row]), 3)
    assert texts.format == "openai_messages"
    assert [one.messages for one in texts.recorded] == [
        (SYSTEM, USER),
        (SYSTEM, USER, {key: value for key, value in CALL.items() if value is not None}, RESULT),
        (SYSTEM, USER, {key: value for key, value in CALL.items() if value is not None}, RESULT, ANSWER, USER),
    ]
    assert [one.answer for one in texts.recorded] == [
        '{"arguments": "{\\"at\\": 1}", "name": "look"}',
        "an answer",
        None,
    ]
    assert [(one.session, one.turn, one.at_ns, one.think_s) for one in texts.recorded] == [
        ("s", 1, 2_000_000_000, 0.0),
        ("s", 2, None, 0.04),
        ("s", 3, None, 1.5005),
    ]
    assert texts.recorded[0].tools == tuple(row["tools"])  # type: ignore[arg-type]


def test_sharegpt_in_a_list_or_in_lines(tmp_path: Path) -> None:
    """Its file is one list, of which conversations may begin with an answer whose question was cut away."""
    turns = [{"from": "gpt", "value": "lost"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    rows = [{"id": "x", "conversations": turns}, {"id": "x", "conversations": []}, {"id": "x", "conversations": turns}]
    for path in (write(tmp_path / "s.json", json.dumps(rows)), write(tmp_path / "s.jsonl", rows)):
        texts = read(path, 2)
        question = ({"role": "user", "content": "q"},)
        assert (texts.format, texts.skipped) == ("sharegpt", 1)
        assert texts.recorded == (
            Recorded("x", 1, messages=question, answer="a"),
            Recorded("x#3", 1, messages=question, answer="a"),
        )


def test_a_session_may_be_named_by_the_number_0(tmp_path: Path) -> None:
    """Tables from other places than CSV have numbers, and the turns of session 0 were requests of their own."""
    rows = [{"Timestamp": at, "Session ID": 0, "Request tokens": 3, "Response tokens": 4} for at in (1, 2)]
    assert [(one.session, one.turn) for one in read(write(tmp_path / "b.jsonl", rows), 2).recorded] == [
        ("0", 1),
        ("0", 2),
    ]


def test_mooncake(tmp_path: Path) -> None:
    rows = [MOONCAKE, {**MOONCAKE, "timestamp": 3000.5, "output_length": 0}, {**MOONCAKE, "timestamp": 4000}]
    texts = read(write(tmp_path / "m.jsonl", rows), 2)
    assert (texts.format, texts.skipped) == ("mooncake", 1)
    assert plain(texts) == [(None, None, 0, 0.0, 700, 5), (None, None, 4_000_000_000, 0.0, 700, 5)]
    assert texts.recorded[0].blocks == (0, 1)


def test_azure(tmp_path: Path) -> None:
    """Times have seven digits after the point, which are not to be lost: a busy service has many in a millisecond."""
    head = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    lines = "2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:04.0319601,3180,8\n2024-05-12 00:00:10+02:00,1,1\n"
    texts = read(write(tmp_path / "a.csv", head + lines), 3)
    assert texts.format == "azure"
    times = [one.at_ns or 0 for one in texts.recorded]
    assert times[1] - times[0] == 52_000_100
    assert times[2] == 1_715_464_810 * 10**9
    assert [(one.prompt_tokens, one.answer_tokens) for one in texts.recorded] == [(4808, 10), (3180, 8), (1, 1)]


def test_burstgpt_with_its_failed_requests_and_sessions(tmp_path: Path) -> None:
    """A response of 0 tokens is a request that failed; the wait for a later turn begins when its answer was there."""
    head = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    lines = (
        "19440110.0,u,43,GPT-4,906,446,1352,Conversation log\n"
        "19440120.0,,,ChatGPT,36,29,65,API log\n"
        "19440130.0,v,2,ChatGPT,36,0,36,Conversation log\n"
        "19440160.0,u,1,GPT-4,7,8,15,Conversation log\n"
    )
    texts = read(write(tmp_path / "b.csv", head + lines), 3)
    assert (texts.format, texts.skipped) == ("burstgpt", 1)
    start = 19440110 * 10**9
    assert plain(texts) == [
        ("u", 1, start, 0.0, 906, 446),
        (None, None, start + 10 * 10**9, 0.0, 36, 29),
        ("u", 2, start + 50 * 10**9, 7.0, 7, 8),
    ]
    old = (
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,472,18,490,Conversation log\n"
    )
    assert plain(read(write(tmp_path / "old.csv", old), 1)) == [(None, None, 5 * 10**9, 0.0, 472, 18)]


@pytest.mark.parametrize(
    ("row", "column", "expected"),
    [
        ({"text": "t", "messages": [USER]}, None, "texts"),
        ({"text": "t", "messages": [USER]}, "text", "texts"),
        ({"text": "t", "messages": [USER]}, "messages", "openai_messages"),
        ({"conversations": [USER]}, None, "openai_messages"),
        ({"prompt": "p", "input_length": 3, "output_length": 3}, None, "texts"),
        ({"input_length": 3, "output_length": 3}, None, "mooncake"),
    ],
)
def test_a_table_of_texts_stays_one(tmp_path: Path, row: dict[str, Any], column: str | None, expected: str) -> None:
    """Data sets of prompts have columns of messages beside them, and were read by their prompts."""
    assert read(write(tmp_path / "t.jsonl", [row]), 1, column=column).format == expected


BAD = {
    "no role": ({"messages": [{"content": "x"}]}, r"s\.jsonl:2: messages\[0\]: role: is missing", "user"),
    "a role of its own": ({"messages": [{"role": "bot", "content": "x"}]}, r"messages\[0\]: role: 'bot'", "assistant"),
    "an empty turn": ({"messages": [{"role": "user", "content": " "}]}, r"messages\[0\]: content: is empty", "remove"),
    "no user": ({"messages": [SYSTEM, ANSWER]}, "messages: no message of the user", "user"),
    "two answers": ({"messages": [USER, ANSWER, ANSWER]}, r"messages\[2\]: role: an answer follows", "merge"),
    "a picture": ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "content: is no text", "text"),
    "no list": ({"messages": "x"}, "messages: is no list", "in order"),
    "a text": ("x", r"s\.jsonl:2: expected an object, got str", "correct"),
    "a wait that is none": ({"messages": [USER, {**USER, "delay": -1}]}, "delay: '-1' is no wait", "milliseconds"),
    "a session twice": ({"session_id": "1", "messages": [USER]}, "session_id: '1' is there already", "whole session"),
    "no JSON": ({"messages": [USER], "tools": [{"x": float("nan")}]}, "tools: is no list", "object"),
    "thoughts in parts": ({"messages": [USER, {**ANSWER, "reasoning_content": ["x"]}]}, "reasoning_content", "text"),
    "a name that is none": ({"messages": [{**USER, "name": 5}]}, r"messages\[0\]: name: '5' is no text", "text"),
    "tools that are none": ({"messages": [USER], "tools": "look"}, "tools: is no list", "object"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_broken_session_is_named_with_line_and_key(tmp_path: Path, case: str) -> None:
    row, message, fix = BAD[case]
    texts = read(write(tmp_path / "s.jsonl", [{"messages": [USER, ANSWER]}, row, {"messages": [USER]}]), 2)
    assert (texts.broken, texts.lines) == (1, 3)
    with pytest.raises(WorkloadError, match=message) as caught:
        require_few_broken(texts, 0.0)
    assert fix in str(caught.value.fix)
    assert "failed_requests_rel" in str(caught.value.fix)
    require_few_broken(texts, 0.34)


BROKEN = {
    "JSON": ("m.jsonl", "{oops", r"m\.jsonl:2: not JSON"),
    "not UTF-8": ("m.jsonl", "\udce9", r"m\.jsonl:2: not UTF-8"),
    "length": ("m.jsonl", '{"input_length": "x", "output_length": 1}', r"m\.jsonl:2: input_length: 'x' is no number"),
    "few": ("m.jsonl", '{"timestamp": 1, "input_length": 1700, "output_length": 1, "hash_ids": [1]}', "names 1 blocks"),
    "time": ("m.jsonl", '{"timestamp": "x", "input_length": 7, "output_length": 1}', "timestamp: 'x' is no time"),
    "others": ("m.jsonl", '{"text_input": "x", "input_length": 7, "output_length": 1}', "text_input: is none of"),
    "short": ("a.csv", "2023-11-16 18:17:05,1", r"a\.csv:3: GeneratedTokens: is missing"),
    "date": ("a.csv", "2023-13-16 18:17:05,1,1", r"a\.csv:3: TIMESTAMP: '2023-13-16 18:17:05' is no date"),
    "year": ("a.csv", "0001-01-01 00:00:00+05:00,1,1", r"a\.csv:3: TIMESTAMP: '0001-.*' is no date"),
    "long": ("a.csv", "2023-11-16 18:17:05,1,1,1", r"a\.csv:3: more fields"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_lines_of_a_trace_are_counted_and_the_first_ones_named(tmp_path: Path, case: str) -> None:
    name, line, message = BROKEN[case]
    good = json.dumps(MOONCAKE) if name == "m.jsonl" else "2023-11-16 18:17:04,1,1"
    head = "" if name == "m.jsonl" else "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    content = head + "\n".join([good, line, *[good] * 8, line, line, line, line, good]) + "\n"
    (tmp_path / name).write_bytes(content.encode(errors="surrogateescape"))
    texts = read(tmp_path / name, 10)
    assert (texts.lines, texts.broken, len(texts.faults)) == (15, 5, 3)
    with pytest.raises(
        WorkloadError, match=rf"5 broken lines \(.*{message}.*; \.\.\.\) of 15, more than .* 0.3 allows"
    ):
        require_few_broken(texts, 0.3)
    require_few_broken(texts, 0.34)


@pytest.mark.parametrize("begin", ['"input_length": 7}', "null", "\ufffd"])
def test_a_file_may_begin_with_a_broken_line(tmp_path: Path, begin: str) -> None:
    """A part of a log begins within a line, which was an error whatever share was allowed."""
    path = write(tmp_path / "m.jsonl", f"{begin}\n{json.dumps(MOONCAKE)}\n")
    texts = read(path, 1)
    assert (texts.format, texts.lines, texts.broken, texts.skipped) == ("mooncake", 2, begin != "null", begin == "null")


def test_times_that_do_not_rise_are_an_error_whatever_share_may_be_broken(tmp_path: Path) -> None:
    rows = [{**MOONCAKE, "timestamp": 9}, {**MOONCAKE, "timestamp": 2}]
    with pytest.raises(WorkloadError, match=r"m\.jsonl:2: timestamp: 0.007 s before that of .*m\.jsonl:1") as caught:
        read(write(tmp_path / "m.jsonl", rows), 2)
    assert "sort" in str(caught.value.fix)
    assert len(read(tmp_path / "m.jsonl", 1).recorded) == 1
    for first, second in ((MOONCAKE, {**MOONCAKE, "timestamp": None}), ({**MOONCAKE, "timestamp": None}, MOONCAKE)):
        with pytest.raises(WorkloadError, match=r"m\.jsonl:2: (no|a) time"):
            read(write(tmp_path / "m.jsonl", [first, second]), 2)


def test_seconds_are_not_taken_for_milliseconds(tmp_path: Path) -> None:
    """A log in Unix seconds would have been replayed a thousand times as fast."""
    texts = read(
        write(tmp_path / "m.jsonl", [{**MOONCAKE, "timestamp": 1_700_000_000 + n} for n in (0, 1)] + [MOONCAKE]), 1
    )
    assert "looks like seconds" in texts.faults[0]


@pytest.mark.parametrize(
    ("row", "changes", "setting"),
    [
        (MOONCAKE, {"speed": 2.0}, "workload.speed"),
        (MOONCAKE, {"speed": 2.0, "arrival": Arrival("poisson", rate_per_s=1.0)}, "workload.speed"),
        (MOONCAKE, {"order": "grouped"}, "workload.order"),
        (MOONCAKE, {"order": "shuffled"}, "workload.order"),
        (MOONCAKE, {"chat_template": True}, "workload.chat_template"),
        (MOONCAKE, {"input_tokens": Lengths("uniform", 1, 9)}, "workload.input_tokens"),
        ({"messages": [USER]}, {"input_tokens": 9}, "workload.input_tokens"),
        ({"messages": [USER]}, {"speed": 2.0}, "workload.speed"),
        ({"text": "x"}, {"speed": 2.0}, "workload.speed"),
        ({"messages": [USER]}, {"arrival": Arrival("schedule")}, "workload.arrival"),
        ({"text": "x"}, {"arrival": Arrival("schedule")}, "workload.arrival"),
    ],
)
def test_what_has_no_meaning_with_it_is_refused(
    tmp_path: Path, row: dict[str, Any], changes: dict[str, Any], setting: str
) -> None:
    with pytest.raises(WorkloadError, match=setting) as caught:
        read(write(tmp_path / "x.jsonl", [row]), 1, **changes)
    assert caught.value.details["setting"] == setting
    assert caught.value.fix


@pytest.mark.parametrize(
    ("name", "begin", "line", "size"),
    [
        ("g.json", '[{"conversations": [{"from": "human", "value": "q"}]},', f'{{"x": "{"x" * 999}"}},', 2_500_000),
        ("m.jsonl", json.dumps(MOONCAKE) + "\n", " " * 999 + "\n", 200_000),
        ("b.csv", "Timestamp,Request tokens,Response tokens\n1,1,1\n", "1,1,0\n", 200_000),
    ],
)
def test_no_more_of_a_file_is_read_than_is_used(tmp_path: Path, name: str, begin: str, line: str, size: int) -> None:
    """Traces have gigabytes, and were read whole for their first requests."""
    (tmp_path / name).write_bytes((begin + line * (size // len(line))).encode() + b"\xff")
    assert len(read(tmp_path / name, 1).recorded) == 1
    with pytest.raises(WorkloadError, match=r"not UTF-8|has 1 prompts"):
        read(tmp_path / name, 2)


@pytest.mark.parametrize("row", [{"text": "x"}, {"messages": [USER]}])
def test_times_of_a_file_have_a_speed(tmp_path: Path, row: dict[str, Any]) -> None:
    texts = read(write(tmp_path / "x.jsonl", [row]), 1, speed=2.0, arrival=Arrival("schedule", file="times.txt"))
    assert len(texts.texts or texts.recorded) == 1


def test_too_few_requests_say_what_was_left_out(tmp_path: Path) -> None:
    rows = [MOONCAKE, {**MOONCAKE, "output_length": 0}, {**MOONCAKE, "input_length": -1}]
    with pytest.raises(
        WorkloadError, match=r"has 1 prompts, and 2 .* 1 rows with nothing to send and 1 broken lines"
    ) as few:
        read(write(tmp_path / "m.jsonl", rows), 2)
    assert few.value.fix == "write a whole number"
    with pytest.raises(WorkloadError, match="has 0 prompts") as none:
        read(write(tmp_path / "m.jsonl", rows[2:]), 1)
    assert none.value.fix == "write a whole number"


def test_no_garbage_is_a_traceback(tmp_path: Path) -> None:
    """Logs are cut off, edited by hand and written by several processes at once."""
    dice = random.Random(17)
    shared = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    seeds = {
        "m.jsonl": json.dumps(MOONCAKE),
        "s.jsonl": json.dumps({"messages": [SYSTEM, USER, CALL, RESULT, ANSWER], "timestamp": 1, "tools": [{}]}),
        "g.json": json.dumps([{"id": 1, "conversations": shared}]),
        "a.csv": "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:04,1,1",
        "b.csv": "Timestamp,Session ID,Elapsed time,Request tokens,Response tokens\n1.5,u,2,3,4",
    }
    for _ in range(60):
        for name, seed in seeds.items():
            line = (_other_values if dice.random() < 0.5 and not name.endswith(".csv") else _other_letters)(
                seed.splitlines()[-1], dice
            )
            content = line if name == "g.json" else f"{seed}\n{line}\n{line}"
            (tmp_path / name).write_bytes(content.encode(errors="surrogatepass"))
            try:
                texts = read(tmp_path / name, dice.choice([1, 2, 3]))
            except LlemError:
                continue
            assert texts.texts or all(one.prompt_tokens or one.messages for one in texts.recorded)


def _other_values(line: str, dice: random.Random) -> str:
    values: list[Any] = [None, True, -1, 1e400, 10**30, "", "x", [], [None], {}, "\ud800", [[1]], 0.5, "9" * 6000]
    row = json.loads(line)
    whole = row[0] if isinstance(row, list) else row
    inner = [one for key in ("messages", "conversations") for one in whole.get(key, [])]
    target = dice.choice([whole, *inner])
    target[dice.choice([*target, "delay", "session_id"])] = dice.choice(values)
    return json.dumps(row)


def _other_letters(line: str, dice: random.Random) -> str:
    place = dice.randrange(len(line) + 1)
    return line[:place] + dice.choice(["", "\x00", "é", ",", '"', "\ud8ff", "9" * 99, "}"]) + line[place + 1 :]
