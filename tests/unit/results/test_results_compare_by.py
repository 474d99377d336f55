"""`llem compare RUN --by AXIS` as a user calls it: which setting matters, inside one run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_llem.cli import main
from pytest_llem.errors import JsonValue
from pytest_llem.job.report import Note
from pytest_llem.results.attempts import get_or_measure
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.manifest import StudyPlan, rebuild_manifest
from pytest_llem.results.report.page import write_report
from pytest_llem.results.store import RunStore
from pytest_llem.study.model import SweptAxis

if TYPE_CHECKING:
    from tests.unit.results.conftest import Bench, Worker

    MakeWorker = Callable[..., Worker]

NOISE = (1.0, 1.01, 0.99)
AXES = (
    SweptAxis("dtype", "dtype", ("dtype:float32", "dtype:float16"), ("float32", "float16")),
    SweptAxis("transformers.batch_size", "batch_size", ("batch_size:1", "batch_size:8"), (1, 8)),
)
WATTS = {("float32", 1): 100.0, ("float16", 1): 60.0, ("float32", 8): 50.0, ("float16", 8): 35.0}
"""Halved by the batch size; by the dtype multiplied with 0.6 and 0.7, which makes 0.648."""


Measure = Callable[..., None]


@pytest.fixture(scope="module")
def measure(bench: Bench, worker: MakeWorker) -> Measure:
    """Measures some points of a sweep over dtype and batch size; each one's fourth cycle is disturbed, and invalid."""

    def write(
        out: Path,
        run: str,
        these: Iterable[tuple[str, int]] = WATTS,
        facts: Mapping[str, JsonValue] | None = None,
        headline: str | None = None,
    ) -> None:
        points = {f"dtype:{dtype}-batch_size:{batch}": (dtype, batch) for dtype, batch in these}
        plan = StudyPlan("study", None, axes=AXES, points=points, headline=headline)
        store = RunStore.create(out, run, studies=(plan,), environment={"hostname": "here"})
        for name, point in points.items():
            key = CycleKey("study", name, name.ljust(16, "0"), 1)
            spoilt = replace(bench.measurement(), invalid=(Note("throttled", "2 s"),))
            for cycle, measured in enumerate([*(bench.measurement(WATTS[point] * each) for each in NOISE), spoilt], 1):
                cell = replace(key, cycle=cycle)
                inner = worker(cell, measured)
                inner.run_id = run
                get_or_measure(store, cell, inner)
        rebuild_manifest(store.run_dir, finished=True, facts=facts)

    return write


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture(scope="module")
def measured(measure: Measure, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("measured")
    measure(out, "run")
    return out


@pytest.fixture
def run(measured: Path, own_directory: None) -> str:
    shutil.copytree(measured / "run", "run")
    return "run"


@pytest.mark.parametrize("headline", ["joules_per_request", "of_a_package_that_is_gone"])
def test_comparisons_show_the_studys_own_headline_where_it_is_known(
    measure: Measure, headline: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page left it out; `llem compare` ended with an error on a run whose metric was of a package not installed."""
    for name in "ab":
        measure(tmp_path, name, headline=headline)
    assert main(["compare", "a", "b"]) == 0
    assert main(["compare", "a", "--by", "dtype"]) == 0
    assert capsys.readouterr().out.count("joules_per_request") == 2 * (headline == "joules_per_request")
    write_report([tmp_path / "b"], tmp_path / "page.html", baseline=tmp_path / "a")
    comparison = (
        (tmp_path / "page.html").read_text().partition('<section id="comparison"')[2].partition("</section>")[0]
    )
    assert ("joules_per_request" in comparison) is (headline == "joules_per_request")
    assert "90 % interval" in comparison


def test_an_axis_is_compared_over_the_others(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The question of a sweep, which setting matters, took a spreadsheet: two runs could be compared, settings not."""
    assert main(["compare", run, "--by", "dtype", "--metric", "joules_per_output_token"]) == 0
    text = capsys.readouterr().out
    assert "study: dtype against float32" in text
    assert "joules_per_output_token, lower is better" in text
    (row,) = (line.split() for line in text.splitlines() if line.startswith("float16"))
    assert (row[1], row[5:]) == ("0.648", ["2", "0.600", "..", "0.700", "lower"])
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("name", ["batch_size", "transformers.batch_size", "Batch_Size"])
def test_an_axis_has_its_title_and_its_name(run: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Who wrote `transformers.batch_size` into the study and reads `batch_size` in tables may type either."""
    assert main(["compare", run, "--by", name, "--reference", "8", "--format", "json"]) == 0
    (study,) = json.loads(capsys.readouterr().out)
    energy = next(each for each in study["effects"] if each["metric"] == "joules_per_output_token")
    assert (energy["value"], energy["reference"], energy["pairs"], energy["status"]) == (1, 8, 2, "higher")
    assert energy["ratio"] == pytest.approx((2.0 * 60 / 35) ** 0.5)
    assert [pair["others"] for pair in energy["each"]] == [{"dtype": "float32"}, {"dtype": "float16"}]


def test_markdown_has_a_table_per_metric(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A comment on a pull request is where it is read."""
    assert main(["compare", run, "--by", "dtype", "--format", "markdown"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("### study: dtype against float32\n")
    assert "| dtype | ratio | 95 % interval | pairs | each of them |" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--by", "quantization"], "name one of dtype, batch_size (transformers.batch_size)"),
        (["--by", "dtype", "--reference", "int8"], "name one of float32, float16"),
        (["--by", "dtype", "--metric", "joules"], "joules_per_output_token"),
        (["--by", "dtype", "--metric", "joules_per_correct_answer"], "no valid cycle has joules_per_correct_answer"),
        (["--by", "dtype", "--fail-if", "energy_j:5%"], "it takes no --fail-if"),
        (["run", "--by", "dtype"], "it takes one run"),
        (["run", "--reference", "8"], "add --by AXIS"),
        ([], "llem compare A B; or compare the settings inside it: llem compare A --by AXIS"),
    ],
)
def test_wrong_input_says_what_can_be_compared(
    run: str, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One run alone was a usage error of argparse, without a word of what else there is."""
    assert main(["compare", run, *arguments]) == 2
    assert said in capsys.readouterr().err


def test_nothing_to_pair_is_no_success(run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A script must not read an empty table as "no difference"."""
    for state in Path(run).glob("*/*batch_size-8*/c*/result.json"):
        state.write_text(state.read_text().replace('"valid": true', '"valid": false'))
    assert main(["compare", run, "--by", "batch_size"]) == 2
    assert "no two experiments with valid cycles differ in batch_size alone" in capsys.readouterr().err
    assert main(["compare", run, "--by", "dtype", "--metric", "energy_j"]) == 0


def test_results_without_their_run_have_the_settings_that_differ(
    run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of copied results nothing says what was swept, but their settings differ."""
    for number, file in enumerate(sorted(Path(run).glob("*/*/c1/result.json"))[:2]):
        result = json.loads(file.read_text())
        result["experiment"]["config"]["dtype"] = ("bfloat16", "float32")[number]
        target = tmp_path / "copied" / f"{number}" / "result.json"
        target.parent.mkdir(parents=True)
        target.write_text(json.dumps(result))
    assert main(["compare", "copied", "--by", "dtype", "--metric", "energy_j"]) == 0
    text = capsys.readouterr().out
    assert "study: dtype against bfloat16" in text
    assert "no interval" in text


def test_experiments_of_two_shards_make_a_pair(
    measure: Measure, run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A matrix of jobs measures one dtype each: no pair was left. What jobs differ by is in the interval, 2 %."""
    split: dict[str, JsonValue] = {"count": 2, "splits": {"study": "same"}}
    for index, dtype in enumerate(("float32", "float16"), 1):
        points = [point for point in WATTS if point[0] == dtype]
        measure(tmp_path / "shards", f"shard-{index}", points, {"shard": {"index": index, **split}})
    widths = []
    for path in (run, "shards"):
        assert main(["compare", path, "--by", "dtype", "--metric", "output_tokens_per_s", "--format", "json"]) == 0
        ((effect,), *_) = (study["effects"] for study in json.loads(capsys.readouterr().out))
        assert effect["pairs"] == 2
        widths.append(effect["ci_high"])
    assert widths == pytest.approx([1.0, 1.02])
