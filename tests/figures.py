"""Puts figures that a script measured into a page, each between the two comments that bear its name."""

from __future__ import annotations

from pathlib import Path


def write_figures(name: str, text: str, page: Path) -> None:
    """Put `text` between `<!-- NAME: begin -->` and `<!-- NAME: end -->`; `ValueError` where these are missing."""
    head, begun, rest = page.read_text(encoding="utf-8").partition(f"<!-- {name}: begin -->\n")
    _, ended, tail = rest.partition(f"<!-- {name}: end -->")
    if not begun or not ended:
        raise ValueError(f"{page} has no place for {name}")
    page.write_text(f"{head}{begun}{text}\n<!-- {name}: end -->{tail}", encoding="utf-8")
