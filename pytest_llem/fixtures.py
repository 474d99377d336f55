"""The fixtures: an experiment, its cycle, its results, and a meter for code of one's own.

Registered as a module by the plugin, so it imports pytest alone; everything else comes with the first study.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_llem.results.schema import Result
    from pytest_llem.session.code_meter import CodeMeter
    from pytest_llem.session.experiment_cycle import ExperimentCycle
    from pytest_llem.session.session import LlemSession


@pytest.fixture(scope="session")
def llem_session(request: pytest.FixtureRequest) -> Iterator[LlemSession]:
    """What this pytest process measures with: the run's store, the runners, the settings.

    The last test's teardown unloads an engine that was kept loaded, and fails when its devices are not free then.
    """
    from pytest_llem.session.start import current

    session = current(request.config)
    yield session
    session.unload()


@pytest.fixture
def llem_experiment(request: pytest.FixtureRequest) -> ExperimentCycle:
    """The experiment that this test is parametrised with (and its cycle, where the test wants one)."""
    point: ExperimentCycle = request.param
    return point


@pytest.fixture
def llem_cycle(llem_experiment: ExperimentCycle) -> ExperimentCycle:
    """The experiment and the one cycle that this test is parametrised with."""
    return llem_experiment


@pytest.fixture
def llem_result(request: pytest.FixtureRequest, llem_session: LlemSession, llem_cycle: ExperimentCycle) -> Result:
    """The result of one cycle, measured when nobody has yet.

    Skips the test, with the reasons, when the cycle is invalid (unless the marker says `allow_invalid=True`), and is an
    error when the cycle failed.
    """
    from pytest_llem.session.items import usable

    return usable(llem_session.get_or_measure(llem_cycle, item=request.node), request.node)


@pytest.fixture
def llem_results(
    request: pytest.FixtureRequest, llem_session: LlemSession, llem_experiment: ExperimentCycle
) -> list[Result]:
    """The results of all cycles of one experiment, with the same skips and errors as `llem_result`."""
    from pytest_llem.session.items import usable

    outcomes = [llem_session.get_or_measure(cycle, item=request.node) for cycle in llem_experiment.cycles()]
    return [usable(outcome, request.node) for outcome in outcomes]


@pytest.fixture
def llem_meter(request: pytest.FixtureRequest) -> Callable[[], AbstractContextManager[CodeMeter]]:
    """Measures the test's own code, in this process: `with llem_meter() as m: ...`, then `m.energy_j`."""
    from pytest_llem.session.code_meter import measure_code
    from pytest_llem.session.options import run_options

    return partial(measure_code, run_options(request.config).meter)
