"""What a report shows of scored answers: accuracy against joules, the front, counts, and the wrong answers."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_llem.cli import main
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.manifest import StudyPlan
from pytest_llem.results.report.charts import charts, svg_of
from pytest_llem.results.report.content import Content, gather_content
from pytest_llem.results.report.page import write_report
from pytest_llem.results.store import RunStore
from pytest_llem.session.study_tests import experiment_properties, properties
from tests.unit.results.scored_runs import SCORED, answered, scored_run

RIGHT, WRONG = "Paris.", "<script>alert(1)</script> Lyon"


def of_texts(right: int, of: int) -> list[str | None]:
    return [*[RIGHT] * right, *[WRONG] * (of - right)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three settings: the cheap one answers nearly nothing, and of two alike one draws twice as much."""
    return scored_run(
        tmp_path_factory.mktemp("scored"),
        {
            "exact": (20.0, answered(of_texts(90, 100))),
            "fast": (10.0, answered(of_texts(90, 100))),
            "cheap": (4.0, answered(of_texts(20, 100), reason="length")),
        },
    )


@pytest.fixture(scope="module")
def content(run: Path) -> Content:
    return gather_content([run])


def test_accuracy_stands_against_the_energy_of_a_correct_answer(content: Content) -> None:
    made = {chart.id: chart for chart in charts(content)}
    rows: Any = made["quality"].rows
    point = {row["experiment"]: row for row in rows}
    assert point["fast"]["y"] == pytest.approx(90)
    assert point["fast"]["low"] < 90 < point["fast"]["high"] <= 100
    assert point["fast"]["slow"] < point["fast"]["x"] < point["fast"]["fast"]
    assert {name: row["standing"] for name, row in point.items()} == {
        "exact": "dominated",  # the same answers for twice the energy
        "fast": "on the front",
        "cheap": "dominated",  # fewer joules an answer, more per correct one
    }
    per_answer: Any = made["quality-per-answer"].rows
    assert {row["experiment"]: row["standing"] for row in per_answer}["cheap"] == "on the front"
    assert "on the front (full): 1, dominated (hollow): 2" in made["quality"].description


def test_other_questions_have_a_front_of_their_own(tmp_path: Path) -> None:
    """A setting that was asked hard questions was dominated by one that was asked easy ones."""
    hard = [replace(each, question=f"hard {each.question}") for each in answered(of_texts(20, 100))]
    out = {
        "easy": (10.0, answered(of_texts(90, 100))),
        "hard": (20.0, hard),
        "hard, fast": (5.0, hard),
    }
    (made,) = (chart for chart in charts(gather_content([scored_run(tmp_path, out)])) if chart.id == "quality")
    rows: Any = made.rows
    assert {row["experiment"]: (row["standing"], row["front"]) for row in rows} == {
        "easy": ("on the front", True),
        "hard": ("dominated", False),
        "hard, fast": ("on the front", True),
    }
    assert len({row["asked"] for row in rows}) == 2
    assert "there are 2 kinds" in made.description


def test_both_charts_are_drawn(content: Content) -> None:
    pytest.importorskip("vl_convert", reason="charts need the extra `report`")
    for chart in charts(content):
        if chart.id.startswith("quality"):
            svg = svg_of(chart)
            assert svg is not None
            assert "Accuracy of the answers (%)" in svg
            assert svg.count('fill-opacity="0"') >= 1


def test_the_page_counts_answers_and_shows_wrong_ones_escaped(run: Path, tmp_path: Path) -> None:
    write_report([run], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    section = page[page.index('<section id="answers"') : page.index('<section id="asked"')]
    assert "<script>alert" not in section
    assert "&lt;script&gt;alert(1)&lt;/script&gt; Lyon" in section
    assert "<td>fast</td><td>on the front</td><td>100</td>" in section
    assert "<td>100</td><td>90</td><td>10</td><td>0</td><td>0</td><td>0</td>" in section
    assert "<td>100</td><td>20</td><td>80</td><td>100</td>" in section
    assert section.count("<details>") == 3
    assert section.count("<q>") == 30
    assert "q90" in section
    assert "q99" in section
    assert "accuracy (%)" in page
    assert "90.0 (82." in page
    assert "J/correct answer" in page


def test_a_table_and_telemetry_hold_accuracy_and_its_cost(run: Path, tmp_path: Path) -> None:
    main(["export", str(run), "--format", "csv", "-o", str(tmp_path / "all.csv")])
    rows = [*csv.DictReader((tmp_path / "all.csv").open())]
    fast = next(row for row in rows if row["experiment"] == "fast")
    assert float(fast["accuracy_low"]) < float(fast["accuracy"]) == 0.9 < float(fast["accuracy_high"])
    assert float(fast["joules_per_correct_answer"]) == pytest.approx(20 * 1.001 / 180)
    assert float(fast["joules_per_correct_answer_uncertainty"]) > 0
    main(["export", str(run), "--format", "otel", "-o", str(tmp_path / "all.jsonl")])
    line = json.loads((tmp_path / "all.jsonl").read_text().splitlines()[0])
    gauges = {entry["name"]: entry for entry in line["resourceMetrics"][0]["scopeMetrics"][0]["metrics"]}
    assert gauges["llem.accuracy"]["gauge"]["dataPoints"][0]["asDouble"] in (0.2, 0.9)
    assert gauges["llem.joules_per_correct_answer"]["unit"] == "J/{answer}"


def test_junit_states_accuracy_with_its_interval_and_the_cost_of_a_correct_answer(run: Path) -> None:
    outcome = RunStore.open(run).outcome(CycleKey("study", "fast", f"{1:08x}", 1))
    assert outcome is not None
    of_cycle: dict[str, Any] = dict(properties(outcome, run))
    low, high = of_cycle["llem_accuracy_low"], of_cycle["llem_accuracy_high"]
    assert low < of_cycle["llem_accuracy"] < high
    assert of_cycle["llem_joules_per_correct_answer"] == pytest.approx(20 * 1.001 / 180)
    (row,) = (row for row in gather_content([run]).experiments if row.experiment == "fast")
    stated: dict[str, Any] = dict(experiment_properties(row.metrics, "joules_per_output_token"))
    assert stated["llem_experiment_joules_per_correct_answer_low"] < of_cycle["llem_joules_per_correct_answer"]
    assert stated["llem_experiment_accuracy_high"] == pytest.approx(high)
    assert {type(value) for value in (*of_cycle.values(), *stated.values())} <= {str, float, bool, int}


def test_the_documented_example_finds_wrong_answers(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[3] / "docs" / "quality.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"<!-- test: wrong -->\n```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "llem-results").symlink_to(run.parent)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "quality.md", "exec"), {})
    assert "100 asked, wrong: ['q90', 'q91', 'q92', 'q93', 'q94']" in capsys.readouterr().out


def test_answers_that_ended_too_early_are_a_warning(content: Content) -> None:
    """Accuracy of answers that output_tokens cuts is that of the limit, not of the model."""
    notes = {row.experiment: row.notes for row in content.experiments}
    assert "answers_cut" in notes["cheap"]
    assert "answers_cut" not in notes["fast"]
    (result, *_) = (each for each in content.results if each.experiment.id == "cheap")
    assert "80.0% of the answers" in next(each.message for each in result.warnings if each.code == "answers_cut")


def test_answers_that_were_not_kept_are_counted_and_not_shown(tmp_path: Path) -> None:
    texts = [*of_texts(98, 99), None]
    settings = replace(SCORED, keep_answers=False)
    run = scored_run(tmp_path, {"a": (4.0, answered(texts))}, settings=settings, cycles=1)
    (row,) = gather_content([run]).experiments
    assert row.answers is not None
    assert (row.answers.right, row.answers.failed) == (98, 1)
    assert [(each.text, each.why) for each in row.answers.wrong] == [(None, "the server went away")]


def test_a_long_answer_keeps_how_it_begins_and_what_it_comes_to(tmp_path: Path) -> None:
    """A page of 14,000 answers of pages must still open, and reasoning ends with what was answered."""
    long = f"Let me think. {'Well. ' * 5000} So it is Lyon."
    run = scored_run(tmp_path, {"a": (4.0, answered([RIGHT, long]))}, cycles=1)
    (row,) = gather_content([run]).experiments
    assert row.answers is not None
    ((text, why),) = ((each.text or "", each.why) for each in row.answers.wrong)
    assert (text.startswith("Let me think."), text.endswith("So it is Lyon."), why) == (True, True, "")
    assert len(text) < 400


def test_colour_and_filling_of_a_point_share_a_legend(content: Content) -> None:
    """Vega-Lite warned of a legend that was both shown and not shown."""
    plan = StudyPlan("study", None)
    (name,) = content.manifests
    listed = replace(content, manifests={name: replace(content.manifests[name], studies=(plan,))})
    made: Any = {chart.id: chart for chart in charts(listed)}["quality"].spec
    (encoding,) = (layer["encoding"] for layer in made["layer"] if "fill" in layer["encoding"])
    assert encoding["fill"] == encoding["color"]
    assert encoding["fill"]["legend"] is not None


def test_a_study_without_scores_has_no_section_of_answers(tmp_path: Path, run: Path) -> None:
    plain = replace(SCORED, score=None, answer_column=None)
    unscored = scored_run(
        tmp_path, {"a": (4.0, answered([RIGHT])), "b": (8.0, answered([RIGHT]))}, settings=plain, cycles=1
    )
    write_report([unscored], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert 'id="answers"' not in page
    assert "accuracy" not in page
    assert not [chart for chart in charts(gather_content([unscored])) if chart.id.startswith("quality")]
