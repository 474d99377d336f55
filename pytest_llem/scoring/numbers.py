"""The scorer `numeric`: the number that an answer gives is the number of its key, exactly.

`registry` finds it. Which number of a text counts, and how numbers are written, is in docs/quality.md word for word; a
change of it is a new version.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

from pytest_llem.errors import JsonValue, WorkloadError
from pytest_llem.job.request import Question
from pytest_llem.scoring.scorer import Scorer

_MINUS = "\\-\u2212\u2013"
"""Hyphen, minus sign, and the dash that word processors make of it, in a class of an expression."""
_SPACES = "\u00a0\u2009\u202f"
"""Spaces that do not break, or are thin, within a number."""
_RUN = re.compile(
    rf"(?<!\w)(?P<sign>(?<![\w)\]])[{_MINUS}+])?(?:\\?[$£€¥]\s?)?(?P<inner>(?<=[$£€¥])[{_MINUS}])?"
    rf"(?P<mixed>\d{{1,9}}[ ](?=\d{{1,9}}/\d))?"
    rf"(?P<run>\.?\d(?:[\d.,:/^*×÷{_MINUS}+{_SPACES}]*\d)?)(?P<exponent>[eE][{_MINUS}+]?\d{{1,3}}(?!\w))?"
    rf"(?P<unit>\w*)(?P<power>\^)?"
)
"""A number with all that is joined to it, so that no part of 12:30, 1,23 or 10^6 is taken for a number of its own."""
_PLAIN = re.compile(rf"(?:\d{{1,3}}(?:[,{_SPACES}]\d{{3}})+|\d+)(?:\.\d+)?|\.\d+")
_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SCALE = re.compile(rf"\s(?i:({'|'.join(_SCALES)}))\b")
_STATED = re.compile(r"(?:####|(?i:\banswer(?:\s+is|\s*[:=]))|\\boxed\{)[^\w\n.\u2212\u2013-]*")
"""What says that the next number is the answer: GSM8K's mark, words, and LaTeX's frame."""
_WORDS = r"(?:[^\S\n]+[^\W\d]{1,30}){0,2}"
_EQUALS = re.compile(
    rf"(?:(?:{_WORDS}[^\S\n]*[{_MINUS}+*/×÷x][^\S\n]*[$£€¥(]{{0,2}}[\d.,]{{1,30}}\)?)+{_WORDS})?[^\S\n]*=[^\S\n]*"
)
"""What behind a number makes it the beginning of an equation: + 4 =, or with units, apples + 4 apples =."""
_LONGEST = 400
"""Chosen: digits of a number that anybody would compare; Python refuses to read more than 4,300."""


def _without_latex(text: str) -> str:
    """Thousands, powers and fractions of LaTeX as plain text has them."""
    text = text.replace("{,}", ",").replace("\\!", "").replace("\\%", "%")
    text = re.sub(r"[ ]?\^[ ]?\{?", "^", text)
    return re.sub(r"(?<=(\d))?\\[dt]?frac\{(\d+)\}\{(\d+)\}", lambda m: f"{' ' if m[1] else ''}{m[2]}/{m[3]}", text)


def _value(match: re.Match[str], text: str) -> Fraction | None:
    """The number of a run, `None` where it is none that can be read."""
    run, unit = match["run"], match["unit"]
    if len(run) > _LONGEST or match["power"] or any(sign.isnumeric() for sign in unit):
        return None
    parts = run.split("/")
    if len(parts) > 2 or not all(_PLAIN.fullmatch(part) for part in parts):
        return None
    numbers = [Fraction(re.sub(rf"[,{_SPACES}]", "", part)) for part in parts]
    if len(numbers) == 2 and (not numbers[1] or match["exponent"]):
        return None
    value = numbers[0] / numbers[1] if len(numbers) == 2 else numbers[0]
    if match["exponent"]:
        value *= Fraction(10) ** int(re.sub(f"[{_MINUS}]", "-", match["exponent"][1:]))
    value += int(match["mixed"] or 0)
    scale = _SCALE.match(text, match.end())
    value *= _SCALES[scale[1].lower()] if scale is not None and not unit else 1000 if unit == "k" else 1
    negative = (match["sign"] or match["inner"] or "+") in _MINUS
    return -value if negative else value


def number_of(text: str) -> Fraction | None:
    """The number that an answer gives, `None` where it gives none that can be read.

    It is the one after the last `####`, "answer is", "answer:" or `\\boxed{` that a number follows at once, else the
    last number of the text; of an equation there, what it comes to.
    """
    text = _without_latex(text)
    runs = list(_RUN.finditer(text))
    at = {place: run for run in runs for place in range(run.start(), run.start("run") + 1)}
    chosen = [at[cue.end()] for cue in _STATED.finditer(text) if cue.end() in at] or runs
    if not chosen:
        return None
    number = chosen[-1]
    while (equation := _EQUALS.match(text, number.end("run"))) is not None and equation.end() in at:
        number = at[equation.end()]
    return _value(number, text)


def key_number(entry: JsonValue) -> Fraction | None:
    """The number of an answer key, `None` for what is none: a text has to be a number as a whole, or end as GSM8K's."""
    if isinstance(entry, bool) or not isinstance(entry, (str, int, float)):
        return None
    if not isinstance(entry, str):
        return Fraction(repr(entry)) if math.isfinite(entry) else None
    text = _without_latex(entry.rpartition("####")[2]).strip()
    match = _RUN.match(text)
    if match is None:
        return None
    scale = _SCALE.match(text, match.end())
    rest = text[match.end() if scale is None else scale.end() :]
    whole = match["unit"] in ("", "k") and re.fullmatch(r"\s?%?\.?", rest)
    return _value(match, text) if whole else None


class Numeric(Scorer):
    """Numbers: that of the answer equals one of the key's, as exact decimals and fractions."""

    name = "numeric"
    version = "1"

    def check(self, target: JsonValue) -> None:
        """A finite number, a text that is one, or a list of these."""
        if not self._keys(target):
            fix = "write a number such as 1234, 12.50 or '3/4', or a list of them: any of these is then right"
            raise WorkloadError(f"no answer key for the scorer numeric: {target!r}", fix=fix)

    def score(self, text: str, question: Question) -> float:
        """1 where the answer's number is one of the key's."""
        given = number_of(text)
        return float(given is not None and given in self._keys(question.target))

    @staticmethod
    def _keys(target: JsonValue) -> list[Fraction]:
        entries = list(target) if isinstance(target, (list, tuple)) else [target]
        numbers = [key_number(entry) for entry in entries]
        return [number for number in numbers if number is not None] if None not in numbers else []
