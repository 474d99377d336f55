"""The probability of being best: a winner of luck that is called sure would be bought."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_llem.results.attempts import get_or_measure
from pytest_llem.results.front import STANDINGS
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.manifest import rebuild_manifest
from pytest_llem.results.ranking import chances
from pytest_llem.results.report.charts import charts
from pytest_llem.results.report.content import gather_content
from pytest_llem.results.report.experiments import experiments
from pytest_llem.results.store import RunStore
from pytest_llem.results.summary import summarise
from tests.benchmarks.ranking import SURE, simulated

if TYPE_CHECKING:
    from tests.unit.results.conftest import Bench, Worker


def around(level: float, noise: float = 0.01) -> list[float]:
    return [level * (1 + noise * z) for z in (-1, 0.2, 0.8)]


def test_one_that_is_far_ahead_is_the_best_and_which_end_that_is_is_the_metrics() -> None:
    far = [around(1.0), around(1.2), around(1.3)]
    for higher, best in ((False, 0), (True, 2)):
        found = chances(far, [0, 0, 0], higher=higher)
        assert found is not None
        assert sum(found) == pytest.approx(1)
        assert found[best] > 0.95
    assert chances(far, [0, 0, 0], higher=True) == chances(far, [0, 0, 0], higher=True)


def test_equal_ones_share_it_and_the_sensor_makes_it_less_sure() -> None:
    found = chances([around(1.0)] * 4, [0] * 4, higher=False)
    assert found == pytest.approx([0.25] * 4, abs=0.04)
    near = [around(1.0, 0.002), around(1.02, 0.002)]
    sure, less = chances(near, [0, 0], higher=False), chances(near, [0.05, 0.05], higher=False)
    assert sure is not None
    assert less is not None
    assert sure[0] > 0.95 > 0.85 > less[0]


def test_it_is_the_same_in_any_order() -> None:
    """The report, which orders them by value, said 64 % of what the terminal had said 63 % of."""
    settings, bounds = [around(1.0), around(1.02), around(1.01)], [0.0, 0.01, 0.02]
    found = chances(settings, bounds, higher=False)
    turned = chances([each[::-1] for each in settings[::-1]], bounds[::-1], higher=False)
    assert found is not None
    assert turned == found[::-1]


def test_what_is_not_known_has_no_probability() -> None:
    assert chances([around(1.0), around(2.0)[:2]], [0, 0], higher=False) is None  # two cycles tell no scatter
    assert chances([around(1.0), [2.0] * 3], [0, 0], higher=False) is None
    assert chances([around(1.0), []], [0, 0], higher=False) is None
    assert chances([around(1.0)], [0], higher=False) is None
    assert chances([around(1.0), [0.0, 1.0]], [0, 0], higher=False) is None
    assert chances([around(1.0)] * 201, [0] * 201, higher=False) is None


@pytest.mark.parametrize(("settings", "spread"), [(3, 0.5), (6, 1.0)])
def test_what_is_stated_is_so_as_often(settings: int, spread: float) -> None:
    """200 studies: no more is stated than holds, but for three standard errors. A flat prior states far more."""
    rng = random.Random(20261130)
    found = [simulated(rng, settings, 3, spread) for _ in range(200)]
    stated = sum(share for share, _ in found) / 200
    assert stated <= sum(right for _, right in found) / 200 + 3 * math.sqrt(0.25 / 200)
    assert stated > 1 / settings + 0.1


@pytest.mark.parametrize("cycles", [4, 5])
def test_one_that_scatters_tenfold_is_not_called_the_best_for_its_luck(cycles: int) -> None:
    """Of six, at a spread of 1: what is stated above 80 % is so as often, but for three standard errors.

    With one variance for all, most of it is wrong.
    """
    rng = random.Random(20261130)
    found = [simulated(rng, 6, cycles, 1.0, 1, 10.0) for _ in range(150)]
    sure = [right for stated, right in found if stated > SURE]
    assert sum(sure) >= SURE * len(sure) - 3 * math.sqrt(SURE * (1 - SURE) * len(sure))
    assert sure


def test_the_report_and_the_summary_rank_with_it(tmp_path: Path, bench: Bench, worker: Callable[..., Worker]) -> None:
    store = RunStore.create(tmp_path / "out", "run-1", environment={})
    for size, watts in ((1, 10.0), (2, 20.0)):
        for cycle in (1, 2, 3):
            key = CycleKey("study", f"a:{size}", f"{size:016x}", cycle)
            get_or_measure(store, key, worker(key, bench.measurement(watts * (1 + cycle / 1000))))
    manifest = rebuild_manifest(store.run_dir, finished=True)
    content = gather_content([store.run_dir])
    first, second = content.experiments
    assert first.best is not None
    assert second.best is not None
    assert first.best > 0.95 > second.best
    rows = list(summarise([item.key for item in manifest.items], store.outcome, plans=manifest.studies))
    assert [row.best for row in rows] == [first.best, second.best]  # one computation, one figure
    assert [row.best for row in summarise([manifest.items[0].key], store.outcome)] == [None]
    assert ">best (%)<" in experiments(content)
    assert ">&gt; 99<" in experiments(content)
    (drawn,) = (chart for chart in charts(content) if chart.id == "pareto")
    assert {row["standing"] for row in drawn.rows} <= set(STANDINGS.values())
    assert "By the intervals of both (95 %), " in drawn.description
