"""This project's meter on the traces of tests/challenge, whose truth its estimators never saw."""

from __future__ import annotations

import pytest

from tests.challenge.score import Answer, Row, own_answers, read, score


@pytest.fixture(scope="module")
def rows() -> dict[str, Row]:
    answers = own_answers(read("calibrations"), read("traces"))
    return {row.kind: row for row in score(answers, read("truth"))}


def test_what_is_stated_holds_the_truth(rows: dict[str, Row]) -> None:
    """k=2 promises 95 %; of twenty traces of a kind one may lie beyond."""
    assert rows["all"].covered >= 0.97 * rows["all"].answered
    short = {kind: row.answered - row.covered for kind, row in rows.items() if kind != "all"}
    assert {kind: missed for kind, missed in short.items() if missed > 1} == {}


def test_what_cannot_be_known_is_refused(rows: dict[str, Row]) -> None:
    for kind in ("57 % of the power", "one interval in ten lost", "a quarter sampled, load in step"):
        assert rows[kind].answered == 0


def test_a_plain_sensor_is_not_refused_and_closely_known(rows: dict[str, Row]) -> None:
    plain = rows["plain"]
    assert plain.answered >= 15
    assert plain.median_bound is not None
    assert plain.median_bound < 0.006
    assert rows["all"].answered > 300


def test_a_wrong_and_sure_answer_is_found() -> None:
    """The scorer itself: half of the truth with a bound of 1 %, and a trace that is refused."""
    truths = [{"trace": "a", "kind": "x", "energy_j": 10.0}, {"trace": "b", "kind": "x", "energy_j": 10.0}]
    (row, whole) = score({"a": Answer(5.0, 0.1)}, truths)
    assert (row.traces, row.answered, row.covered) == (2, 1, 0)
    assert row.mean_error == whole.worst_error == pytest.approx(0.5)


def test_a_trace_does_not_say_what_was_drawn() -> None:
    assert not {"kind", "energy_j"} & {key for trace in read("traces") for key in trace}
