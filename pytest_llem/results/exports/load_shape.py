"""How requests reached the engine, as other tools' formats ask for it.

The exports `vllm_bench` and `mlperf` call `load_of`. It must read what ran, not what these formats have names for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pytest_llem.results.schema import Result

CLIENT = "openai"
"""The engine that is a client of a server: its requests are sent, one by one, even without an arrival process."""


@dataclass(frozen=True)
class LoadShape:
    """How requests arrive.

    `process` is that of `workload.arrival` (constant, poisson, gamma, burst, ramp, schedule, concurrency); without one
    it is `all_at_once` where a client sends them, `concurrency` where the client limits how many are open, and
    `offline` in a process with the engine. `rate_per_s` is that of a ramp's start. `batch_size` is that of static
    batches, one after another.
    """

    process: str
    rate_per_s: float | None
    max_concurrency: int | None
    batch_size: int | None
    burstiness: float | None = None
    end_rate_per_s: float | None = None


def load_of(result: Result) -> LoadShape:
    """The load of a result, from its configuration and what the engine ran with."""
    config, effective = result.experiment.config, result.engine.effective
    arrival, settings = _mapping(_mapping(config.get("workload")).get("arrival")), _mapping(config.get("settings"))
    limits = [arrival.get("concurrency"), settings.get("concurrency") if result.engine.name == CLIENT else None]
    open_at_most = min((limit for limit in limits if isinstance(limit, int)), default=None)
    batch = effective.get("batch_size")
    process = result.workload.load_shape
    if process == "offline" and result.engine.name == CLIENT:
        process = "all_at_once" if open_at_most is None else "concurrency"
    return LoadShape(
        process=process,
        rate_per_s=_number(arrival.get("rate_per_s")),
        max_concurrency=open_at_most,
        batch_size=batch if isinstance(batch, int) and not effective.get("continuous_batching") else None,
        burstiness=_number(arrival.get("burstiness")),
        end_rate_per_s=_number(arrival.get("end_rate_per_s")),
    )


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}
