"""The text that synthetic prompts and the built-in models' tokenizer are made from.

`corpus.txt` is prose from Isaac Newton's *Opticks* (fourth edition, 1730), which is in the public domain: the running
text, one paragraph a line, without headings, tables, figures and footnotes.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files


@lru_cache(maxsize=1)
def corpus_text() -> str:
    """The whole corpus, about 108 KB of ASCII."""
    return (files("pytest_llem.workload") / "corpus.txt").read_text(encoding="ascii")


def corpus_paragraphs() -> list[str]:
    """The corpus, a paragraph an entry."""
    return corpus_text().splitlines()
