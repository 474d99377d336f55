"""The scores of a run's questions in a baseline's file: a short line for each cycle, readable in a diff.

`baselines` writes and reads it. The format is published (docs/gates.md) and stays: of the first cycle a digit for each
question, `0110`, or numbers where a score lies in between, `0 0.5 1`; of each further one the same, or what differs
from the first, `17:0 203:1` by the number of the question from 1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from pytest_llem.errors import StoreError

DIGITS = 4
"""Decimals of a score in between. Chosen: a sum over ten thousand questions is right to half an answer."""


def as_saved(scores: Sequence[float]) -> tuple[float, ...]:
    """The scores as a baseline has them, so that equal ones are equal on both sides."""
    return tuple(round(score, DIGITS) for score in scores)


def written_scores(cycles: Mapping[str, Sequence[float]]) -> dict[str, str]:
    """Each cycle's scores as a line; the whole ones, or the changes to the first cycle's, whichever is shorter."""
    lines: dict[str, str] = {}
    first: Sequence[float] = ()
    for name, scores in cycles.items():
        plain = set(scores) <= {0.0, 1.0}
        whole = "".join("1" if score else "0" for score in scores) if plain else " ".join(map(_number, scores))
        pairs = enumerate(zip(first, scores, strict=True), 1) if len(first) == len(scores) and lines else None
        changes = None if pairs is None else " ".join(f"{at}:{_number(now)}" for at, (old, now) in pairs if old != now)
        lines[name] = whole if changes is None or len(whole) < len(changes) else changes
        first = first or scores
    return lines


def read_scores(lines: Mapping[str, str]) -> dict[str, tuple[float, ...]]:
    """The same back. Raises `StoreError` for a line that is none."""
    cycles: dict[str, tuple[float, ...]] = {}
    for name, line in lines.items():
        try:
            if cycles and (not line or ":" in line):
                scores = [*next(iter(cycles.values()))]
                for change in line.split():
                    at, _, score = change.partition(":")
                    scores[int(at) - 1] = float(score)
                cycles[name] = tuple(scores)
            else:
                cycles[name] = tuple(map(float, line if re.fullmatch("[01]+", line) else line.split()))
        except (ValueError, IndexError):
            raise StoreError(
                f"the scores of {name}, {line[:40]!r}, are none", fix="save the baseline again: --llem-save-baseline"
            ) from None
    return cycles


def _number(score: float) -> str:
    return f"{round(score, DIGITS):g}"
