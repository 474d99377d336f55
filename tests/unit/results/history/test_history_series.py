"""Segments of a history: which runs are one series, and what parts them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from pytest_llem.results.comparability import NOT_ALWAYS_APART
from pytest_llem.results.history.record import HistoryEntry, HistoryRun
from pytest_llem.results.history.series import Series, series, why_apart
from pytest_llem.results.metrics import metric
from tests.unit.results.history.test_history_files import METRIC, entry


def run(number: int) -> HistoryRun:
    return HistoryRun(f"r{number:03}", "s", f"2026-11-01T{number // 60:02}:{number % 60:02}:00+00:00")


def measured(*conditions: dict[str, str], metric_name: str = METRIC) -> Series:
    """The series of one experiment whose runs had these conditions."""
    entries = [entry("1", 1.0, run(number), **each) for number, each in enumerate(conditions)]
    if metric_name != METRIC:
        entries = [replace(each, metrics={metric_name: each.metrics[METRIC]}) for each in entries]
    (found,) = series(entries, metric_name)
    return found


def numbers(found: Series) -> list[list[int]]:
    return [[int(each.run.run_id[1:]) for each in segment.entries] for segment in found.segments]


def test_two_machines_in_turn_are_two_segments_and_an_update_of_one_is_a_third() -> None:
    """What began a segment is said against its own machine, and not against the one that ran last."""
    a, b = {"cpu_model": "A", "driver_major": "550"}, {"cpu_model": "B", "driver_major": "550"}
    found = measured(a, b, a, b, {**a, "driver_major": "560"}, b)
    assert numbers(found) == [[0, 2], [1, 3, 5], [4]]
    assert [segment.begun_by for segment in found.segments] == [
        (),
        ("cpu_model: A -> B",),
        ("driver_major: 550 -> 560",),
    ]


def test_what_a_run_does_not_say_joins_no_two_that_differ() -> None:
    """a = unknown and unknown = b do not make a = b: each run of a segment compares with each other."""
    found = measured({}, {"model_revision": "a"}, {"model_revision": "b"}, {"model_revision": "a"})
    assert numbers(found) == [[0, 1, 3], [2]]
    served, read = {"model_fingerprint": "server:x"}, {"model_fingerprint": "sha256:1"}
    found = measured(read, served, {"model_fingerprint": "sha256:2"}, served)
    assert numbers(found) == [[0, 1, 3], [2]]


def test_only_conditions_that_matter_to_the_metric_part_it() -> None:
    """Another meter is another energy, and the same time."""
    meters: tuple[dict[str, str], ...] = ({"meter": "nvml"}, {"meter": "rapl"})
    assert len(measured(*meters).segments) == 2
    assert len(measured(*meters, metric_name="ttft_p50_s").segments) == 1


def test_boards_have_a_segment_each_however_many_they_are() -> None:
    """A thousand boards of a cloud were half a million comparisons, and minutes, before each page."""
    boards = [{"device_ids": f"GPU-{number}"} for number in range(400)]
    segments = measured(*boards, *boards).segments
    assert len(segments) == 400
    assert segments[1].begun_by == ("device_ids: other boards (GPU-0 -> GPU-1), whose gain may differ by 7.1%",), (
        "no limit"
    )


def test_an_experiment_goes_on_under_another_id_and_under_other_settings() -> None:
    """A commit that renames an experiment changes nothing, and one that changes it begins a segment that says how."""
    first = entry("1", run=run(0))
    renamed = replace(first, run=run(1), experiment_id="batch_size:1")
    changed = replace(renamed, run=run(2), config_hash="other", settings={**first.settings, "batch_size": "8"})
    back = replace(renamed, run=run(3))
    (found,) = series([first, renamed, changed, back], METRIC)
    assert found.experiment_id == "batch_size:1"
    assert numbers(found) == [[0, 1, 3], [2]]
    assert found.segments[1].begun_by == ("batch_size 1 -> 8",)


def test_experiments_that_swap_their_ids_stay_what_they_measure() -> None:
    """Followed by their ids, both would show a step on that day."""
    one, two = entry("1", 1.0, run(0)), entry("2", 2.0, run(0))
    entries = [one, two, replace(two, run=run(1), experiment_id="1"), replace(one, run=run(1), experiment_id="2")]
    levels = {
        each.experiment_id: [e.metrics[METRIC].value for e in each.segments[0].entries]
        for each in series(entries, METRIC)
    }
    assert levels == {"2": [1.0, 1.0], "1": [2.0, 2.0]}


def test_an_old_id_for_another_experiment_is_another_series() -> None:
    """Else both would be one series that has two values in a run."""
    one = entry("1", run=run(0))
    renamed = replace(one, run=run(1), experiment_id="other")
    new = replace(entry("1", run=run(1)), config_hash="new")
    assert len(series([one, renamed, new], METRIC)) == 2


def pairwise(entries: Sequence[HistoryEntry]) -> list[list[int]]:
    """The same by comparing each run with every other one, unless one of just its conditions has a segment."""
    segments: list[list[HistoryEntry]] = []
    for now in entries:
        alike = [segment for segment in segments if any(each.conditions == now.conditions for each in segment)]
        fitting = [
            segment
            for segment in sorted(segments, key=lambda segment: segment[-1].run.at, reverse=True)
            if not any(why_apart(each, now, metric(METRIC)) for each in segment)
        ]
        segment = next(iter([*alike, *fitting]), None)
        if segment is None:
            segments.append([now])
        else:
            segment.append(now)
    return [[int(each.run.run_id[1:]) for each in segment] for segment in segments]


def test_segments_are_those_that_comparing_every_pair_gives() -> None:
    """Only runs of one kind each are compared, for speed: that must not show."""
    rng = random.Random(5)
    names = [*sorted(NOT_ALWAYS_APART), "cpu_model"]
    for _ in range(40):
        drawn = [{name: rng.choice(["a:1", "b:1"]) for name in names if rng.random() < 0.6} for _ in range(12)]
        entries = [entry("1", 1.0, run(number), **each) for number, each in enumerate(drawn)]
        (found,) = series(entries, METRIC)
        assert numbers(found) == pairwise(entries)
