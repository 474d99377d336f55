"""`exact`, `contains` and `choice`: what each takes for right, and the wrong answers that a looser rule would take."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import text

from pytest_llem.errors import JsonValue, WorkloadError
from pytest_llem.job.request import Question
from pytest_llem.scoring.texts import TEXT_SCORERS, choice_of


def right(scorer: str, answer: str, key: JsonValue) -> bool:
    return TEXT_SCORERS[scorer].score(answer, Question("1", key)) == 1.0


@pytest.mark.parametrize(
    ("answer", "key"),
    [
        ("Paris", "Paris"),
        ("  paris.\n", "Paris"),
        ("New\u00a0York\n City", "new york city"),
        ("e\u0301cole", "\u00c9cole"),
        ("STRASSE", "Straße"),
        ("It\u2019s \u201cso\u201d", 'it\'s "so"'),
        ("\u22125", -5),
        ("5", 5.0),
        ("12.5", 12.50),
        ("four", ["4", "four"]),
        ("答案。", "答案"),
    ],
)
def test_exact_ignores_case_spaces_spelling_and_a_full_stop(answer: str, key: JsonValue) -> None:
    assert right("exact", answer, key)


@pytest.mark.parametrize(
    ("answer", "key"),
    [
        ("", "."),  # nothing left of both, once full stops are gone
        ("15", "1.5"),  # SQuAD's normalisation drops all punctuation
        ("5", "-5"),
        ("5", "5!"),
        ("C", "C+"),
        ("Who", "The Who"),  # SQuAD's drops articles
        ("x2", "x²"),  # compatibility forms (NFKC)
        ("It is Paris", "Paris"),
        ("5.0", "5"),  # numeric's to say
        ("", ["a", "b"]),
    ],
)
def test_exact_takes_nothing_else(answer: str, key: JsonValue) -> None:
    assert not right("exact", answer, key)


@pytest.mark.parametrize(
    ("answer", "key"),
    [
        ("The capital is **Paris**.", "Paris"),
        ("It is called new\nyork.", "New York"),
        ("I count 5.", 5),
        ("$5, not more", "5"),
        ("答案是北京。", "北京"),
        ("答案是5個", "5"),
        ("서울입니다", "서울"),
        ("either a dog or a cat", ["horse", "cat"]),
        ("party art", "art"),
        ("Paris's streets", "paris"),
    ],
)
def test_contains_finds_whole_words(answer: str, key: JsonValue) -> None:
    assert right("contains", answer, key)


@pytest.mark.parametrize(
    ("answer", "key"),
    [
        ("a party", "art"),
        ("15", "5"),
        ("it is 1.5", "5"),
        ("it is 5.3", "5"),
        ("5,000", "5"),
        ("1,500", 500),
        ("-5", "5"),
        ("3-5", "-5"),
        (".5", "5"),
        ("5/8", "8"),
        ("12:30", "30"),
        ("5th", "5"),
        ("snake_case", "case"),
        ("re\u0301sume\u0301s", "résumé"),
        ("", "x"),
    ],
)
def test_contains_finds_no_parts_of_words_or_numbers(answer: str, key: JsonValue) -> None:
    """`art` in `party`, and 5 in 15: a substring is found by chance in any longer answer."""
    assert not right("contains", answer, key)


@settings(max_examples=200, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(text(min_size=1, max_size=40).filter(str.strip))
def test_any_text_is_right_for_itself_and_nothing_for_none(key: str) -> None:
    """A rule that drops a sign of the key would drop it from the answer too, and then all of some keys."""
    for scorer in ("exact", "contains"):
        assert right(scorer, key, key)
        assert right(scorer, key.upper(), key.upper())
        assert not right(scorer, "", key)
    assert right("contains", f"It is {key}, he said", key)


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        *[(text, "B") for text in ("B", "b", "(B)", "B.", "B) Paris", "b) Paris", "**B.** Paris", "B: Paris", "_B_")],
        *[
            (f"The answer is {text}", "B")
            for text in ("B", "b.", "(b)", "**(B)**", "B because", "B, a city", "option B")
        ],
        ("The correct answer to this question is B", "B"),
        ("Answer:\n\nB", "B"),
        ("$\\boxed{\\text{B}}$", "B"),
        ("The correct answer is 'B'.", "B"),
        ("<answer>B</answer>", "B"),
        ("(A) is wrong, and (B) is correct.", "B"),
        ("I think it's B.", "B"),
        ("B is the right answer", "B"),
        ("Option A is wrong. The answer is B", "B"),
        ("The answer is A because it rains", "A"),
        ("So the answer is (a)", "A"),
        ("A good answer is B", "B"),
        ("I", "I"),
        *[
            (f"{text}\n\nExplanation: it rains", "A")
            for text in ("A", "**A**", "Answer: A", "The answer is A", "Option A")
        ],
        ("The correct answer is:\n\nA\n\nIt rains", "A"),
        ("The answer is A\nbecause it rains", "A"),
    ],
)
def test_choice_reads_a_letter(answer: str, letter: str) -> None:
    """An explanation in the next line once made the letter A an article, and only where A was right."""
    assert choice_of(answer) == letter
    assert right("choice", answer, f"({letter.lower()})")


@pytest.mark.parametrize(
    "answer",
    [
        "A dog",
        "The answer is a dog",
        "Answer: A Tale of Two Cities",
        "The answer is a\ndog",
        "A\nB\nC",
        "I, for one, like it",
        "Vitamin C.",
        "Oranges have it (vitamin C).",
        "The answer is C++.",
        "The answer is not B",
        "It is not B.",
        "The answer is B or C",
        "Answer: (A), (B) and (C)",
        "A) Rome\nB) Paris\nC) Oslo",
        "(A) Rome, (B) Paris",
        "The answer is B. No, the answer is C.",
        "**B cells** are",
        "e.g. by day",
        "U.S.A.",
        "",
    ],
)
def test_choice_takes_neither_words_nor_several_letters(answer: str) -> None:
    """The article A, the pronoun I, a vitamin, and a list of all options are no answers."""
    assert choice_of(answer) is None


UNREADABLE: dict[str, list[JsonValue]] = {
    "exact": [None, "", "  ", [], ["a", ""], [["a"]], True, float("nan"), {"text": "a"}],
    "contains": [None, [], False, float("inf")],
    "choice": [None, 1, "Paris", "", ["A", "B"], "AB", "1"],
}


@pytest.mark.parametrize(
    ("scorer", "key"),
    [(scorer, key) for scorer, keys in UNREADABLE.items() for key in keys],
)
def test_a_key_that_cannot_be_read_is_refused(scorer: str, key: JsonValue) -> None:
    with pytest.raises(WorkloadError, match=f"no answer key for the scorer {scorer}") as caught:
        TEXT_SCORERS[scorer].check(key)
    assert caught.value.fix


@pytest.mark.parametrize("scorer", TEXT_SCORERS)
def test_a_long_answer_takes_no_time(scorer: str) -> None:
    """Expressions that backtrack would hang a run over one answer that repeats itself."""
    for part in ("A", "\n", "(", "answer ", "answer is ", "B, ", "1.", "- 5", "B or "):
        right(scorer, part * (30_000 // len(part)), "B")
