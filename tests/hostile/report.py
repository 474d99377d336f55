"""What the long forms share: the figures of docs/reliability.md, each between the two comments that bear its name.

A module gives its name and its table. It may not edit the page in another way: every figure there is a script's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.figures import write_figures

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
SEED = 20261129
"""Chosen: fixed, so that CI sees the same cases each time."""


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def write_docs(name: str, text: str) -> None:
    """Put a table into the page, as `write_figures` does."""
    write_figures(name, text, PAGE)
