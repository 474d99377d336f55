"""What is shown of serving: charts of latency and goodput against load, and whether an SLO is reached."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_llem.job.config import Arrival, SloSettings
from pytest_llem.job.job import Job, JobDir
from pytest_llem.job.measurement import Measurement, RequestRecord
from pytest_llem.job.report import Note, RunReport
from pytest_llem.results.attempts import get_or_measure
from pytest_llem.results.layout import CycleKey, WindowKey
from pytest_llem.results.manifest import rebuild_manifest
from pytest_llem.results.report.charts import Chart, charts, svg_of
from pytest_llem.results.report.charts.figures import caption
from pytest_llem.results.report.content import Content, gather_content
from pytest_llem.results.report.experiments import experiments
from pytest_llem.results.report.verdicts import searches
from pytest_llem.results.search import NextLoad, plan
from pytest_llem.results.search_record import read_searches
from pytest_llem.results.searched import MeasuredWindow, conclude, window_of, write_search
from pytest_llem.results.served import percent
from pytest_llem.results.state import Outcome
from pytest_llem.results.store import RunStore
from pytest_llem.session.reporting.summary import answers
from pytest_llem.study.search import Search
from tests.unit.results.conftest import Bench, S, Worker

PERCENTILES = (50.0, 80.0, 90.0, 99.0)
SLO = SloSettings(ttft_s=0.3, at=0.9)
Level = Sequence[tuple[int, int]]
"""Good and late requests of each cycle; `(0, 0)` is one that was saturated."""


def measured(good: int, late: int) -> Measurement:
    """A cycle whose good requests have their first token after 0.1 s, and the late ones after 0.5 s."""
    bench = Bench().measurement()
    count = good + late or 200
    waits = [0.5 if index * late // count != (index + 1) * late // count else 0.1 for index in range(count)]
    requests = [
        RequestRecord(0, index, 8, 2, 2 * S, 3 * S, "length", (2 * S + int(wait * S), 3 * S))
        for index, wait in enumerate(waits)
    ]
    invalid = (Note("saturated", "8 requests/s came, 5.1 were served"),) if not good and not late else ()
    return replace(bench, requests=tuple(requests), repeats=bench.repeats[:1], invalid=invalid)


def cycle(
    store: RunStore, key: CycleKey, rate: float, counts: tuple[int, int], threads: int = 1, slo: SloSettings = SLO
) -> Outcome:
    """Measure one cycle at a rate, with so many good and late requests."""
    worker = Worker(Bench(), key, measured(*counts))

    def measure(attempt: int, job_dir: JobDir) -> tuple[Job, RunReport]:
        job, report = worker(attempt, job_dir)
        workload = replace(job.config.workload, arrival=Arrival("poisson", rate))
        config = replace(job.config, workload=workload, slo=slo, settings={"threads": threads})
        return replace(job, config=config, percentiles=PERCENTILES), report

    return get_or_measure(store, key, measure, retries=0)


def run_of(directory: Path, levels: Mapping[tuple[float, int], Level], slo: SloSettings = SLO) -> Path:
    """A run of one study: what each cycle at a rate and a number of threads measured."""
    store = RunStore.create(directory, "run-1")
    for (rate, threads), cycles in levels.items():
        for number, counts in enumerate(cycles, 1):
            key = CycleKey("study", f"threads:{threads}-rate_per_s:{rate:g}", f"{threads}{rate:07g}", number)
            cycle(store, key, rate, counts, threads, slo)
    rebuild_manifest(store.run_dir, finished=True)
    return store.run_dir


def searched(directory: Path, capacities: Sequence[float], high: float = 200.0) -> Path:
    """A run with a search per server: it serves all in time below its capacity, fewer from there on, and saturates."""
    store = RunStore.create(directory, "run-1")
    search = Search("workload.arrival.rate_per_s", 1.0, high)
    for threads, capacity in enumerate(capacities, 1):
        key = CycleKey("study", f"threads:{threads}-rate_per_s:search", f"{threads:08}", 1)
        windows: list[MeasuredWindow] = []
        while isinstance(step := plan(search, SLO.at, [each.window for each in windows]), NextLoad):
            over = step.load / capacity
            late = 0 if over < 0.97 else 20 if over < 1.03 else 40
            counts = (200 - late, late) if over < 1.2 else (0, 0)
            window = WindowKey(key.study, key.experiment_id, key.config_hash, 1, len(windows) + 1)
            outcome = cycle(store, window, step.load, counts, threads)
            windows.append(MeasuredWindow(step.reason, outcome, window_of(search, step.load, outcome)))
        conclude(store, key, search, step, windows)
        write_search(store, key, search, SLO.at, windows, step)
    rebuild_manifest(store.run_dir, finished=True)
    return store.run_dir


LEVELS: dict[tuple[float, int], Level] = {
    (2, 1): [(200, 0), (200, 0)],
    (4, 1): [(184, 16), (182, 18)],
    (8, 1): [(0, 0), (0, 0)],
    (2, 2): [(200, 0), (200, 0)],
    (4, 2): [(196, 4), (198, 2)],
    (8, 2): [(140, 60), (130, 70)],
}


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Content:
    """Three rates for one thread and for two."""
    return gather_content([run_of(tmp_path_factory.mktemp("out"), LEVELS)])


def chart_of(content: Content, id: str) -> Chart:
    (found,) = (chart for chart in charts(content) if chart.id == id)
    return found


def test_an_slo_is_shown_with_its_limit_and_what_became_of_each_level(content: Content) -> None:
    chart = chart_of(content, "load-ttft")
    spec: Any = chart.spec
    (limit,) = spec["layer"][-1]["data"]["values"]
    assert limit == {"limit": pytest.approx(0.3), "said": "SLO: 0.3 s"}
    states = {(row["x"], row["threads"]): row["state"] for row in with_threads(chart)}
    assert states == {
        (2, 1): "reached",
        (4, 1): "undecided",
        (8, 1): "saturated",
        (2, 2): "reached",
        (4, 2): "reached",
        (8, 2): "not reached",
    }
    (key,) = {json.dumps(layer["encoding"]["shape"]) for layer in spec["layer"] if "shape" in layer["encoding"]}
    scale = json.loads(key)["scale"]
    assert scale["domain"] == ["reached", "not reached", "undecided", "saturated"]
    assert len(set(scale["range"])) == 4
    said = caption(chart, content)
    for part in ("90th percentile", "SLO: ttft ≤ 0.3 s for at least 90 % of requests", "Saturated", "Colour: threads"):
        assert part in said
    assert "Not shown" not in said


def with_threads(chart: Chart) -> list[dict[str, Any]]:
    return [{**row, "threads": int(str(row["experiment"])[len("threads:")])} for row in chart.rows]


def test_the_name_of_a_limit_above_all_points_lies_within_the_frame(tmp_path: Path) -> None:
    """It was printed over the legend where the limit was the scale's end."""
    levels = {(2.0, 1): [(200, 0)], (4.0, 1): [(190, 10)]}
    for limit, baseline in ((0.3, "bottom"), (0.9, "top")):
        content = gather_content([run_of(tmp_path / str(limit), levels, replace(SLO, ttft_s=limit, at=0.99))])
        spec: Any = chart_of(content, "load-ttft").spec
        assert spec["layer"][-1]["mark"]["baseline"] == baseline


def test_a_saturated_level_has_a_mark_and_no_number(content: Content) -> None:
    """What it measured depends on how long the queue grew, and must stand in no mean."""
    for id in ("load-ttft", "load-goodput"):
        (row,) = (row for row in chart_of(content, id).rows if row["state"] == "saturated")
        assert (row["x"], row["y"], row["low"], row["high"], row["share"]) == (8, None, None, None, None)


def test_levels_are_joined_along_the_load_alone(content: Content) -> None:
    rows = with_threads(chart_of(content, "load-goodput"))
    assert len({(row["line"], row["threads"]) for row in rows}) == len({row["line"] for row in rows}) == 2


def test_a_percentile_is_the_one_that_the_slo_asks_or_one_that_all_have(tmp_path: Path) -> None:
    """A line over p99 had gaps where a level had fewer than 100 requests."""
    few = {(2.0, 1): [(200, 0)], (4.0, 1): [(60, 0)]}
    for at, metric in ((0.99, "ttft_p90_s"), (0.5, "ttft_p50_s")):
        content = gather_content([run_of(tmp_path / str(at), few, replace(SLO, at=at))])
        chart = chart_of(content, "load-ttft")
        assert chart.metrics == (metric,)
        assert ("The SLO asks for the percentile 99," in chart.description) == (at == 0.99)


def test_without_an_slo_a_load_is_shown_without_a_line(tmp_path: Path) -> None:
    content = gather_content([run_of(tmp_path, {(2.0, 1): [(200, 0)], (4.0, 1): [(150, 50)]}, SloSettings())])
    chart = chart_of(content, "load-ttft")
    assert {row["state"] for row in chart.rows} == {"no SLO"}
    assert "SLO" not in caption(chart, content)
    assert "load-goodput" not in [chart.id for chart in charts(content)]
    assert "SLO" not in experiments(content)


def test_one_level_is_no_load(tmp_path: Path) -> None:
    content = gather_content([run_of(tmp_path, {(2.0, 1): [(200, 0)], (2.0, 2): [(150, 50)]})])
    assert not [chart.id for chart in charts(content) if chart.id.startswith("load")]


def test_the_charts_of_a_load_are_drawn_without_scripts(content: Content) -> None:
    pytest.importorskip("vl_convert", reason="charts need the extra `report`")
    for id in ("load-ttft", "load-goodput"):
        svg = svg_of(chart_of(content, id)) or ""
        texts = re.findall(r">([^<>]+)</text>", svg)
        assert {"reached", "not reached", "undecided", "saturated", "Requests that arrive per second"} <= {*texts}
        assert ("SLO: 0.3 s" in texts) == (id == "load-ttft")


def test_the_table_says_whether_the_slo_is_reached(content: Content) -> None:
    table = experiments(content)
    cells = re.findall(r"</span>((?:yes|no|undecided|saturated)[^<]*)</span>", table)
    assert cells == ["yes, 100 %", "undecided, 91.5 %", "saturated", "yes, 100 %", "yes, 98.5 %", "no, 67.5 %"]
    assert "<b>ttft ≤ 0.3 s for at least 90 % of requests</b>" in table
    assert 'title="67.5 % (' in table


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.421, "42.1 %"), (0.5, "50 %"), (1.0, "100 %"), (0.0, "0 %"), (0.9996, "99.96 %"), (0.99999, "99.999 %")],
)
def test_a_share_is_not_rounded_to_all(share: float, text: str) -> None:
    assert percent(share) == text


def test_a_level_that_was_saturated_once_is_not_reached(tmp_path: Path) -> None:
    """Its other cycles kept the SLO, and would have been all that counts."""
    (row,) = gather_content([run_of(tmp_path, {(2.0, 1): [(200, 0), (0, 0)]})]).experiments
    assert row.slo is not None
    assert (row.slo.share, row.slo.state, row.slo.cell) == (1.0, "undecided", "undecided, 100 %")


def test_a_search_says_its_answer_and_what_decided_each_window(tmp_path: Path) -> None:
    run = searched(tmp_path, [21.5])
    (record,) = read_searches(run)
    (found,) = record.cycles.values()
    assert record.answer.load == pytest.approx(21.5, rel=0.2)
    (line,) = answers([record], 80)
    answer, rest = line.split("), ")
    assert re.fullmatch(r"largest load under the SLO: \d+\.\d requests/s \(\d+\.\d \.\. \d+\.\d", answer)
    assert rest == f"{len(found.windows)} of 8 windows"
    page = searches(gather_content([run]))
    assert page.count("<tr>") == len(found.windows) + 1
    for said in ("✓ </span>reached", "✗ </span>saturated", "%) of 200 good", "the geometric middle of the bracket"):
        assert said in page


def test_searches_are_told_apart_by_what_they_looked_at(tmp_path: Path) -> None:
    lines = answers(read_searches(searched(tmp_path, [21.5, 43.0])), 80)
    assert [line.partition(": ")[0] for line in lines] == [
        "largest load under the SLO:",
        "    threads:1",
        "    threads:2",
    ]
    open_ended = answers(read_searches(searched(tmp_path / "b", [500.0])), 80)
    assert re.fullmatch(r"largest load under the SLO: at least 200 requests/s, \d of 8 windows", open_ended[0])
    (none,) = answers(read_searches(searched(tmp_path / "c", [0.1])), 80)
    assert none.startswith("largest load under the SLO: no load from 1 to 200 requests/s was seen to keep the SLO")


def test_a_search_is_drawn_window_by_window(tmp_path: Path) -> None:
    """Its cycle's result is that of one window: the others would be missing from the charts of the load."""
    content = gather_content([searched(tmp_path, [21.5])])
    (record,) = (row.search for row in content.experiments)
    assert record is not None
    windows = record.cycles["1"].windows
    assert {"ttft_p80_s", "ttft_p99_s"} <= set(windows[0].metrics)  # those that the study chose as well
    chart = chart_of(content, "search-threads:1-rate_per_s:search")
    assert [(row["x"], row["y"], row["state"]) for row in chart.rows] == [
        (each.step, each.offered, each.level) for each in windows
    ]
    loads = [(row["x"], row["y"] is None) for row in chart_of(content, "load-ttft").rows]
    assert loads == [(each.offered, each.level == "saturated") for each in windows]
    svg = svg_of(chart)
    if svg is not None:
        assert re.search(r">answer: \d+\.\d+</text>", svg)
        assert {"reached", "saturated", "Window"} <= set(re.findall(r">([^<>]+)</text>", svg))
