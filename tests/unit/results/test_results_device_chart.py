"""The chart of a power limit or clock: both figures of each setting, the default in its place, and what is the best."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llem.errors import JsonValue
from pytest_llem.job.config import Default, DeviceSettings
from pytest_llem.job.job import Job, JobDir
from pytest_llem.job.report import RunReport
from pytest_llem.results.attempts import get_or_measure
from pytest_llem.results.energy_schema import DeviceSection, GpuSettingSection, GpuStateSection
from pytest_llem.results.exports.otel import metrics_data
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.manifest import rebuild_manifest
from pytest_llem.results.reading import Results
from pytest_llem.results.report.charts import Chart, charts, svg_of
from pytest_llem.results.report.content import Content
from pytest_llem.results.report.gpu_settings import gpu_settings
from pytest_llem.results.report.page import write_report
from pytest_llem.results.store import RunStore
from pytest_llem.results.summary import summarise_metrics
from pytest_llem.study.model import SweptAxis
from tests.browser import Opened
from tests.unit.results.test_results_charts import BATCH, chart_of, content_of

if TYPE_CHECKING:
    from tests.unit.results.conftest import Bench, Worker

    MakeWorker = Callable[..., Worker]

LIMIT = SweptAxis("device.power_limit_w", "power_limit_w", ("default", "500", "300"), ("default", 500, 300))
CLOCK = SweptAxis("device.sm_clock_mhz", "sm_clock_mhz", LIMIT.labels, LIMIT.values)
WATTS = {"default": 700.0, 500: 500.0, 300: 300.0}
COSTS = {"default": (1.0, 100.0), 500: (0.9, 98.0), 300: (0.7, 80.0)}


def measured(*axes: SweptAxis, read: Callable[[Any], DeviceSection] = lambda _: DeviceSection()) -> Content:
    """Each limit with its own cost and speed, in cycles that hardly scatter; `read` is what was read of the GPU."""
    content = content_of(*axes)
    results = []
    for result in content.results:
        value = content.axes["study"].point(result.experiment.id)[LIMIT.name if LIMIT in axes else axes[0].name]
        joules, rate = COSTS[value]
        noise = 1 + 0.001 * result.cycle
        energy = replace(result.energy, joules_per_output_token=joules * noise, energy_j=9.0, uncertainty_j=0.001)
        throughput = replace(result.throughput, output_tokens_per_s=rate / noise)
        results.append(result.model_copy(update={"energy": energy, "throughput": throughput, "device": read(value)}))
    found = Results(tuple(results))
    rows = [
        replace(row, metrics=summarise_metrics(r for r in results if r.experiment.id == row.experiment))
        for row in content.experiments
    ]
    return replace(content, results=found, rows=found, experiments=tuple(rows))


def limited_to(watts: float, asked: JsonValue, reached: bool | None = None) -> DeviceSection:
    """A GPU under a limit of so many watts, which the driver confirms."""
    assert isinstance(asked, (int, str))
    setting = GpuSettingSection(
        name="power_limit_w",
        requested=asked,
        previous=700.0,
        applied=watts,
        observed=0.96 * watts,
        held=True,
        reached=reached,
    )
    state = GpuStateSection(
        id="g", power_limits_w=(watts,), sm_clock_mhz=1500.0, clock_events={"sw_power_cap": 0.93}, settings=(setting,)
    )
    return DeviceSection(kind="cuda", gpus=(state,))


def by_setting(chart: Chart) -> dict[str, Any]:
    return {str(row["setting"]): row for row in chart.rows}


def test_each_setting_has_both_figures_and_the_best_is_ringed() -> None:
    chart = chart_of(measured(LIMIT), "device-power_limit_w")
    rows = by_setting(chart)
    assert [rows[name]["optimal"] for name in ("default", "500", "300")] == [None, None, "the least"]
    assert rows["300"]["y"] == pytest.approx(0.7, rel=0.01)
    assert rows["300"]["speed"] == pytest.approx(80, rel=0.01)
    assert "at 300 W: 30.0 % less (" in chart.description
    assert "20.0 % slower (" in chart.description
    assert "Dashed: the board's default, which was not read." in chart.description
    assert chart.metrics == ("joules_per_output_token", "output_tokens_per_s")


def test_a_default_of_unknown_place_stands_apart_and_no_line_runs_to_it() -> None:
    """At 0, or among the numbers, it would read as a limit that nobody set."""
    rows = by_setting(chart_of(measured(LIMIT), "device-power_limit_w"))
    assert rows["default"]["x"] > 500
    assert [rows[name]["joined"] for name in ("default", "500", "300")] == [False, True, True]


def test_a_default_stands_where_the_board_had_its_limit_joined_to_the_others() -> None:
    """700 W are a limit like 500 W, and where the curve ends."""
    content = measured(LIMIT, read=lambda value: limited_to(WATTS[value], value))
    chart = chart_of(content, "device-power_limit_w")
    assert (by_setting(chart)["default"]["x"], by_setting(chart)["default"]["joined"]) == (700.0, True)


def test_a_clock_without_a_lock_stands_at_what_it_ran_at_and_no_line_runs_to_it() -> None:
    """What the board chose by itself is no setting, and a line to it would say that it was."""
    ran = {**WATTS, "default": 1935.0}
    content = measured(CLOCK, read=lambda at: DeviceSection(gpus=(GpuStateSection(id="g", sm_clock_mhz=ran[at]),)))
    chart = chart_of(content, "device-sm_clock_mhz")
    assert (by_setting(chart)["default"]["x"], by_setting(chart)["default"]["joined"]) == (1935.0, False)
    assert "at the clock that it ran at" in chart.description


def test_limits_that_no_load_reaches_are_said_to_change_nothing() -> None:
    """A sweep of caps above what decoding draws looks like a measurement of caps, and is one of noise."""
    said = "the load reached none of the limits"
    for reached in (False, True, None):
        content = measured(LIMIT, read=partial(limited_to, 700.0, reached=reached))
        assert (said in chart_of(content, "device-power_limit_w").description) == (reached is False)


def test_the_report_says_how_the_gpus_were_set_and_whether_that_held() -> None:
    """A cap that was asked for and never in force is what scripts do not notice."""
    content = measured(LIMIT, read=lambda value: limited_to(WATTS[value], value, True))
    page = gpu_settings(content.results)
    rows = [re.sub(r"<[^>]+>", "|", row) for row in page.split("<tr>")[2:]]
    asked = [row.strip("|").partition("|")[0] for row in rows]
    assert asked == ["power_limit_w default", "power_limit_w 500 W", "power_limit_w 300 W"]
    row = rows[-1]
    for words in ("700 W", "3 of 3", "288 W", "sw_power_cap up to 93% of the time"):
        assert words in row
    assert gpu_settings(measured(LIMIT).results) == ""


def test_exports_have_the_limit_in_force_and_the_clocks() -> None:
    content = measured(LIMIT, read=lambda value: limited_to(450.0, value))
    table = content.results.to_table()
    assert table["gpu_power_limit_w"].to_pylist() == [450.0] * 9
    assert table["gpu_sm_clock_mhz"].to_pylist() == [1500.0] * 9
    assert table["gpu_clock_events"].to_pylist() == ["sw_power_cap"] * 9
    told = json.dumps(metrics_data(content.results[0]))
    assert '"llem.gpu.power_limit", "unit": "W"' in told
    assert '"asDouble": 1500000000.0' in told
    without = measured(LIMIT).results
    assert without.to_table()["gpu_power_limit_w"].to_pylist() == [None] * 9
    assert "llem.gpu" not in json.dumps(metrics_data(without[0]))


def test_it_takes_the_place_of_the_chart_by_value() -> None:
    """Two charts of the same axis, of which one leaves the default out, would be one too many."""
    numbers = SweptAxis(LIMIT.name, LIMIT.title, ("500", "300"), (500, 300))
    ids = [chart.id for chart in charts(measured(numbers))]
    assert "device-power_limit_w" in ids
    assert not [id for id in ids if id.startswith("by-")]


def test_several_points_of_other_axes_are_lines_with_an_optimum_each() -> None:
    chart = chart_of(measured(LIMIT, BATCH), "device-power_limit_w")
    assert len({row["line"] for row in chart.rows}) == 3
    assert sum(row["optimal"] == "the least" for row in chart.rows) == 3
    assert "batch_size 4: least energy per output token at 300 W" in chart.description


def test_it_is_drawn_for_a_page_and_for_print() -> None:
    pytest.importorskip("vl_convert", reason="charts need the extra `report`")
    content = measured(LIMIT, BATCH)
    svg = svg_of(chart_of(content, "device-power_limit_w"))
    assert svg is not None
    assert ">Power limit (W)<" in svg
    assert ">default<" in svg
    assert not re.search("undefined|NaN|Infinity", svg)


def test_a_browser_draws_that_of_a_run_without_a_complaint(
    tmp_path: Path, key: CycleKey, worker: MakeWorker, bench: Bench, browse: Callable[..., Opened]
) -> None:
    """A layer without rows has no extent, of which Vega complains; a phone has little room."""
    pytest.importorskip("vl_convert", reason="charts need the extra `report`")
    store = RunStore.create(tmp_path / "out", "now")
    costs: dict[float | Default, float] = {"default": 12.0, 500.0: 10.0, 300.0: 8.0}
    for limit, watts in costs.items():
        for cycle in (1, 2):
            cell = CycleKey(key.study, f"limit-{limit}", str(limit), cycle)
            inner = worker(cell, bench.measurement(watts * (1 + cycle / 1000)))
            get_or_measure(store, cell, partial(limited, inner, limit))
    rebuild_manifest(store.run_dir, finished=True)
    write_report([tmp_path / "out"], tmp_path / "report.html")
    opened = browse(tmp_path / "report.html", viewport={"width": 390, "height": 800}, color_scheme="dark")
    figure = opened.page.locator("[data-chart='device-power_limit_w']")
    figure.scroll_into_view_if_needed()
    opened.page.wait_for_function("document.querySelector('[data-chart=device-power_limit_w].vega-embed svg')")
    for place in (opened.page.locator("figure", has=figure), opened.page.locator("#optima")):
        assert "at 300 W: " in place.inner_text()
    assert figure.get_by_text("default", exact=True).count() == 1
    assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert opened.complaints == []


def limited(inner: Worker, limit: float | Default, attempt: int, job_dir: JobDir) -> tuple[Job, RunReport]:
    inner.run_id = "now"
    job, report = inner(attempt, job_dir)
    return replace(job, config=replace(job.config, device=DeviceSettings(power_limit_w=limit))), report
