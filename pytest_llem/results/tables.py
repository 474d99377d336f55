"""Small tables as aligned text and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

Row = Sequence[str]


def table(head: Row, body: Sequence[Row], *, left: int = 1) -> list[str]:
    """Aligned lines, head first; the first `left` columns are set to the left, the others to the right."""
    rows = [head, *body]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return ["  ".join(_cells(row, widths, left)).rstrip() for row in rows]


def markdown_table(head: Row, body: Sequence[Row], *, left: int = 1) -> list[str]:
    """The same as GitHub-flavoured Markdown, with pipes escaped."""
    marks = [":---" if column < left else "---:" for column in range(len(head))]
    rows = [head, marks, *body]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]


def _cells(row: Row, widths: Sequence[int], left: int) -> list[str]:
    return [
        cell.ljust(width) if column < left else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
