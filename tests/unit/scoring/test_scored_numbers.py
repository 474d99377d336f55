"""`numeric`: which number of an answer counts, how it is read, and when two are the same."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import decimals

from pytest_llem.errors import JsonValue, WorkloadError
from pytest_llem.job.request import Question
from pytest_llem.scoring.numbers import Numeric, number_of


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("18", "18"),
        ("First 3, then 5, so 8.", "8"),
        ("The answer is 42. It took 3 steps.", "42"),
        ("The answer is 1. Wait, the answer is 2. I checked 3 times.", "2"),
        ("6 * 7 = 42\n#### 42\nQuestion 2", "42"),
        ("#### Step 2\n3 + 4 = 7", "7"),
        ("The answer is: **$18.00** in all for 3", "18"),
        ("so $\\boxed{18}$ in 2 steps", "18"),
        ("the answer is x = 5", "5"),
        ("The answer is 12 - 5 = 7 apples, of 9.", "7"),
        ("The answer is $3 + $4 = $7, of 9", "7"),
        ("Answer: 2 hours + 30 minutes = 150 minutes (1 film)", "150"),
        ("#### 3*4=12", "12"),
        ("The answer is 5 because x = 2", "5"),
        ("1,234,567.50", "1234567.5"),
        ("1\u202f234 and 1{,}234", "1234"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("\u22125", "-5"),
        ("x=-5", "-5"),
        ("10-5=5", "5"),
        ("50%", "50"),
        (".5", "1/2"),
        ("3/4", "3/4"),
        ("1 1/2 cups", "3/2"),
        ("1\\frac{1}{2}", "3/2"),
        ("-\\frac{1}{2}", "-1/2"),
        ("1.5e3", "1500"),
        ("1.5 million", "1500000"),
        ("5k", "5000"),
        ("5km", "5"),
        ("(1, 2, 3)", "3"),
    ],
)
def test_the_number_that_an_answer_gives(answer: str, number: str) -> None:
    assert number_of(answer) == Fraction(number)


@pytest.mark.parametrize(
    "answer",
    [
        "1-800-555",
        "1e4000000000",
        "9" * 5000,
        "",
        "none",
        "x2",
        "H2O",
        "1,23",
        "12:30",
        "10^6",
        "10^{6}",
        "3-5",
        "1/2/2024",
        "1.2.3",
        "5²",
        "1½",
        "3x5",
        "1/0",
    ],
)
def test_a_part_of_a_number_is_none(answer: str) -> None:
    """A rule that takes the last digits gives 23 for 1,23, 30 for 12:30, 6 for 10^6 and 5 for 3-5."""
    assert number_of(answer) is None


@settings(max_examples=100, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(decimals(places=3, min_value=-(10**9), max_value=10**9))
def test_a_number_is_read_however_it_is_written(number: Decimal) -> None:
    plain, grouped = f"{number:f}", f"{number:,f}"
    money = f"${grouped}".replace("$-", "-$")
    for written in (plain, grouped, plain.replace("-", "\u2212"), money, f"{grouped}%", f"{plain} apples"):
        for answer in ("{}", "The answer is {}.", "2 + 2 = 4, so {}", "Answer: **{}**, of 9", "\\boxed{{{}}} 7 times"):
            assert number_of(answer.format(written)) == Fraction(number), answer.format(written)
    for key in (plain, grouped, money, f"{plain}%", float(number)):
        assert Numeric().score(plain, Question("1", key)) == 1.0, key


@pytest.mark.parametrize(
    ("answer", "key"),
    [
        ("1234", "1,234"),
        ("1,234.00", 1234),
        ("12.5", 12.50),
        ("12.50", "12.5"),
        ("0.1", 0.1),
        ("It is 72.", "He has 48 / 2 = 24 clips. 48 + 24 = 72\n#### 72"),
        ("50", "50%"),
        ("$5", 5),
        ("0.75", "3/4"),
        ("2", [1, "2"]),
    ],
)
def test_equal_numbers_are_right(answer: str, key: JsonValue) -> None:
    Numeric().check(key)
    assert Numeric().score(answer, Question("1", key)) == 1.0


@pytest.mark.parametrize(
    ("answer", "key"),
    [
        ("0.33", "1/3"),
        ("0.30000000000000004", 0.3),  # as floating-point sums have it
        ("9007199254740993", 9007199254740992),  # equal as double precision
        ("-5", 5),
        ("15", 5),
        ("five", 5),
        ("1.5 million", 1.5),
        ("", 0),
    ],
)
def test_other_numbers_are_wrong(answer: str, key: JsonValue) -> None:
    assert Numeric().score(answer, Question("1", key)) == 0.0


@pytest.mark.parametrize(
    "key", [None, True, float("nan"), float("inf"), "nan", "seven", "5 apples", "3-5", "", [], [1, "x"], {"a": 1}]
)
def test_a_key_that_is_no_number_is_refused(key: JsonValue) -> None:
    with pytest.raises(WorkloadError, match="no answer key for the scorer numeric"):
        Numeric().check(key)


def test_a_long_answer_takes_no_time() -> None:
    for part in ("1", "1.", "1,", "-", "$", "1 ", "answer is ", "1/", "\\frac{1}"):
        number_of(part * (30_000 // len(part)))
