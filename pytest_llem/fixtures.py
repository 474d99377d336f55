"""The fixtures of tests: an experiment, its cycle, its results, and a meter for the test's own code.

`plugin.py` registers it in every pytest run: it must import little. Names of fixtures and what they give are public.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import pytest

from pytest_llem.plugin import started

if TYPE_CHECKING:
    from pytest_llem.results.schema import Result
    from pytest_llem.session.code_meter import CodeMeter
    from pytest_llem.session.experiment_cycle import ExperimentCycle
    from pytest_llem.session.session import LlemSession


@pytest.fixture(scope="session")
def llem_session(request: pytest.FixtureRequest) -> Iterator[LlemSession]:
    """This process's studies, settings and results.

    The last test's teardown unloads an engine that was kept loaded, and fails when its devices are not free then.
    """
    session = started(request.config).session
    yield session
    session.unload()


@pytest.fixture
def llem_experiment(request: pytest.FixtureRequest) -> ExperimentCycle:
    """The experiment that this test is parametrised with (and its cycle, where the test asks for one)."""
    experiment_cycle: ExperimentCycle = request.param
    return experiment_cycle


@pytest.fixture
def llem_cycle(llem_experiment: ExperimentCycle) -> ExperimentCycle:
    """The experiment and the one cycle that this test is parametrised with."""
    return llem_experiment


# Results need `llem_session` for its teardown, which unloads the engine.
@pytest.fixture
def llem_result(request: pytest.FixtureRequest, llem_session: LlemSession, llem_cycle: ExperimentCycle) -> Result:
    """The result of one cycle, measured if it has not been yet.

    Skips the test, with the reasons, when the cycle is invalid (unless the marker says `allow_invalid=True`), and is an
    error when the cycle failed.
    """
    return started(request.config).results_for(request.node, [llem_cycle])[0]


@pytest.fixture
def llem_results(
    request: pytest.FixtureRequest, llem_session: LlemSession, llem_experiment: ExperimentCycle
) -> list[Result]:
    """The results of all cycles of one experiment, with the same skips and errors as `llem_result`."""
    plugin = started(request.config)
    return plugin.results_for(request.node, plugin.cycles_of(llem_experiment))


@pytest.fixture
def llem_meter(request: pytest.FixtureRequest) -> Callable[[], AbstractContextManager[CodeMeter]]:
    """Measures the test's own code, in this process: `with llem_meter() as m: ...`, then `m.energy_j`."""
    from pytest_llem.session.code_meter import code_meter_of

    return code_meter_of(request.config)
