"""The scorers that hold an answer's text against its key: `exact`, `contains` and `choice`.

`registry` finds them. What each takes for equal is in docs/quality.md, word for word; a change of it is a new version.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Mapping
from decimal import Decimal

from pytest_llem.errors import JsonValue, WorkloadError
from pytest_llem.job.request import Question
from pytest_llem.scoring.scorer import Scorer

FULL_STOPS = ".。"
"""Of Latin scripts, and of Chinese and Japanese (U+3002). Other marks may be part of an answer: 5!, C+, .5."""

WITHOUT_SPACES = frozenset({"CJK", "HIRAGANA", "KATAKANA", "HANGUL", "THAI", "LAO", "KHMER", "MYANMAR"})
"""Scripts that do not set words apart, or hang particles on them, by the first word of their letters' Unicode names."""


TYPED = str.maketrans("\u2018\u2019\u201c\u201d\u2212", "''\"\"-")
"""Typographic quotation marks, apostrophe and minus as keyboards have them."""


def normalised(text: str) -> str:
    """A text as it is compared: composed (NFC), case folded, white space one blank, no full stop at the end."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    plain = " ".join(folded.translate(TYPED).split())
    return plain.rstrip(FULL_STOPS).rstrip() or plain


def accepted(target: JsonValue) -> list[str]:
    """The right answers that a key names, a text, a number, or a list of these; empty where it names none."""
    entries = list(target) if isinstance(target, (list, tuple)) else [target]
    texts = [_text(entry) for entry in entries]
    return [text for text in texts if text is not None] if all(texts) else []


def _text(entry: JsonValue) -> str | None:
    """An entry of a key as an answer may write it; true and false have no one spelling."""
    if isinstance(entry, str):
        return entry if entry.strip() else None
    if isinstance(entry, bool) or not isinstance(entry, (int, float)) or not math.isfinite(entry):
        return None
    return f"{Decimal(repr(entry)).normalize():f}"  # a column with gaps makes 5.0 of 5


class TextScorer(Scorer):
    """Holds an answer against every accepted one, as `matches` says, both normalised."""

    version = "1"

    def __init__(self, name: str, matches: Callable[[str, str], bool]) -> None:
        self.name = name
        self._matches = matches

    def check(self, target: JsonValue) -> None:
        """A text, a number, or a list of these."""
        if not accepted(target):
            fix = "write a text, a number, or a list of them: any of these is then right"
            raise WorkloadError(f"no answer key for the scorer {self.name}: {target!r}", fix=fix)

    def score(self, text: str, question: Question) -> float:
        """1 where any of the accepted answers matches."""
        given = normalised(text)
        return float(any(self._matches(given, normalised(target)) for target in accepted(question.target)))


def contains(given: str, wanted: str) -> bool:
    """Whether a text holds another as whole words and whole numbers."""
    start = given.find(wanted)
    while start >= 0:
        end = start + len(wanted)
        if not (_joined(given, start) or _joined(given, end) or _in_number(given, start, end)):
            return True
        start = given.find(wanted, start + 1)
    return False


def _joined(text: str, at: int) -> bool:
    """Whether a word goes on from one side of a position to the other."""
    sides = text[max(at - 1, 0) : at + 1]
    return 0 < at < len(text) and all(map(_in_word, sides))


def _in_word(sign: str) -> bool:
    if unicodedata.category(sign).startswith("M") or sign == "_":
        return True
    return sign.isalnum() and unicodedata.name(sign, "").partition(" ")[0].partition("-")[0] not in WITHOUT_SPACES


_NUMBER_BEFORE = re.compile(r"(?:\d[.,:/]|(?<![^\W_])[-+]|(?<!\d)\.)$")
"""What before a digit makes it a part of a number: a digit and a separator, a sign, a point."""
_NUMBER_AFTER = re.compile(r"[.,:/]\d")


def _in_number(text: str, start: int, end: int) -> bool:
    """Whether a number goes on over one of the edges: 5 is neither in 1.5 nor in -5, 5,000 or 5/8; nor is -5 in 3-5."""
    before = text[max(start - 2, 0) : start]
    if text[start] in "+-" and before[-1:].isalnum():
        return True
    begins = text[start].isdigit() and _NUMBER_BEFORE.search(before)
    return bool(begins or (text[end - 1].isdigit() and _NUMBER_AFTER.match(text, end)))


_MARK = r"(?:[\s(\[{\"'*`$:>]|\\[a-z]+\{)*"
_ALONE = r"(?![\w+#]|['’.-]\w)"
"""What must not follow a letter: that of C++, C#, A's, e.g. or T-shirt is none of an option."""
_LETTER = rf"[A-Za-z]{_ALONE}"
_REASON = r"(?:because|since|as|for|and|or|but|is)\b"
"""Words that follow a letter, and neither the article A nor the pronoun I."""
_WORD = rf"(?:[^\S\n]+|[^\S\n]*\n(?=[a-z]))(?!{_REASON})\w"
"""A word behind a letter, in its line, or where that was broken within a sentence."""
_MORE = rf"(?:[\s)\]}}*\"'.]*(?:,|/|&|\bor\b|\band\b)[\s(\[*\"']*(?:[B-HJ-Z]|[AI](?!{_WORD})){_ALONE})*"
"""Further letters: B or C, (A), (B) and (C)."""
_WHOLE = re.compile(r"[\W_]*([A-Za-z])(?![+#])[\W_]*")
_STATED = re.compile(
    rf"(?:(?i:\b(?:answer(?:\s+to\s+th\w+\s+question)?|choice)\b(?:\s+(?:is|would\s+be|should\s+be))?)|\\boxed)"
    rf"{_MARK}({_LETTER}{_MORE})"
    r"|(?<![\w'’.-])([A-Z])(?=[)\]*]*\s+is\s+(?:the\s+)?(?:correct|right|best)\b)"
)
_AS_OPTION = re.compile(
    r"(?:^|(?<=[\s\"'*]))(?:\(([A-Za-z])\)|\[([A-Za-z])\]|\*\*([A-Za-z])(?=\*\*|[).:]))"
    r"|^[^\w\n]*(?:([A-Za-z])(?=[)\]])|([A-Z])(?=[.:](?:\s|$)|\s+[-–]\s|[^\w\n+#]*$))",
    re.MULTILINE,
)
_NAMED = re.compile(
    rf"(?i:\b(?:(?:option|letter)(?:\s+is)?|pick|choose|select|(?:it|that|which|one)(?:\s+is|['’]s)))\s{_MARK}({_LETTER}{_MORE})"
)

_A_WORD = re.compile(_WORD)


def choice_of(text: str) -> str | None:
    """The one letter that an answer to a multiple-choice question gives, `None` where there is none, or several.

    The first form counts that the text has: nothing but the letter; "answer is B"; "(B)", or "B)" and "B." where a line
    begins, or a line of the letter alone; "option B", "it is B". All letters in that form have to be the same.
    """
    whole = _WHOLE.fullmatch(text)
    if whole is not None:
        return whole[1].upper()
    for form in (_STATED, _AS_OPTION, _NAMED):
        letters = {letter for match in form.finditer(text) for letter in _letters(text, match)}
        if letters:
            return letters.pop() if len(letters) == 1 else None
    return None


def _letters(text: str, match: re.Match[str]) -> list[str]:
    """The letters of a match; none where a word follows the first that makes it the article, or the pronoun I."""
    group = match.lastindex or 1
    first = match[group][0]
    if (first in "AI" or first.islower()) and _A_WORD.match(text, match.start(group) + 1):
        return []
    return [letter.upper() for letter in re.findall(r"(?<![^\W_])[A-Za-z](?![^\W_])", match[group])]


class Choice(Scorer):
    """Multiple choice: the letter that an answer gives is that of the key, in either case."""

    name = "choice"
    version = "1"

    def check(self, target: JsonValue) -> None:
        """A letter, alone or in parentheses."""
        if self._key(target) is None:
            fix = "write the letter of the right option, as B or (B)"
            raise WorkloadError(f"no answer key for the scorer choice: {target!r}", fix=fix)

    def score(self, text: str, question: Question) -> float:
        """1 for the key's letter."""
        key = self._key(question.target)
        return float(key is not None and choice_of(text) == key)

    @staticmethod
    def _key(target: JsonValue) -> str | None:
        match = re.fullmatch(r"\s*\(?([A-Za-z])\)?\s*", target) if isinstance(target, str) else None
        return None if match is None else match[1].upper()


TEXT_SCORERS: Mapping[str, Scorer] = {
    scorer.name: scorer
    for scorer in (
        TextScorer("exact", lambda given, wanted: given == wanted),
        TextScorer("contains", contains),
        Choice(),
    )
}
"""The scorers of texts by their names."""
