"""Prompts of exact lengths, made of the corpus of this package.

`build` and `replayed` make prompts of it, and the built-in models their tokenizer. Equal seeds must give equal prompts
on every machine and in every version.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from functools import lru_cache
from importlib.resources import files

from pytest_llem.workload.tokenizer import Tokenizer

OWN_TOKENS = 8
"""Tokens by which runs of the corpus are told apart. Chosen: half of what vLLM's prefix cache takes for a block."""


@lru_cache(maxsize=1)
def corpus_text() -> str:
    """The corpus, a paragraph a line: about 108 KB of ASCII.

    It is the running text of Isaac Newton's *Opticks* (fourth edition, 1730), which is in the public domain, without
    headings, tables, figures and footnotes.
    """
    return (files("pytest_llem.workload") / "corpus.txt").read_text(encoding="ascii")


class CorpusRuns:
    """Runs of the corpus's tokens by name: a name has the same run whenever it is asked for, a prefix of it if shorter.

    No two names have runs that share their first `OWN_TOKENS` tokens, as long as the corpus has so many places; with
    more names those of one place share that many and go on elsewhere, so that they differ within as many again.
    """

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self._tokens = tokenizer.encode(corpus_text())
        places: dict[tuple[int, ...], int] = {}
        for place in range(max(1, len(self._tokens) - OWN_TOKENS + 1)):
            places.setdefault(self._own(place), place)
        uniform = random.Random(seed).random
        self._places = [place for _, place in sorted((uniform(), place) for place in places.values())]
        self._index = {self._own(place): index for index, place in enumerate(self._places)}
        self._ranks: dict[Hashable, int] = {}

    def run(self, name: Hashable, length: int) -> tuple[int, ...]:
        """The first `length` tokens of a name's run; what is longer than the corpus reads on from its start."""
        rank = self._ranks.setdefault(name, len(self._ranks))
        lap, index = divmod(rank, len(self._places))
        place = self._places[index]
        if not lap:
            return run_of(self._tokens, place, length)
        # Not where the first lap goes on.
        own_next = self._index.get(self._own(place + OWN_TOKENS), index)
        lap += lap >= (own_next - index) % len(self._places)
        elsewhere = self._places[(index + lap) % len(self._places)]
        own = run_of(self._tokens, place, min(length, OWN_TOKENS))
        return own + run_of(self._tokens, elsewhere, length - len(own))

    def _own(self, place: int) -> tuple[int, ...]:
        return tuple(self._tokens[place : place + OWN_TOKENS])


def synthetic_prompts(tokenizer: Tokenizer, lengths: Sequence[int], seed: int) -> list[tuple[int, ...]]:
    """One prompt per length: a run of the corpus's tokens, led by the model's own first token where it has one.

    Prompts begin at different places of the corpus, as long as it has enough of them, so that no prompt shares its
    beginning with another and a prefix cache finds nothing. A prompt longer than the corpus reads on from its start.
    """
    tokens = tokenizer.encode(corpus_text())
    first = () if tokenizer.bos_id is None else (tokenizer.bos_id,)
    starts = _distinct_starts(len(tokens), len(lengths), seed)
    return [
        (first + run_of(tokens, start, length - len(first)))[:length]
        for start, length in zip(starts, lengths, strict=True)
    ]


def run_of(tokens: list[int], start: int, length: int) -> tuple[int, ...]:
    """So many tokens from a place on, which begin anew at the end."""
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
