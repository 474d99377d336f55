"""Which of a study's experiments in one run is truly the best in its headline, as far as their cycles tell.

The session's summary and the report ask `best` alike; `ranking` has the statistics. What `Contender` keeps of an
experiment is light, so that its results need not be kept until all are read.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pytest_llem.job.metric_names import HEADLINE, known_metric
from pytest_llem.results.comparability import CORRELATED
from pytest_llem.results.effects import meters
from pytest_llem.results.metrics import Metric, metric
from pytest_llem.results.ranking import chances
from pytest_llem.results.schema import Result
from pytest_llem.results.uncertainty import systematic_rel

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Contender:
    """What the ranking needs of an experiment: its valid cycles' `values` and the `bound` of what they share, k=2.

    Right answers and searched loads have intervals of another kind, and cycles of one loaded engine count as one:
    those are not `fit`. `boards` and `counted` are the devices, and what the joules are of.
    """

    values: tuple[float, ...] = ()
    bound: float = 0.0
    fit: bool = True
    boards: frozenset[tuple[str, ...]] = frozenset()
    counted: frozenset[str] = frozenset()

    @classmethod
    def of(cls, headline: str | None, results: Sequence[Result]) -> Contender:
        """That of the valid cycles among an experiment's results, by the headline of its study."""
        measure = judge(headline)
        valid = [each for each in results if each.validity.valid and measure.of(each) is not None]
        return cls(
            values=tuple(value for each in valid if (value := measure.of(each)) is not None),
            bound=systematic_rel(measure, valid, one_board=True) or 0.0,
            fit=not measure.quality
            and all(each.search is None and each.runner.isolation not in CORRELATED for each in valid),
            boards=frozenset(tuple(sorted(each.runner.device_ids)) for each in valid),
            counted=frozenset(meters(measure.name, valid)),
        )


def judge(headline: str | None) -> Metric:
    """The metric by which experiments are ranked."""
    return metric(headline if headline and known_metric(headline) else HEADLINE)


def best(contenders: Mapping[K, Contender], headline: str | None) -> dict[K, float]:
    """The probability of each experiment of a run and study to be the best; none where their cycles do not tell it."""
    placed = {key: each for key, each in contenders.items() if each.values}
    boards = {board for each in placed.values() for board in each.boards}
    counted = {meter for each in placed.values() for meter in each.counted}
    # Another board's gain would not cancel.
    if len(placed) < 2 or not all(each.fit for each in placed.values()) or len(boards) > 1 or len(counted) > 1:
        return {}
    values, bounds = [each.values for each in placed.values()], [each.bound for each in placed.values()]
    found = chances(values, bounds, higher=judge(headline).higher_is_better)
    return dict(zip(placed, found, strict=True)) if found is not None else {}
