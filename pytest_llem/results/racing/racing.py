"""Runs a race, with the structure that its study declares.

`race` is called before every cycle, with the results so far, and must give the same answer in any process: it draws
nothing, and settings come in the study's order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pytest_llem.results.racing.additive import Additive
from pytest_llem.results.racing.answer import Fate, Race, Seen, Setting
from pytest_llem.results.racing.monotone import Monotone
from pytest_llem.results.racing.running import Running
from pytest_llem.study.optimize import Optimize


def race(settings: Sequence[Setting], seen: Callable[[str, int], Seen], goal: Optimize, *, rounds: int) -> Race:
    """Runs the first rounds, asking `seen(id, cycle)` for exactly the cycles that they need, in the study's order."""
    running = _started(settings, goal)
    for number in range(1, min(rounds, goal.max_cycles) + 1):
        if running.over:
            break
        running.take({name: seen(name, number) for name in running.due()})
        running = running.followed()
    return running.answer()


def _started(settings: Sequence[Setting], goal: Optimize) -> Running:
    fates = {setting.id: Fate("in") for setting in settings}
    if goal.assume == "additive":
        return Additive(goal, fates, settings)
    if goal.assume == "monotone":
        return Monotone(goal, fates, settings)
    return Running(goal, fates)
