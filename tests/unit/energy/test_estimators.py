"""The estimators' arithmetic on made-up counter steps, without any process or clock."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from math import exp, sqrt

import pytest

from pytest_llem.energy import window_edges as quiet
from pytest_llem.energy.calibration import Calibration
from pytest_llem.energy.estimators import expanded_scatter, from_counter, from_power
from pytest_llem.energy.protocol import combined
from pytest_llem.energy.readings import Sample
from pytest_llem.energy.series import TickSeries, ticks_from
from pytest_llem.job.measurement import Window

S = 1_000_000_000
MS = 1_000_000
KNOWN = Calibration(
    "GPU-0", "580", 100 * MS, 500_000, 60_000, 500_000, 0, 200_000, "accumulating", rise_ns=0, settle_ns=0, step_w=400.0
)

Energy = Callable[[float], float]


def steps(
    energy_j: Energy,
    *,
    start_s: float = 0.013,
    until_s: float = 4.0,
    period_s: float = 0.1,
    half_ns: int = 300_000,
    seed: int = 1,
) -> TickSeries:
    """Steps of an accumulating counter, each seen within a bracket that it lies in at random."""
    rng = random.Random(seed)
    low, high, values = [], [], []
    t = start_s
    while t < until_s:
        middle = round(t * S) + round(rng.uniform(-1, 1) * half_ns)
        low.append(middle - half_ns)
        high.append(middle + half_ns)
        values.append(energy_j(t))
        t += period_s
    return TickSeries(tuple(low), tuple(high), tuple(values))


def block(start: float, end: float, busy_w: float = 500.0, idle_w: float = 100.0) -> Energy:
    """A load with sharp edges."""
    return lambda t: idle_w * t + (busy_w - idle_w) * (min(max(t, start), end) - start)


def window(start: float, end: float, quiet_s: float | None = None) -> Window:
    return Window("measure", round(start * S), round(end * S), 0, quiet_s, quiet_s)


def test_quiet_sides_are_exact_within_the_brackets() -> None:
    found = from_counter(steps(block(1.04, 1.34)), window(1.04, 1.34, 0.5), KNOWN)

    assert found is not None
    assert found.estimator == "counter_outer_edge"
    assert found.energy_j == pytest.approx(150.0, abs=found.uncertainty_j)
    assert found.uncertainty_j < 0.015 * 150.0, "these steps happen to be whole joules"


def test_the_bound_covers_nineteen_in_twenty_random_phases() -> None:
    rng = random.Random(5)
    hits = {"quiet": 0, "busy": 0}
    for run in range(200):
        start = 1.0 + rng.random() * 0.1
        truth = block(start, start + 0.3)
        ticks = steps(truth, seed=run)
        for name, side in (("quiet", 0.5), ("busy", None)):
            found = from_counter(ticks, window(start, start + 0.3, side), KNOWN)
            assert found is not None
            hits[name] += abs(found.energy_j - 150.0) <= found.uncertainty_j

    assert min(hits.values()) >= 190


def test_the_bound_covers_several_devices_whose_load_begins_and_ends_together() -> None:
    """Each errs to the same side where its edges are not quiet: in quadrature the bound held in under a third."""
    rng = random.Random(7)
    hits = 0
    for run in range(50):
        begin = 1.0 + rng.random() * 0.1
        found = [
            from_counter(
                steps(block(begin, begin + 1.0), start_s=0.01 + rng.random() * 0.1, seed=4 * run + gpu),
                window(begin, begin + 1.0),
                KNOWN,
            )
            for gpu in range(4)
        ]
        parts = [part for part in found if part is not None]
        whole = combined(parts)
        hits += abs(whole.energy_j - 2000.0) <= whole.uncertainty_j

        assert len(parts) == 4
        assert whole.terms["shape"] == pytest.approx(sum(part.terms["shape"] for part in parts))

    assert hits >= 48


def test_coarse_power_readings_leave_what_they_round_off() -> None:
    samples = [Sample(t * 50 * MS, "GPU-0", power_w=20.0 * round((100 + 3 * t) / 20)) for t in range(100)]

    found = from_power(samples, window(1.0, 3.0), 0.025)

    assert found is not None
    assert found.terms["resolution"] == pytest.approx(2 * 20 / sqrt(3))


@pytest.mark.parametrize(("delay_s", "ramp_s"), [(0.0, 0.02), (0.01, 0.01), (0.02, 0.0)])
def test_a_counter_that_is_late_at_the_end_may_show_a_lag_or_a_tail(delay_s: float, ramp_s: float) -> None:
    """Calibration finds the same 20 ms in each: only half of it may be taken off, with the other half as bound."""
    known = KNOWN._replace(ramp_ns=20 * MS, ramp_uncertainty_ns=MS, rise_ns=20 * MS, settle_ns=90 * MS)

    def drawn_j(t: float) -> float:
        tail = ramp_s * (1 - exp(-(t - 1.5) / ramp_s)) if ramp_s and t > 1.5 else 0.0
        return block(1.0, 1.5)(t) + 400 * tail

    ticks = steps(lambda t: drawn_j(t - delay_s))
    found = from_counter(ticks, window(1.0, 1.5, 0.5), known)
    sharp = from_counter(ticks, window(1.0, 1.5, 0.5), KNOWN)

    assert found is not None
    assert sharp is not None
    assert found.estimator == "counter_outer_edge"
    assert found.energy_j == pytest.approx(250.0, abs=found.uncertainty_j)
    assert 4.0 < found.uncertainty_j < 6.0
    assert sharp.estimator == "counter_interpolated" or sharp.energy_j == pytest.approx(
        250.0 + 400 * ramp_s, abs=sharp.uncertainty_j
    ), "a tail that calibration knows nothing of is not quiet, unless it falls between two steps"


def test_a_calibration_from_before_lags_were_told_from_ramps_knows_neither() -> None:
    ticks = steps(block(1.0, 1.5))

    old = from_counter(ticks, window(1.0, 1.5, 0.5), KNOWN._replace(rise_ns=None, settle_ns=None, step_w=None))

    assert old is not None
    assert old.energy_j == pytest.approx(250.0, abs=0.5), "nothing is taken off"
    assert old.terms["ramp"] > 400 * 0.03


def test_repeats_that_keep_in_step_with_a_part_time_counter_are_not_believed() -> None:
    """Ten repeats of 100 ms, each half on, all sampled at the same moment: nothing in the readings tells."""
    part_time = KNOWN._replace(counter_type="part_time", duty=0.25)
    once, ten = window(1.0, 2.0, 0.5), replace(window(1.0, 2.0, 0.5), repeats=10)
    spread = replace(once, repeats=7)
    ticks = steps(block(1.0, 2.0))

    found = [from_counter(ticks, each, part_time) for each in (once, ten, spread)]

    bounds = [estimate.uncertainty_j for estimate in found if estimate is not None]
    assert len(bounds) == 3
    assert bounds[1] > 0.5 * 500.0
    assert bounds[2] < 0.3 * 500.0
    sure = from_counter(ticks, ten, KNOWN)
    assert sure is not None
    assert sure.uncertainty_j < 0.01 * 500.0, "a counter that looks at all of its period misses nothing"


@pytest.mark.parametrize("intervals", range(2, 9))
def test_the_scatter_of_few_steps_is_expanded_by_students_t(intervals: int) -> None:
    """Half of t for 95.45 % (GUM, JCGM 100:2008, table G.2), since the bound is twice the standard deviation."""
    table = {1: 13.97, 2: 4.53, 3: 3.31, 4: 2.87, 5: 2.65, 6: 2.52, 7: 2.43}

    assert expanded_scatter(intervals) == pytest.approx(table[intervals - 1] / 2, abs=0.005)


def test_a_counter_in_whole_joules_is_known_no_better_than_that() -> None:
    """It was taken for one in millijoules: the bound held in 12 of 13."""
    rng = random.Random(3)
    hits, bounds = 0, []
    for run in range(60):
        start = 1.0 + rng.random() * 0.1
        truth = block(start, start + 1.0)
        ticks = steps(lambda t, truth=truth: float(int(truth(t))), seed=run)  # type: ignore[misc]
        found = from_counter(ticks, window(start, start + 1.0, 0.5), KNOWN)
        assert found is not None
        hits += abs(found.energy_j - 500.0) <= found.uncertainty_j
        bounds.append(found.uncertainty_j)

    assert hits >= 57
    assert max(bounds) < 0.03 * 500.0


def test_a_window_within_one_step_says_how_little_is_known() -> None:
    found = from_counter(steps(block(1.02, 1.06)), window(1.02, 1.06), KNOWN)

    assert found is not None
    assert abs(found.energy_j - 20.0) <= found.uncertainty_j
    assert found.uncertainty_j > 5.0


def test_a_step_that_was_seen_late_does_not_spoil_the_rest() -> None:
    ticks = steps(block(1.04, 2.04))
    late = 9
    low = list(ticks.low_ns)
    low[late] -= 90 * MS
    spoiled = TickSeries(tuple(low), ticks.high_ns, ticks.energy_j)

    found = from_counter(spoiled, window(1.04, 2.04, 0.5), KNOWN)

    assert found is not None
    assert found.energy_j == pytest.approx(500.0, abs=found.uncertainty_j)
    assert found.uncertainty_j < 5.0


def test_nothing_is_accounted_beyond_the_steps() -> None:
    ticks = steps(block(1.0, 1.3))

    assert from_counter(ticks, window(3.9, 4.2), KNOWN) is None
    assert from_counter(ticks, window(0.001, 0.2), KNOWN) is None
    assert from_counter(ticks, window(1.0, 1.0), KNOWN) is None


def test_without_calibration_the_bound_allows_for_every_sensor() -> None:
    ticks = steps(block(1.04, 1.34))

    known = from_counter(ticks, window(1.04, 1.34, 0.5), KNOWN)
    unknown = from_counter(ticks, window(1.04, 1.34, 0.5), None)

    assert known is not None
    assert unknown is not None
    assert unknown.uncertainty_j > 5 * known.uncertainty_j


def test_a_drift_of_the_idle_power_is_followed() -> None:
    """After work, leakage decays with the temperature: a constant would be off by a watt here."""

    def energy_j(t: float) -> float:
        return 100 * t + 40 * t * t / 2

    ticks = steps(energy_j, until_s=1.0, half_ns=50_000)

    found = quiet.fit(ticks, range(len(ticks)), S)

    assert found.energy_j == pytest.approx(energy_j(1.0), abs=max(found.uncertainty_j, 0.05))
    assert found.power_w == pytest.approx(140, abs=2)


def test_power_that_jumps_is_not_quiet() -> None:
    ticks = steps(block(0.5, 2.0), until_s=1.0)

    assert not quiet.fit(ticks, range(len(ticks)), S).quiet


def test_power_readings_are_integrated_by_trapezoids_and_bounded_by_their_averaging() -> None:
    samples = [Sample(t * 50 * MS, "GPU-0", power_w=300.0 if 20 <= t <= 60 else 100.0) for t in range(100)]

    steady = from_power(samples, window(1.2, 2.2), 0.025)
    stepped = from_power(samples, window(0.9, 3.1), 1.0)

    assert steady is not None
    assert steady.energy_j == pytest.approx(300.0)
    assert steady.uncertainty_j == pytest.approx(1 / sqrt(3)), "readings that never change round off alike"
    assert stepped is not None
    assert stepped.uncertainty_j > 200.0
    assert from_power(samples, window(4.8, 5.2), 0.025) is None


@pytest.mark.parametrize("beat_s", [0.1, 0.05, 0.5, 1 / 30, 0.023])
@pytest.mark.parametrize("told", [True, False])
def test_power_readings_in_step_with_the_load_are_not_believed(beat_s: float, told: bool) -> None:
    """Readings of 25 ms every 100 ms were 55 % off with a bound of 5 %, which held in 4 of 100."""
    rng = random.Random(1)
    valid = held = 0
    for _ in range(40):
        start = 2 + rng.random() * 0.1

        def drawn_j(t: float, start: float = start) -> float:
            beats, rest = divmod(min(max(t - start, 0.0), 3.0), beat_s)
            return 200 * t + 400 * (0.6 * beat_s * beats + min(rest, 0.6 * beat_s))

        samples = [
            Sample(t * 100 * MS, "GPU-0", power_w=(drawn_j(t / 10) - drawn_j(t / 10 - 0.025)) / 0.025)
            for t in range(1, 80)
        ]
        load = replace(
            window(start, start + 3.0), repeats=1 if told else round(3 / beat_s), step_s=beat_s if told else None
        )
        found = from_power(samples, load, 0.025)
        assert found is not None
        if found.uncertainty_j <= 0.25 * found.energy_j:
            valid += 1
            held += abs(found.energy_j - (drawn_j(start + 3.0) - drawn_j(start))) <= found.uncertainty_j

    assert held >= 0.95 * valid
    assert valid == 40 or not (told and beat_s == 0.023), "decoding's own steps are no reason against a number"


def test_a_wrap_of_32_bits_is_told_from_a_reset() -> None:
    def samples(values: list[int]) -> list[Sample]:
        return [Sample(k * 100 * MS, "GPU-0", counter_mj=v, bracket_ns=1000) for k, v in enumerate(values)]

    wrapped = ticks_from(samples([2**32 - 15_000, 2**32 - 5_000, 5_000, 15_000]), "GPU-0")
    reset = ticks_from(samples([900_000, 910_000, 10_000, 20_000]), "GPU-0")

    assert wrapped.resets_ns == ()
    assert wrapped.energy_j[-1] - wrapped.energy_j[0] == pytest.approx(30.0)
    assert reset.resets_ns == ((100 * MS, 200 * MS),)
