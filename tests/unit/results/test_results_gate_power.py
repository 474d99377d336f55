"""`llem gate-power`: how many cycles find a regression, at stated noise and at a run's own."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_llem.cli import main
from pytest_llem.job.report import Note
from pytest_llem.results.attempts import get_or_measure
from pytest_llem.results.baselines import save_baseline
from pytest_llem.results.compared_sides import open_runs
from pytest_llem.results.gate_power import GateSetting, first_day, measured_noise, needed, not_used, power
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.manifest import rebuild_manifest
from pytest_llem.results.metrics import metric
from pytest_llem.results.reading import load
from pytest_llem.results.statistics import RunSpread
from pytest_llem.results.store import RunStore
from tests.unit.results.scored_runs import answered, scored_run

if TYPE_CHECKING:
    from tests.unit.results.conftest import Bench, Worker

    MakeWorker = Callable[..., Worker]


def test_five_cycles_find_what_the_documentation_promises() -> None:
    """docs/gates.md: 8 % beyond a limit of 3 % at 2 % noise is found in 98 % of gates with five cycles."""
    setting = GateSetting(noise=0.02, limit=0.03, regression=0.08)
    powers = [power(setting, cycles, trials=1500) for cycles in (3, 5, 8)]
    assert powers[1].found == pytest.approx(0.98, abs=0.02)
    assert powers[1].undecided < 0.02
    assert powers[1].false_alarms < 0.005
    assert needed(powers, 0.95) == 5
    assert needed(powers, 0.9999) is None


def test_the_first_day_waits_for_more_runs() -> None:
    """With one baseline run the same regression is seen, and not red yet: noise of 2 % between runs might do it."""
    setting = GateSetting(noise=0.02, limit=0.03, regression=0.08)
    first = first_day(setting, [power(setting, 5, trials=1500)], 0.95)
    assert first is not None
    assert first.found < 0.1
    assert first.found + first.waiting == pytest.approx(0.96, abs=0.02)
    assert first_day(replace(setting, known=RunSpread(0.0, 0.01, 5)), [], 0.95) is None


def test_runs_that_differ_cost_power_and_raise_false_alarms() -> None:
    quiet = power(GateSetting(0.01, 0.03, 0.06), 5, trials=600)
    apart = power(GateSetting(0.01, 0.03, 0.06, between_runs=0.02), 5, trials=600)
    assert apart.found < quiet.found - 0.1
    assert apart.false_alarms > quiet.false_alarms


def test_a_regression_within_the_limit_is_no_question(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gate-power", "--noise", "2%", "--limit", "5%", "--regression", "5%"]) == 2
    assert main(["gate-power", "--noise", "2"]) == 2
    for wrong in (["--power", "0%"], ["--power", "100%"], ["--baseline-runs", "0"], ["--baseline-runs", "1000"]):
        assert main(["gate-power", "--noise", "2%", *wrong]) == 2
    assert main(["gate-power"]) == 2
    said = capsys.readouterr().err
    for part in ("does not lie beyond a limit", "'2' is no share", "--noise 2%"):
        assert part in said


def test_the_noise_of_runs_is_measured_within_and_between_them(
    tmp_path: Path,
    bench: Bench,
    key: CycleKey,
    worker: MakeWorker,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What the trials find is judged above, at fixed noise.
    monkeypatch.setattr(power, "__kwdefaults__", {"trials": 200, "seed": 0})
    rng = random.Random(3)
    for place in range(8):
        level = 10 * rng.lognormvariate(0, 0.05)
        store = RunStore.create(tmp_path / "out", f"run-{place}", environment={"hostname": "here"})
        for cycle in range(1, 6):
            each = replace(key, cycle=cycle)
            inner = worker(each, bench.measurement(level * rng.lognormvariate(0, 0.02)))
            inner.run_id = f"run-{place}"
            get_or_measure(store, each, inner)
    arguments = ["gate-power", str(tmp_path / "out"), "--limit", "10%", "--regression", "40%", "--baseline-runs", "3"]
    assert main([*arguments, "--format", "json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    (noise,) = answer["noise"]
    assert (noise["runs"], noise["cycles"]) == (8, 40)
    assert noise["within_run"] == pytest.approx(0.02, rel=0.3)
    assert noise["between_runs"] == pytest.approx(0.05, rel=0.5)
    assert answer["setting"]["between_runs"] == noise["between_runs"]
    assert answer["needed"] is not None
    assert main(arguments) == 0
    assert "cycles a side find a regression of 40 % in at least 95 % of gates" in capsys.readouterr().out

    study = tmp_path / "study.yaml"
    study.write_text("name: study\nmodel: builtin:tiny-llama\n")
    kept = ["--baseline-dir", str(tmp_path / "kept")]
    assert main(["aa", str(study), "--from", str(tmp_path / "out"), *kept]) == 0
    (one,) = tmp_path.glob("out/run-0")
    assert main(["gate-power", str(one), *arguments[2:], *kept]) == 0
    said = capsys.readouterr().out
    # Of one run alone, gates know what equal runs differ by, and so does this: not 0 % between runs.
    assert re.search(r"noise [12]\.\d+ % in a run and [3-7]\.\d+ % between runs, .*gates know of [3-7]\.\d+ %", said)


@pytest.fixture
def runs(
    tmp_path: Path, bench: Bench, key: CycleKey, worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """Writes a run's cycles: `runs("name", 5)`; of another study, with another configuration, or none of them valid."""
    monkeypatch.chdir(tmp_path)
    rng = random.Random(5)

    def write(name: str, cycles: int, *, config_hash: str = key.config_hash, valid: bool = True) -> None:
        store = RunStore.create(tmp_path / "out", name, environment={"hostname": "here"})
        for cycle in range(1, cycles + 1):
            cell = replace(key, config_hash=config_hash, cycle=cycle)
            measured = bench.measurement(10 * rng.lognormvariate(0, 0.01))
            spoilt = replace(measured, invalid=(Note("throttled", "2 s"),))
            inner = worker(cell, measured if valid else spoilt)
            inner.run_id = name
            get_or_measure(store, cell, inner)
        rebuild_manifest(store.run_dir, finished=True)

    return write


def test_the_run_that_does_not_fit_is_named(runs: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    """Of several runs one with too few cycles was left out without a word, or none was named where all were."""
    runs("good", 4)
    runs("short", 2)
    runs("broken", 3, valid=False)
    runs("other", 3, config_hash="f" * 16)
    sides = [side for name in ("good", "short", "broken", "other") for side in open_runs(f"out/{name}", Path("none"))]
    energy = metric("joules_per_output_token")
    assert [noise.cycles for noise in measured_noise(sides, energy)] == [4, 3]
    assert not_used(sides, energy) == {
        "short": "joules_per_output_token: at most 2 of the 3 valid cycles that an experiment needs",
        "broken": "no cycle is valid",
        "other": "none of its experiments is in another run: it tells nothing of the noise between runs",
    }
    assert main(["gate-power", "out/short", "out/broken"]) == 2
    said = capsys.readouterr().err
    assert "short: joules_per_output_token: at most 2 of the 3" in said
    assert "broken: no cycle is valid" in said
    assert main(["gate-power", "out", "--metric", "mfu"]) == 2
    assert "good: mfu: this run did not measure it" in capsys.readouterr().err


def test_a_run_that_was_stopped_at_once_is_no_wrong_path(
    runs: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """It was told to name a run's directory, which it was."""
    runs("empty", 0)
    assert main(["gate-power", "out/empty"]) == 2
    assert "out/empty: no cycle of this run has ended with a result" in capsys.readouterr().err


def test_a_saved_baseline_has_noise_too(runs: Callable[..., None]) -> None:
    """In CI the runs are gone, and the baseline in git has their values; a run beside its own baseline counts once."""
    for name in ("r1", "r2", "r3"):
        runs(name, 3)
        save_baseline("main", load(Path("out") / name), Path("llem-baselines"))
    found = []
    for paths in (["out"], ["main"], ["main", "out"]):
        sides = [side for each in paths for side in open_runs(each, Path("llem-baselines"))]
        (noise,) = measured_noise(sides, metric("joules_per_output_token"))
        assert noise.between_runs is not None
        found.append((noise.runs, noise.cycles, round(noise.within_run, 5), round(noise.between_runs, 5)))
    assert found[0][:2] == (3, 9)
    assert found[0] == found[1] == found[2]


def test_more_cycles_find_no_more_than_the_questions_allow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the scatter of cycles alone three found any loss, where 40 questions leave 7 % of the cost open."""
    run = scored_run(tmp_path, {"e": (10.0, answered(["Paris"] * 30 + ["Lyon"] * 10))})
    asked = ["gate-power", str(run), "--limit", "5%", "--regression", "12%", "--metric"]
    assert main([*asked, "joules_per_request"]) == 0
    assert "3 cycles a side find a regression of 12 %" in capsys.readouterr().out
    assert main([*asked, "joules_per_correct_answer"]) == 0
    said = capsys.readouterr().out
    assert "the choice of questions adds a standard error of 5.37 % or more" in said
    assert "a regression of 12 % is not found" in said
