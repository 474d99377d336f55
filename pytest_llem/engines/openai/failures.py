"""Why a request failed, as classes that can be counted.

The client raises and counts them. Their names stand in results as `failure`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable

from pytest_llem.engines.protocol import Completion


class RequestFailedError(Exception):
    """One request that got no usable answer; `kind` is its class, and the text says what was seen."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def classify(problem: Exception, timeout_s: float, *, began: bool) -> RequestFailedError:
    """The class of whatever went wrong with a request; `began` is whether a part of its answer had come.

    `refused`: no connection. `timeout`: no answer in time. `stalled`: the answer began and was not whole in time.
    `dropped`: the connection was closed before the end. `malformed`: not what the API prescribes. `wrong_usage`: token
    counts that contradict the answer. `no_usage`: no token counts. `server_error`: an error inside of the answer.
    `http_429`, `http_4xx`, `http_5xx`: the status.
    """
    import aiohttp

    if isinstance(problem, RequestFailedError):
        return problem
    if isinstance(problem, (asyncio.TimeoutError, TimeoutError)):
        if began:
            return RequestFailedError("stalled", f"the answer began, and was not whole after {timeout_s:g} s")
        return RequestFailedError("timeout", f"no answer within {timeout_s:g} s")
    text = " ".join(str(problem).split())[:300] or type(problem).__name__
    if isinstance(problem, (aiohttp.ClientConnectorError, aiohttp.InvalidURL)):
        return RequestFailedError("refused", text)
    if isinstance(problem, (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError, ConnectionError)):
        return RequestFailedError("dropped", f"the connection was closed before the end: {text}")
    if isinstance(problem, aiohttp.ClientResponseError):
        return RequestFailedError("malformed", f"no HTTP answer: {text}")
    if isinstance(problem, aiohttp.ClientConnectionError):
        return RequestFailedError("dropped", text)
    return RequestFailedError("malformed", text)


def of_status(status: int, text: str) -> RequestFailedError:
    """The failure that an HTTP status stands for."""
    kind = "http_429" if status == 429 else f"http_{status // 100}xx"
    return RequestFailedError(kind, f"HTTP {status}: {' '.join(text.split())[:300]}")


def counted(completions: Iterable[Completion]) -> str:
    """The failures by class, in words: `2 timeout, 1 http_429`."""
    classes = Counter(c.failure or "error" for c in completions if c.error is not None)
    return ", ".join(f"{count} {kind}" for kind, count in classes.most_common())
