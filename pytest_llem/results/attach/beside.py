"""The server that a command talks to while it is measured: what it says of itself, and what it counts meanwhile.

`metering` opens it before the command starts and asks it after the end. It must send nothing while the command runs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from pytest_llem.engines.openai.client import Client
from pytest_llem.engines.openai.observations import Observations
from pytest_llem.engines.openai.probe import ServerFacts, examine, served_models, wait_until_ready, with_api_root
from pytest_llem.engines.openai.served import ServedModel
from pytest_llem.engines.openai.settings import ClientSettings, read_settings
from pytest_llem.errors import EngineSettingError, JsonValue, ServerUnreachableError
from pytest_llem.job.config import ExperimentConfig
from pytest_llem.job.measurement import Capabilities, EngineFacts
from pytest_llem.job.report import Note

READY_S = 1.0
"""Chosen: a server that is measured from beside is there; who starts one waits for it."""

LATE_COUNTS_S = 0.5
"""Chosen: many steps of a decoder, after each of which servers count; some count at an answer's end."""

MODELS_NAMED = 5
"""Models that a note names. Chosen: the others are in the server's own list."""


@dataclass(frozen=True)
class Counted:
    """What the server counted while the command ran, of whoever asked; `None` where it does not tell."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    requests: int | None = None
    cached_tokens: int | None = None
    statistics: dict[str, JsonValue] | None = None
    notes: tuple[Note, ...] = ()
    invalid: tuple[Note, ...] = ()


class Beside:
    """A server that runs already."""

    def __init__(self, client: Client, settings: ClientSettings) -> None:
        self._client = client
        self._observations = Observations(client, settings)
        self.url = settings.base_url
        self.facts: ServerFacts = examine(client, settings, "")
        self._models = served_models(client, settings)
        if len(self._models) > 1:
            self.facts = replace(self.facts, model="", loaded=ServedModel())

    def begin(self) -> None:
        """Read its counters right before the command starts."""
        self._observations.reset()

    def end(self, *, same_process: bool) -> Counted:
        """What its counters grew by; called right after the command has ended."""
        notes = []
        if len(self._models) > 1:
            text = f"the server has {len(self._models)} models ({', '.join(self._models[:MODELS_NAMED])}"
            text += "...)" if len(self._models) > MODELS_NAMED else ")"
            notes.append(Note("several_models", f"{text}: its tokens and its energy are those of all"))
        if not self._observations.has_metrics:
            text = f"{self.url} has no /metrics that can be read: tokens and requests were not counted"
            return Counted(notes=(*notes, Note("server_not_counting", text)), invalid=_lost(same_process))
        time.sleep(LATE_COUNTS_S)
        statistics = self._observations.statistics()
        if not same_process or self._observations.restarted:
            return Counted(notes=tuple(notes), invalid=_lost(False))
        running = self._observations.running()
        counters = statistics.get("server_counters")
        counted = counters if isinstance(counters, dict) else {}

        def of(name: str) -> int | None:
            value = counted.get(name)
            return value if isinstance(value, int) else None

        if of("generated_tokens") is None:
            why = "states no count of generated tokens"
            why = why if self._observations.answered else "was not answered after the command's end"
            notes.append(Note("server_not_counting", f"the /metrics of {self.url} {why}"))
        if statistics.get("running_at_begin") or running:
            text = "requests ran on the server before the command started, or after it had ended: its energy and its "
            notes.append(Note("server_in_use", f"{text}tokens are those of all who used it"))
        return Counted(
            of("prompt_tokens"),
            of("generated_tokens"),
            of("finished_requests"),
            of("prefix_cache_hit_tokens"),
            statistics,
            tuple(notes),
        )

    def engine(self, counted: Counted) -> EngineFacts:
        """The server as the engine of the result."""
        loaded = self.facts.loaded
        effective: dict[str, JsonValue] = {
            "model": self.facts.model or None,
            "model_path": loaded.path,
            "model_revision": loaded.revision,
            "model_fingerprint": loaded.fingerprint,
            "dtype": loaded.dtype,
            "quantization": loaded.quantization,
        }
        version = self.facts.version or "unknown"
        statistics = counted.statistics or {}
        return EngineFacts(self.facts.kind, version, effective, Capabilities(), statistics=statistics)


def _lost(same: bool) -> tuple[Note, ...]:
    text = "the server ended, or was started anew, while the command ran: what it did and drew until then is not known"
    return () if same else (Note("server_restarted", text),)


@contextmanager
def beside(url: str) -> Iterator[Beside]:
    """The server at a URL. Raises `ServerUnreachableError` where nothing answers, `EngineSettingError` for no URL."""
    try:
        given: dict[str, JsonValue] = {"base_url": url, "ready_timeout_s": READY_S}
        settings = read_settings(ExperimentConfig(model="", engine="openai", settings=given), os.environ)
    except EngineSettingError as error:
        fix = (error.fix or "").partition(", and name an environment")[0]
        raise EngineSettingError(error.message.replace("openai.base_url", "--server"), fix=fix) from None
    client = Client(settings)
    try:
        try:
            wait_until_ready(client, settings)
        except ServerUnreachableError as error:
            raise ServerUnreachableError(error.message, fix="start the server first, or correct --server") from None
        settings = with_api_root(client, settings)
        yield Beside(client, settings)
    finally:
        client.close()
