"""When a warm-up ends, and when power counts as settled."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from pytest_llem.engines.protocol import Completion
from pytest_llem.job.config import WarmupSettings
from pytest_llem.worker.convergence import coefficient_of_variation, has_settled, latency_cv, settle, warmup_end
from tests.timed import on_a_clock

pytestmark = on_a_clock

SETTINGS = WarmupSettings(min_repeats=2, max_repeats=5, max_s=10.0, cv=0.05, window=3)


def batch(start_ns: int, seconds: float, tokens: int = 4, size: int = 2) -> list[Completion]:
    end = start_ns + round(seconds * 1e9)
    return [Completion(i, 8, (1,) * tokens, start_ns, end, "length") for i in range(size)]


def repeat(*seconds: float, tokens: tuple[int, ...] = (4, 4, 4, 4, 4)) -> list[Completion]:
    return [c for index, (s, t) in enumerate(zip(seconds, tokens, strict=False)) for c in batch(index * 10**12, s, t)]


@pytest.mark.parametrize(
    ("repeats", "elapsed_s", "cv", "power_cv", "expected"),
    [
        (1, 0.0, 0.0, None, None),
        (2, 0.0, 0.01, None, None),
        (3, 0.0, 0.01, None, "converged"),
        (3, 0.0, 0.2, None, None),
        (3, 0.0, None, None, None),
        (3, 0.0, 0.01, 0.2, None),
        (3, 0.0, 0.01, 0.02, "converged"),
        (5, 0.0, 0.2, None, "max_repeats"),
        (3, 10.0, 0.2, None, "max_s"),
        (1, 99.0, 0.2, None, None),
    ],
)
def test_warm_up_ends(
    repeats: int, elapsed_s: float, cv: float | None, power_cv: float | None, expected: str | None
) -> None:
    assert warmup_end(SETTINGS, repeats, elapsed_s, cv, power_cv) == expected


def test_equal_bounds_fix_the_number_of_repeats() -> None:
    fixed = dataclasses.replace(SETTINGS, min_repeats=2, max_repeats=2)
    assert warmup_end(fixed, 2, 0.0, 0.0, None) == "fixed"


def test_the_larger_scatter_of_repeats_and_batches_counts() -> None:
    """Batches of one length a repeat hid repeats that grew by 20 % each, and the other way round."""
    growing = [repeat(s, s, s, s) for s in (1.0, 1.2, 1.44)]
    assert latency_cv(growing, [4.0, 4.8, 5.76], window=3) == pytest.approx(0.18, abs=0.01)
    uneven = [repeat(0.5, 1.0, 1.5, 1.0)] * 3
    assert latency_cv(uneven, [4.0, 4.0, 4.0], window=3) == pytest.approx(0.25, abs=0.01)


def test_requests_that_run_at_once_are_one_latency() -> None:
    """A scheduler's requests start a moment apart and end together: their equal durations say nothing about repeats."""
    stream = [Completion(i, 8, (1,) * 4, i * 1000, 10**9, "length") for i in range(8)]
    assert latency_cv([stream], [1.0], window=3) is None


def test_the_first_batch_is_never_judged() -> None:
    assert latency_cv([repeat(9.0, 1.0, 1.0)], [11.0], window=3) is None


def test_unlike_batches_leave_it_to_whole_repeats() -> None:
    unlike = repeat(1.0, 2.0, 1.0, 2.0, tokens=(4, 8, 4, 8))
    assert latency_cv([unlike], [6.0], window=3) is None
    assert latency_cv([unlike] * 3, [6.0, 6.0, 6.0], window=3) == 0.0


def test_coefficient_of_variation_needs_two_values_and_a_mean() -> None:
    assert coefficient_of_variation([1.0]) is None
    assert coefficient_of_variation([0.0, 0.0]) is None
    assert coefficient_of_variation([1.0, 3.0]) == pytest.approx(0.7071, abs=1e-4)


@pytest.mark.parametrize(
    ("powers", "expected"),
    [
        ([100.0] * 9, False),
        ([100.0] * 10, True),
        ([100.0 - 2 * i for i in range(10)], False),
        ([60.0, 61.0, 59.5, 60.0, 60.2, 60.1, 59.9, 60.4, 59.8, 60.0], True),
    ],
)
def test_power_has_settled_when_it_no_longer_falls(powers: list[float], expected: bool) -> None:
    assert has_settled(powers) is expected


def test_settling_ends_at_once_without_a_sensor() -> None:
    waited, settled = settle(lambda: None, max_wait_s=30.0)
    assert waited < 5.0
    assert settled is None


def test_settling_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    clock: dict[str, Any] = {"now": 0.0}
    monkeypatch.setattr("pytest_llem.worker.convergence.time.monotonic", lambda: clock["now"])
    monkeypatch.setattr(
        "pytest_llem.worker.convergence.time.sleep", lambda seconds: clock.update(now=clock["now"] + seconds)
    )
    waited, settled = settle(lambda: 300.0 * 0.9 ** (10 * clock["now"]), max_wait_s=2.0)
    assert waited == pytest.approx(2.0, abs=0.2)
    assert settled is False
