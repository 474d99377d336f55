"""A sweep of clocks or limits names the true energy optimum, and refuses what did not hold: in small, by the benchmark.

`tests/benchmarks/device_optimum.py` has many boards, and says how often.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from tests.benchmarks.device_optimum import CLOCKS, FAULTS, LIMITS, Fault, refused
from tests.simulated_nvml.simulation import Simulation
from tests.simulated_nvml.sweeps import Sweep, draw_board, steps_apart


@pytest.mark.parametrize("sweep", [CLOCKS, LIMITS], ids=lambda sweep: sweep.name)
def test_the_optimum_is_found_to_one_step_of_the_grid(simulation: Simulation, tmp_path: Path, sweep: Sweep) -> None:
    """Power that was taken at another limit, or a clock of another cycle, would move it."""
    rng = random.Random(3)
    swept = replace(sweep, work_s=2.0)
    draw_board(simulation.gpus[0], rng)
    costs = swept.true_costs(simulation.gpus[0])
    true = min(costs, key=lambda value: costs[value])
    assert true not in (swept.values[0], swept.values[-1])

    results = swept.run(simulation, tmp_path, rng)

    assert [result.validity.reasons for result in results if result.status == "invalid"] == []
    found = swept.optimum(results)
    (best,) = found.best
    assert steps_apart(swept.values, int(str(best)), true) <= 1
    assert true in {int(str(value)) for (value,) in (found.best, *found.others)}
    settings = [result.device.gpus[0].settings[0] for result in results]
    assert all(setting.held for setting in settings)
    if sweep is LIMITS:  # the load draws 620 W
        assert {setting.requested for setting in settings if not setting.reached} == {700.0}
        assert all(setting.reached for setting in settings if setting.requested in (200.0, 250.0, 300.0))


@pytest.mark.parametrize(("title", "sweep", "fault"), FAULTS, ids=[title for title, _, _ in FAULTS])
def test_a_cycle_whose_setting_did_not_hold_is_refused(
    simulation: Simulation, tmp_path: Path, title: str, sweep: Sweep, fault: Fault
) -> None:
    code = "power_limit_not_applied" if sweep is LIMITS else "clock_not_held"
    assert refused(sweep, fault, 2, simulation, tmp_path) == (2, {code})
