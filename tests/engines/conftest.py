"""Engines to test: every one that this environment can run, on the built-in tiny model."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_llem.engines import open_engine
from pytest_llem.engines.protocol import Engine
from pytest_llem.job.config import Decoding, ExperimentConfig, MeasurementSettings, WorkloadSettings
from pytest_llem.job.job import DeviceSet
from tests.engines.engine_cases import ConfigMaker

MODULES = {"transformers": "transformers", "vllm": "vllm"}
SETTINGS: dict[str, dict[str, Any]] = {"transformers": {"batch_size": 4}, "vllm": {"enforce_eager": True}}
OUTSIDE, OUTSIDE_SETTINGS = "LLEM_TEST_ENGINE", "LLEM_TEST_SETTINGS"
"""Variables that put an engine of another package to the conformance tests: its name, and its section as JSON."""


# Read once, when the hub's client is imported: without it a test of a missing model waits for a network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def here() -> list[str]:
    """Engines of this environment; one made for vLLM holds another transformers, which is not the one to test."""
    if outside := os.environ.get(OUTSIDE):
        return [outside]
    if importlib.util.find_spec("vllm") is not None:
        return ["vllm"]
    return [name for name, module in MODULES.items() if importlib.util.find_spec(module) is not None]


def base_settings(engine: str) -> dict[str, Any]:
    """The section that every configuration of the tests starts from."""
    if engine == os.environ.get(OUTSIDE):
        return dict(json.loads(os.environ.get(OUTSIDE_SETTINGS, "{}")))
    return SETTINGS.get(engine, {})


@pytest.fixture(scope="session", autouse=True)
def _environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of its own for built-in models."""
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(params=here())
def engine_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make_config(engine_name: str) -> ConfigMaker:
    """A configuration of the tiny model on the engine under test; `settings` are merged into its section."""

    def make(settings: dict[str, Any] | None = None, **changes: Any) -> ExperimentConfig:
        config = ExperimentConfig(
            model="builtin:tiny-llama",
            engine=engine_name,
            dtype="float32",
            weights="real",
            workload=WorkloadSettings("synthetic", 4, 16, 8, 0),
            decoding=Decoding(),
            measurement=MeasurementSettings(1.0),
            settings={**base_settings(engine_name), **(settings or {})},
        )
        return replace(config, **changes)

    return make


@pytest.fixture(scope="module")
def _kept() -> Iterator[dict[str, Engine]]:
    """The engine of `loaded`, by its configuration."""
    kept: dict[str, Engine] = {}
    yield kept
    _end(kept)


def _end(kept: dict[str, Engine]) -> None:
    while kept:
        kept.popitem()[1].shutdown()


@pytest.fixture
def start(make_config: ConfigMaker, _kept: dict[str, Engine]) -> Iterator[Callable[..., Engine]]:
    """Prepare and load an engine; it is shut down when the test ends."""
    # The end of one vLLM takes from others in its process what they need.
    _end(_kept)
    running: list[Engine] = []

    def begin(settings: dict[str, Any] | None = None, **changes: Any) -> Engine:
        config = make_config(settings, **changes)
        engine = open_engine(config.engine)
        running.append(engine)
        engine.prepare(config, DeviceSet("cpu"))
        engine.load()
        return engine

    yield begin
    while running:
        running.pop().shutdown()


@pytest.fixture
def loaded(make_config: ConfigMaker, _kept: dict[str, Engine]) -> Engine:
    """An engine as `make_config` has it, loaded once for those tests of a file that follow each other."""
    config = make_config()
    if str(config) not in _kept:
        _end(_kept)
        engine = open_engine(config.engine)
        engine.prepare(config, DeviceSet("cpu"))
        engine.load()
        _kept[str(config)] = engine
    return _kept[str(config)]


@pytest.fixture(scope="session")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter of the tiny model, made by peft, that is strong enough to change every answer."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from pytest_llem.engines.builtin import builtin_path

    directory = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(builtin_path("builtin:tiny-llama"), dtype="float32")
    modules = ["q_proj", "v_proj", "down_proj"]
    settings = LoraConfig(r=8, lora_alpha=64, target_modules=modules, init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(model, settings).save_pretrained(directory)
    return directory


@pytest.fixture
def config_only(tmp_path: Path) -> Path:
    """A directory that holds nothing but a model's configuration."""
    from pytest_llem.engines.builtin import builtin_path

    directory = tmp_path / "shape"
    directory.mkdir()
    (directory / "config.json").write_bytes((builtin_path("builtin:tiny-llama") / "config.json").read_bytes())
    return directory
