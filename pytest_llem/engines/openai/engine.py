"""`OpenAIEngine`: measures a server from the client's side.

`engines` opens it, and the worker drives it. It must start no server: those of a study run before the worker does.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from pytest_llem.engines.builtin import builtin_path, is_builtin
from pytest_llem.engines.hub_models import check_lengths
from pytest_llem.engines.openai import INFO, probe
from pytest_llem.engines.openai.answers import counted
from pytest_llem.engines.openai.bodies import STOP, Bodies
from pytest_llem.engines.openai.client import Client, SentRequest
from pytest_llem.engines.openai.events import RequestFailedError
from pytest_llem.engines.openai.observations import Observations, prefix_cache_is_off
from pytest_llem.engines.openai.served import ServedModel, with_files
from pytest_llem.engines.openai.settings import ClientSettings, read_settings, reuses_prefixes
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
POLL_S = 0.05
"""Chosen: a twentieth of `DRAIN_S`, and no load on the server."""


@dataclass(frozen=True)
class LoadedServer:
    """What is known of the server once it has taken a first request."""

    client: Client
    facts: probe.ServerFacts
    model: ServedModel
    bodies: Bodies
    tokenizer: Found
    observations: Observations


class OpenAIEngine(Engine):
    """Any OpenAI-compatible server: `prepare` asks what it is, and `load` which requests it takes."""

    name: ClassVar[str] = INFO.name
    without_reload: ClassVar[tuple[str, ...]] = ("workload", "decoding", "settings.concurrency")

    def __init__(self) -> None:
        self.capabilities = Capabilities(prefix_cache=True, serves=True)
        self._config: ExperimentConfig | None = None
        self._settings: ClientSettings | None = None
        self._client: Client | None = None
        self._server: probe.ServerFacts | None = None
        self._loaded: LoadedServer | None = None
        self._resets: bool | None = None

    def prepare(self, config: ExperimentConfig, devices: DeviceSet) -> str:
        """See `Engine.prepare`. The version is the server's; `ServerUnreachableError` when nothing answers."""
        try:
            import aiohttp  # noqa: F401
        except ImportError as problem:
            raise not_installed(INFO, problem) from problem
        loaded = self._loaded is not None
        self.shutdown()
        self._config = config
        self._settings = settings = read_settings(config, os.environ)
        self.capabilities = Capabilities(token_times=settings.stream, prefix_cache=True, serves=True)
        self._client = client = Client(settings)
        probe.wait_until_ready(client, settings)
        self._settings = settings = probe.with_api_root(client, settings)
        self._server = probe.examine(client, settings, _name_of(config.model))
        if loaded:
            self.load()
        return f"{self._server.kind} {self._server.version or ''}".strip()

    def load(self) -> None:
        """See `Engine.load`: which tokenizer is the server's, and which requests does it take?"""
        config, settings = self._prepared()
        client, server = after("prepare", self._client), after("prepare", self._server)
        found = find_tokenizer(config, client, settings.root, server.model)
        bodies = Bodies(config, settings, server.model, server.kind)
        self._loaded = LoadedServer(
            client, server, with_files(server.loaded, config, settings), bodies, found, Observations(client, settings)
        )
        probe.agree(client, settings, bodies, found)

    def tokenizer(self) -> Tokenizer:
        """See `Engine.tokenizer`."""
        return self._ready().tokenizer.tokenizer

    def generate(self, requests: Sequence[Request], progress: Progress) -> list[Completion]:
        """See `Engine.generate`. Raises `EngineError` when every request fails."""
        server, (_, settings) = self._ready(), self._prepared()
        check_lengths(requests, None, server.facts.longest)
        decode = server.tokenizer.text_of
        timed = server.bodies.sends("timings_per_token")
        going = [
            SentRequest(request, server.bodies.body(request, decode), len(request.token_ids) or None, timed)
            for request in requests
        ]
        done = server.client.serve(going, settings.answers_at, self._plan(requests), progress)
        if done and all(completion.error is not None for completion in done):
            stop, first = requests[0].stop, done[0].error or ""
            if stop and done[0].failure == "http_4xx" and STOP in re.findall(r"\w+", first):
                raise EngineSettingError(
                    f"{settings.answers_at} refuses the stop strings of the workload, {len(stop)} of them: {first}",
                    fix="give fewer (the OpenAI API takes four, others more), or measure a server that takes them",
                )
            raise EngineError(
                f"every request failed at {settings.answers_at}: {counted(done)}; first: {first}",
                fix="look into the server's log; lower openai.concurrency, or raise openai.request_timeout_s",
                details={"failures": counted(done)},
            )
        server.observations.sent(requests, done)
        return done

    def read(self, completions: Sequence[Completion]) -> list[Completion]:
        """See `Engine.read`."""
        done = self._ready().client.backlog.read(completions)
        self._ready().observations.read(done)
        return done

    def reset(self) -> CacheState:
        """See `Engine.reset`. A server that cannot empty its cache is `unknown`: its cached tokens then tell."""
        server, (config, settings) = self._ready(), self._prepared()
        if settings.enable_prefix_caching is False:
            return "disabled"
        if server.facts.kind == probe.LLAMA_CPP_KIND:
            if server.bodies.sends("cache_prompt") and not reuses_prefixes(config):
                return "disabled"
            return "unknown" if config.workload.cache is None else self._erased(server, settings)
        if server.facts.reset_path is None or self._resets is False:
            return "unknown"
        if self._resets is None and prefix_cache_is_off(server.observations.metrics_text()):
            return "disabled"
        return self._emptied(server.client, settings.root + server.facts.reset_path)

    def quiesce(self) -> Quiesced:
        """See `Engine.quiesce`. Own requests have all ended; others are seen where the server has metrics."""
        if self._loaded is None:
            return "drained"
        observations = self._loaded.observations
        deadline = time.monotonic() + DRAIN_S
        while running := observations.running():
            if time.monotonic() > deadline:
                return "unknown"
            time.sleep(POLL_S)
        return "unknown" if running is None and observations.has_metrics else "drained"

    def effective(self) -> Mapping[str, JsonValue]:
        """See `Engine.effective`; keys that are settings have the setting's name."""
        server, (config, settings) = self._ready(), self._prepared()
        model = server.model
        return {
            "base_url": config.settings.get("base_url"),
            "server": server.facts.kind,
            "server_version": server.facts.version,
            "served_model": server.facts.model,
            "model_path": model.path,
            "model_revision": model.revision,
            "model_fingerprint": model.fingerprint,
            "model_parameters": model.parameters,
            "model_bytes": model.size_bytes,
            "dtype": model.dtype,
            "quantized": model.quantized,
            "quantization": model.quantization,
            "kv_cache_dtype": model.kv_cache_dtype,
            "api": settings.api,
            "stream": settings.stream,
            "concurrency": settings.concurrency,
            "max_num_seqs": server.facts.places,
            "max_model_len": server.facts.longest,
            "prompts_as": "token ids" if server.bodies.sends_ids else "text",
            "tokenizer": server.tokenizer.source,
            "refused_fields": tuple(sorted(server.bodies.refused)),
            "do_sample": config.decoding.do_sample,
            "seed": config.seed,
        }

    def environment(self) -> Mapping[str, JsonValue]:
        """The server that was measured: two versions of it are not the same engine."""
        server = self._server
        if server is None:
            return {}
        # What its products of float32 are computed in is not told, and so no share of a peak for them is known.
        return {"server": server.kind, "server_version": server.version, "float32_matmul_precision": None}

    def shape(self) -> ModelShape | None:
        """See `Engine.shape`: that of the study's model, where its tokenizer is that of the server."""
        return self._loaded.tokenizer.shape if self._loaded is not None else None

    def reset_statistics(self) -> None:
        """See `Engine.reset_statistics`."""
        self._ready().client.backlog.clear()
        self._ready().observations.reset()

    def statistics(self) -> Mapping[str, JsonValue]:
        """See `Engine.statistics`."""
        return self._ready().observations.statistics()

    def remarks(self) -> tuple[Sequence[Note], Sequence[Note]]:
        """See `Engine.remarks`."""
        server, (config, _) = self._ready(), self._prepared()
        invalid, warnings = server.observations.notes(config)
        if refused := ", ".join(sorted(server.bodies.refused)):
            warnings.append(Note("fields_refused", f"the server does not take: {refused}"))
        if server.tokenizer.doubt is not None:
            warnings.append(Note("tokenizer_differs", f"{server.tokenizer.doubt}, whose own was used"))
        return invalid, warnings

    def shutdown(self) -> None:
        """See `Engine.shutdown`."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _plan(self, requests: Sequence[Request]) -> Schedule:
        config, settings = self._prepared()
        workload = config.workload
        if workload.arrival is not None and settings.concurrency is not None:
            raise EngineSettingError(
                "openai.concurrency cannot be combined with workload.arrival: both say when requests are sent",
                fix="leave one of them out",
            )
        plan = schedule(workload, requests)
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
            time.sleep(POLL_S)

    def _erased(self, server: LoadedServer, settings: ClientSettings) -> CacheState:
        """Empty every slot of llama.cpp, which it does where it was started with `--slot-save-path`."""
        for slot in range(server.facts.places or 0):
            try:
                if server.client.ask(f"{settings.root}/slots/{slot}?action=erase", {}).status != 200:
                    return "unknown"
            except RequestFailedError:
                return "unknown"
        return "cleared" if server.facts.places else "unknown"

    def _prepared(self) -> tuple[ExperimentConfig, ClientSettings]:
        return after("prepare", self._config), after("prepare", self._settings)

    def _ready(self) -> LoadedServer:
        return after("load", self._loaded)


def _name_of(model: str) -> str:
    """What a server that lists no models calls the one it was started with."""
    return str(builtin_path(model)) if is_builtin(model) else model
