"""Text as LaTeX, and documents that compile by themselves as well as by `\\input` in a paper.

Every part of `llem publish` that writes TeX calls it. What it makes must compile with pdfTeX, whatever a study or a
setting is called.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "`": "`{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "≥": r"$\geq$",
    "µ": r"$\mu$",
    "–": "--",
    "—": "---",
    "…": r"\ldots{}",
    "·": r"$\cdot$",
    "°": r"$^{\circ}$",
}
"""What TeX would not print as it is."""
ACCENTS = "\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030b\u030c\u0327"
LETTERS = "ßæøœłÆØŒŁ"
"""What TeX's first encoding (OT1) has, or makes of a letter and an accent: all other letters need another font."""
LAST_LETTER = 0x17F
"""Of Latin Extended-A: LaTeX knows no name for letters behind it."""


def escaped(text: str) -> str:
    """A text in one line that LaTeX prints as it is; a character that pdfTeX has no font for becomes its code point."""
    line = re.sub(r"\s+", " ", text)
    return "".join(SPECIAL.get(letter) or _printable(letter) for letter in line)


def _printable(letter: str) -> str:
    if letter.isascii():
        return letter if letter.isprintable() else f"U+{ord(letter):04X}"
    plain = unicodedata.normalize("NFKC", letter)
    if plain.isascii() and plain.isprintable():
        return "".join(SPECIAL.get(each, each) for each in plain)
    base, accents = (parts := unicodedata.normalize("NFD", letter))[0], parts[1:]
    made = len(accents) == 1 and base.isascii() and base.isalpha() and accents in ACCENTS
    return letter if (made and ord(letter) <= LAST_LETTER) or letter in LETTERS else f"U+{ord(letter):04X}"


def document(body: Sequence[str], packages: Sequence[str]) -> str:
    """A file that prints `body` where it is `\\input`, and is a whole document where it is compiled alone.

    `\\@nodocument` is `\\relax` from `\\begin{document}` on, and there only (LaTeX2e, ltfiles.dtx and ltoutput.dtx).
    """
    needs = f" that has {', '.join(packages)}" if packages else ""
    first = [
        rf"% \input this in a paper{needs}, or compile it alone.",
        r"\expandafter\ifx\csname @nodocument\endcsname\relax",
        r"  \let\llemend\relax",
        r"\else",
        r"  \documentclass{article}",
        *(rf"  \usepackage{{{package}}}" for package in packages),
        r"  \begin{document}",
        r"  \def\llemend{\end{document}}",
        r"\fi",
    ]
    return "\n".join([*first, *body, r"\llemend", ""])
