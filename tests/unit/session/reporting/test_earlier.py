"""How long a study will take, from earlier results of the same experiments."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pytest_llem.results.layout import MANIFEST, experiment_directory
from pytest_llem.results.terminal import duration_text
from pytest_llem.session.reporting.forecast import estimate_time
from pytest_llem.study import Experiment, Study, load_study

STUDY = """
model: builtin:tiny-llama
measurement: {min_duration_s: 3, idle: {duration_s: 1}}
sweep: {transformers.batch_size: [1, 2, 4, 8]}
execution: {cycles: 5}
"""


@pytest.fixture
def study(tmp_path: Path) -> Study:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    return load_study(path, env={})


def measured(out: Path, run: str, experiment: Experiment, *cycle_s: float | None) -> None:
    (out / run).mkdir(parents=True, exist_ok=True)
    (out / run / MANIFEST).write_text("{}")
    for cycle, seconds in enumerate(cycle_s, 1):
        directory = out / run / "study" / experiment_directory(experiment.id, experiment.config_hash) / f"c{cycle}"
        directory.mkdir(parents=True)
        result = {
            "experiment": {"config_hash": experiment.config_hash},
            "timing": {"cycle_s": seconds, "startup_s": 0.5},
        }
        (directory / "result.json").write_text(json.dumps(result) if seconds is not None else "{broken")


def test_nothing_is_known_before_the_first_run(study: Study, tmp_path: Path) -> None:
    found = estimate_time(study, tmp_path / "out")

    assert (found.seconds, found.covered) == (None, 0)
    assert found.at_least_s == 4 * 5 * (3 + 1)


def test_experiments_that_never_ran_count_as_the_others_mean(study: Study, tmp_path: Path) -> None:
    measured(tmp_path, "20260101", study.experiments[0], 100.0, 9.5)
    measured(tmp_path, "20260101", study.experiments[1], 29.5)

    found = estimate_time(study, tmp_path)

    assert found.seconds == pytest.approx(4 * 5 * 20.0)
    assert found.covered == 2


def test_the_newest_run_counts_and_what_cannot_be_read_does_not(study: Study, tmp_path: Path) -> None:
    measured(tmp_path, "20260101", study.experiments[0], 1000.0)
    measured(tmp_path, "20260102", study.experiments[0], 9.5)
    measured(tmp_path, "20260103", study.experiments[0], None)

    assert estimate_time(study, tmp_path).seconds == pytest.approx(4 * 5 * 10.0)


def test_results_of_other_settings_say_nothing(study: Study, tmp_path: Path) -> None:
    path = tmp_path / "other.yaml"
    path.write_text(STUDY.replace("min_duration_s: 3", "min_duration_s: 30"))
    measured(tmp_path / "out", "20260101", load_study(path, env={}).experiments[0], 100.0)

    assert estimate_time(study, tmp_path / "out").covered == 0


@pytest.mark.parametrize(("seconds", "text"), [(40, "40 s"), (720, "12 min"), (12600, "3.5 h"), (181440, "2.1 days")])
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
