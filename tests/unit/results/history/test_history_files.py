"""A history's files: written at once per run, read line by line."""

from __future__ import annotations

from pathlib import Path

from pytest_llem.results.history.files import read_file, read_history, written
from pytest_llem.results.history.record import HistoryEntry, HistoryRun, MetricEntry
from pytest_llem.results.history.series import series

RUN = HistoryRun("20261101T000000Z-a", "s", "2026-11-01T00:00:00+00:00", commit="c" * 40)
METRIC = "joules_per_output_token"


def entry(experiment: str, value: float = 1.0, run: HistoryRun = RUN, **conditions: str) -> HistoryEntry:
    metrics = {METRIC: MetricEntry(value, None, None, (value, value, value))}
    shared = {"engine": "transformers", **conditions}
    return HistoryEntry(run, experiment, "h", "f", shared, {"model": "m", "batch_size": experiment}, metrics)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    """What experiments share is written once, and each of them has it."""
    path = tmp_path / "s" / "r.jsonl"
    path.parent.mkdir()
    path.write_text(written([entry("1"), entry("2")]), encoding="utf-8")
    assert path.read_text(encoding="utf-8").count("transformers") == 1
    history = read_history(tmp_path)
    assert [(e.experiment_id, e.settings["batch_size"], e.conditions["engine"]) for e in history.entries] == [
        ("1", "1", "transformers"),
        ("2", "2", "transformers"),
    ]
    assert history.problems == ()


def test_a_broken_line_costs_itself_alone(tmp_path: Path) -> None:
    """A runner that ran out of disk must not take the history with it."""
    path = tmp_path / "r.jsonl"
    first, one, two = written([entry("1"), entry("2")]).splitlines()
    path.write_text("\n".join([first, one[:-20], two]), encoding="utf-8")
    problems: list[str] = []
    assert [e.experiment_id for e in read_file(path, problems)] == ["2"]
    (problem,) = problems
    assert problem.startswith(f"{path}:2")


def test_other_conditions_begin_another_segment() -> None:
    """Two machines in one folder are two series, also where their runs alternate."""
    runs = [HistoryRun(f"r{n}", "s", f"2026-11-0{n}T00:00:00+00:00") for n in range(1, 5)]
    (found,) = series([entry("1", run=run, cpu_model="AB"[n % 2]) for n, run in enumerate(runs)], METRIC)
    assert [[each.run.run_id for each in segment.entries] for segment in found.segments] == [["r1", "r3"], ["r2", "r4"]]
    assert found.segments[1].begun_by == ("cpu_model: A -> B",)
