"""Continuous batching: transformers' own scheduler, which fills a batch again as soon as a request has ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from transformers import ContinuousBatchingConfig, GenerationConfig

from pytest_llem.engines.protocol import Completion, Request
from pytest_llem.engines.transformers.generation import cut
from pytest_llem.errors import EngineError

NO_EOS = -1
WAIT_S, STOP_S = 1.0, 10.0
CPU_PAGE_TOKENS = 64


class ContinuousGenerator:
    """A running batching manager, kept from repeat to repeat; at most `batch_size` requests run at once.

    `longest` is the most tokens that a request can have. All requests of a repeat are handed over together. Blocks of
    the key-value cache are never shared between requests, so that no prompt is spared by an earlier one.
    """

    def __init__(
        self, model: Any, generation: GenerationConfig, batch_size: int, eos_ids: Sequence[int], longest: int
    ) -> None:
        config = ContinuousBatchingConfig(max_requests_per_batch=batch_size, allow_block_sharing=False)
        if model.device.type == "cpu":
            # Left to itself it takes 60 % of the host's memory and half a minute to fill it.
            config.page_size = CPU_PAGE_TOKENS
            config.num_blocks = batch_size * (longest // CPU_PAGE_TOKENS + 1) + 1
            config.max_batch_tokens = max(batch_size * CPU_PAGE_TOKENS, longest)
        self.longest = longest
        self._eos_ids = list(eos_ids)
        self._passes = 0
        self._manager = model.init_continuous_batching(generation_config=generation, continuous_batching_config=config)
        self._manager.start()

    def run(self, requests: Sequence[Request], on_done: Callable[[int], None]) -> list[Completion]:
        """Generate for all requests; `on_done` gets the number of finished ones, also while none finishes."""
        self._passes += 1
        started: dict[str, tuple[Request, int]] = {}
        for request in requests:
            key = f"{self._passes}-{request.index}"
            started[key] = (request, time.monotonic_ns())
            self._manager.add_request(
                list(request.token_ids),
                request_id=key,
                max_new_tokens=request.max_new_tokens,
                record_timestamps=True,
                # None would fall back to the model's own end-of-sequence token.
                eos_token_id=NO_EOS if request.ignore_eos or not self._eos_ids else self._eos_ids,
            )
        done: list[Completion] = []
        while len(done) < len(requests):
            result = self._manager.get_result(timeout=WAIT_S)
            if result is not None and result.is_finished():
                done.append(self._completion(*started[result.request_id], result))
            elif result is None and not self._manager.is_running():
                raise EngineError(
                    f"continuous batching stopped after {len(done)} of {len(requests)} requests",
                    fix="read the lines before it in worker.log; lower transformers.batch_size if memory ran out",
                )
            if result is not None:
                on_done(len(done))
        return done

    def close(self) -> None:
        """Stop the manager's thread and free its cache."""
        self._manager.stop(block=True, timeout=STOP_S)
        self._manager.destroy()

    def _completion(self, request: Request, start_ns: int, result: Any) -> Completion:
        ids, stopped = cut(result.generated_tokens, () if request.ignore_eos else self._eos_ids)
        # The manager notes perf_counter, which on Linux is CLOCK_MONOTONIC, as monotonic_ns is.
        times = tuple(round(seconds * 1e9) for seconds in (result.timestamps or ())[: len(ids)])
        whole = times if times and len(times) == len(ids) else None
        return Completion(
            index=request.index,
            input_tokens=len(request.token_ids),
            output_ids=ids,
            start_ns=start_ns,
            end_ns=whole[-1] if whole else time.monotonic_ns(),
            finish_reason="error" if result.error else "stop" if stopped else "length",
            token_times_ns=whole,
            error=str(result.error) if result.error else None,
        )
