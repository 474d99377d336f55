"""A history as a baseline: the level that a run is held against, what is said of it, and how often its gates fail."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_llem.errors import LlemError, SettingsError, StoreError
from pytest_llem.results.baseline_reference import open_baseline
from pytest_llem.results.baselines import BaselineExperiment, BaselineRun, require_saveable
from pytest_llem.results.compare import compare
from pytest_llem.results.compared_sides import open_side
from pytest_llem.results.gate_report import GateReport, GateRow
from pytest_llem.results.history import series as series_module
from pytest_llem.results.history.changes import ChangePoint
from pytest_llem.results.history.files import written
from pytest_llem.results.history.record import HistoryEntry, HistoryRun, MetricEntry
from pytest_llem.results.history.replayed import replayed
from pytest_llem.results.judging import judge_comparison
from pytest_llem.results.measured_cycles import MeasuredCycles, saved_cycles
from pytest_llem.study.limits import Comparison, FailIf

METRIC = "joules_per_output_token"
SPEED = "output_tokens_per_s"
LIMITS = (FailIf(METRIC, 0.03),)
OF = ("study", "b1", "h" * 16)
NOISE = (1.00, 1.01, 0.99, 1.005, 0.995)


def entry(
    day: int, level: float = 1.0, verdict: str = "pass", experiment: str = "b1", **conditions: str
) -> HistoryEntry:
    at = f"2026-{1 + day // 28:02d}-{1 + day % 28:02d}"
    run = HistoryRun(
        f"{at.replace('-', '')}T000000Z-a", "study", f"{at}T00:00:00+00:00", commit=f"{day:07d}" + "c" * 33
    )
    cycles = tuple(level * noise for noise in NOISE)
    metrics = {
        METRIC: MetricEntry(level, None, None, cycles),
        SPEED: MetricEntry(1 / level, None, None, tuple(1 / value for value in cycles)),
    }
    return HistoryEntry(
        run,
        OF[1],
        OF[2],
        "f",
        {"engine": "transformers", **conditions},
        {"batch_size": 1},
        metrics,
        measurements=tuple(f"{run.run_id}/c{cycle}/1" for cycle in range(1, 6)),
        verdicts={METRIC: verdict},  # type: ignore[dict-item]
        regressed=(METRIC,) if verdict == "fail" else (),
    )


@pytest.fixture
def keep(tmp_path: Path) -> Path:
    return tmp_path / "history"


def put(folder: Path, entries: Sequence[HistoryEntry]) -> str:
    for number, each in enumerate(entries):
        path = folder / "study" / f"{number:04d}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(written([each]), encoding="utf-8")
    return f"history:{folder}"


def now_at(level: float, **conditions: str) -> MeasuredCycles:
    return _cycles(entry(300, level, **conditions))


def _cycles(of: HistoryEntry) -> MeasuredCycles:
    return saved_cycles("study", BaselineExperiment(of.config_hash, (of.as_baseline,), of.settings), of.as_baseline)


def judged(
    reference: str, now: MeasuredCycles, limits: tuple[FailIf, ...] = LIMITS, **options: object
) -> list[GateRow]:
    baseline = open_baseline(reference, Path("llem-baselines"))
    return judge_comparison(baseline, OF, now, (), Comparison(limits))


def days(count: int, seed: int = 3, spread: float = 0.005) -> list[HistoryEntry]:
    rng = random.Random(seed)
    return [entry(day, 1 + rng.gauss(0, spread)) for day in range(count)]


def test_the_noise_between_runs_is_learned_from_all_of_them(keep: Path) -> None:
    """+6 % beyond a limit of 3 % is noise where runs differ by 3 %, and a regression where they differ by 0.5 %."""
    (quiet,) = judged(put(keep / "quiet", days(12)), now_at(1.06))
    (noisy,) = judged(put(keep / "noisy", days(12, spread=0.03)), now_at(1.06))
    assert (quiet.status, quiet.baseline_runs, quiet.more_runs) == ("fail", 12, 0)
    assert noisy.status == "inconclusive"
    assert quiet.basis.startswith("12 runs of the history since 2026-01-01, commit 0000000: how much runs differ")


def test_the_first_days_of_a_history_are_never_red_because_of_noise(keep: Path) -> None:
    (row,) = judged(put(keep, days(2)), now_at(1.06))
    assert (row.status, row.more_runs) == ("inconclusive", 1)
    assert row.basis.startswith("2 runs of the history since 2026-01-01")


def test_what_a_history_does_not_know_it_will(keep: Path) -> None:
    """The first run of a new study, experiment or machine is green, and needs three more, also where all is strict."""
    keep.mkdir()
    (row,) = judged(f"history:{keep}", now_at(1.0))
    assert (row.status, row.more_runs) == ("not_comparable", 3)
    assert "has no valid cycle of this experiment" in row.reason
    (row,) = judged(put(keep, days(4)), now_at(1.0, cpu_model="another"))
    assert (row.status, row.more_runs) == ("not_comparable", 3)
    assert "cpu_model" in row.reason


def test_a_run_is_held_against_its_own_machine(keep: Path) -> None:
    """Two machines in turn, one of which takes 20 % more: the newest run is the other's."""
    runs = [entry(day, 1.2 if day % 2 else 1.0, cpu_model="AB"[day % 2]) for day in range(12)]
    (row,) = judged(put(keep, runs), now_at(1.0, cpu_model="A"))
    assert (row.status, row.baseline_runs) == ("pass", 6)


def test_only_the_newest_runs_count(keep: Path) -> None:
    (row,) = judged(put(keep, days(50)), now_at(1.0))
    assert row.baseline_runs == 20
    assert "since 2026-02-03" in row.basis


def test_a_run_that_failed_is_no_yardstick_and_neither_is_the_run_itself(keep: Path) -> None:
    """A regression must not become its own baseline: by the spread between the runs the second build would be green."""
    regressed = [entry(20 + day, 1.08, verdict="fail") for day in range(2)]
    reference = put(keep, [*days(10), *regressed])
    (row,) = judged(reference, now_at(1.08))
    assert (row.status, row.baseline_runs) == ("fail", 10)
    (again,) = judged(reference, _cycles(days(10)[-1]))
    assert again.baseline_runs == 9


def test_a_change_that_was_found_is_the_level_that_runs_are_held_against(keep: Path) -> None:
    """A pull request is not blamed for what happened before it; that the level moved is for `llem history check`."""
    regressed = [entry(20 + day, 1.08, verdict="fail" if day < 3 else "pass") for day in range(5)]
    (row,) = judged(put(keep, [*days(10), *regressed]), now_at(1.08))
    assert (row.status, row.baseline_runs) == ("pass", 5)


def test_each_metric_has_its_own_level(keep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change point in one metric begins a level of that one; what led to it failed, and counts all the same."""

    def changed(runs: Sequence[Sequence[float]]) -> list[ChangePoint]:
        return [ChangePoint(8, 11, 1.2, 1.1, 1.3)] if runs[0][0] < runs[-1][0] else []

    monkeypatch.setattr(series_module, "find_changes", changed)
    runs = [entry(day, 1.0 if day < 8 else 1.2, "fail" if 8 <= day <= 12 else "pass") for day in range(14)]
    energy, speed = judged(put(keep, runs), now_at(1.2), (*LIMITS, FailIf(SPEED, -0.5)))
    # 8 to 11 led to the change and 13 passed; 12 failed against the new level
    assert (energy.status, energy.baseline_runs) == ("pass", 5)
    assert "since 2026-01-09" in energy.basis
    assert speed.baseline_runs == 14


def test_a_renamed_experiment_keeps_its_history(keep: Path) -> None:
    old = [replace(each, experiment_id="before") for each in days(5)]
    (row,) = judged(put(keep, [*old, entry(6)]), now_at(1.0))
    assert row.baseline_runs == 6


def test_a_gate_says_how_often_it_would_have_failed(keep: Path) -> None:
    """Of equal runs: one that was 10 % worse by noise, which the later ones are not held against."""
    runs = days(15)
    runs[11] = entry(11, 1.10, verdict="fail")
    (row,) = judged(put(keep, runs), now_at(1.08))
    assert (row.status, row.would_have_failed) == ("fail", (1, 14))
    report = GateReport("study", "b1", (row,), strict=False)
    assert "this gate would have failed in 1 of the last 14 equal runs" in report.text()
    (passed,) = judged(put(keep, runs), now_at(1.0))
    assert "would have failed" not in passed.sentence()
    assert passed.on_equal_runs() == "would have failed in 1 of the last 14 equal runs"


def test_only_the_last_runs_are_judged_again() -> None:
    runs = [entry(day).as_baseline for day in range(30)]
    held: list[int] = []

    def judge(before: Sequence[BaselineRun], run: BaselineRun) -> str:
        held.append(len(before))
        return "fail" if run in runs[-3:] else "pass"

    assert replayed(runs, judge) == (3, 20)  # type: ignore[arg-type]
    assert held[0] == 10
    assert max(held) == 20
    assert replayed(runs[:1], judge) == ()  # type: ignore[arg-type]


def test_the_command_compares_with_the_same_level(keep: Path) -> None:
    """`llem compare history:DIR RUN` shows the mean of the runs that its verdict is of."""
    runs = [entry(day, 1.2 if day % 2 else 1.0, cpu_model="AB"[day % 2]) for day in range(12)]
    before = open_side(put(keep / "a", runs), Path("llem-baselines"))
    after = open_side(put(keep / "b", [entry(200, 1.0, cpu_model="A")]), Path("llem-baselines"))
    rows = {row.limit_text: row for row in compare(before, [after], metrics=[METRIC, SPEED], limits=LIMITS)}
    assert rows["+3 %"].verdict == "pass"
    assert rows["+3 %"].baseline == pytest.approx(1.0, rel=1e-3)
    assert rows[None].baseline == pytest.approx(1.0, rel=1e-3)
    assert rows[None].differs == ()


def test_wrong_references_say_what_to_do(keep: Path) -> None:
    with pytest.raises(StoreError, match="no folder") as raised:
        open_baseline(f"history:{keep}", Path("llem-baselines"))
    assert "llem history add RUN --to" in str(raised.value)
    keep.write_text("", encoding="utf-8")
    with pytest.raises(StoreError, match="history is a file"):
        open_baseline(f"history:{keep}", Path("llem-baselines"))
    with pytest.raises(StoreError, match="names no folder"):  # the working directory was searched
        open_baseline("history:", Path("llem-baselines"))
    with pytest.raises(SettingsError, match="llem history add RUN --to kept") as refused:
        require_saveable("history:kept", Path("llem-baselines"))
    assert isinstance(refused.value, LlemError)


def test_a_run_beyond_its_budget_stays_a_yardstick(keep: Path) -> None:
    """Without the worse half of equal runs, the level was too good and the noise too small: the next one failed."""
    beyond = [replace(entry(day, 1.02, verdict="fail"), regressed=()) for day in range(10, 14)]
    (row,) = judged(put(keep, [*days(4), *beyond]), now_at(1.0))
    assert row.baseline_runs == 8


@pytest.mark.parametrize("name", ["~/history", "history", "history/", "./history"])
def test_a_folder_is_found_as_people_write_it(
    keep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A shell expands `~` at the beginning of a word alone."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    put(keep, days(4))
    (row,) = judged(f"history:{name}", now_at(1.0))
    assert row.baseline_runs == 4


def test_a_broken_line_is_said(keep: Path) -> None:
    reference = put(keep, days(4))
    path = keep / "study" / "0002.jsonl"
    path.write_text(path.read_text(encoding="utf-8")[:-30], encoding="utf-8")
    with pytest.warns(UserWarning, match="0002.jsonl:2"):
        (row,) = judged(reference, now_at(1.0))
    assert row.baseline_runs == 3
