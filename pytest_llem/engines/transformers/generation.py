"""Runs batches through `model.generate`, and records the time of every step.

`TransformersEngine` makes one generator per configuration; the fork server imports it ahead (`INFO.preload`). What a
step does beside the model is energy of the window: add nothing to it.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, DynamicCache, GenerationConfig, StoppingCriteriaList

from pytest_llem.engines.hub_models import check_lengths
from pytest_llem.engines.protocol import Completion, Progress, Request
from pytest_llem.engines.refusals import one_line, sampling_settings
from pytest_llem.engines.transformers.loading import Loaded, out_of_memory
from pytest_llem.engines.transformers.settings import LOAD_KEYWORDS, TransformersSettings, suggestion
from pytest_llem.engines.transformers.stops import EndAtStrings, StopStrings
from pytest_llem.errors import EngineError, EngineSettingError
from pytest_llem.job.config import Decoding, ExperimentConfig

PhaseBorder = Callable[[str], AbstractContextManager[object]]
BEAM_FIELDS = ("early_stopping", "length_penalty")
OPTIONAL_FIELDS = ("no_repeat_ngram_size", "cache_implementation", "prompt_lookup_num_tokens")

STEPS_PER_SIGN = 8
"""Chosen: rare enough to cost nothing beside a step, often enough for the watch on a silent worker."""


class StepClock:
    """A streamer that keeps no text: it notes when the tokens of each step arrived on the host.

    `generate` first puts the prompt, then after each step the batch's new tokens, copied from the device: the copy
    waits for the device, so the times are those at which a client could have had the token. A step of speculative
    decoding puts several tokens at once. `on_step` is called at every eighth step.
    """

    def __init__(self, on_step: Callable[[], None]) -> None:
        self._times_ns: list[int] = []
        self._on_step = on_step

    def put(self, value: Any) -> None:
        """Called by `generate` with the prompt, of shape (requests, length), and then with each step's tokens."""
        times = self._times_ns
        now = time.monotonic_ns()
        times.append(now)
        if value.dim() > 1 and len(times) > 1:
            times.extend([now] * (value.shape[-1] - 1))
        if not len(times) % STEPS_PER_SIGN:
            self._on_step()

    def end(self) -> None:
        """Called by `generate` at the end."""

    @property
    def times_ns(self) -> list[int]:
        """The time of each generated token, the prompt left out."""
        return self._times_ns[1:]


class Generator:
    """One loaded model with the settings of one configuration, which turns requests into completions."""

    def __init__(self, loaded: Loaded, config: ExperimentConfig, settings: TransformersSettings) -> None:
        self.loaded = loaded
        self.model = loaded.model
        self._config = config
        self._settings = settings
        self._base = generation_fields(settings, config.decoding)
        self._generations: dict[tuple[int, bool], GenerationConfig] = {}
        self._stops: dict[tuple[str, ...], StopStrings] = {}
        self._continuous: ContinuousGenerator | None = None
        # What generate() finds unset it takes from the model's own generation_config, where an end-of-sequence token,
        # sampling or a temperature may lurk: leave nothing there.
        self.model.generation_config = GenerationConfig(pad_token_id=loaded.pad_id)

    def renewed(self, config: ExperimentConfig, settings: TransformersSettings) -> Generator:
        """A generator for another configuration on the same model; this one is closed."""
        self.close()
        return Generator(self.loaded, config, settings)

    def close(self) -> None:
        """Stop continuous batching, if it runs."""
        if self._continuous is not None:
            self._continuous.close()
            self._continuous = None

    def generate(self, requests: Sequence[Request], progress: Progress) -> list[Completion]:
        """Completions in the order of the requests. Raises `WorkloadError`, `OutOfMemoryError` or `EngineError`."""
        check_lengths(requests, self.model.config.get_text_config())
        if self._config.decoding.do_sample:
            torch.manual_seed(self._config.seed)
        size, total = self._settings.batch_size, len(requests)
        fix = f"lower transformers.batch_size (now {size}), the token counts or the dtype"
        if self._settings.continuous_batching:
            with out_of_memory(f"generating with up to {size} requests at once", fix, batch_size=size):
                done = self._continuous_for(requests).run(requests, lambda count: progress(count, total))
            return sorted(done, key=lambda completion: completion.index)
        done = []
        for batch in self._batches(requests):
            on_step = partial(progress, len(done), total)
            with out_of_memory(f"generating with batch size {len(batch)}", fix, batch_size=size):
                done += self._run_batch(batch, on_step)
            progress(len(done), total)
        return done

    def _batches(self, requests: Sequence[Request]) -> Iterator[Sequence[Request]]:
        size = self._settings.batch_size
        return (requests[first : first + size] for first in range(0, len(requests), size))

    def _continuous_for(self, requests: Sequence[Request]) -> ContinuousGenerator:
        longest = max(len(request.token_ids) + request.max_new_tokens for request in requests)
        if self._continuous is not None and longest > self._continuous.longest:
            self.close()
        if self._continuous is None:
            # Lengths and ends are given with each request.
            generation = GenerationConfig(**self._base, pad_token_id=self.loaded.pad_id)
            size, eos_ids = self._settings.batch_size, self.loaded.eos_ids
            self._continuous = ContinuousGenerator(self.model, generation, size, eos_ids, longest)
        return self._continuous

    def _run_batch(self, batch: Sequence[Request], on_step: Callable[[], None]) -> list[Completion]:
        """Generate for one static batch; it ends when its longest request does.

        A request's `end_ns` is the time of its last token. Tokens that the batch produces for a row after that row's
        own end are not counted; those of a string at which it ends are.
        """
        input_ids, attention_mask = pad_left(batch, self.loaded.pad_id, self.model.device)
        ending = self._ending(batch, input_ids.shape[1])
        clock = None if self._settings.num_beams > 1 else StepClock(on_step)
        generation = self._generation(max(request.max_new_tokens for request in batch), batch[0].ignore_eos)
        start_ns = time.monotonic_ns()
        sequences = self.model.generate(
            input_ids,
            attention_mask=attention_mask,
            generation_config=generation,
            streamer=clock,
            stopping_criteria=None if ending is None else StoppingCriteriaList([ending]),
        )
        rows = sequences[:, input_ids.shape[1] :].tolist()
        end_ns = time.monotonic_ns()
        times = clock.times_ns if clock is not None else None
        ends = [None if ending is None else ending.end(place, row) for place, row in enumerate(rows)]
        return [
            self._completion(request, row, end, start_ns, end_ns, times)
            for request, row, end in zip(batch, rows, ends, strict=True)
        ]

    def _ending(self, batch: Sequence[Request], begin: int) -> EndAtStrings | None:
        """What ends the batch's answers at strings, if any does; answers begin at the position `begin`."""
        if not any(request.stop for request in batch):
            return None
        # With special tokens, which a stop string may name; of its own accord it may also remove blanks.
        text_of = partial(self.loaded.tokenizer.decode, clean_up_tokenization_spaces=False)
        for stop in {request.stop for request in batch} - self._stops.keys():
            self._stops[stop] = StopStrings(stop, text_of)
        stops = [self._stops[request.stop] for request in batch]
        return EndAtStrings(stops, begin, () if batch[0].ignore_eos else self.loaded.eos_ids)

    def _generation(self, max_new_tokens: int, ignore_eos: bool) -> GenerationConfig:
        key = (max_new_tokens, ignore_eos)
        if key not in self._generations:
            self._generations[key] = GenerationConfig(
                **self._base,
                max_new_tokens=max_new_tokens,
                eos_token_id=None if ignore_eos else list(self.loaded.eos_ids) or None,
                pad_token_id=self.loaded.pad_id,
            )
        return self._generations[key]

    def _completion(
        self,
        request: Request,
        row: list[int],
        end: int | None,
        start_ns: int,
        end_ns: int,
        times: list[int] | None,
    ) -> Completion:
        """What became of a request, whose row comes to a string after `end` tokens."""
        ids, stopped = cut(row[: request.max_new_tokens][:end], () if request.ignore_eos else self.loaded.eos_ids)
        stopped = stopped or end == len(ids)
        own = tuple(times[: len(ids)]) if times is not None and len(times) >= len(ids) else None
        return Completion(
            index=request.index,
            input_tokens=len(request.token_ids),
            output_ids=ids,
            start_ns=start_ns,
            end_ns=own[-1] if own else end_ns,
            finish_reason="stop" if stopped else "length",
            token_times_ns=own,
        )

    def split_obstacle(self, requests: Sequence[Request]) -> str | None:
        """Why prefill and decode of these requests cannot be run by the plain loop, or `None`."""
        settings, decoding = self._settings, self._config.decoding
        reasons = (
            (decoding.do_sample, "decoding is not greedy"),
            (not all(request.ignore_eos for request in requests), "answers end at their end-of-sequence token"),
            (any(request.stop for request in requests), "answers end at stop strings"),
            (settings.num_beams > 1, "num_beams is above 1"),
            (settings.prompt_lookup_num_tokens is not None, "prompt_lookup_num_tokens is set"),
            (settings.continuous_batching, "continuous_batching is on"),
            (settings.cache_implementation not in (None, "dynamic"), "cache_implementation is not dynamic"),
            (not settings.use_cache, "use_cache is off"),
            (decoding.repetition_penalty not in (None, 1.0), "repetition_penalty is set"),
            (settings.no_repeat_ngram_size is not None, "no_repeat_ngram_size is set"),
            (bool(settings.extra), "extra is set"),
        )
        return next((text for applies, text in reasons if applies), None)

    def generate_in_phases(self, requests: Sequence[Request], border: PhaseBorder) -> list[tuple[int, ...]]:
        """Greedy tokens of each request; prefill of each batch runs inside `border("first_token")`, then `"decode"`.

        `generate` has no point between prefill and decode. This loop does the same forward passes (same cache, mask,
        positions, and logits of the last position alone) and makes the same choices, so its tokens are those of
        `generate`. Every row gets as many tokens as the longest request wants and is cut to its own number afterwards.
        """
        return [row for batch in self._batches(requests) for row in self._batch_in_phases(batch, border)]

    def _batch_in_phases(self, batch: Sequence[Request], border: PhaseBorder) -> list[tuple[int, ...]]:
        model = self.model
        input_ids, mask = pad_left(batch, self.loaded.pad_id, model.device)
        cache = DynamicCache(config=model.config)
        with torch.inference_mode():
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            has_padding = bool((mask == 0).any())
            with border("first_token"):
                token = _step(model, input_ids, mask if has_padding else None, positions, cache)
            tokens = [token]
            position = positions[:, -1:]
            with border("decode"):
                for _ in range(max(request.max_new_tokens for request in batch) - 1):
                    mask = torch.nn.functional.pad(mask, (0, 1), value=1)
                    position = position + 1
                    token = _step(model, token[:, None], mask if has_padding else None, position, cache)
                    # generate() reads the finished flags on the host after each step: wait for the device as it does.
                    token.max().item()
                    tokens.append(token)
            rows = torch.stack(tokens, dim=1).tolist()
        return [tuple(row[: request.max_new_tokens]) for request, row in zip(batch, rows, strict=True)]


def generation_fields(settings: TransformersSettings, decoding: Decoding) -> dict[str, Any]:
    """The fields of `GenerationConfig` for these settings. Raises `EngineSettingError` for what it refuses."""
    fields: dict[str, Any] = {
        "do_sample": decoding.do_sample,
        "use_cache": settings.use_cache,
        "num_beams": settings.num_beams,
    }
    names = (*OPTIONAL_FIELDS, *(BEAM_FIELDS if settings.num_beams > 1 else ()))
    fields.update({name: value for name in names if (value := getattr(settings, name)) is not None})
    fields.update(sampling_settings(decoding))
    fields.update({key: value for key, value in settings.extra.items() if key not in LOAD_KEYWORDS})
    known = set(vars(GenerationConfig()))
    for key in fields:
        if key not in known or key.startswith("_"):
            raise EngineSettingError(
                f"transformers.extra.{key}: neither GenerationConfig nor from_pretrained has such a setting",
                fix=suggestion(key, known | set(LOAD_KEYWORDS)) or "remove it",
                details={"key": f"transformers.extra.{key}"},
            )
    if fields.get("cache_implementation") == "paged":
        raise EngineSettingError(
            "transformers.extra.cache_implementation: 'paged' would silently become continuous batching",
            fix="set transformers.continuous_batching: true instead",
        )
    try:
        GenerationConfig(**fields).validate(strict=True)
    except (ValueError, TypeError) as problem:
        text = f"transformers refuses the decoding settings: {one_line(problem)}"
        raise EngineSettingError(text, fix="correct them") from problem
    return fields


def pad_left(batch: Sequence[Request], pad_id: int, device: Any) -> tuple[Any, Any]:
    """Token ids and attention mask of a batch, each (requests, longest prompt), padded on the left."""
    longest = max(len(request.token_ids) for request in batch)
    ids, mask = array("q"), torch.ones((len(batch), longest), dtype=torch.long)
    for row, request in enumerate(batch):
        missing = longest - len(request.token_ids)
        ids.extend([pad_id] * missing)
        ids.extend(request.token_ids)
        mask[row, :missing] = 0
    # Through a buffer: torch.tensor() looks at each number of a nested list, as long as a small model's step takes.
    return torch.frombuffer(ids, dtype=torch.long).view(len(batch), longest).to(device, copy=True), mask.to(device)


def cut(row: Sequence[int], eos_ids: Sequence[int]) -> tuple[tuple[int, ...], bool]:
    """A row up to and including its first end-of-sequence token, and whether there was one."""
    for position, token in enumerate(row):
        if token in eos_ids:
            return tuple(row[: position + 1]), True
    return tuple(row), False


NO_EOS = -1
"""No token has a negative id."""

WAIT_S, STOP_S = 1.0, 10.0

CPU_PAGE_TOKENS = 64
"""Chosen: small beside the lengths of requests, so that little of the cache is reserved for nothing."""


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
