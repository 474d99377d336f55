"""Scorers of the user's own: an expression, a function of a file, a function that another package registers."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_llem.errors import JsonValue, LlemError, ScoringError, SettingsError, WorkloadError
from pytest_llem.job.config import ScoreBy, WorkloadSettings
from pytest_llem.job.request import Question
from pytest_llem.scoring.own_process import Failed, outputs_of
from pytest_llem.scoring.registry import require_keys, scorer_of
from pytest_llem.scoring.scorer import Scorer
from tests.installed import Site

GRADING = """
import sys
from helper import same

def grade(answer, target):
    print("not a reply")
    return same(answer, target)

def by_id(answer, target, *, question_id):
    return 0.5 if question_id == "q2" else 1

def strict(answer, target):
    if answer != target:
        raise KeyError(answer)
    return True

def loops(answer, target):
    while answer == "loop":
        pass
    return 1

def leaves(answer, target):
    import os
    sys.stderr.write("out of memory\\n")
    sys.stderr.flush()
    os._exit(9)

def gives(answer, target):
    return eval(target)

number = 5
"""

Make = Callable[[str], Scorer]


def made(score: str | ScoreBy) -> Scorer:
    scorer = scorer_of(WorkloadSettings(score=score))
    assert scorer is not None
    return scorer


def pairs(*answers: tuple[str, JsonValue]) -> list[tuple[str, Question]]:
    return [(text, Question(f"q{number}", key)) for number, (text, key) in enumerate(answers, 1)]


@pytest.fixture
def grading(tmp_path: Path) -> Make:
    """A scorer of a function in a file, with a module beside it."""
    (tmp_path / "grading.py").write_text(GRADING)
    (tmp_path / "helper.py").write_text("def same(a, b):\n    return a == b\n")
    return lambda function: made(ScoreBy(python=f"{tmp_path / 'grading.py'}:{function}"))


@pytest.mark.parametrize(
    ("expression", "answer", "key", "right"),
    [
        (r"answer is (\w+)", "The answer is Paris. The answer is Rome", "paris", True),
        (r"answer is (\w+)", "It is Paris", "paris", False),
        (r"\d+", "5 or 6", 5, True),
        (r"is (\d)|are (\w+)", "they are five", ["5", "five"], True),
        (r"x(\d)?", "x", "x", False),  # the group took no part: the whole match is not meant
        (r"^\W*", "Paris", "Paris", False),  # an empty match is no answer
    ],
)
def test_what_an_expression_finds_equals_the_key(expression: str, answer: str, key: JsonValue, right: bool) -> None:
    scorer = made(ScoreBy(regex=expression))
    scorer.check(key)
    assert scorer.score(answer, Question("1", key)) == right
    assert (scorer.name, scorer.version) == (f"regex: {expression}", "1")


def test_an_expression_that_backtracks_for_ever_is_ended() -> None:
    """`(a+)+$` doubles its time with each letter: the run would hang after everything was measured."""
    with pytest.raises(Failed, match=r"longer than 0\.3 s") as caught:
        outputs_of({"regex": "(a+)+$"}, [("aa", "aa", "q1"), ("a" * 60 + "b", "a", "q2")], answer_limit_s=0.3)
    assert caught.value.at == 1


def test_a_function_scores_with_its_own_modules_and_may_print(grading: Make) -> None:
    assert grading("grade").score_all(pairs(("a", "a"), ("b", "a"))) == [1.0, 0.0]
    assert grading("by_id").score_all(pairs(("a", "a"), ("b", "a"))) == [1.0, 0.5]


def test_a_function_that_raises_names_the_question_and_the_line(grading: Make) -> None:
    with pytest.raises(ScoringError, match=r"python: grading.py:strict, question 'q2': .*grading.py:14: KeyError: 'b'"):
        grading("strict").score_all(pairs(("a", "a"), ("b", "a")))


def test_a_function_that_ends_its_process_costs_the_scores_alone(grading: Make) -> None:
    with pytest.raises(ScoringError, match="question 'q1': its process ended with exit code 9: out of memory"):
        grading("leaves").score_all(pairs(("a", "a")))


def test_a_function_that_never_returns_is_ended(tmp_path: Path, grading: Make) -> None:
    what = grading("loops")._what  # type: ignore[attr-defined]
    began = time.monotonic()
    with pytest.raises(Failed, match=r"longer than 0\.3 s"):
        outputs_of(what, [("loop", "", "q1")], answer_limit_s=0.3)
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    "value", ["None", "float('nan')", "1.5", "-1", "'1'", "[1]", "float('inf')", "10**400", "print"]
)
def test_only_numbers_from_0_to_1_are_scores(grading: Make, value: str) -> None:
    """A NaN would make the accuracy of all answers a NaN, a 2 one above 1, and a None would read as wrong."""
    with pytest.raises(ScoringError, match=r"gives \(line 28\) gave .*, no number from 0 to 1"):
        grading("gives").score("a", Question("1", value))


@pytest.mark.parametrize(("value", "score"), [("True", 1.0), ("0", 0.0), ("0.25", 0.25)])
def test_booleans_and_shares_are_scores(grading: Make, value: str, score: float) -> None:
    assert grading("gives").score("a", Question("1", value)) == score


@pytest.mark.parametrize(
    ("source", "function", "said"),
    [
        (GRADING, "gone", "grading.py: there is no gone"),
        (GRADING, "number", "grading.py: number is int, no function"),
        (GRADING, "strict", None),
        (GRADING, "gives", "grading.py:29: NameError: name 'a' is not defined"),
        ("import nowhere\n", "f", "grading.py:1: ModuleNotFoundError: No module named 'nowhere'"),
        ("\ndef f(:\n", "f", "grading.py:2: SyntaxError"),
        ("def f(answer):\n    return 1\n", "f", r"TypeError: f\(\) takes 1 positional argument"),
        ("raise SystemExit(3)\n", "f", "grading.py:1: SystemExit: 3"),
    ],
)
def test_a_function_is_called_once_before_anything_is_measured(
    tmp_path: Path, grading: Make, source: str, function: str, said: str | None
) -> None:
    (tmp_path / "grading.py").write_text(source)
    scorer = grading(function)
    if said is None:
        scorer.rehearse(Question("1", "a"))
        return
    with pytest.raises(ScoringError, match=said) as caught:
        scorer.rehearse(Question("1", "a"))
    assert "grading.py" in str(caught.value.fix)


def test_the_version_of_a_file_is_what_was_run(tmp_path: Path, grading: Make) -> None:
    """An edit between two cycles must not pass as the same scorer, nor one while a scorer is in use."""
    scorer = grading("by_id")
    assert scorer.version == hashlib.sha256(GRADING.encode()).hexdigest()
    (tmp_path / "grading.py").write_text("def by_id(answer, target):\n    return 0\n")
    assert scorer.score("a", Question("1", "a")) == 1.0
    assert grading("by_id").version != scorer.version
    assert grading("by_id").score("a", Question("1", "a")) == 0.0
    assert scorer.name == "python: grading.py:by_id"


@pytest.mark.parametrize(
    ("score", "said"),
    [
        ("exat", "unknown scorer 'exat'\nfix: did you mean 'exact'?"),
        ("bleu", "unknown scorer 'bleu'\nfix: use one of: exact, contains, choice, numeric, or regex: or python:"),
        ("python:grading.py:grade", "fix: write score: {python: 'grading.py:grade'}"),
        (ScoreBy(regex="(a"), "no regular expression '(a': missing ), unterminated subpattern at position 0"),
        (ScoreBy(python="grading.py"), "python: 'grading.py' names no function of a file"),
        (ScoreBy(python="grading.py:a b"), "names no function of a file"),
        (ScoreBy(), "one of regex and python says how"),
        (ScoreBy(regex="a", python="a.py:b"), "one of regex and python says how"),
    ],
)
def test_a_scorer_that_there_is_not_is_refused(score: str | ScoreBy, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        made(score)
    assert str(caught.value).startswith("workload.score: ")
    assert said in str(caught.value)


def test_a_file_that_is_not_there_is_refused_when_it_is_needed(tmp_path: Path) -> None:
    """A worker checks keys where the file may be lacking; the session needs it."""
    scorer = made(ScoreBy(python=f"{tmp_path}/none.py:f"))
    scorer.check("a")
    with pytest.raises(SettingsError, match=r"no such file or directory: .*none\.py"):
        scorer.rehearse(Question("1", "a"))


def test_a_registered_function_has_the_version_of_its_package(site: Site) -> None:
    source = "def same(answer, target):\n    return answer == target\n"
    site.add("llem-same", source, scorers="same = llem_same:same\nno = llem_same:no")
    scorer = made("same")
    assert (scorer.name, scorer.version) == ("same", "llem-same 1.0")
    assert scorer.score_all(pairs(("a", "a"), ("b", "a"))) == [1.0, 0.0]
    with pytest.raises(ScoringError, match="there is no no") as caught:
        made("no").rehearse(Question("1", "a"))
    assert caught.value.fix == "correct llem_same:no, or uninstall the package"


def test_a_package_takes_no_name_that_is_shipped(site: Site) -> None:
    site.add("llem-same", "", scorers="exact = llem_same:same")
    with pytest.raises(SettingsError, match="registers the scorer 'exact', which pytest-llem itself has"):
        made("other")
    assert made("exact").version == "1"


def test_keys_are_refused_where_they_stand() -> None:
    questions = [Question("1", "5", "q.jsonl:1"), Question("2", "five", "q.jsonl:2")]
    with pytest.raises(WorkloadError, match=r"^q.jsonl:2: no answer key for the scorer numeric: 'five'"):
        require_keys(WorkloadSettings(score="numeric"), questions)
    require_keys(WorkloadSettings(), questions)
    require_keys(WorkloadSettings(score="of-a-package-that-is-not-here"), questions)


def test_no_process_outlives_its_scoring(grading: Make) -> None:
    """Pipes and processes of thousands of cycles add up."""
    before = set(Path("/proc/self/fd").iterdir())
    with pytest.raises(LlemError):
        grading("gone").score("a", Question("1", "a"))
    grading("grade").score("a", Question("1", "a"))
    assert set(Path("/proc/self/fd").iterdir()) <= before


@pytest.mark.parametrize("target", ["password: letmein", ["Paris", "https://user:word@example.org"]])
def test_a_key_that_no_file_keeps_is_an_error(target: JsonValue) -> None:
    """Answers are scored as files have them, without what looks like one: `password: hunter2` was right as well."""
    questions = [Question("q1", "Paris", "q.jsonl:1"), Question("q2", target, "q.jsonl:2")]
    with pytest.raises(WorkloadError, match=r"q\.jsonl:2: its id or its answer key holds what looks like a credential"):
        require_keys(WorkloadSettings(score="exact"), questions)
