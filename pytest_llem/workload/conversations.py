"""Sessions of chats: messages as the API of OpenAI has them, and the older form of ShareGPT.

`traffic` reads them. Each answer in a session was one to a request, which held all messages before it: so a session has
as many turns as answers, and one more where it ends with a question.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from pytest_llem.errors import JsonValue, WorkloadError
from pytest_llem.job.request import Recorded
from pytest_llem.workload.traces import broken, milliseconds

ROLES = ("system", "developer", "user", "assistant", "tool")
FIELDS = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content")
"""What a server is sent of a message (OpenAI's chat completions; `reasoning_content` is that of vLLM and DeepSeek)."""

SPEAKERS = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "assistant"), "assistant"),
    "system": "system",
}
"""Roles by ShareGPT's `from`."""

Message = Mapping[str, JsonValue]


def holds_sessions(value: Any) -> type[MessagesReader | ShareGptReader] | None:
    """What reads a column whose first value this is; `None` where it is no list of messages."""
    if not isinstance(value, list):
        return None
    first = next((one for one in value if isinstance(one, Mapping)), {})
    if "from" in first or "value" in first:
        return ShareGptReader
    return MessagesReader if "role" in first or "content" in first else None


class MessagesReader:
    """An object a session: `messages`, and where they are known `session_id`, `tools`, `timestamp` in ms.

    A message's `delay` in ms is the wait before it was sent, as AIPerf and Dynamo have it.
    """

    format = "openai_messages"

    def __init__(self, column: str = "messages") -> None:
        self._column = column
        self._seen: set[str] = set()
        self._lines = 0

    def read(self, where: str, row: Mapping[str, Any]) -> tuple[Recorded, ...]:
        """See `traffic.Reader`."""
        self._lines += 1
        listed = row.get(self._column)
        if not isinstance(listed, list) or not listed:
            raise broken(where, self._column, "is no list of messages", "write a session's messages in order")
        messages = [self._message(f"{where}: {self._column}[{place}]", one) for place, one in enumerate(listed)]
        at = row.get("timestamp")
        at_ns = None if at is None else milliseconds(where, at, first=not self._seen)
        tools = row.get("tools")
        if tools is not None and not _are_objects(tools):
            raise broken(where, "tools", "is no list of tools", "write each tool as an object")
        named = row.get("session_id")
        if named is not None and not isinstance(named, (str, int)):
            raise broken(where, "session_id", f"{str(named)[:40]!r} is no name", "write a text or a number")
        session = f"{self._lines}" if named is None else f"{named}"
        if session in self._seen:
            raise broken(where, "session_id", f"{session[:40]!r} is there already", "write a whole session in a line")
        delays = [_delay(f"{where}: {self._column}[{place}]", one) for place, one in enumerate(listed)]
        found = turns(where, messages, session, at_ns, delays, tuple(tools) if tools else None)
        self._seen.add(session)
        return found

    def _message(self, where: str, one: Any) -> Message:
        if not isinstance(one, Mapping):
            raise WorkloadError(f"{where}: expected an object, got {type(one).__name__}", fix="write role and content")
        role, content = one.get("role"), one.get("content")
        if role is None:
            raise broken(where, "role", "is missing", f"give the message one of: {', '.join(ROLES)}")
        if role not in ROLES:
            raise broken(where, "role", f"{str(role)[:40]!r} is unknown", f"use one of: {', '.join(ROLES)}")
        if content is not None and not isinstance(content, str) and not _are_texts(content):
            raise broken(where, "content", "is no text", "write a text, or parts of the type text: no other is sent")
        for key in ("name", "tool_call_id", "reasoning_content"):
            if not isinstance(one.get(key), (str, type(None))):
                raise broken(where, key, f"{str(one[key])[:40]!r} is no text", "write a text, or leave it out")
        calls = one.get("tool_calls")
        if calls is not None and not _are_objects(calls):
            raise broken(where, "tool_calls", "is no list of calls", "write each call as an object")
        silent = role in ("user", "assistant") and not _text(content).strip()
        if not calls and (silent or content is None):
            raise broken(where, "content", "is empty", "remove the turn, or write what was said")
        return {key: one[key] for key in FIELDS if one.get(key) is not None}


class ShareGptReader:
    """An object a session: `conversations`, each with `from` and `value`.

    Answers before the first question are left out, as FastChat does: what they answer was cut away. Sessions that are
    empty or out of turn have nothing to send.
    """

    format = "sharegpt"

    def __init__(self, column: str = "conversations") -> None:
        self._column = column
        self._seen: set[str] = set()
        self._read = 0

    def read(self, where: str, row: Mapping[str, Any]) -> tuple[Recorded, ...]:
        """See `traffic.Reader`."""
        listed = row.get(self._column)
        if not isinstance(listed, list):
            raise broken(where, self._column, "is no list", "write a session's turns in order, or []")
        messages = [self._message(f"{where}: {self._column}[{place}]", one) for place, one in enumerate(listed)]
        asked = next((place for place, one in enumerate(messages) if one["role"] == "user"), len(messages))
        messages = [one for place, one in enumerate(messages) if place >= asked or one["role"] == "system"]
        self._read += 1
        session = str(row["id"]) if isinstance(row.get("id"), (str, int)) else f"{self._read}"
        session = f"{session}#{self._read}" if session in self._seen else session
        self._seen.add(session)
        if not all(str(one["content"]).strip() for one in messages):
            return ()
        try:
            return turns(where, messages, session)
        except WorkloadError:
            return ()

    def _message(self, where: str, one: Any) -> Message:
        if not isinstance(one, Mapping):
            raise WorkloadError(f"{where}: expected an object, got {type(one).__name__}", fix="write from and value")
        speaker, text = one.get("from"), one.get("value")
        if speaker is None:
            raise broken(where, "from", "is missing", f"use one of: {', '.join(SPEAKERS)}")
        if not isinstance(speaker, str) or speaker not in SPEAKERS:
            raise broken(where, "from", f"{str(speaker)[:40]!r} is unknown", f"use one of: {', '.join(SPEAKERS)}")
        if not isinstance(text, str):
            raise broken(where, "value", "is no text", "write what was said")
        return {"role": SPEAKERS[speaker], "content": text}


def turns(
    where: str,
    messages: Iterable[Message],
    session: str,
    at_ns: int | None = None,
    delays_s: Iterable[float] = (),
    tools: tuple[Message, ...] | None = None,
) -> tuple[Recorded, ...]:
    """The requests of a session. Raises `WorkloadError` where an answer has no question.

    A turn waits for the sum of the delays of its messages after the answer before. Before the user's first message an
    answer is a greeting, which was sent with what followed.
    """
    found: list[Recorded] = []
    history: list[Message] = []
    delays = iter(delays_s)
    asked, wait_s, has_user = 0, 0.0, False

    def ask(answer: Message | None) -> None:
        turn = len(found) + 1
        found.append(
            Recorded(
                session,
                turn,
                at_ns if turn == 1 else None,
                wait_s if turn > 1 else 0.0,
                tuple(history),
                tools,
                None if answer is None else _said(answer),
            )
        )

    for place, message in enumerate(messages):
        delay_s = next(delays, 0.0)
        if message["role"] == "assistant":
            if has_user and not asked:
                raise broken(f"{where}: messages[{place}]", "role", "an answer follows an answer", "merge them")
            if has_user:
                ask(message)
            asked, wait_s = 0, 0.0
        else:
            asked, wait_s = asked + 1, wait_s + delay_s
            has_user = has_user or message["role"] == "user"
        history.append(message)
    if asked and has_user:
        ask(None)
    if not found:
        raise broken(where, "messages", "no message of the user", "remove the session, or write what the user said")
    return tuple(found)


def _delay(where: str, message: Mapping[str, Any]) -> float:
    value = message.get("delay", 0)
    value = 0 if value is None else value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 2**53:
        raise broken(where, "delay", f"{str(value)[:40]!r} is no wait", "write milliseconds as a number")
    return value / 1e3


def _are_objects(listed: Any) -> bool:
    """Whether a list holds objects that can be sent: rows of other places than files may hold what JSON has not."""
    try:
        json.dumps(listed, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return isinstance(listed, list) and all(isinstance(one, Mapping) for one in listed)


def _are_texts(content: Any) -> bool:
    return isinstance(content, list) and all(
        isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)
        for part in content
    )


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(part["text"] for part in content)
    return content or ""


def _said(answer: Message) -> str:
    """The text of an answer whose tokens count: its content, and name and arguments of each tool that it calls."""
    calls = answer.get("tool_calls")
    functions = [call.get("function") for call in calls if isinstance(call, Mapping)] if isinstance(calls, list) else []
    written = [json.dumps(function, ensure_ascii=False, sort_keys=True) for function in functions if function]
    parts = (answer.get("reasoning_content"), _text(answer.get("content")), *written)
    return "\n".join(str(part) for part in parts if part)
