"""Answers that arrive token by token, and the engines that have nothing else.

Engines with a scheduler of their own, of other packages too, collect each answer in a `StreamedAnswer`, which is public
and must stay; those that run in other processes derive from `StreamedEngine`, which may change with them.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from pytest_llem.engines.hub_models import (
    HubEngine,
    HubTokenizer,
    check_lengths,
    load_config,
    load_tokenizer,
    shape_of,
    tokenizer_of,
)
from pytest_llem.engines.info import EngineInfo
from pytest_llem.engines.model_files import find_model, fingerprint, on_hub
from pytest_llem.engines.protocol import Capabilities, Completion, ModelShape, Progress, Quiesced, Request
from pytest_llem.engines.refusals import not_installed, one_line, unknown_setting
from pytest_llem.engines.sending import send_all
from pytest_llem.engines.signatures import parameters
from pytest_llem.errors import EngineError, JsonValue, LlemError
from pytest_llem.job.config import ExperimentConfig
from pytest_llem.job.job import DeviceSet
from pytest_llem.workload.arrivals import Schedule
from pytest_llem.workload.hub import switch_off_when_absent

FINISHED: Mapping[str, Literal["stop", "length", "error"]] = {"stop": "stop", "length": "length"}


@dataclass
class StreamedAnswer:
    """One request's tokens and when they came (CLOCK_MONOTONIC ns); tokens that arrive together have one time.

    `input_tokens` is the length of the prompt as the engine counts it, where it does: it may have cut it. `due_ns` and
    `sent_ns` are as in `Completion`.
    """

    request: Request
    start_ns: int = 0
    ids: list[int] = field(default_factory=list)
    times_ns: list[int] = field(default_factory=list)
    cached_tokens: int | None = None
    input_tokens: int | None = None
    due_ns: int | None = None
    sent_ns: int | None = None

    def add(self, new_ids: Sequence[int], now_ns: int) -> None:
        """Take the next tokens."""
        self.ids += new_ids
        self.times_ns += [now_ns] * len(new_ids)

    def grow_to(self, all_ids: Sequence[int], now_ns: int) -> None:
        """Take what is new in everything that was generated so far."""
        self.add(all_ids[len(self.ids) :], now_ns)

    def completion(self, engine: str, reason: str | None, now_ns: int) -> Completion:
        """What became of the request; a `reason` other than `stop` and `length` is an error with that word."""
        known = FINISHED.get(reason or "", "error")
        return Completion(
            index=self.request.index,
            input_tokens=len(self.request.token_ids) if self.input_tokens is None else self.input_tokens,
            output_ids=tuple(self.ids),
            start_ns=self.start_ns,
            end_ns=self.times_ns[-1] if self.times_ns else now_ns,
            finish_reason=known,
            token_times_ns=tuple(self.times_ns),
            cached_tokens=self.cached_tokens,
            error=f"{engine} ended the request: {reason}" if known == "error" else None,
            due_ns=self.due_ns,
            sent_ns=self.sent_ns,
        )


class StreamedEngine(HubEngine):
    """An offline engine with a scheduler of its own, in processes of its own, that streams tokens to this process.

    All requests of a repeat are handed over at once, but the turns of a session one after the other. Token times are
    those at which tokens arrived here; memory and parameters are not counted, since they are in another process.
    """

    without_reload: ClassVar[tuple[str, ...]] = ("workload", "decoding")

    def __init__(self) -> None:
        super().__init__()
        self.capabilities = Capabilities(token_times=True, prefix_cache=True)
        self._tokenizer: Any = None
        self._text_config: Any = None
        self._commit: str | None = None

    @abstractmethod
    def _arguments(self, config: ExperimentConfig, devices: DeviceSet, model: str, tokenizer: str) -> dict[str, Any]:
        """Arguments of the engine's constructor; `EngineSettingError` for a setting that the engine does not have."""

    @abstractmethod
    def _make(self, arguments: Mapping[str, Any]) -> Any:
        """The engine itself, loaded."""

    @abstractmethod
    def _load_error(self, config: ExperimentConfig, problem: Exception) -> LlemError:
        """What an exception of `_make` means."""

    @abstractmethod
    def _outputs(self, request: Request) -> AsyncIterator[Any]:
        """The parts of one answer as they arrive."""

    @abstractmethod
    def _take(self, answer: StreamedAnswer, output: Any, now_ns: int) -> str | None:
        """Add a part to its answer; returns why the answer is finished, or `None` while it is not."""

    @abstractmethod
    def _context_length(self) -> int | None:
        """Most tokens of prompt and answer together, as far as the engine says."""

    @abstractmethod
    def _settings_in_use(self, config: ExperimentConfig) -> Mapping[str, JsonValue]:
        """What the engine says about its settings, under their own names."""

    def _run(self, answers: Coroutine[Any, Any, list[Completion]]) -> list[Completion]:
        return asyncio.run(answers)

    def prepare(self, config: ExperimentConfig, devices: DeviceSet) -> str:
        """See `Engine.prepare`."""
        if on_hub(config.model):
            # Before the engine imports the hub's client, which else tries for half a minute.
            switch_off_when_absent()
        try:
            package = importlib.import_module(self.info.modules[-1])
        except ImportError as problem:
            image = f"run it in its stock image: --llem-runner={self.name}=docker:{self.info.stock_image}"
            raise not_installed(self.info, problem, f"{image}, or {self.info.install}") from problem
        self._arguments(config, devices, "", "")
        self._config, self._devices = config, devices
        return str(package.__version__)

    def load(self) -> None:
        """See `Engine.load`. What its processes print when they cannot start is in worker.log."""
        config = self._prepared()
        self._source = find_model(config.model, weights=config.weights != "dummy")
        location, self._tokenizer_name = tokenizer_of(config, self._source)
        model_config = load_config(config, self._source)
        self._text_config = model_config.get_text_config()
        self._commit = getattr(model_config, "_commit_hash", None)
        self._tokenizer = load_tokenizer(location, config, self._source)
        arguments = self._arguments(config, self._devices, self._source.location, location)
        try:
            self._engine = self._make(arguments)
        except (ValueError, TypeError, AssertionError, RuntimeError, EOFError, OSError) as problem:
            raise self._load_error(config, problem) from problem

    def tokenizer(self) -> HubTokenizer:
        """See `Engine.tokenizer`."""
        self._ready()
        return HubTokenizer(self._tokenizer)

    def generate(self, requests: Sequence[Request], progress: Progress) -> list[Completion]:
        """See `Engine.generate`."""
        self._ready()
        check_lengths(requests, self._text_config, self._context_length())
        try:
            return self._run(self._answer_all(requests, progress))
        except (RuntimeError, ValueError) as problem:
            raise EngineError(
                f"{self.info.title} failed while generating: {one_line(problem)}",
                fix="read the lines before it in worker.log",
            ) from problem

    async def _answer_all(self, requests: Sequence[Request], progress: Progress) -> list[Completion]:
        done: list[Completion] = []

        async def answer(place: int, due_ns: int | None) -> None:
            request, sent_ns = requests[place], time.monotonic_ns()
            streamed = StreamedAnswer(request, sent_ns if due_ns is None else due_ns, due_ns=due_ns, sent_ns=sent_ns)
            reason: str | None = None
            async for output in self._outputs(request):
                reason = self._take(streamed, output, time.monotonic_ns())
            done.append(streamed.completion(self.info.title, reason, time.monotonic_ns()))
            progress(len(done), len(requests))

        await send_all(requests, Schedule([0.0] * len(requests)), answer)
        return sorted(done, key=lambda completion: completion.index)

    def quiesce(self) -> Quiesced:
        """See `Engine.quiesce`. `generate` returns when no request is left; the device is another process's."""
        return "drained"

    def effective(self) -> Mapping[str, JsonValue]:
        """See `Engine.effective`; keys that are settings have the setting's name."""
        self._ready()
        config = self._prepared()
        return {
            **self._settings_in_use(config),
            "model_path": self._source.location,
            "model_revision": self._commit,
            "model_fingerprint": fingerprint(Path(self._source.location)) if self._source.local else None,
            "tokenizer": self._tokenizer_name,
            "weights": config.weights,
            "do_sample": config.decoding.do_sample,
            "seed": config.seed,
        }

    def shape(self) -> ModelShape | None:
        """See `Engine.shape`."""
        return shape_of(self._text_config, None) if self._text_config is not None else None

    def shutdown(self) -> None:
        """See `Engine.shutdown`."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.shutdown()
            del engine
            gc.collect()


def study_arguments(
    config: ExperimentConfig, info: EngineInfo, known: Collection[str], reserved: Collection[str]
) -> dict[str, Any]:
    """The settings of a study for the engine by name, with those of `extra` and those that all engines have.

    What is null is left to the engine.
    Raises `EngineSettingError` for a setting that the installed version does not have (`known`), or that has its own
    place in a study (`reserved`).
    """
    extra = config.settings.get("extra")
    given = [(key, key, value) for key, value in config.settings.items() if key != "extra"]
    if isinstance(extra, Mapping):
        given += [(f"extra.{key}", key, value) for key, value in extra.items()]
    given = [entry for entry in given if entry[2] is not None]
    for path, name, _ in given:
        if name not in known or name in reserved:
            raise unknown_setting(info.title, f"{info.name}.{path}", name, known)
    arguments: dict[str, Any] = {"dtype": config.dtype or "auto", "trust_remote_code": config.trust_remote_code}
    if config.revision is not None:
        arguments["revision"] = config.revision
    if config.weights == "dummy":
        arguments["load_format"] = "dummy"
    return {**arguments, **{name: value for _, name, value in given}}


def known_arguments(info: EngineInfo) -> dict[str, Any]:
    """The constructor's arguments in the installed version, with their types where they are known."""
    return {} if info.signatures is None else parameters(info.signatures.main[0], info.name)
