"""The cases of `servers`: what a misbehaving server sends, step by step, and whether its answer is true.

To add one, put it among `FAILING` (its answer may not stay unmarked) or `TRUE` (odd, and has to be measured).
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

HANG, RESET = "hang", "reset"
Step = bytes | float | str
Steps = Sequence[Step]

COUNT = 8


@dataclass(frozen=True)
class Case:
    """What a server does with a measured request, and with questions beside it (by path; the default is right).

    `true` is whether the answer is what was asked for, so that it has to be measured; an untrue one may not stay
    unmarked, and of a mutation (`None`) nobody knows it.
    """

    answer: Steps
    true: bool | None = False
    aside: Mapping[str, Steps] = field(default_factory=dict)
    api: str = "completions"
    keeps: bool = False
    """Whether the connection stays open for the next request."""
    early: Steps = ()
    """What is sent before a request is there."""


def head(*more: str, status: str = "200 OK") -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *more, "", ""]).encode()


def data(event: Any, end: bytes = b"\n\n") -> bytes:
    return b"data: " + (event if isinstance(event, bytes) else json.dumps(event).encode()) + end


def word(text: Any = "w", **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": text, **more}]}


def usage(completion: Any = COUNT, prompt: Any = 4, **more: Any) -> dict[str, Any]:
    return {"choices": [], "usage": {"completion_tokens": completion, "prompt_tokens": prompt, **more}}


def whole(body: Any, *more: str, status: str = "200 OK") -> bytes:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return head("Content-Type: application/json", f"Content-Length: {len(raw)}", *more, status=status) + raw


SSE = head("Content-Type: text/event-stream", "Connection: close")
CHUNKED = head("Content-Type: text/event-stream", "Transfer-Encoding: chunked")
WORDS = [data(word())] * COUNT
END = data(word("", finish_reason="length"))
DONE = data(b"[DONE]")
REST = [END, data(usage()), DONE]
GOOD = [*WORDS, *REST]
BOMB = gzip.compress(bytes(100 << 20), 1)
DEEP = b"[" * 100_000 + b"]" * 100_000
ANSWER = {**usage(), **word("w" * COUNT, finish_reason="length")}


def chunk(raw: bytes) -> bytes:
    return f"{len(raw):x}\r\n".encode() + raw + b"\r\n"


def stream(*steps: Step, **more: Any) -> Case:
    return Case((SSE, *steps), **more)


def true(*steps: Step, **more: Any) -> Case:
    return stream(*steps, true=True, **more)


def counted(completion: Any = COUNT, prompt: Any = 4, **more: Any) -> Case:
    return stream(*WORDS, END, data(usage(completion, prompt)), DONE, **more)


def aside(path: str, *steps: Step, **more: Any) -> Case:
    """A good server, but for one question."""
    return true(*GOOD, aside={path: steps}, **more)


def models(entry: Any, **more: Any) -> Case:
    return aside("/v1/models", whole({"data": entry}), **more)


def over(*steps: Step, times: int) -> list[Step]:
    return list(steps) * times


def _deltas(*fields: dict[str, Any]) -> list[bytes]:
    return [data({"choices": [{"index": 0, "delta": delta}]}) for delta in fields]


def _failing() -> dict[str, Case]:
    cases = {
        "closes at once": Case(()),
        "resets at once": Case((RESET,)),
        "never answers": Case((HANG,)),
        "never begins": stream(HANG),
        "resets mid-stream": stream(*WORDS[:3], 0.05, RESET),
        "closes mid-stream": stream(*WORDS[:3]),
        "closes mid-event": stream(*WORDS[:3], WORDS[0][:20]),
        "closes after a finished word": stream(*WORDS, b"data: "),
        "hangs mid-stream": stream(*WORDS[:3], HANG),
        "drips comments for ever": stream(*over(b": x\n", 0.1, times=50), HANG),
        "pings for ever": stream(*WORDS[:2], *over(data({"type": "ping"}), 0.05, times=60), HANG),
        "generates for ever": stream(*over(WORDS[0], 0.02, times=200), HANG),
        "one endless line": stream(b"data: " + b"x" * 1_000_000, *[b"x" * 1_000_000] * 70),
        "endless lines without an end": stream(*[b"data: {\n" * 100_000] * 90),
        "endless headers": Case((b"HTTP/1.1 200 OK\r\n", *[b"X-A: b\r\n" * 1000] * 50)),
        "a header without end": Case((b"HTTP/1.1 200 OK\r\nX-A: ", *[b"b" * 100_000] * 20)),
        "a header that is no text": Case((b"HTTP/1.1 500 \xff\xfe\r\nX-\xff: \xff\r\n\r\n\xff",)),
        "no HTTP": Case((b"\x00\x01\x02 what\r\n\r\n",)),
        "SMTP": Case((b"220 mail.example ESMTP\r\n",)),
        "a bad chunk size": Case((CHUNKED, chunk(WORDS[0]), b"zz\r\n")),
        "a chunk that is cut": Case((CHUNKED, chunk(WORDS[0]), b"ff\r\ndata:")),
        "no last chunk": Case((CHUNKED, *[chunk(w) for w in WORDS], b"0\r\n")),
        "a body shorter than said": Case((head("Content-Length: 5000"), json.dumps(ANSWER).encode())),
        "a body longer than said": Case((head("Content-Length: 20"), json.dumps(ANSWER).encode())),
        "a negative length": Case((head("Content-Length: -1"), json.dumps(ANSWER).encode())),
        "two lengths": Case((head("Content-Length: 5", "Content-Length: 9"), json.dumps(ANSWER).encode())),
        "continues for ever": Case((*over(head(status="100 Continue"), 0.02, times=200), HANG)),
        "switches protocols": Case((head("Upgrade: x", "Connection: upgrade", status="101 Switching Protocols"), HANG)),
        "gzip that is none": Case((head("Content-Encoding: gzip", "Connection: close"), *GOOD)),
        "a gzip bomb": Case((head("Content-Encoding: gzip", "Connection: close"), BOMB)),
        "a page": Case((whole(b"<html>Please log in</html>"),)),
        "an empty answer": Case((whole(b""),)),
        "an error in the answer": Case((whole({"error": {"message": "out of memory"}}),)),
        "an error object": Case((whole({"object": "error", "message": "out of memory"}),)),
        "no choices": Case((whole({"choices": [], **usage()}),)),
        "an error event": stream(*WORDS[:3], data({"error": "out of memory"}), *REST),
        "an event of the type error": stream(*WORDS[:3], b"event: error\n" + data({"message": "oom"}), *REST),
        "an error by its type": stream(*WORDS[:3], data({"type": "error", "message": "oom"}), *REST),
        "aborts": stream(*WORDS, data(word("", finish_reason="abort")), data(usage()), DONE),
        "aborts early": stream(*WORDS[:2], data(word("", finish_reason="error")), data(usage(2)), DONE),
        "says done at once": stream(DONE),
        "no usage": stream(*WORDS, END, DONE),
        "usage is a list": stream(*WORDS, END, data({"choices": [], "usage": [8]}), DONE),
        "a usage, and text behind it": stream(*WORDS[:6], data(usage(7)), data(word("ww")), END, DONE),
        "a later usage takes it back": stream(*GOOD[:-1], data(usage(3)), DONE),
        "two choices": stream(*[data({"choices": [word()["choices"][0]] * 2})] * COUNT, END, data(usage(16)), DONE),
        "stops early": stream(*WORDS[:2], data(word("", finish_reason="stop")), data(usage(2)), DONE),
        "stops early and says length": stream(*WORDS[:2], END, data(usage(2)), DONE),
        "goes on": stream(*WORDS * 2, END, data(usage(16)), DONE),
        "not the text but a mapping": stream(*[data(word({"a": 1}))] * COUNT, *REST),
        "token ids that are none": stream(*[data(word(token_ids=["x"]))] * COUNT, *REST),
        "answers before it is asked": Case((), early=(whole(ANSWER),), keeps=True),
    }  # fmt: skip
    for status in (204, 206, 301, 302, 401, 403, 404, 408, 413, 418, 429, 500, 502, 503, 504, 999):
        cases[f"HTTP {status}"] = Case((whole(ANSWER, "Location: /elsewhere", status=f"{status} X"),))
    odd = {"null": b"null", "a list": b"[1]", "a number": b"5", "a text": b'"w"', "no object": b"{}", "deep": DEEP}
    odd |= {"a half character": b'{"choices": [{"text": "\\ud800"}]}', "latin-1": b'{"choices": [{"text": "\xff"}]}'}
    odd |= {"5,000 digits": b'{"choices": [{"text": "w"}], "usage": {"completion_tokens": ' + b"9" * 5000 + b"}}"}
    for name, raw in odd.items():
        cases[f"an answer that is {name}"] = Case((whole(raw),))
        if raw != b"{}":
            cases[f"an event that is {name}"] = stream(*WORDS[:4], data(raw), *WORDS[4:], *REST)
    counts: list[Any] = [1e30, 10**30, -1, "8", True, [8], {}, 0, 3, 9, 5000, float("nan"), float("inf")]
    for count in counts:
        cases[f"{count!r:.12} generated tokens"] = counted(count)
    for count in counts[:4]:
        cases[f"{count!r:.12} prompt tokens"] = counted(prompt=count)
    return cases


def _true() -> dict[str, Case]:
    each = [data({**word(), **usage(n), **word()}) for n in range(1, COUNT + 1)]
    pretty = b"".join(b"data: " + line + b"\n" for line in json.dumps(word(), indent=1).encode().splitlines()) + b"\n"
    packed = zlib.compressobj(wbits=31)
    gzipped = packed.compress(b"".join(GOOD)) + packed.flush()
    torn = [bytes([byte]) for byte in b"".join(GOOD)]
    return {
        "a good stream": true(*GOOD),
        "a good answer": Case((whole(ANSWER),), true=True, keeps=True),
        "a good chunked stream": Case((CHUNKED, *[chunk(e) for e in GOOD], b"0\r\n\r\n"), true=True, keeps=True),
        "HTTP/1.0": Case((b"HTTP/1.0 200 OK\r\n\r\n", *GOOD), true=True),
        "hints first": Case((head(status="100 Continue"), head(status="103 Early Hints"), SSE, *GOOD), true=True),
        "a byte at a time": true(*torn),
        "CR LF": true(*[e.replace(b"\n", b"\r\n") for e in GOOD]),
        "CR": true(*[e.replace(b"\n", b"\r") for e in GOOD]),
        "no blank lines": true(*[e.replace(b"\n\n", b"\n") for e in GOOD]),
        "data over several lines": true(*[pretty] * COUNT, *REST),
        "a byte order mark": true(b"\xef\xbb\xbf", *GOOD),
        "bare data": true(b"data:\n\n", *GOOD[:4], b"data\n\ndata: \n\n", *GOOD[4:]),
        "pings": true(data({"type": "ping"}), *GOOD[:4], b"event: ping\n" + data({"type": "ping"}), *GOOD[4:]),
        "comments": true(b": hello\n\n", *GOOD[:4], b":\n\n", *GOOD[4:]),
        "usage without choices": true(*WORDS, END, data({"usage": usage()["usage"]}), DONE),
        "usage in every event": true(*each, END, DONE),
        "pings behind the usage": true(*GOOD[:-1], *[data({"type": "ping"})] * 9, DONE),
        "no reason to end": true(*WORDS, data(usage()), DONE),
        "no [DONE]": true(*WORDS, END, data(usage())),
        "an unknown reason": true(*WORDS, data(word("", finish_reason="😀" * 50)), data(usage()), DONE),
        "stays open when done": true(*GOOD, HANG),
        "several tokens a piece": true(*[data(word("ww"))] * (COUNT // 2), *REST),
        "answers twice at once": Case((0.05, whole(ANSWER) * 2), true=True, keeps=True),
        "gzip": Case((head("Content-Encoding: gzip", "Connection: close"), gzipped), true=True),
        "a role first": true(*_deltas({"role": "assistant"}, *[{"content": "w"}] * COUNT), *REST, api="chat"),
        "thoughts": true(*_deltas(*[{"reasoning_content": "w"}] * COUNT), *REST, api="chat"),
        "parts": true(*_deltas(*[{"content": [{"type": "text", "text": "w"}]}] * COUNT), *REST, api="chat"),
        "healthy, at HTTP 500": aside("/health", whole({}, status="500 X")),
        "health is a page": aside("/health", whole(b"<html>")),
        "no models": aside("/v1/models", whole({}, status="404 X")),
        "models for another key": aside("/v1/models", whole({}, status="401 X")),
        "models are a page": aside("/v1/models", whole(b"<html>")),
        "models are deep": aside("/v1/models", whole(DEEP)),
        "models reset": aside("/v1/models", RESET),
        "models without end": aside("/v1/models", head(), *[b"x" * 1_000_000] * 70),
        "a model of half a character": aside("/v1/models", whole(b'{"data": [{"id": "\\ud800"}]}')),
        "models are no list": models({"id": "m"}),
        "models are numbers": models([1, None, "m"]),
        "a model without a name": models([{}]),
        "a model that is a number": models([{"id": 5}]),
        "a model that is a mapping": models([{"id": {"a": 1}, "owned_by": ["vllm"], "max_model_len": "long"}]),
        "10,000 models": models([{"id": f"m{n}"} for n in range(10_000)]),
        "a model of 100 kB": models([{"id": "m" * 100_000}]),
        "a context of -1": models([{"id": "m", "owned_by": "vllm", "max_model_len": -1}]),
        "a context of 1e400": aside("/v1/models", whole(b'{"data": [{"id": "m", "max_model_len": 1e400}]}')),
        "1e30 places": aside("/props", whole({"total_slots": 10**30, "build_info": 5, "model_path": ["x"]})),
        "a deep version": aside("/version", whole(b'{"version": ' + DEEP + b"}")),
        "a version of 1 MB": aside("/version", whole({"version": "v" * 1_000_000})),
        "counters beyond all": aside("/metrics", whole(b"vllm:generation_tokens_total 1e308\n" * 2)),
        "counters that are none": aside("/metrics", whole(b"vllm:num_requests_running NaN\nvllm:x +Inf\n\xff")),
        "tokens that are words": aside("/tokenize", whole({"tokens": ["a", 1.5, None]})),
        "deep tokens": aside("/tokenize", whole(b'{"tokens": ' + DEEP + b"}")),
        "no tokens": aside("/tokenize", whole({"tokens": []})),
        "llama.cpp's times are no times": true(
            *[data({**word(), "timings": {"predicted_n": 10**30 if n == 3 else n}}) for n in range(1, 9)],
            END, data({**usage(), "timings": {"prompt_ms": float("nan"), "predicted_ms": 10**400}}), DONE,
        ),
    }  # fmt: skip


def _slow() -> dict[str, Case]:
    """Those that take the client's limit of ten seconds and more."""
    return {
        "health hangs": replace(aside("/health", HANG), true=False),
        "health drips": replace(aside("/health", head(), *over(b"x", 1.0, times=20)), true=False),
        "models hang": aside("/v1/models", HANG),
        "metrics hang": aside("/metrics", HANG),
    }


FAILING, TRUE, SLOW = _failing(), _true(), _slow()
