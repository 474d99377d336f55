"""`measurement.validity`: limits that are judged by and never measured by."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pytest_llem.errors import StudyError
from pytest_llem.job.config import Thresholds
from pytest_llem.study import Study
from pytest_llem.study.declared import keys_of

Load = Callable[..., Study]


def test_limits_that_are_written_out_are_those_of_the_meter() -> None:
    written_out = {name: key.default for name, key in keys_of(Thresholds).items()}

    assert Thresholds.of(written_out) == Thresholds()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "measurement: {validity: {clocks_rel: 0.5, gap_s: 2}}\n",
        "measurement.validity: {clocks_rel: 0.5, gap_s: 2}\n",
        "measurement.validity.clocks_rel: 0.5\nmeasurement: {validity: {gap_s: 2}}\n",
    ],
)
def test_limits_reach_the_meter_however_they_are_written(load: Load, text: str) -> None:
    study = load(f"model: m\n{text}")

    assert Thresholds.of(study.thresholds) == Thresholds(clocks_rel=0.5, gap_s=2.0)


def test_limits_do_not_change_what_an_experiment_is(load: Load) -> None:
    plain = load("model: m\nmeasurement: {min_duration_s: 3}\n")
    limited = load("model: m\nmeasurement: {min_duration_s: 3, validity: {clocks_rel: 0.5}}\n")

    assert plain.experiments[0].config_hash == limited.experiments[0].config_hash
    assert plain.experiments[0].config == limited.experiments[0].config
    assert plain.thresholds == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("measurement: {validity: {clock_rel: 0.5}}", r"study\.yaml:2:26: .*did you mean 'clocks_rel'\?"),
        ("measurement.validity.clock_rel: 0.5", r"study\.yaml:2:1: .*did you mean 'clocks_rel'\?"),
        ("measurement: {validity: {gap_s: soon}}", r"study\.yaml:2:33: .*expected a number"),
        ("measurement: {validity: {failed_requests_rel: 5}}", r"study\.yaml:2:47: .*write 5%, or 0\.05"),
        ("measurement: {validity: {gap_s: 0}}", r"study\.yaml:2:33: measurement\.validity\.gap_s: "),
    ],
)
def test_wrong_limits_are_refused_where_they_stand(load: Load, text: str, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        load(f"model: m\n{text}\n")
