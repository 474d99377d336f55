"""The tests that every study consists of: pytest collects this module once per study file.

Their names are part of node ids, so they do not change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_llem.session.items import check, judge, outcome_for, skip_if_precise

if TYPE_CHECKING:
    import pytest

    from pytest_llem.session.experiment_cycle import ExperimentCycle
    from pytest_llem.session.session import LlemSession


def test_experiment(request: pytest.FixtureRequest, llem_session: LlemSession, llem_cycle: ExperimentCycle) -> None:
    """Measure one cycle of one experiment; an optional one only while the headline is not precise enough."""
    skip_if_precise(llem_session, llem_cycle)
    check(outcome_for(request.node, llem_session, llem_cycle), strict=llem_session.options.strict)


def test_gate(request: pytest.FixtureRequest, llem_session: LlemSession, llem_experiment: ExperimentCycle) -> None:
    """Judge one experiment's cycles by its budgets and against the baseline."""
    judge(llem_session, llem_experiment, request.node)
