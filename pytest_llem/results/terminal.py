"""Text for people: numbers, aligned tables (also as Markdown), and a progress count while a command reads many files.

The verbs of `llem`, the report and the session's summary use it. Free to change: nobody may parse terminal output.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from statistics import median
from typing import Protocol, TypeVar

from pytest_llem.errors import visible

T = TypeVar("T")
Row = Sequence[str]
_MARKUP = re.compile(r"[\\`*~$\[\]<>|]|(?<![^\W_])_|_(?![^\W_])")
"""What GitHub's Markdown takes for markup anywhere in a line; an underscore only at the edge of a word."""
_LINKED = re.compile(r"@(?=\w)|#(?=\d)|\bGH-(?=\d)|://(?=\S)|\bwww\.(?=\S)", re.IGNORECASE)
"""What GitHub links by itself (its "Autolinked references and URLs"): a break without width behind it stops that."""
_WITHOUT_WIDTH = re.compile(
    "[\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200d\u2060-\u2065\u3164\ufe00-\ufe0e\ufeff\uffa0"
    "\U000e0000-\U000e0fff]"
)
"""Characters that show nothing (Unicode's Default_Ignorable_Code_Point), but for the mark of a picture, U+FE0F."""
FORMULA_MARKS = tuple("=+-@\t\r\n＝＋－＠")
SHOW_AFTER_S = 0.5
"""Chosen: a command that ends sooner needs no count."""
INTERVAL_S = 0.1
"""Chosen: ten updates a second read as movement and cost nothing."""
CLEAR = "\r\x1b[K"
"""Carriage return and erase to the end of the line (ECMA-48, EL)."""


def table(head: Row, body: Sequence[Row], *, left: int = 1, right: int = 0) -> list[str]:
    """Aligned lines, head first; the first `left` and last `right` columns are set to the left, others to the right."""
    rows = [head, *body]
    aligned = []
    for number, column in enumerate(zip(*rows, strict=True)):
        width = max(map(len, column))
        words = number < left or number >= len(head) - right
        aligned.append([cell.ljust(width) if words else cell.rjust(width) for cell in column])
    return ["  ".join(row).rstrip() for row in zip(*aligned, strict=True)]


def fitted_table(head: Row, body: Sequence[Row], *, left: int = 1, right: int = 0) -> list[str]:
    """The same no wider than the terminal, if need be with the `left` columns of each row on a line of their own."""
    whole = table(head, body, left=left, right=right)
    if max(map(len, whole)) <= shutil.get_terminal_size().columns:
        return whole
    rest = table(["", *head[left:]], [["", *row[left:]] for row in body], right=right)
    names = [", ".join(row[:left]) for row in (head, *body)]
    return [line for name, row in zip(names, rest, strict=True) for line in (name, row)]


def markdown_table(head: Row, body: Sequence[Row], *, left: int = 1) -> list[str]:
    """The same as GitHub-flavoured Markdown."""
    marks = [":---" if column < left else "---:" for column in range(len(head))]
    rows = [[as_markdown(cell) for cell in row] for row in (head, *body)]
    return ["| " + " | ".join(row) + " |" for row in (rows[0], marks, *rows[1:])]


def as_markdown(text: str) -> str:
    """A text in one line that GitHub shows as it is, and that notifies nobody.

    No HTML, link, image, code, emphasis, formula or end of a table's cell; no mention, reference (`#12`, `GH-12`) or
    address becomes a link, and characters without a width are shown as escapes.
    """
    return _LINKED.sub("\\g<0>&#8203;", _MARKUP.sub(r"\\\g<0>", one_line(text).replace("&", "&amp;")))


def one_line(text: str) -> str:
    """A text in one line in which nothing is hidden."""
    seen = _WITHOUT_WIDTH.sub(lambda match: match.group().encode("unicode_escape").decode(), visible(text))
    return seen.replace("\n", " ").replace("\t", " ")


def spreadsheet(cell: T) -> T | str:
    """A cell in which no spreadsheet sees a formula: an apostrophe stands before its mark (OWASP, CSV injection)."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA_MARKS) else cell


def show(text: str) -> None:
    """Print a text and end its line; it may hold what others wrote."""
    sys.stdout.write(visible(text) + "\n")


PREFIXES = {-3: "n", -2: "µ", -1: "m", 0: "", 1: "k", 2: "M", 3: "G"}
"""SI's, by power of a thousand."""
PREFIXED = ("J", "W", "Wh", "s", "B")
"""Units that are shown with a prefix of SI; a rate is not: 1.2 k1/s helps nobody."""
UNCERTAIN = "±"


def middle_cut(text: str, width: int) -> str:
    """A text no longer than that, with both of its ends."""
    head = (width - 1) // 2
    return text if len(text) <= width else f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"


def common_exponent(values: Iterable[float | None], unit: str) -> int:
    """The power of a thousand whose prefix suits the median of values that share a column; 0 for a rate."""
    sizes = [abs(value) for value in values if value and math.isfinite(value)]
    return _exponent(median(sizes)) if unit in PREFIXED and sizes else 0


def _exponent(size: float) -> int:
    rounded = float(f"{size:.3g}")  # 999.6 mJ is shown as 1.00 J
    return min(max(math.floor(math.log10(rounded) / 3), min(PREFIXES)), max(PREFIXES))


def quantity(value: float, unit: str, uncertainty: float | None = math.inf) -> str:
    """A number with an SI prefix: `0.0123, "J"` is `12.3 mJ`, and with an uncertainty `12.30 ± 0.41 mJ`.

    An uncertainty of `None` is not known, which `12.3 mJ ±?` says; an infinite one is not shown.
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g} {unit}"
    exponent = _exponent(abs(value))
    scale, name = 1000.0**exponent, f" {PREFIXES[exponent]}{unit}"
    if uncertainty is None or not math.isfinite(uncertainty):
        return f"{significant(value / scale)}{name}" + (f" {UNCERTAIN}?" if uncertainty is None else "")
    return plus_minus(value / scale, uncertainty / scale) + name


def plus_minus(value: float, uncertainty: float | None) -> str:
    """`12.30 ± 0.41`: two significant digits of uncertainty, the value to the same place (JCGM 100:2008, 7.2.6)."""
    if uncertainty is None:
        return f"{significant(value)} {UNCERTAIN}?"
    if not uncertainty:
        return significant(value)
    decimals = max(1 - math.floor(math.log10(float(f"{uncertainty:.2g}"))), 0)
    return f"{value:.{decimals}f} {UNCERTAIN} {uncertainty:.{decimals}f}"


def with_ends(value: float, low: float | None, high: float | None, *, percent: bool = False) -> str:
    """A figure with an interval that is not even: `23.1 (21.4–25.3)`; a share in percent, `61.8 (57.4–66.1)`."""
    if low is None or high is None:
        return f"{f'{100 * value:.1f}' if percent else significant(value)} {UNCERTAIN}?"
    if percent:
        return f"{100 * value:.1f} ({100 * low:.1f}–{100 * high:.1f})"
    decimals = len(significant(value).partition(".")[2])
    return f"{value:.{decimals}f} ({max(0.0, low):.{decimals}f}–{high:.{decimals}f})"


def significant(value: float, digits: int = 3) -> str:
    """A number with so many significant digits and no exponent."""
    if value == 0:
        return "0"
    decimals = max(digits - 1 - math.floor(math.log10(abs(float(f"{value:.{digits}g}")))), 0)
    return f"{value:.{decimals}f}"


def duration_text(seconds: float) -> str:
    """Seconds in the unit that reads best: `40 s`, `12 min`, `3.5 h`, `2.1 days`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"


class ShowProgress(Protocol):
    """Passes items through one by one, and may show how many are done."""

    def __call__(self, items: Sequence[T], doing: str) -> Iterable[T]:
        """The items, unchanged; `doing` names the work on them."""
        ...


def silent(items: Sequence[T], doing: str) -> Iterable[T]:
    """The items, without any output."""
    del doing
    return items


def counted(items: Sequence[T], doing: str) -> Iterator[T]:
    """The items, with a count on stderr where that is a terminal, once they take longer than half a second."""
    stream = sys.stderr
    if not stream.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        yield from items
        return
    due = time.monotonic() + SHOW_AFTER_S
    shown = False
    try:
        for number, item in enumerate(items, 1):
            now = time.monotonic()
            if now >= due:
                stream.write(f"{CLEAR}{doing} {number}/{len(items)}")
                stream.flush()
                shown, due = True, now + INTERVAL_S
            yield item
    finally:
        if shown:
            stream.write(CLEAR)
            stream.flush()
