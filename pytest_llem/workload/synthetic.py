"""Prompts of exact token lengths, cut from the shipped corpus."""

from __future__ import annotations

import random
from collections.abc import Sequence

from pytest_llem.workload.corpus import corpus_text
from pytest_llem.workload.tokenizer import Tokenizer


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
