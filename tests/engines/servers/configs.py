"""Configurations of the built-in model on a real server."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pytest_llem.job.config import Decoding, ExperimentConfig, MeasurementSettings, WorkloadSettings
from tests.engines.engine_cases import ConfigMaker


def config_maker(url: str, **fixed: Any) -> ConfigMaker:
    """Makes configurations for the server at `url`, with `fixed` settings of the engine in all of them."""

    def make(settings: dict[str, Any] | None = None, **changes: Any) -> ExperimentConfig:
        config = ExperimentConfig(
            model="builtin:tiny-llama",
            engine="openai",
            dtype="float32",
            weights="real",
            workload=WorkloadSettings("synthetic", 4, 16, 8, 0),
            decoding=Decoding(),
            measurement=MeasurementSettings(1.0),
            settings={"base_url": url, **fixed, **(settings or {})},
        )
        return replace(config, **changes)

    return make
