"""Energy per session, and how much of their prompts a cache held."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pytest_llem.job.measurement import Measurement
from pytest_llem.results.metrics import metric

if TYPE_CHECKING:
    from tests.unit.results.conftest import Bench


def of_sessions(bench: Bench, *names: str | None, failed: tuple[int, int] | None = None) -> Measurement:
    """The measurement with a session's name for each request of a repeat; `failed` is a repeat and an index."""
    measurement = bench.measurement()
    records = [replace(r, session=names[r.index], cached_tokens=r.index) for r in measurement.requests]
    wrong = [replace(r, error="x", failure="timeout") if (r.repeat, r.index) == failed else r for r in records]
    return replace(measurement, requests=tuple(wrong))


def test_energy_per_session_is_over_those_that_were_answered_whole(bench: Bench) -> None:
    """20 J over two repeats of two sessions; a failed turn costs as well, and its session is none that was served."""
    result = bench.result(of_sessions(bench, "a", "b", "a"))
    assert (result.workload.sessions, result.energy.joules_per_session) == (2, 20 / 4)
    assert result.energy.joules_per_session_uncertainty == pytest.approx(0.3 / 4)
    assert metric("joules_per_session").of(bench.result(of_sessions(bench, "a", "b", "a", failed=(1, 2)))) == 20 / 3


def test_without_sessions_or_with_requests_beside_them_there_is_none(bench: Bench) -> None:
    """What a single request cost would be put on the sessions."""
    assert bench.result().energy.joules_per_session is None
    assert bench.result().workload.sessions is None
    mixed = bench.result(of_sessions(bench, "a", None, "a"))
    assert (mixed.workload.sessions, mixed.energy.joules_per_session) == (1, None)


def test_the_share_of_prompts_from_a_cache(bench: Bench) -> None:
    """Prompts of 8 tokens, of which 0, 1 and 2 were found."""
    assert metric("cached_input_share").of(bench.result(of_sessions(bench, "a", "b", "a"))) == pytest.approx(3 / 24)
    assert metric("cached_input_share").of(bench.result()) is None
