"""An engine whose work goes as fast, and draws as much of the first simulated GPU, as that is set to."""

from __future__ import annotations

import time
from collections.abc import Sequence

from pytest_llem.engines.protocol import Capabilities, Completion, Progress, Request
from tests.plugin.faulty_engine.llem_faulty import FaultyEngine
from tests.simulated_nvml.loads import attached, work

TOKEN_S = 0.002
"""Of one token, at the highest clocks."""


class LoadingEngine(FaultyEngine):
    """The faulty engine, as a load of a GPU."""

    name = "loading"
    capabilities = Capabilities()

    def generate(self, requests: Sequence[Request], progress: Progress) -> list[Completion]:
        """All requests at once."""
        (gpu, *_) = attached()
        start = time.monotonic_ns()
        work(gpu, TOKEN_S * sum(request.max_new_tokens for request in requests))
        end = time.monotonic_ns()
        return [
            Completion(
                request.index, len(request.token_ids), (65,) * request.max_new_tokens, start, end, "length", None
            )
            for request in requests
        ]
