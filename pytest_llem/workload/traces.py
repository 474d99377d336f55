"""Traces of requests without their texts: when each came, how long prompt and answer were, and what prompts share.

`traffic` reads them. The formats are those of their publishers: Mooncake (github.com/kvcache-ai/Mooncake), Azure's LLM
inference traces (github.com/Azure/AzurePublicDataset) and BurstGPT (github.com/HPMLL/BurstGPT).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

from pytest_llem.errors import WorkloadError
from pytest_llem.job.request import Recorded

BLOCK = 512
"""Tokens of a block that a `hash_ids` entry names (Mooncake, arXiv 2407.00079, section 4); the last may have fewer."""

MOONCAKE = frozenset({"input_length", "output_length"})
AZURE = frozenset({"TIMESTAMP", "ContextTokens", "GeneratedTokens"})
BURSTGPT = frozenset({"Timestamp", "Request tokens", "Response tokens"})

LONGEST = 10_000_000
"""Tokens; chosen: ten times the longest contexts there are, so that a slip of a column is no prompt."""

EARLIEST_S, LATEST_S = 10**9, 10**10
"""Seconds since 1970 of 2001 and 2286: a first timestamp between them is none in milliseconds of a trace's own."""


class MooncakeReader:
    """A JSON object a line: `timestamp` in ms, `input_length`, `output_length`, `hash_ids`."""

    format = "mooncake"

    def __init__(self) -> None:
        self._begun = False

    def read(self, where: str, row: Mapping[str, Any]) -> tuple[Recorded, ...]:
        """See `traffic.Reader`."""
        for key in ("session_id", "delay", "messages", "text_input"):
            if row.get(key) is not None:
                raise broken(where, key, "is none of a Mooncake trace's", "write sessions as messages, a line each")
        prompt, answer = (_tokens(where, row, key) for key in ("input_length", "output_length"))
        at_ns = None
        if row.get("timestamp") is not None:
            at_ns = milliseconds(where, row["timestamp"], first=not self._begun)
        blocks = row.get("hash_ids") or []
        if not isinstance(blocks, list) or not all(isinstance(one, (int, str)) for one in blocks):
            raise broken(where, "hash_ids", "is no list of ids", f"name each block of {BLOCK} tokens by a number")
        if blocks and not prompt // BLOCK <= len(blocks) <= -(-prompt // BLOCK):
            raise broken(
                where,
                "hash_ids",
                f"names {len(blocks)} blocks of {BLOCK} tokens, and input_length is {prompt}",
                f"name {-(-prompt // BLOCK)} blocks; others than those of {BLOCK} tokens are not read",
            )
        self._begun = True
        if not prompt or not answer:
            return ()
        return (Recorded(at_ns=at_ns, prompt_tokens=prompt, answer_tokens=answer, blocks=tuple(blocks)),)


class AzureReader:
    """CSV: `TIMESTAMP` as date and time, `ContextTokens`, `GeneratedTokens`."""

    format = "azure"

    def read(self, where: str, row: Mapping[str, Any]) -> tuple[Recorded, ...]:
        """See `traffic.Reader`."""
        if row.get("NumImages") not in (None, "", "0", 0):
            raise broken(where, "NumImages", "images cannot be sent", "keep the requests without images")
        prompt, answer = (_tokens(where, row, key) for key in ("ContextTokens", "GeneratedTokens"))
        at_ns = date_and_time(row["TIMESTAMP"])
        if at_ns is None:
            text = f"{str(row['TIMESTAMP'])[:40]!r} is no date and time"
            raise broken(where, "TIMESTAMP", text, "write it as 2023-11-16 18:17:03.979960")
        if not prompt or not answer:
            return ()
        return (Recorded(at_ns=at_ns, prompt_tokens=prompt, answer_tokens=answer),)


class BurstGptReader:
    """CSV: `Timestamp` in s, `Request tokens`, `Response tokens` (0 of a failed request), in its second version also
    `Session ID` and `Elapsed time` in s until the answer.
    """

    format = "burstgpt"

    def __init__(self) -> None:
        self._turns: dict[str, tuple[int, float | None]] = {}

    def read(self, where: str, row: Mapping[str, Any]) -> tuple[Recorded, ...]:
        """See `traffic.Reader`."""
        prompt, answer = (_tokens(where, row, key) for key in ("Request tokens", "Response tokens"))
        at_s = _number(where, row, "Timestamp")
        named = row.get("Session ID")
        session = None if named is None else str(named).strip() or None
        elapsed_s = _number(where, row, "Elapsed time") if row.get("Elapsed time") not in (None, "") else None
        if not prompt or not answer:
            return ()
        turn, think_s = None, 0.0
        if session is not None:
            turn, answered_s = self._turns.get(session, (0, None))
            turn, think_s = turn + 1, 0.0 if answered_s is None else max(0.0, at_s - answered_s)
            self._turns[session] = turn, None if elapsed_s is None else at_s + elapsed_s
        return (Recorded(session, turn, round(at_s * 1e9), think_s, prompt_tokens=prompt, answer_tokens=answer),)


def broken(where: str, key: str, text: str, fix: str) -> WorkloadError:
    """The error for a line of which one entry is wrong."""
    return WorkloadError(f"{where}: {key}: {text}", fix=fix)


def milliseconds(where: str, value: Any, *, first: bool, key: str = "timestamp") -> int:
    """A time in milliseconds, or a date and time, in nanoseconds. Raises `WorkloadError`."""
    if isinstance(value, str) and (at_ns := date_and_time(value)) is not None:
        return at_ns
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 2**53:
        raise broken(where, key, f"{str(value)[:40]!r} is no time", "write milliseconds as a number")
    if first and EARLIEST_S <= value < LATEST_S:
        text = f"{value} looks like seconds since 1970, and milliseconds are meant"
        raise WorkloadError(f"{where}: {key}: {text}", fix="multiply the timestamps by 1000")
    return round(value * 1e6)


_DATE_AND_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d):(\d\d)(?:[.,](\d{1,9}))?\s*(?:Z|([+-])(\d\d):?(\d\d))?", re.ASCII
)
_WHOLE = re.compile(r"\d{1,12}(?:\.0*)?", re.ASCII)


def date_and_time(text: Any) -> int | None:
    """ISO 8601 date and time, up to nanoseconds, as nanoseconds since 1970; UTC where it names no zone."""
    match = _DATE_AND_TIME.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        return None
    *parts, fraction, sign, hours, minutes = match.groups()
    try:
        year, month, day, hour, minute, second = map(int, parts)
        when = datetime(year, month, day, hour, minute, second, tzinfo=timezone.utc)
        if sign is not None:
            zone = timedelta(hours=int(hours), minutes=int(minutes))
            when = when - zone if sign == "+" else when + zone
    except (ValueError, OverflowError):
        return None
    seconds = (when - datetime(1970, 1, 1, tzinfo=timezone.utc)) // timedelta(seconds=1)
    return seconds * 10**9 + int((fraction or "").ljust(9, "0"))


def _tokens(where: str, row: Mapping[str, Any], key: str) -> int:
    value = row.get(key)
    if value is None:
        raise broken(where, key, "is missing", "write a whole number")
    number = float(value) if isinstance(value, str) and _WHOLE.fullmatch(value.strip()) else value
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 <= number <= LONGEST or number % 1:
        raise broken(where, key, f"{str(value)[:40]!r} is no number of tokens", "write a whole number")
    return int(number)


def _number(where: str, row: Mapping[str, Any], key: str) -> float:
    try:
        value = float(row[key])
    except (KeyError, TypeError, ValueError):
        value = -1.0
    if not 0 <= value < LATEST_S:
        raise broken(where, key, f"{str(row.get(key))[:40]!r} is no time in seconds", "write seconds as a number")
    return value
