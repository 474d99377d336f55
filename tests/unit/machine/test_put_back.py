"""Whatever is killed: a GPU's settings are back before anybody else can lease it.

`python -m tests.benchmarks.device_put_back` kills a hundred times at each point; here once, at the same moments.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.benchmarks.device_put_back import POINTS, can_kill, kill_one
from tests.simulated_nvml.plugin import make_simulation, simulated_nvml_library, simulation
from tests.simulated_nvml.simulation import Simulation

__all__ = ["make_simulation", "simulated_nvml_library", "simulation"]


@pytest.mark.parametrize("point", POINTS)
def test_settings_are_back_when_something_is_killed(point: str, simulation: Simulation, tmp_path: Path) -> None:
    """A script that sets a power limit leaves it set when it dies: every later number of the machine is another."""
    if not can_kill(point):
        pytest.skip("no Docker daemon with the test image (.ci/docker-for-tests.sh provides it)")
    (tmp_path / "try").mkdir()
    done = kill_one(point, tmp_path / "try", simulation.library, random.Random(1))
    assert (done.hit, done.back, done.left) == (True, True, ())
    assert done.seconds < 30
