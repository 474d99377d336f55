"""The tests that every study consists of. pytest collects this module once per study file."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

    from pytest_llem.collection import Point
    from pytest_llem.session import LlemSession


def test_experiment(request: pytest.FixtureRequest, llem_session: LlemSession, llem_cycle: Point) -> None:
    """Measure one cycle of one experiment."""
    outcome = llem_session.get_or_measure(llem_cycle, item=request.node)
    llem_session.check(outcome)


def test_gate(request: pytest.FixtureRequest, llem_session: LlemSession, llem_experiment: Point) -> None:
    """Judge one experiment's cycles by its budgets and against the baseline."""
    llem_session.judge(llem_experiment, item=request.node)
