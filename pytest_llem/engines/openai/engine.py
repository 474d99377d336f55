"""`OpenAIEngine`: measures a server from the client's side.

The worker drives it as any engine. It starts no server: those that a study starts run before the worker does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import ClassVar

from pytest_llem.engines.builtin import builtin_path, is_builtin
from pytest_llem.engines.hub_models import check_lengths
from pytest_llem.engines.openai import INFO, probe
from pytest_llem.engines.openai.answers import RequestFailedError, counted
from pytest_llem.engines.openai.bodies import Bodies
from pytest_llem.engines.openai.client import Client, SentRequest
from pytest_llem.engines.openai.observations import Observations, prefix_cache_is_off
from pytest_llem.engines.openai.settings import ClientSettings, read_settings
from pytest_llem.engines.openai.tokenizers import Found, find_tokenizer
from pytest_llem.engines.protocol import (
    CacheState,
    Capabilities,
    Completion,
    Engine,
    ModelShape,
    Progress,
    Quiesced,
    Request,
    Tokenizer,
)
from pytest_llem.engines.refusals import after, not_installed
from pytest_llem.errors import EngineError, EngineSettingError, JsonValue
from pytest_llem.job.config import ExperimentConfig
from pytest_llem.job.job import DeviceSet
from pytest_llem.job.report import Note
from pytest_llem.workload.arrivals import Schedule, schedule

DRAIN_S = 1.0
"""Chosen: a step of a large batch takes well under a second."""


class OpenAIEngine(Engine):
    """Any OpenAI-compatible server at `openai.base_url`, measured by one client in this process.

    Nothing is started here: `prepare` asks the server what it is, and `load` which requests it takes.
    """

    name: ClassVar[str] = INFO.name
    without_reload: ClassVar[tuple[str, ...]] = ("workload", "decoding", "settings.concurrency")

    def __init__(self) -> None:
        self.capabilities = Capabilities(prefix_cache=True, serves=True)
        self._config: ExperimentConfig | None = None
        self._settings: ClientSettings | None = None
        self._client: Client | None = None
        self._server: probe.ServerFacts | None = None
        self._bodies: Bodies | None = None
        self._found: Found | None = None
        self._observations: Observations | None = None
        self._resets: bool | None = None

    def prepare(self, config: ExperimentConfig, devices: DeviceSet) -> str:
        """See `Engine.prepare`. The version is that of the server, as far as it tells.

        Raises `ServerUnreachableError` when nothing answers.
        """
        try:
            import aiohttp  # noqa: F401
        except ImportError as problem:
            raise not_installed(INFO, problem) from problem
        loaded = self._found is not None
        self.shutdown()
        self._config = config
        self._settings = settings = read_settings(config, os.environ)
        self.capabilities = Capabilities(token_times=settings.stream, prefix_cache=True, serves=True)
        self._client = client = Client(settings)
        probe.wait_until_ready(client, settings)
        self._server = probe.examine(client, settings, _name_of(config.model))
        if loaded:
            self.load()
        return f"{self._server.kind} {self._server.version or ''}".strip()

    def load(self) -> None:
        """See `Engine.load`: which tokenizer is the server's, and which requests does it take?"""
        config, settings = self._config_now(), self._prepared()
        client, server = self._connected()
        self._found = found = find_tokenizer(config, client, settings.root, server.model)
        self._observations = Observations(client, settings)
        self._bodies = bodies = Bodies(config, settings, server.model, server.kind)
        probe.agree(client, settings, bodies, found)

    def tokenizer(self) -> Tokenizer:
        """See `Engine.tokenizer`."""
        return self._tokenizer().tokenizer

    def generate(self, requests: Sequence[Request], progress: Progress) -> list[Completion]:
        """See `Engine.generate`. Raises `EngineError` when every request fails."""
        client, bodies, server = self._ready()
        check_lengths(requests, None, server.longest if server.longest is not None else _NO_LIMIT)
        decode = self._tokenizer().text_of
        timed = bodies.sends("timings_per_token")
        going = [
            SentRequest(request, bodies.body(request, decode), len(request.token_ids) or None, timed)
            for request in requests
        ]
        done = client.serve(going, self._plan(len(requests)), progress)
        if done and all(completion.error is not None for completion in done):
            raise EngineError(
                f"every request failed at {self._prepared().answers_at}: {counted(done)}; first: {done[0].error}",
                fix="look into the server's log; lower openai.concurrency, or raise openai.request_timeout_s",
                details={"failures": counted(done)},
            )
        self._seen().sent(requests, done)
        return done

    def read(self, completions: Sequence[Completion]) -> list[Completion]:
        """See `Engine.read`."""
        client, _, _ = self._ready()
        done = client.backlog.read(completions)
        self._seen().read(done)
        return done

    def reset(self) -> CacheState:
        """See `Engine.reset`. A server that cannot empty its cache is `unknown`: its cached tokens then tell."""
        client, bodies, server = self._ready()
        settings = self._prepared()
        if settings.enable_prefix_caching is False:
            return "disabled"
        if server.kind == probe.LLAMA_CPP_KIND:
            return "disabled" if bodies.sends("cache_prompt") and not settings.enable_prefix_caching else "unknown"
        if server.reset_path is None or self._resets is False:
            return "unknown"
        if self._resets is None and prefix_cache_is_off(self._seen().metrics_text()):
            return "disabled"
        return self._emptied(client, settings.root + server.reset_path)

    def quiesce(self) -> Quiesced:
        """See `Engine.quiesce`. Own requests have all ended; others are seen where the server has metrics."""
        if self._observations is None:
            return "drained"
        deadline = time.monotonic() + DRAIN_S
        while running := self._observations.running():
            if time.monotonic() > deadline:
                return "unknown"
            time.sleep(min(0.05, DRAIN_S))
        return "unknown" if running is None and self._observations.has_metrics else "drained"

    def effective(self) -> Mapping[str, JsonValue]:
        """See `Engine.effective`; keys that are settings have the setting's name."""
        _, bodies, server = self._ready()
        settings = self._prepared()
        found = self._tokenizer()
        return {
            "base_url": self._config_now().settings.get("base_url"),
            "server": server.kind,
            "server_version": server.version,
            "served_model": server.model,
            "model_path": server.model_path,
            "api": settings.api,
            "stream": settings.stream,
            "concurrency": settings.concurrency,
            "max_num_seqs": server.places,
            "max_model_len": server.longest,
            "prompts_as": "token ids" if bodies.sends_ids else "text",
            "tokenizer": found.source,
            "refused_fields": tuple(sorted(bodies.refused)),
            "do_sample": self._config_now().decoding.do_sample,
            "seed": self._config_now().seed,
        }

    def environment(self) -> Mapping[str, JsonValue]:
        """The server that was measured: two versions of it are not the same engine."""
        server = self._server
        return {} if server is None else {"server": server.kind, "server_version": server.version}

    def shape(self) -> ModelShape | None:
        """See `Engine.shape`: that of the study's model, where its tokenizer is that of the server."""
        return self._found.shape if self._found is not None else None

    def reset_statistics(self) -> None:
        """See `Engine.reset_statistics`."""
        client, _, _ = self._ready()
        client.backlog.clear()
        self._seen().reset()

    def statistics(self) -> Mapping[str, JsonValue]:
        """See `Engine.statistics`."""
        return self._seen().statistics()

    def remarks(self) -> tuple[Sequence[Note], Sequence[Note]]:
        """See `Engine.remarks`."""
        _, bodies, _ = self._ready()
        invalid, warnings = self._seen().notes(self._config_now())
        found = self._tokenizer()
        if bodies.refused:
            warnings.append(Note("fields_refused", f"the server does not take: {', '.join(sorted(bodies.refused))}"))
        if found.doubt is not None:
            warnings.append(Note("tokenizer_differs", f"{found.doubt}, whose own was used"))
        return invalid, warnings

    def shutdown(self) -> None:
        """See `Engine.shutdown`."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _plan(self, count: int) -> Schedule:
        workload, settings = self._config_now().workload, self._prepared()
        if workload.arrival is not None and settings.concurrency is not None:
            raise EngineSettingError(
                "openai.concurrency cannot be combined with workload.arrival: both say when requests are sent",
                fix="leave one of them out",
            )
        plan = schedule(workload.arrival, count, workload.seed)
        return plan if settings.concurrency is None else Schedule(plan.times_s, settings.concurrency)

    def _emptied(self, client: Client, url: str) -> CacheState:
        deadline = time.monotonic() + DRAIN_S
        while True:
            try:
                reply = client.ask(url, post=True)
            except RequestFailedError:
                return "unknown"
            if reply.status in (404, 405):
                self._resets = False
                return "unknown"
            said = reply.data.get("success", True) if isinstance(reply.data, Mapping) else True
            if reply.status == 200 and said is True:
                self._resets = True
                return "cleared"
            if time.monotonic() > deadline:
                return "unknown"
            # Servers refuse while their last step ends, which may be after the last answer.
            time.sleep(0.05)

    def _config_now(self) -> ExperimentConfig:
        return after("prepare", self._config)

    def _prepared(self) -> ClientSettings:
        return after("prepare", self._settings)

    def _connected(self) -> tuple[Client, probe.ServerFacts]:
        return after("prepare", self._client), after("prepare", self._server)

    def _ready(self) -> tuple[Client, Bodies, probe.ServerFacts]:
        bodies = after("load", self._bodies)
        client, server = self._connected()
        return client, bodies, server

    def _tokenizer(self) -> Found:
        return after("load", self._found)

    def _seen(self) -> Observations:
        return after("load", self._observations)


_NO_LIMIT = 1 << 62
"""Chosen: above any length."""


def _name_of(model: str) -> str:
    """What a server that lists no models calls the one it was started with."""
    return str(builtin_path(model)) if is_builtin(model) else model
