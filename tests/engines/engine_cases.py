"""Requests and answers that the engine tests share."""

from __future__ import annotations

from collections.abc import Callable

from pytest_llem.engines.protocol import Completion, Engine, Request
from pytest_llem.job.config import ExperimentConfig

ConfigMaker = Callable[..., ExperimentConfig]
Start = Callable[..., Engine]


def requests_of(*lengths: int, output: int = 8, ignore_eos: bool = True, first: int = 100) -> list[Request]:
    """One request per input length, with token ids that differ between requests."""
    return [
        Request(
            index,
            (1, *((first + 37 * index + 11 * position) % 1900 + 100 for position in range(length - 1))),
            output,
            ignore_eos,
        )
        for index, length in enumerate(lengths)
    ]


def generate(engine: Engine, requests: list[Request]) -> list[Completion]:
    """Completions in the order of the requests, whole."""
    engine.reset()
    done = engine.generate(requests, lambda _done, _total: None)
    whole = engine.read(done)
    return sorted(whole, key=lambda completion: completion.index)


def ids(completions: list[Completion]) -> list[tuple[int, ...]]:
    """What was generated; where a server gives text alone, that in the place of each token. None has failed."""
    assert [completion.error for completion in completions if completion.error is not None] == []
    return [c.output_ids or (hash(c.text),) * c.generated for c in completions]
