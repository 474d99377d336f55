"""Pieces of HTML that the report's sections are made of: tables, lists of terms, and what folds away.

The sections call it. Everything that it is given as text is escaped; what a user named must never become markup.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Literal

Tone = Literal["good", "bad", "open"]
"""`good` and `bad` verdicts, and those that leave something open."""
MARKS: Mapping[Tone, str] = {"good": "✓", "bad": "✗", "open": "!"}
NOT_KNOWN = '<span aria-label="not known">–</span>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str, *, name: str | None = None) -> str:
    """A table in a box that scrolls by itself. Cells hold markup (use `text` for what is none), heads and caption text.

    On narrow screens each row is a block of lines, the first cell as its title and the head beside each other one.
    `name` is its id, by default the caption: captions of a page must differ then.
    """
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    inner = f"<caption>{escape(caption)}</caption><thead><tr>{heads}</tr></thead><tbody>{body}</tbody>"
    name = name or re.sub(r"\W+", "-", caption.lower())
    return f'{_beside(name, head)}{scroll(f"""<table class="wrap" id="{name}">{inner}</table>""", caption)}'


def _beside(name: str, head: Sequence[str]) -> str:
    """The style that shows heads beside the cells of narrow screens, said once per table; none for two columns."""
    quoted = [re.sub(r"[^\w .,()/-]", lambda found: f"\\{ord(found[0]):x} ", each) for each in head]
    rules = [f'#{name} td:nth-child({place})::before{{content:"{each}"}}' for place, each in enumerate(quoted, 1)]
    return f"<style>@media(max-width:45rem){{{''.join(rules[1:])}}}</style>" if len(head) > 2 else ""


def scroll(content: str, label: str) -> str:
    """A box that scrolls by itself, also by keyboard."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">{content}</div>'


def terms(entries: Iterable[tuple[str, str]]) -> str:
    """Terms with what they mean, which may hold markup."""
    return f"<dl>{''.join(f'<div><dt>{escape(term)}</dt><dd>{meaning}</dd></div>' for term, meaning in entries)}</dl>"


def fold(summary: str, content: str) -> str:
    """Content that opens on demand, also without scripts."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def said(tone: Tone, words: str) -> str:
    """A verdict by mark, colour and words: nothing is said by colour alone."""
    return f'<span class="{tone}"><span aria-hidden="true">{MARKS[tone]} </span>{escape(words)}</span>'


def text(value: object) -> str:
    """A value as a user would write it, escaped."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    return escape(str(value).removesuffix(".0") if isinstance(value, float) else str(value))


def count(number: int, noun: str) -> str:
    """`1 cycle`, `2 cycles`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"
