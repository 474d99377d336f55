"""`llem compare` with saved baselines: the same answer as with the runs that they were made of."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_llem.cli import main
from pytest_llem.results.attempts import get_or_measure
from pytest_llem.results.baselines import save_baseline
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.manifest import rebuild_manifest
from pytest_llem.results.reading import load
from pytest_llem.results.store import RunStore

if TYPE_CHECKING:
    from tests.unit.results.conftest import Bench, Worker

    MakeWorker = Callable[..., Worker]

NOISE = (1.0, 1.01, 0.99)
BASELINES = Path("llem-baselines")


@pytest.fixture
def stored(
    tmp_path: Path, bench: Bench, key: CycleKey, worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> dict[str, float]:
    """Three runs by their watts, each saved as a baseline; `main` holds the first two."""
    watts = {"r1": 10.0, "r2": 10.1, "r3": 12.0}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    for name, level in watts.items():
        store = RunStore.create(tmp_path / "out", name, environment={"hostname": "here"})
        for cycle, noise in enumerate(NOISE, 1):
            cell = replace(key, cycle=cycle)
            inner = worker(cell, bench.measurement(level * noise))
            inner.run_id = name
            get_or_measure(store, cell, inner)
        rebuild_manifest(store.run_dir, finished=True)
        results = load(store.run_dir)
        for baseline in (name, *(["main"] if name != "r3" else [])):
            save_baseline(baseline, results, BASELINES)
    return watts


def compared(*arguments: str, capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    assert main(["compare", *arguments, "--format", "json"]) == 0
    rows: list[dict[str, object]] = json.loads(capsys.readouterr().out)
    return [{name: cell for name, cell in row.items() if name != "run"} for row in rows]


@pytest.mark.parametrize("saved", ["r1", "llem-baselines/r1", "llem-baselines/r1/study.json"])
@pytest.mark.parametrize("side", [0, 1])
def test_a_saved_baseline_is_as_good_as_its_run(
    stored: dict[str, float], saved: str, side: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """`llem compare main RUN` said that there were no results at `main`, the one name that CI keeps."""
    runs = ["out/r1", "out/r3"]
    measured = compared(*(runs if side == 0 else runs[::-1]), capsys=capsys)
    named = [saved, "out/r3"] if side == 0 else ["out/r3", saved]
    for row, expected in zip(compared(*named, capsys=capsys), measured, strict=True):
        numbers = {name for name, cell in expected.items() if isinstance(cell, float)}
        assert {name: row[name] for name in row if name not in numbers} == {
            name: expected[name] for name in expected if name not in numbers
        }
        assert [row[name] for name in numbers] == pytest.approx([expected[name] for name in numbers], rel=1e-4)


def test_both_sides_may_be_saved_and_gated(stored: dict[str, float], capsys: pytest.CaptureFixture[str]) -> None:
    """Two releases are compared after their runs were removed."""
    assert main(["compare", "main", "r3", "--fail-if", "joules_per_output_token:5%"]) == 1
    text = capsys.readouterr().out
    assert "r3 of r3 against main" in text
    assert "rose by 19.4 %" in text
    assert main(["compare", "r3", "main", "--fail-if", "joules_per_output_token:5%"]) == 0
    assert "r1 of main against r3" in capsys.readouterr().out


def test_a_run_is_held_against_the_other_runs_of_its_baseline(
    stored: dict[str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever saves at once and compares then: the run's own values are no second measurement, those of others are."""
    rows = compared("main", "out/r2", "--metric", "joules_per_output_token", capsys=capsys)
    assert rows[0]["ratio"] == pytest.approx(1.01, rel=1e-3)
    assert main(["compare", "r1", "out/r1"]) == 2
    assert "the same measurements on both sides" in capsys.readouterr().err


def test_what_is_no_side_names_what_there_is(stored: dict[str, float], capsys: pytest.CaptureFixture[str]) -> None:
    """A name with a slip of the pen needs the names that exist."""
    assert main(["compare", "mian", "out/r3"]) == 2
    assert "saved baselines in llem-baselines: main, r1, r2, r3" in capsys.readouterr().err
    assert main(["compare", "main", "--by", "dtype"]) == 2
    assert "--by compares the settings inside a run, and main is none" in capsys.readouterr().err


def test_other_files_beside_a_baseline_or_a_result_do_not_matter(
    stored: dict[str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    """A cycle's folder has several JSON files; the first of them was taken for a broken baseline."""
    (cycle,) = Path("out/r1").glob("*/*/c1")
    assert main(["compare", str(cycle), "out/r3"]) == 0
    assert "inconclusive: fewer than 3 valid cycles on one side" in capsys.readouterr().out


@pytest.mark.parametrize("measurement", ["r1", "r1/one/2", ""])
def test_a_baseline_that_was_edited_wrongly_is_one_line(
    stored: dict[str, float], measurement: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Baselines lie in git, and are merged by hand."""
    path = BASELINES / "r1" / "study.json"
    path.write_text(path.read_text().replace('"r1/c1/1"', f'"{measurement}"'))
    assert main(["compare", "r1", "out/r3"]) == 2
    assert "RUN/c1/1" in capsys.readouterr().err
