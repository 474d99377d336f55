"""The uncertainty of a figure: what it is made of, and that its interval holds the true value."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from statistics import stdev
from typing import TYPE_CHECKING

import pytest

from pytest_llem.job.files import write_json
from pytest_llem.job.wire import encode
from pytest_llem.results.comparability import common_conditions
from pytest_llem.results.layout import CycleKey, repeatability_file
from pytest_llem.results.metrics import metric
from pytest_llem.results.repeatability import Repeatability, Spread, machine, spreads
from pytest_llem.results.schema import Result
from pytest_llem.results.statistics import RunSpread
from pytest_llem.results.summary import summarise_metrics
from pytest_llem.results.uncertainty import (
    UncertaintyBudget,
    budget_of_experiment,
    budget_of_result,
    expanded,
    scatter,
    sensor,
)
from tests.benchmarks.uncertainty_coverage import SHAPES, coverage, half_iqr_coverage

if TYPE_CHECKING:
    from tests.unit.results.conftest import Bench

WATTS = (10.0, 10.1, 10.3)


def cycles(bench: Bench, *watts: float, isolation: str = "process") -> list[Result]:
    results = []
    for number, power_w in enumerate(watts, 1):
        result = bench.result(bench.measurement(power_w=power_w), CycleKey("study", "a:1", "0123456789abcdef", number))
        results.append(result.model_copy(update={"runner": replace(result.runner, isolation=isolation)}))
    return results


def budget(
    results: list[Result], name: str = "joules_per_output_token", spread: RunSpread | None = None
) -> UncertaintyBudget:
    found = budget_of_experiment(metric(name), results, spread)
    assert found is not None
    return found


@pytest.mark.parametrize(("cycles", "factor"), [(2, 13.97), (3, 4.53), (4, 3.31), (5, 2.87), (11, 2.28), (21, 2.13)])
def test_scatter_alone_is_expanded_by_students_t(cycles: int, factor: float) -> None:
    """JCGM 100:2008, table G.2, column 95.45 %."""
    values = [1.0, *([0.9, 1.1] * (cycles // 2))][:cycles]
    assert expanded([scatter(values)]) == pytest.approx(factor * stdev(values) / math.sqrt(cycles), rel=2e-3)


def test_a_stated_uncertainty_alone_is_expanded_by_two() -> None:
    assert expanded([sensor([0.3, 0.3], [1.0, 1.0])]) == pytest.approx(0.3)


def test_the_components_of_an_experiment(bench: Bench) -> None:
    """24 tokens in 2 s at 10, 10.1 and 10.3 W, with 0.3 J from the sensor in each cycle."""
    found = budget(cycles(bench, *WATTS))
    values = [2 * watts / 24 for watts in WATTS]
    mean = sum(values) / 3
    parts = {part.name: part for part in found.components}
    assert found.value == pytest.approx(mean)
    assert parts["scatter over cycles"].contribution == pytest.approx(stdev(values) / math.sqrt(3))
    assert parts["sensor"].value == pytest.approx(0.15), "cycles do not reduce what errs alike in all"
    assert parts["sensor"].sensitivity == pytest.approx(1 / 24)
    assert parts["between runs, assumed"].contribution == pytest.approx(mean * 0.01 / math.sqrt(2))
    assert [part.type for part in found.components] == ["A", "B", "B", "B"]
    assert sum(part.share or 0 for part in found.components) == pytest.approx(1)
    terms = (4.527 * parts["scatter over cycles"].contribution, 0.3 / 24, mean * 0.01 * math.sqrt(2))
    assert found.uncertainty == pytest.approx(math.hypot(*terms), rel=1e-3)
    assert found.coverage_factor is not None
    assert 2 < found.coverage_factor < 4.527


def test_after_a_single_cycle_the_uncertainty_is_unknown_and_not_that_of_the_sensor(bench: Bench) -> None:
    found = budget(cycles(bench, 10.0))
    assert (found.uncertainty, found.coverage_factor) == (None, None)
    assert found.unknown == "scatter over cycles"


def test_a_meter_that_states_none_leaves_it_unknown(bench: Bench) -> None:
    silent = [
        result.model_copy(update={"energy": replace(result.energy, uncertainty_j=None)})
        for result in cycles(bench, *WATTS)
    ]
    assert budget(silent).unknown == "sensor"
    assert budget(silent).uncertainty is None
    assert budget(silent, "output_tokens_per_s").uncertainty is not None


def test_cycles_that_shared_a_loaded_engine_count_as_one(bench: Bench) -> None:
    apart, shared = budget(cycles(bench, *WATTS)), budget(cycles(bench, *WATTS, isolation="experiment"))
    assert shared.components[0].contribution == pytest.approx(apart.components[0].contribution * math.sqrt(3))


def test_what_equal_runs_were_measured_to_differ_by_replaces_the_assumed(bench: Bench, tmp_path: Path) -> None:
    results = cycles(bench, *WATTS)
    name = "joules_per_output_token"
    found = {name: Spread(0.002, 0.03, 0.04, 4)}
    kept = Repeatability("study", "now", ("r",), machine(common_conditions(results)), found)
    write_json(repeatability_file("study", tmp_path), encode(kept))
    assumed, measured = summarise_metrics(results), summarise_metrics(results, tmp_path)
    (part,) = (p for p in budget(results, spread=spreads(results, tmp_path)(name)).components if "measured" in p.name)
    assert (part.type, part.degrees) == ("A", 4)
    assert part.value == pytest.approx(0.05)
    assert measured[name].uncertainty == pytest.approx(2.869 * 0.05 * measured[name].value, rel=0.1)
    assert measured["output_tokens_per_s"].uncertainty == assumed["output_tokens_per_s"].uncertainty
    elsewhere = [
        result.model_copy(update={"runner": replace(result.runner, isolation="experiment")}) for result in results
    ]
    assert spreads(elsewhere, tmp_path)(name) is None, "another isolation is another machine to it"


def test_cycles_that_follow_one_another_have_a_wider_interval() -> None:
    """Twenty cycles whose level wanders: taken for independent, s/sqrt(n) is half of what their mean may be off by."""
    slow = [1 + 0.01 * math.sin(cycle / 3) for cycle in range(20)]
    mixed = slow[::2] + slow[1::2]
    mixed = [mixed[(7 * place) % 20] for place in range(20)]
    assert sorted(mixed) == sorted(slow)
    assert scatter(slow).contribution > 1.5 * scatter(mixed).contribution
    assert scatter(mixed).contribution == pytest.approx(stdev(mixed) / math.sqrt(20), rel=0.2)


def test_the_boards_gain_stands_beside_the_uncertainty_and_not_in_it(bench: Bench) -> None:
    plain = cycles(bench, *WATTS)
    gained = [
        result.model_copy(update={"energy": replace(result.energy, gain_uncertainty_rel=0.05)}) for result in plain
    ]
    assert budget(gained).gain_uncertainty_rel == 0.05
    assert budget(gained).uncertainty == budget(plain).uncertainty
    assert budget(gained, "output_tokens_per_s").gain_uncertainty_rel is None


def test_throughput_and_latency_have_no_sensor(bench: Bench) -> None:
    for name in ("output_tokens_per_s", "ttft_p50_s"):
        parts = [part.name for part in budget(cycles(bench, *WATTS), name).components]
        assert parts == ["scatter over cycles", "between runs, assumed"]


def test_an_unsettled_die_widens_energy_and_nothing_else(bench: Bench) -> None:
    settled = cycles(bench, *WATTS)
    cold = [result.model_copy(update={"thermal": replace(result.thermal, uncertainty_rel=0.04)}) for result in settled]
    before, after = budget(settled), budget(cold)
    assert before.components[-1].value is None
    assert after.uncertainty == pytest.approx(math.hypot(before.uncertainty or 0, 0.04 * after.value))
    net = budget(cold, "energy_above_idle_j").components[-1]
    assert net.contribution == pytest.approx(0.02 * 2 * sum(WATTS) / 3), "heat moves all the energy, not the net alone"
    for name in ("output_tokens_per_s", "idle_power_w"):
        assert budget(cold, name).uncertainty == budget(settled, name).uncertainty


@pytest.mark.parametrize("name", ["joules_per_output_token", "tokens_per_joule", "idle_power_w", "energy_above_idle_j"])
def test_a_single_result_has_the_uncertainty_that_it_states(bench: Bench, name: str) -> None:
    result = bench.result()
    found = budget_of_result(metric(name), result)
    field = {"idle_power_w": "idle_power_uncertainty_w", "energy_above_idle_j": "energy_above_idle_uncertainty_j"}
    assert found is not None
    assert found.uncertainty == pytest.approx(getattr(result.energy, field.get(name, f"{name}_uncertainty")))


def test_a_single_throughput_has_none(bench: Bench) -> None:
    found = budget_of_result(metric("output_tokens_per_s"), bench.result())
    assert found is not None
    assert (found.uncertainty, found.unknown) == (None, "scatter")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [3, 5, 10])
def test_the_interval_holds_the_true_value_in_95_percent(shape: str, count: int) -> None:
    """All components drawn from their distributions; 4000 studies have a standard error of 0.34 %."""
    assert coverage(shape, count, 0.01, studies=4000) >= 0.95 - 2 * 0.0034


def test_half_an_interquartile_range_held_it_in_less_than_half_of_studies() -> None:
    """What stood behind ± until now, at three cycles, against scatter alone."""
    assert 0.40 < half_iqr_coverage("normal", 3, studies=4000) < 0.50
