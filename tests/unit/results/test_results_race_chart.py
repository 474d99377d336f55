"""The chart and table of a race: what may be the best stands first, and each setting says when and why it left."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_llem.job.files import write_text
from pytest_llem.results.optimize_record import OptimizeRecord, RacedSetting
from pytest_llem.results.racing.answer import Seen, Setting
from pytest_llem.results.racing.racing import race
from pytest_llem.results.report.charts import Chart, charts, svg_of
from pytest_llem.results.report.charts.drawing import bands, shown
from pytest_llem.results.report.charts.figures import COLUMN
from pytest_llem.results.report.content import Content
from pytest_llem.results.report.page import WHOLE, _bundle, _render
from pytest_llem.results.report.races import races
from pytest_llem.results.report.shown_race import ShownRace
from pytest_llem.study.limits import parse_budget
from pytest_llem.study.model import SweptAxis
from pytest_llem.study.optimize import Optimize
from tests.browser import Opened
from tests.unit.results.test_results_charts import BATCH, DTYPE, RUN, content_of

THREADS = SweptAxis("transformers.threads", "threads", ("1", "2", "4", "8"), (1, 2, 4, 8))
LENGTH = SweptAxis("max_model_len", "max_model_len", tuple(map(str, range(9))), tuple(range(9)))
GOAL = Optimize("joules_per_output_token", (parse_budget("ttft_p99_s", "<= 0.5"),), max_cycles=6)
FAILS = "batch_size:4-threads:8-dtype:float32"


def raced(*axes: SweptAxis, goal: Optimize = GOAL) -> Content:
    """A race that was run: larger batches cost less and wait longer, 16 too long; one setting never works."""
    content = content_of(*axes)
    means: dict[str, float] = {}
    points = {row.experiment: row.point for row in content.experiments}

    def seen(id: str, cycle: int) -> Seen:
        noise, point = random.Random(f"{id} {cycle}"), points[id]
        if id == FAILS:
            return Seen(None, failed="out of <memory>")
        batch, places = float(str(point[BATCH.name])), [axis.values.index(point[axis.name]) for axis in axes]
        cost = 2 * (1 - batch / 50 + 0.08 * sum(places[1:])) * noise.gauss(1, 0.004)
        value = cost if goal.lower_is_better else 1 / cost
        means[id] = value
        return Seen(value, {"ttft_p99_s": 0.05 * batch * noise.gauss(1, 0.02)})

    settings = [Setting(id, point) for id, point in points.items()]
    found = race(settings, seen, goal, rounds=goal.max_cycles)
    course = tuple(len(race(settings, seen, goal, rounds=number).needed) for number in range(found.rounds))
    raced = {
        id: RacedSetting("0" * 8, points[id], means.get(id), fate.cycles, fate) for id, fate in found.fates.items()
    }
    record = OptimizeRecord.of("study", goal, found, course, raced, 0.0, {"batch_size:<b>": "not selected"})
    return replace(content, races=(ShownRace(RUN, record),))


def chart_of_race(content: Content) -> Chart:
    (chart,) = (chart for chart in charts(content) if chart.id.startswith("race-"))
    return chart


def states_of(chart: Chart) -> dict[str, str]:
    """The state of each setting, in the chart's order."""
    return {str(row["experiment"]): str(row["state"]) for row in chart.rows}


def test_what_may_be_the_best_stands_first_then_what_a_limit_alone_keeps_from_it() -> None:
    """In the study's order, the answer of 200 settings stood anywhere, and nobody saw what its limit costs."""
    chart = chart_of_race(raced(BATCH, THREADS, DTYPE))
    states = [*states_of(chart).items()]

    assert states[0] == ("batch_size:4-threads:1-dtype:float32", "recommended")
    assert states[1][0].startswith("batch_size:16-threads:1")
    assert states[1][1] == "infeasible"
    assert states[-1] == (FAILS, "failed")
    (aside,) = (layer for layer in json.loads(json.dumps(chart.spec))["layer"] if layer.get("name") == "aside")
    said = aside["encoding"]["y"]["axis"]["labelExpr"]
    assert "infeasible by ttft_p99_s, round 2" in said
    assert "dropped, round 2" in said


def test_bounds_are_drawn_as_they_are_and_end_at_the_edge() -> None:
    """The bounds of the first rounds are so wide that on their scale nothing else could be seen."""
    content = raced(BATCH, THREADS, DTYPE)
    fates = content.races[0].record.settings
    chart = chart_of_race(content)
    drawn: list[Any] = [row for row in chart.rows if row.get("x") is not None]
    edges = min(row["low"] for row in drawn), max(row["high"] for row in drawn)

    assert 1 / 2 < edges[0] < 1 < edges[1] < 3
    for row in drawn:
        bounds = next(each for each in fates[row["experiment"]].fate.ratios if each.round == row["round"])
        for name, true in (("x", bounds.value), ("low", bounds.low), ("high", bounds.high)):
            inside = true is not None and edges[0] < true < edges[1]
            assert row[name] == (
                pytest.approx(true) if inside else pytest.approx(edges[0] if row[name] < 1 else edges[1])
            )


def test_more_is_better_turns_the_chart_around() -> None:
    """Right of 1 was called worse whatever was sought."""
    goal = Optimize("output_tokens_per_s", GOAL.subject_to, max_cycles=4)
    chart = chart_of_race(raced(BATCH, DTYPE, goal=goal))

    assert chart.title == "The race for the highest output token throughput"
    assert "left of 1 it is worse, right of 1 better" in chart.description
    assert next(iter(states_of(chart))) == "batch_size:4-dtype:float32"


def test_of_two_hundred_settings_the_first_rows_are_drawn_and_the_table_has_all() -> None:
    content = raced(BATCH, THREADS, DTYPE, LENGTH)
    chart = chart_of_race(content)
    names = [*states_of(chart)]
    first = list(dict.fromkeys(row["experiment"] for row in shown(chart, bands(chart))))

    assert len(names) == 216
    assert first == names[:40]
    assert set(content.races[0].record.best) <= set(first)
    assert (svg := svg_of(chart, WHOLE)) is not None
    assert "may be the best" in svg or "recommended" in svg
    assert races(content, lambda race: "").count("<tr>") == 217


def test_a_column_of_a_paper_has_no_room_beside_the_rows() -> None:
    chart = next(chart for chart in charts(raced(BATCH, DTYPE), COLUMN) if chart.id.startswith("race-"))
    assert '"aside"' not in json.dumps(chart.spec)


def test_the_section_says_the_answer_and_of_each_setting_when_and_why_it_left() -> None:
    content = raced(BATCH, THREADS, DTYPE)
    section = races(content, lambda race: f"[{race.record.study}]")

    assert (
        "found</span></strong>: best setting, minimize joules_per_output_token subject to ttft_p99_s &lt;= 0.5: "
        in section
    )
    assert "[study]" in section
    assert f"in each round: {', '.join(map(str, content.races[0].record.course))}." in section
    assert 'infeasible, round 2</span><br><span class="muted">beyond ttft_p99_s &lt;= 0.5: ' in section
    assert 'dropped, round 2<br><span class="muted">cannot be the best: ' in section
    assert "out of &lt;memory&gt;" in section
    assert "1 setting did not take part" in section
    assert "batch_size:&lt;b&gt;</code>: not selected" in section
    assert races(content_of(BATCH), lambda race: "") == ""


def test_the_race_is_drawn_in_a_browser(tmp_path: Path, browse: Callable[..., Opened]) -> None:
    """On a phone the words beside the rows left no room for the rows."""
    pytest.importorskip("vl_convert", reason="charts need the extra `report`")
    content, file = raced(BATCH, THREADS, DTYPE), tmp_path / "report.html"
    write_text(file, _render(content, [chart_of_race(content)], [], "A race", _bundle()))
    for width, scheme in ((1280, "light"), (390, "dark")):
        opened = browse(file, viewport={"width": width, "height": 800}, color_scheme=scheme)
        opened.page.locator("#race .chart").scroll_into_view_if_needed()
        opened.page.wait_for_function("() => document.querySelector('#race .chart.vega-embed svg')")

        words = opened.page.locator("#race .chart svg").text_content()
        assert ("infeasible by ttft_p99_s, round 2" in words) == (width > 390)
        assert "batch_size 4, threads 1, float32" in words
        assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert opened.complaints == []
