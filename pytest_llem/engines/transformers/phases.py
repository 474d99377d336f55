"""Prefill and decode apart: the loop of `generate` by hand, with a border between its two parts.

`generate` gives no place at which the prompt has been processed and nothing else has begun. This loop does the same
forward passes (same cache, mask, positions, and logits of the last position alone) and takes the same greedy choices,
so its tokens are those of `generate`; a test holds it to that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from transformers import DynamicCache

from pytest_llem.engines.protocol import Request
from pytest_llem.engines.transformers.generation import pad_left
from pytest_llem.engines.transformers.settings import TransformersSettings
from pytest_llem.job.config import Decoding

PhaseBorder = Callable[[str], "AbstractContextManager[object]"]
FIRST_TOKEN, DECODE = "first_token", "decode"


def obstacle(settings: TransformersSettings, decoding: Decoding, *, ignore_eos: bool) -> str | None:
    """Why these settings cannot be run by the plain loop, or `None`."""
    reasons = (
        (decoding.do_sample, "decoding is not greedy"),
        (not ignore_eos, "answers end at their end-of-sequence token"),
        (settings.num_beams > 1, "num_beams is above 1"),
        (settings.prompt_lookup_num_tokens is not None, "prompt_lookup_num_tokens is set"),
        (settings.continuous_batching, "continuous_batching is on"),
        (settings.cache_implementation not in (None, "dynamic"), "cache_implementation is not dynamic"),
        (not settings.use_cache, "use_cache is off"),
        (decoding.repetition_penalty not in (None, 1.0), "repetition_penalty is set"),
        (settings.no_repeat_ngram_size is not None, "no_repeat_ngram_size is set"),
        (bool(settings.extra), "extra is set"),
    )
    return next((text for is_so, text in reasons if is_so), None)


def generate_in_phases(model: Any, batch: Sequence[Request], pad_id: int, border: PhaseBorder) -> list[tuple[int, ...]]:
    """Greedy tokens of one batch; the two phases run inside `border("first_token")` and `border("decode")`.

    Every row gets as many tokens as the longest request wants and is cut to its own number afterwards.
    """
    input_ids, mask = pad_left(batch, pad_id, model.device)
    steps = max(request.max_new_tokens for request in batch)
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        has_padding = bool((mask == 0).any())
        with border(FIRST_TOKEN):
            token = _step(model, input_ids, mask if has_padding else None, positions, cache)
        tokens = [token]
        position = positions[:, -1:]
        with border(DECODE):
            for _ in range(steps - 1):
                mask = torch.nn.functional.pad(mask, (0, 1), value=1)
                position = position + 1
                token = _step(model, token[:, None], mask if has_padding else None, position, cache)
                # generate() reads the finished flags on the host after each step: wait for the device as it does.
                token.max().item()
                tokens.append(token)
        rows = torch.stack(tokens, dim=1).tolist()
    return [tuple(row[: request.max_new_tokens]) for request, row in zip(batch, rows, strict=True)]


def _step(model: Any, input_ids: Any, mask: Any, positions: Any, cache: Any) -> Any:
    outputs = model(
        input_ids=input_ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return outputs.logits[:, -1].float().argmax(-1)
