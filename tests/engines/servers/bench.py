"""Scripted servers and engines for the tests of the client of OpenAI-compatible servers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest

from pytest_llem.engines.openai.engine import OpenAIEngine
from pytest_llem.engines.protocol import Completion
from pytest_llem.job.config import Decoding, ExperimentConfig, MeasurementSettings, WorkloadSettings
from pytest_llem.job.job import DeviceSet
from tests.engines.engine_cases import requests_of
from tests.engines.servers.scripted import Script, ScriptedServer, scripted

WORKLOAD = WorkloadSettings("synthetic", 4, 16, 8, 0)


class Bench:
    """Servers and engines of one test, all gone when it ends."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def server(self, *answers: str, **script: Any) -> ScriptedServer:
        return self._stack.enter_context(scripted(Script(answers or ("ok",), **script)))

    def engine(
        self, server: ScriptedServer | str, config: dict[str, Any] | None = None, **settings: Any
    ) -> OpenAIEngine:
        """An engine that is ready to generate. The model has no tokenizer here, as most servers' models have not."""
        url = server if isinstance(server, str) else server.url
        made = ExperimentConfig(
            model="nobody/knows-it",
            engine="openai",
            dtype=None,
            weights="real",
            workload=WORKLOAD,
            decoding=Decoding(),
            measurement=MeasurementSettings(1.0),
            settings={"base_url": f"{url}/v1", **settings},
        )
        engine = OpenAIEngine()
        self._stack.callback(engine.shutdown)
        engine.prepare(replace(made, **(config or {})), DeviceSet("cpu"))
        engine.load()
        return engine


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with ExitStack() as stack:
        yield Bench(stack)


def texts(count: int, output: int = 8, ignore_eos: bool = True) -> list[Any]:
    return [replace(r, token_ids=(), text=f"prompt {r.index}") for r in requests_of(*[4] * count, output=output)]


def run(engine: OpenAIEngine, requests: list[Any]) -> list[Completion]:
    engine.reset_statistics()
    done = engine.generate(requests, lambda _done, _total: None)
    engine.statistics()
    return engine.read(done)


def codes(engine: OpenAIEngine) -> tuple[list[str], list[str]]:
    invalid, warnings = engine.remarks()
    return [note.code for note in invalid], [note.code for note in warnings]
