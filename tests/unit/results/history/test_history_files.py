"""A history's files: what is written is read again, and what is broken costs itself alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_llem.results.history.files import history_file, read_file, read_history, written
from pytest_llem.results.history.record import HistoryEntry, HistoryRun, MetricEntry

RUN = HistoryRun("20261101T000000Z-a", "s", "2026-11-01T00:00:00+00:00", commit="c" * 40)
METRIC = "joules_per_output_token"


def entry(experiment: str, value: float = 1.0, run: HistoryRun = RUN, **conditions: str) -> HistoryEntry:
    """An experiment of a run, measured in three cycles."""
    metrics = {METRIC: MetricEntry(value, value * 0.98, value * 1.02, (value, value * 0.99, value * 1.01))}
    shared = {"engine": "transformers", **conditions}
    measured = tuple(f"{run.run_id}/c{cycle}/1" for cycle in (1, 2, 3))
    settings = {"model": "m", "batch_size": experiment}
    return HistoryEntry(run, experiment, experiment, "f", shared, settings, metrics, measurements=measured)


def write(directory: Path, *entries: HistoryEntry) -> Path:
    """The file of one run in a history."""
    path = history_file(directory, entries[0].run.study, entries[0].run.run_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(written(entries), encoding="utf-8")
    return path


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    """What experiments share is written once, and each of them has it; metrics that one lacks stay absent."""
    equal = {METRIC: MetricEntry(2.0, None, None, (2.0, 2.0, 2.0)), "load_s": MetricEntry(0.0, None, None, (0.0,) * 3)}
    two = replace(entry("2"), metrics=equal, gain_uncertainty_rel=0.05, scores={"c1": "10"}, verdicts={METRIC: "fail"})
    earlier = replace(RUN, run_id="20261031T000000Z-b", started_at="2026-10-31T00:00:00+00:00")
    path = write(tmp_path, entry("1"), two, entry("3", run=earlier))
    text = path.read_text(encoding="utf-8")
    assert text.count("transformers") == 2  # once a run
    assert "[2.0,null,null,2.0]" in text  # equal cycles once
    problems: list[str] = []
    read = read_file(path, problems)
    assert problems == []
    assert [replace(each, run=RUN, metrics=dict(each.metrics)) for each in read] == [
        entry("1"),
        two,
        replace(entry("3", run=earlier), run=RUN),
    ]
    assert [each.run.run_id for each in read_history(tmp_path).entries] == [earlier.run_id, RUN.run_id, RUN.run_id]
    with pytest.raises(KeyError):
        read[0].metrics["load_s"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda line: line[:-20], "not JSON"),
        (lambda line: line.replace("0.98", "NaN"), "finite numbers"),
        (lambda line: line.replace("0.98", "1e999"), "finite numbers"),
        (lambda line: line.replace("0.98", '"x"'), "finite numbers"),
        (lambda line: line.replace("1.01]", "1.01],[1,1,1,1]"), "expected 1 lists"),
        (lambda line: line.replace('"measurements":', '"verdicts":{"m":"perhaps"},"measurements":'), "verdicts"),
        (lambda line: "<<<<<<< HEAD", "not JSON"),
        (lambda line: "[]", "expected a JSON object"),
    ],
)
def test_a_broken_line_costs_itself_alone(tmp_path: Path, change: object, problem: str) -> None:
    """A runner that ran out of disk must not take the history with it, nor a number that is none get into a gate."""
    path = tmp_path / "r.jsonl"
    first, one, two = written([entry("1"), entry("2")]).splitlines()
    path.write_text("\n".join([first, change(one), two]), encoding="utf-8")  # type: ignore[operator]
    problems: list[str] = []
    assert [each.experiment_id for each in read_file(path, problems)] == ["2"]
    (said,) = problems
    assert said.startswith(f"{path}:2")
    assert problem in said


def test_a_run_that_cannot_be_read_takes_its_own_experiments_alone(tmp_path: Path) -> None:
    """Without the run nothing says when and where they were measured; another run of the file is not touched."""
    other = replace(RUN, run_id="20261102T000000Z-b")
    path = write(tmp_path, entry("1"), entry("2"), entry("1", run=other))
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([lines[0].replace("2026-11-01T", "yesterday"), *lines[1:]]), encoding="utf-8")
    history = read_history(tmp_path)
    assert [each.run.run_id for each in history.entries] == [other.run_id]
    assert history.problems == (
        f"{path}:1.started_at: Invalid isoformat string: 'yesterday00:00:00+00:00': the line was skipped",
        f"{path}: 2 experiments skipped, whose run could not be read",
    )


def test_later_versions_are_said_and_what_they_add_is_left_out(tmp_path: Path) -> None:
    """Runners are not updated all at once: a field that is new is no reason to lose a run, a new meaning is."""
    path = write(tmp_path, entry("1"))
    head, line = path.read_text(encoding="utf-8").splitlines()
    added = [json.dumps({**json.loads(text), "weather": "fine"}) for text in (head, line)]
    path.write_text("\n".join(added), encoding="utf-8")
    history = read_history(tmp_path)
    assert len(history.entries) == 1
    assert history.problems == ()
    path.write_text(f"{head.replace(':1,', ':2,', 1)}\n{line}\n", encoding="utf-8")
    history = read_history(tmp_path)
    assert history.entries == ()
    assert "history format 2 is newer than 1" in history.problems[0]


def test_foreign_files_do_no_harm(tmp_path: Path) -> None:
    """A folder in a branch has a README, and somebody's own data beside it."""
    write(tmp_path, entry("1"))
    (tmp_path / "README.md").write_text("ours", encoding="utf-8")
    (tmp_path / "s" / "folder.jsonl").mkdir()
    (tmp_path / "s" / "empty.jsonl").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "data.jsonl").write_text('{"a": 1}\n', encoding="utf-8")
    history = read_history(tmp_path)
    assert len(history.entries) == 1
    assert len(history.problems) == 3


def test_the_same_measurements_count_once(tmp_path: Path) -> None:
    """A run that took cycles over from one that crashed would halve the variance, were both to count."""
    later = replace(RUN, run_id="20261102T000000Z-b", started_at="2026-11-02T00:00:00+00:00")
    crashed = replace(entry("1"), measurements=entry("1").measurements[:2])
    write(tmp_path, crashed, entry("2"))
    write(tmp_path, replace(entry("1", run=later), measurements=entry("1").measurements))
    assert [(e.run.run_id, e.experiment_id) for e in read_history(tmp_path).entries] == [
        (RUN.run_id, "2"),
        (later.run_id, "1"),
    ]


def test_names_that_slug_alike_have_files_of_their_own(tmp_path: Path) -> None:
    """Two studies in one folder must not replace each other's runs."""
    paths = [history_file(tmp_path, study, "r") for study in ("a b", "a/b", "a-b")]
    assert len({path.parent for path in paths}) == 3
    assert paths[2] == tmp_path / "a-b" / "r.jsonl"


def test_runs_are_in_the_order_of_time_wherever_their_clocks_stand() -> None:
    """Texts of times with offsets are not in the order of times, and a clock that is behind must not reorder runs."""
    west = HistoryRun("r1", "s", "2026-11-01T23:00:00-08:00")
    utc = HistoryRun("r2", "s", "2026-11-02T06:00:00+00:00")
    behind = HistoryRun("r3", "s", "1970-01-01T00:00:00+00:00", committed_at="2026-11-02T08:00:00Z")
    assert sorted([behind, west, utc], key=lambda run: run.at) == [utc, west, behind]
