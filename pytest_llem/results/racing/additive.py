"""A race whose study declares that the effects of its axes add up: few settings are measured, the others predicted.

`race` runs it for `assume: additive`. Its first rounds measure settings that span all levels, so that noise is told
from lack of fit; later ones measure the best of those that are left, and those of them that tell the others best. Where
measured settings contradict the assumption, nothing of its rounds is believed, and a race without it goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from pytest_llem.results.racing.answer import Fate, Setting
from pytest_llem.results.racing.axes import rows_of
from pytest_llem.results.racing.fitting import Row, chosen
from pytest_llem.results.racing.keeping import Keeping
from pytest_llem.results.racing.prediction import PredictedFigures, PredictedKeeping
from pytest_llem.results.racing.running import REFUSED, TOLERATED, Running
from pytest_llem.study.limits import SHARES
from pytest_llem.study.optimize import MIN_CYCLES, Optimize

SHARE_OF_GRID = 0.1
"""Share of the whole grid's cycles that a race may come to where its axes allow. Chosen: what structure is for."""

NOT_PREDICTED = frozenset({*SHARES, "cached_input_share"})
"""Limited metrics that are known where they were measured alone: counts, and what is zero in good settings."""


class Additive(Running):
    """A race between two rounds, in which effects add up."""

    first_look = MIN_CYCLES
    rests_on = "additive"
    condition = " if effects add up"

    def __init__(self, goal: Optimize, fates: dict[str, Fate], settings: Sequence[Setting]) -> None:
        super().__init__(goal, fates)
        self._rows = dict(zip(fates, rows_of([setting.levels for setting in settings]), strict=True))
        self.figures = self._figures = PredictedFigures(self._rows, MIN_CYCLES)
        predicted = [b for b in goal.subject_to if b.metric not in NOT_PREDICTED and b.limit > 0]
        self._predicted = [PredictedKeeping(budget, self._rows) for budget in predicted]
        self.keeping = [*self._predicted, *(Keeping(b) for b in goal.subject_to if b not in predicted)]
        columns = len({column for row in self._rows.values() for column in row})
        whole = SHARE_OF_GRID * len(fates) * goal.max_cycles
        self._design = min(len(fates), 2 * columns)
        later = (whole - MIN_CYCLES * self._design) / max(1, goal.max_cycles - MIN_CYCLES)
        self._most = max(int(later), columns)

    def due(self) -> Sequence[str]:
        """The settings that the next round measures: of a design at first, then of those that are left."""
        names = self.left()
        if self.number < MIN_CYCLES:
            tried = [at for at, name in enumerate(names) if self.fates[name].cycles]
            return [names[at] for at in _chosen(tuple(map(self._rows.__getitem__, names)), self._design, tuple(tried))]
        if len(names) <= self._most:
            return names
        best = sorted(names, key=self.figures.mean)
        told = _chosen(tuple(map(self._rows.__getitem__, best)), self._most, tuple(range(self._most // 2)))
        return [name for name in names if name in {best[at] for at in told}]

    def followed(self) -> Running:
        """A race without the assumption, where measured settings contradict it."""
        contradiction = self._contradiction() if self.number > 1 else None
        return self if contradiction is None else self.without(contradiction)

    def _contradiction(self) -> str | None:
        models: dict[str, PredictedFigures | PredictedKeeping] = {self.goal.metric: self._figures}
        models |= {k.budget.metric: k for k in self._predicted}
        for predicted in self._predicted:
            if predicted.not_positive is not None:
                named = predicted.budget.metric
                return f"effects do not add up in {named}, which is not positive in {predicted.not_positive}"
        error = REFUSED * self.spent() / len(models)
        for metric, model in models.items():
            if model.sums.misfit(TOLERATED * self.goal.regret + model.own) < error:
                return f"effects do not add up in {metric}"
        return None


@lru_cache(maxsize=32)
def _chosen(rows: tuple[Row, ...], count: int, given: tuple[int, ...]) -> list[int]:
    return chosen(rows, count, given)
