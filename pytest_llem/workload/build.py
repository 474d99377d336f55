"""Builds the requests of one repeat from the workload's settings: prompts, and how long prompts and answers are.

The worker calls `build_workload` once the model is loaded; `containers` and `machine` resolve aliases. Equal settings
and tokenizer must give equal requests on every machine and in every version: results compare `prompts_hash`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from pytest_llem.errors import WorkloadError
from pytest_llem.job.config import Lengths, WorkloadSettings
from pytest_llem.job.measurement import Request
from pytest_llem.workload.texts import corpus_text, read_texts
from pytest_llem.workload.tokenizer import TextOnly, Tokenizer

SYNTHETIC = "synthetic"

ALIASES = {"aienergyscore": {"dataset": "EnergyStarAI/text_generation", "column": "text", "split": "train"}}
"""Data sets by the name of the method that fixes them. AI Energy Score documents 1,000 prompts at batch size 1; its
energy is that of the accelerators over preprocessing, prefill and decode, per 1,000 prompts."""

OUTPUT_STREAM = 1
"""Added to the seed for output lengths, so that they do not follow the input lengths."""


@dataclass(frozen=True)
class Workload:
    """The requests of one repeat, in order, and the hash that tells whether two workloads are the same."""

    requests: tuple[Request, ...]
    prompts_hash: str
    dataset: str


def build_workload(settings: WorkloadSettings, tokenizer: Tokenizer) -> Workload:
    """Make the requests of one repeat. Raises `WorkloadError` when the data set cannot give them."""
    if settings.prompts < 1:
        raise WorkloadError(f"workload.prompts: {settings.prompts} is not positive", fix="use 1 or more")
    settings = resolve_alias(settings)
    texts: Sequence[str | None] = [None] * settings.prompts
    if settings.dataset == SYNTHETIC:
        prompts = _synthetic(settings, tokenizer)
    elif isinstance(tokenizer, TextOnly) and settings.input_tokens is None and not settings.chat_template:
        texts = read_texts(settings)
        prompts = [() for _ in texts]
    else:
        texts = read_texts(settings)
        whole = [_tokens(text or "", settings, tokenizer) for text in texts]
        prompts = _shortened(whole, settings)
        texts = [text if ids == cut else None for text, ids, cut in zip(texts, whole, prompts, strict=True)]
    outputs = draw_lengths(settings.output_tokens, len(prompts), settings.seed + OUTPUT_STREAM)
    requests = tuple(
        Request(index, ids, tokens, settings.ignore_eos, text)
        for index, (ids, tokens, text) in enumerate(zip(prompts, outputs, texts, strict=True))
    )
    # Of prompts that nothing here could turn into tokens, the UTF-8 bytes are hashed.
    prompts_hash = token_hash([r.token_ids or tuple((r.text or "").encode()) for r in requests])
    return Workload(requests, prompts_hash, settings.dataset)


def resolve_alias(settings: WorkloadSettings) -> WorkloadSettings:
    """The settings with a method's name replaced by the data set that it means; what the user set stays."""
    alias = ALIASES.get(settings.dataset)
    if alias is None:
        return settings
    return dataclasses.replace(
        settings,
        dataset=alias["dataset"],
        column=settings.column or alias["column"],
        split=settings.split or alias["split"],
    )


def token_hash(sequences: Sequence[Sequence[int]]) -> str:
    """sha256 over token ids: each sequence as its length and its ids, 8 bytes each, little-endian."""
    digest = hashlib.sha256()
    for ids in sequences:
        digest.update(b"".join(value.to_bytes(8, "little") for value in (len(ids), *ids)))
    return digest.hexdigest()


def _synthetic(settings: WorkloadSettings, tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    if settings.input_tokens is None:
        raise WorkloadError(
            "workload.input_tokens: synthetic prompts need a length", fix="set workload.input_tokens, e.g. to 128"
        )
    lengths = draw_lengths(settings.input_tokens, settings.prompts, settings.seed)
    if not settings.chat_template:
        return synthetic_prompts(tokenizer, lengths, settings.seed)
    raise WorkloadError(
        "workload.chat_template cannot be combined with synthetic prompts, whose lengths are exact",
        fix="set workload.chat_template: false, or use a data set of texts",
    )


def _tokens(text: str, settings: WorkloadSettings, tokenizer: Tokenizer) -> tuple[int, ...]:
    if settings.chat_template:
        return tuple(tokenizer.chat(text))
    first = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    ids = (*first, *tokenizer.encode(text))
    if not ids:
        raise WorkloadError(f"workload.dataset {settings.dataset!r}: a prompt has no tokens", fix="remove empty texts")
    return ids


def _shortened(prompts: list[tuple[int, ...]], settings: WorkloadSettings) -> list[tuple[int, ...]]:
    """Prompts cut to `input_tokens`, which is an upper bound for a data set: what is shorter stays as it is."""
    if settings.input_tokens is None:
        return prompts
    limits = draw_lengths(settings.input_tokens, len(prompts), settings.seed)
    return [ids[:limit] for ids, limit in zip(prompts, limits, strict=True)]


def draw_lengths(wanted: int | Lengths, count: int, seed: int) -> list[int]:
    """`count` lengths of at least 1, from one seeded stream; raises `WorkloadError` for an impossible distribution.

    Only `Random.random` is used, whose sequence Python guarantees: other methods may change between versions.
    """
    if isinstance(wanted, int):
        if wanted < 1:
            raise WorkloadError(f"a length of {wanted} tokens is not possible", fix="use 1 or more")
        return [wanted] * count
    if not 1 <= wanted.low <= wanted.high:
        raise WorkloadError(f"lengths from {wanted.low} to {wanted.high} are not possible", fix="use 1 <= low <= high")
    uniform = random.Random(seed).random
    if wanted.distribution == "uniform":
        span = wanted.high - wanted.low + 1
        return [wanted.low + int(uniform() * span) for _ in range(count)]
    if wanted.mean is None or wanted.sigma is None or wanted.mean <= 0 or wanted.sigma <= 0:
        raise WorkloadError("lognormal lengths need a positive mean and sigma", fix="give `mean` and `sigma`")
    # The mean of a lognormal is exp(mu + sigma^2 / 2): `mean` is that of the lengths, before clipping.
    normal = NormalDist(math.log(wanted.mean) - wanted.sigma**2 / 2, wanted.sigma)
    drawn = (math.exp(normal.inv_cdf(min(max(uniform(), 1e-12), 1 - 1e-12))) for _ in range(count))
    return [min(max(round(length), wanted.low), wanted.high) for length in drawn]


def synthetic_prompts(tokenizer: Tokenizer, lengths: Sequence[int], seed: int) -> list[tuple[int, ...]]:
    """One prompt per length: a run of the corpus's tokens, led by the model's own first token where it has one.

    Prompts begin at different places of the corpus, as long as it has enough of them, so that no prompt shares its
    beginning with another and a prefix cache finds nothing. A prompt longer than the corpus reads on from its start.
    """
    tokens = tokenizer.encode(corpus_text())
    first = () if tokenizer.bos_id is None else (tokenizer.bos_id,)
    starts = _distinct_starts(len(tokens), len(lengths), seed)
    return [
        (first + _run(tokens, start, length - len(first)))[:length]
        for start, length in zip(starts, lengths, strict=True)
    ]


def _run(tokens: list[int], start: int, length: int) -> tuple[int, ...]:
    run = tokens[start : start + length]
    while len(run) < length:
        run += tokens[: length - len(run)]
    return tuple(run)


def _distinct_starts(size: int, count: int, seed: int) -> list[int]:
    uniform = random.Random(seed).random
    taken: set[int] = set()
    starts: list[int] = []
    for _ in range(count):
        start = int(uniform() * size)
        if len(taken) < size // 2:
            while start in taken:
                start = int(uniform() * size)
        taken.add(start)
        starts.append(start)
    return starts
