"""The first requests to a server: whether it answers, which product and model it is, and which fields it takes.

`OpenAIEngine` calls it in `prepare` and `load`; `observations` asks for `server_apis`. What an engine's server answers
beyond the API must stay in its folder; llama.cpp, which is no engine here, has its record in this file.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from pytest_llem.engines import engines
from pytest_llem.engines.info import ServerApi
from pytest_llem.engines.openai.answers import MOST_TOKENS
from pytest_llem.engines.openai.bodies import Bodies
from pytest_llem.engines.openai.client import ASIDE_TIMEOUT_S, Client, Reply, SentRequest
from pytest_llem.engines.openai.events import RequestFailedError
from pytest_llem.engines.openai.served import ServedModel, from_engine, from_llama_cpp, from_others
from pytest_llem.engines.openai.settings import ClientSettings, unreachable
from pytest_llem.engines.openai.tokenizers import Found
from pytest_llem.engines.protocol import Request
from pytest_llem.errors import EngineError, EngineSettingError, LlemError, ServerUnreachableError

LOADING = 503
"""HTTP status of a server that is not ready (RFC 9110): vLLM, llama.cpp and others answer so while they load."""
REFUSING = (400, 422)
ABSENT = (404, 405, 501)
"""HTTP status codes of a path that a server does not have."""
MODELS = "/models"
LONGEST_TEXT = 4096
"""The longest path of Linux (PATH_MAX); what is longer names nothing, and would stand in every result."""
POLL_S = 0.2
"""Chosen: short beside the seconds that a server takes to load."""
TRIES = 12
"""Chosen: above the number of optional fields, of which each refusal removes at least one."""

VERSION_PATH = "/version"
LLAMA_CPP_KIND = "llama.cpp"
LLAMA_CPP = ServerApi(
    owner="llamacpp",
    version_path="/props",
    gauges={"running": "llamacpp:requests_processing", "waiting": "llamacpp:requests_deferred"},
    counters={
        "prefix_cache_hit_tokens": "llamacpp:prompt_tokens_cached_total",
        "prompt_tokens": "llamacpp:prompt_tokens_total",
        "generated_tokens": "llamacpp:tokens_predicted_total",
        "draft_tokens": "llamacpp:spec_decode_num_draft_tokens_total",
        "accepted_draft_tokens": "llamacpp:spec_decode_num_accepted_tokens_total",
    },
)


@dataclass(frozen=True)
class ServerFacts:
    """What a server says of itself: `kind` is `llama.cpp`, the `owner` of an engine's `ServerApi`, or `unknown`.

    `places` is how many requests it runs at once, `longest` the tokens of its longest request, `reset_path` where it
    empties its prefix cache; `None` is unknown. `model` is the name to ask for, `loaded` what it tells of the model.
    """

    kind: str
    version: str | None
    model: str
    loaded: ServedModel
    places: int | None = None
    longest: int | None = None
    reset_path: str | None = None


@cache
def server_apis() -> Mapping[str, ServerApi]:
    """What servers answer beyond the OpenAI API, by what they state as `owned_by` of their models."""
    apis = [info.server for info in engines().values() if info.server is not None]
    return {api.owner: api for api in (*apis, LLAMA_CPP)}


def wait_until_ready(client: Client, settings: ClientSettings) -> None:
    """Return when the server has loaded. Raises `ServerUnreachableError` when nothing answers, or not in time."""
    try:
        health = _loaded(client, settings, settings.root + "/health")
    except RequestFailedError as problem:
        raise unreachable(settings.base_url, str(problem), problem.kind) from None
    if health.status in ABSENT:
        with suppress(RequestFailedError):
            _loaded(client, settings, settings.base_url + MODELS)


def with_api_root(client: Client, settings: ClientSettings) -> ClientSettings:
    """The settings with the address at which the API answers: that of some servers has no version."""
    if settings.bare_url is None or _has_api(client, settings):
        return settings
    bare = replace(settings, base_url=settings.bare_url, bare_url=None)
    return bare if _has_api(client, bare) else settings


def _has_api(client: Client, settings: ClientSettings) -> bool:
    asked = (_asked(client, settings.base_url + MODELS), _asked(client, settings.answers_at, {}))
    return any(reply is not None and reply.status not in ABSENT for reply in asked)


def _loaded(
    client: Client, settings: ClientSettings, url: str, body: bytes | None = None, *, timeout_s: float = ASIDE_TIMEOUT_S
) -> Reply:
    """The first answer that does not say that the server loads; raises `ServerUnreachableError` if there is none."""
    deadline = time.monotonic() + settings.ready_timeout_s
    while True:
        reply = client.ask(url, body, timeout_s=timeout_s)
        after = reply.headers.get("Retry-After")
        # A request that is refused without that may be refused for ever.
        if reply.status != LOADING or (body is not None and after is None):
            return reply
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise ServerUnreachableError(
                f"the server at {settings.base_url} was not ready after {settings.ready_timeout_s:g} s",
                fix="raise openai.ready_timeout_s, or look into the server's log",
            )
        # RFC 9110, 10.2.3: seconds, or a date, which nobody sends here.
        wait_s = float(after) if after is not None and re.fullmatch(r"[0-9]{1,9}", after) else 0.0
        time.sleep(min(left_s, max(POLL_S, wait_s)))


def examine(client: Client, settings: ClientSettings, model: str) -> ServerFacts:
    """What the server is, and which model it serves: the one named, else its first, else the study's."""
    # Some servers want another key for this than for the rest, so that a refusal says nothing yet.
    listed = _asked(client, settings.base_url + MODELS)
    models = _models(listed)
    first = models[0] if models else {}
    served = settings.served_model or _text(first.get("id")) or model
    owner = str(first.get("owned_by", ""))
    entry = next((listed for listed in models if listed.get("id") == served), {})
    longest = _count(entry.get("max_model_len"))

    def ask(path: str, timeout_s: float = ASIDE_TIMEOUT_S) -> Mapping[str, Any]:
        return _object(_asked(client, settings.root + path, timeout_s=timeout_s))

    props = ask(LLAMA_CPP.version_path)
    if "total_slots" in props or owner == LLAMA_CPP.owner:
        defaults = props.get("default_generation_settings")
        context = _count(defaults.get("n_ctx")) if isinstance(defaults, Mapping) else None
        loaded = replace(from_llama_cpp(props, entry), path=_text(props.get("model_path")))
        return ServerFacts(
            LLAMA_CPP_KIND, _text(props.get("build_info")), served, loaded, _count(props.get("total_slots")), context
        )
    api = server_apis().get(owner)
    facts = ask(VERSION_PATH if api is None else api.version_path)
    version = _text(facts.get("version"))
    if api is None:
        return ServerFacts("unknown", version, served, from_others(owner, served, ask), None, longest)
    loaded = replace(from_engine(api, ask), path=_text(facts.get("model_path", entry.get("root"))))
    return ServerFacts(owner, version, served, loaded, None, longest, api.reset_path)


def served_models(client: Client, settings: ClientSettings) -> list[str]:
    """The models that a server lists, without other names of one, and without adapters (vLLM's `root` and `parent`)."""
    found: dict[str, str] = {}
    for entry in _models(_asked(client, settings.base_url + MODELS)):
        if not entry.get("parent"):
            found.setdefault(str(entry.get("root") or entry.get("id")), str(entry.get("id")))
    return [*found.values()]


def agree(client: Client, settings: ClientSettings, bodies: Bodies, found: Found) -> None:
    """Send requests for one token until `bodies` are such that the server takes one. Raises `EngineError`."""
    text = "Light"
    tokens = () if found.source is None else tuple(found.tokenizer.encode(text))
    bodies.sends_ids = bodies.sends_ids and bool(tokens)
    request = Request(-1, tokens, 1, ignore_eos=True, text=text)
    try:
        for _ in range(TRIES):
            body = bodies.body(request, found.text_of)
            reply = _loaded(client, settings, settings.answers_at, body, timeout_s=settings.request_timeout_s)
            if reply.status == 200:
                break
            if reply.status not in REFUSING or not bodies.leave_out(reply.text):
                raise _refused(settings, reply)
        sent = SentRequest(request, body, len(tokens) or None, timed=False)
        if client.one(sent, settings.answers_at).generated > 1 and bodies.limit_otherwise():
            # It passed the limit over: does it know the other name?
            sent = replace(sent, body=bodies.body(request, found.text_of))
            if client.one(sent, settings.answers_at).generated > 1:
                bodies.limit_otherwise(back=True)
    except RequestFailedError as problem:
        if problem.kind == "no_usage":
            fix = "set openai.stream: false" if settings.stream else "measure a server that reports usage"
            raise EngineError(
                f"the server at {settings.base_url} does not say how many tokens an answer has (usage)", fix=fix
            ) from None
        raise EngineError(
            f"the server at {settings.base_url} fails at a request for one token: {problem.kind}: {problem}",
            fix="look into the server's log, or raise openai.request_timeout_s",
            details={"failure": problem.kind},
        ) from None


def _refused(settings: ClientSettings, reply: Reply) -> LlemError:
    said = " ".join(reply.text.split())[:300]
    if reply.status in (401, 403):
        return _key_refused(settings, reply.status)
    if reply.status == 404:
        return EngineSettingError(
            f"{settings.answers_at} answers HTTP 404: {said}",
            fix="correct openai.base_url (it mostly ends with /v1), openai.api or openai.served_model",
        )
    return EngineError(
        f"the server at {settings.base_url} refuses a request for one token: HTTP {reply.status}: {said}",
        fix="correct what it names (openai.served_model?), or look into the server's log",
        details={"status": reply.status},
    )


def _key_refused(settings: ClientSettings, status: int) -> EngineSettingError:
    if settings.api_key_env is None:
        return EngineSettingError(
            f"the server at {settings.base_url} wants a key (HTTP {status})",
            fix="name the environment variable that holds it in openai.api_key_env",
        )
    return EngineSettingError(
        f"the server at {settings.base_url} refuses the key in {settings.api_key_env} (HTTP {status})",
        fix=f"correct the variable {settings.api_key_env}",
    )


def _asked(
    client: Client, url: str, body: Mapping[str, Any] | None = None, timeout_s: float = ASIDE_TIMEOUT_S
) -> Reply | None:
    try:
        return client.ask(url, body, timeout_s=timeout_s)
    except RequestFailedError:
        return None


def _models(reply: Reply | None) -> list[Mapping[str, Any]]:
    listed = _object(reply).get("data")
    return [entry for entry in listed if isinstance(entry, Mapping)] if isinstance(listed, list) else []


def _object(reply: Reply | None) -> Mapping[str, Any]:
    return reply.data if reply is not None and reply.status == 200 and isinstance(reply.data, Mapping) else {}


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 < value <= MOST_TOKENS else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= LONGEST_TEXT else None
