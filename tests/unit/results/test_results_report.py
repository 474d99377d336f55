"""The HTML report in a real browser: it renders, asks for nothing, and its filters work."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_llem.errors import EngineError, StoreError
from pytest_llem.job.job import Job, JobDir
from pytest_llem.job.report import Note, RunReport
from pytest_llem.results.attempts import get_or_measure
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.manifest import rebuild_manifest
from pytest_llem.results.report.charts import charts
from pytest_llem.results.report.charts.figures import write_figures
from pytest_llem.results.report.content import gather_content
from pytest_llem.results.report.page import write_report
from pytest_llem.results.store import RunStore
from pytest_llem.results.terminal import plus_minus, significant
from tests.browser import Opened

if TYPE_CHECKING:
    from tests.unit.results.conftest import Bench, Worker

    MakeWorker = Callable[..., Worker]


@pytest.fixture
def out(tmp_path: Path, bench: Bench, key: CycleKey, worker: MakeWorker) -> Path:
    """Two runs of four experiments and three cycles, with power samples, an invalid and a failed cycle."""
    for run, watts in (("before", 10.0), ("now", 12.0)):
        store = RunStore.create(tmp_path / "out", run, environment={"hostname": "<b>here</b>"})
        for size in range(1, 5):
            for cycle in range(1, 4):
                cell = CycleKey(key.study, f"batch_size:{size}", f"{size:08x}", cycle)
                measurement = bench.measurement(watts / size * (1 + cycle / 100))
                engine = replace(measurement.engine, version="1</script><script>")
                measurement = replace(measurement, engine=engine)
                if (size, cycle) == (4, 3):
                    measurement = replace(measurement, invalid=(Note("throttled", "2 s of <thermal> throttling"),))
                get_or_measure(store, cell, sampled(worker(cell, measurement), run, size))
        failed = replace(key, experiment_id="batch_size:9", config_hash="9" * 8)
        get_or_measure(store, failed, worker(failed, EngineError("out of <memory>")))
        rebuild_manifest(store.run_dir, finished=True)
    return tmp_path / "out"


def sampled(inner: Worker, run: str, size: int) -> Callable[[int, JobDir], tuple[Job, RunReport]]:
    def measure(attempt: int, job_dir: JobDir) -> tuple[Job, RunReport]:
        inner.run_id = run
        job, report = inner(attempt, job_dir)
        lines = [f'{{"t_ns": {step * 10**7}, "device": "cpu", "power_w": {size + step % 3}}}' for step in range(400)]
        job_dir.samples.write_text("\n".join(lines) + "\n")
        config = replace(job.config, settings={"batch_size": size})
        return replace(job, config=config), report

    return measure


def test_the_page_draws_its_charts_and_asks_for_nothing(
    out: Path, tmp_path: Path, browse: Callable[..., Opened]
) -> None:
    pytest.importorskip("vl_convert", reason="charts need the extra `report`")
    file = tmp_path / "report.html"
    write_report([out / "now"], file, baseline=out / "before")
    for options in ({}, {"viewport": {"width": 390, "height": 800}, "color_scheme": "dark"}):
        opened = browse(file, **options)
        charts = opened.page.locator(".chart")
        for place in range(charts.count()):
            charts.nth(place).scroll_into_view_if_needed()
            drawn = "number => document.querySelectorAll('.chart.vega-embed svg').length > number"
            opened.page.wait_for_function(drawn, arg=place)
        assert charts.count() >= 5
        assert opened.complaints == []
        assert [url for url in opened.requests if not url.startswith(("file:", "data:"))] == []
        assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_cell_states_the_expanded_uncertainty_and_bars_span_it(out: Path, tmp_path: Path) -> None:
    """Half an interquartile range stood behind ±."""
    content = gather_content([out / "now"])
    (row,) = (row for row in content.experiments if row.experiment == "batch_size:1")
    energy, alone = row.metrics["joules_per_output_token"], content.experiments[3].metrics["joules_per_output_token"]
    assert energy.uncertainty is not None
    assert energy.spread is not None
    write_report([out / "now"], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert ">mJ/token<" in page
    assert f">{plus_minus(energy.value * 1000, energy.uncertainty * 1000)}<" in page
    assert f">{significant(energy.spread * 1000, 2)}<" in page
    assert (alone.n, alone.spread) == (2, None)
    (drawn,) = (chart for chart in charts(content) if chart.id == "cycles")
    ends = [(entry["low"], entry["high"]) for entry in drawn.rows if entry["key"] == row.key]
    assert ends == [pytest.approx((energy.value - energy.uncertainty, energy.value + energy.uncertainty))] * 3


def test_filter_and_sort_work_by_keyboard(out: Path, tmp_path: Path, browse: Callable[..., Opened]) -> None:
    file = tmp_path / "report.html"
    write_report([out / "now"], file)
    page = browse(file).page
    visible = page.locator("#experiments tbody tr")
    page.locator("#filter").fill("batch_size:3")
    page.wait_for_function("document.getElementById('shown').textContent.startsWith('1 of 4')")
    assert visible.count() == 1
    page.locator("#filter").fill("")
    page.locator("select[data-axis]").first.select_option("2")
    assert visible.count() == 1
    page.locator("select[data-axis]").first.select_option("")
    head = page.locator("#experiments th button", has_text="mJ/token")
    first = page.locator("#experiments tbody tr th").first
    head.focus()
    page.keyboard.press("Enter")
    assert first.text_content() == "4"
    page.keyboard.press("Enter")
    assert first.text_content() == "1"


@pytest.mark.parametrize("width", [1280, 390])
def test_the_headline_is_in_view_without_scripts_and_nothing_is_there_that_needs_them(
    out: Path, tmp_path: Path, browse: Callable[..., Opened], width: int
) -> None:
    """Joules per token were cut off in a table 2,173 pixels wide, charts were empty, and filters did nothing."""
    pytest.importorskip("vl_convert", reason="charts need the extra `report`")
    file = tmp_path / "report.html"
    write_report([out], file)
    page = browse(file, viewport={"width": width, "height": 800}, java_script_enabled=False).page
    assert [head.text_content() for head in page.locator("#experiments thead th:visible").all()] == [
        "batch_size",
        "run",
        "mJ/token",
        "J/request",
        "tokens/s",
        "valid cycles",
    ]  # two cycles do not tell which is the best
    assert page.get_by_role("cell", name="2 of 3").count() == 2
    cells = page.locator("#experiments tbody tr > :visible").all()
    assert len(cells) == 8 * 6
    for cell in cells:
        box = cell.bounding_box()
        assert 0 <= box["x"] <= box["x"] + box["width"] <= width
    assert page.locator("button, select, input[type=search]").count() == 0
    charts = page.locator(".chart")
    assert charts.count() >= 5
    assert page.locator(".chart svg").count() == charts.count()
    page.get_by_label("More columns").check()
    assert page.get_by_text("avg_power (W)").is_visible()


def test_the_page_says_what_failed_and_how_it_was_measured(out: Path, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    write_report([out / "now"], file, baseline=out / "before", title="A & B")
    text = file.read_text()
    for part in (
        "A &amp; B",
        "out of &lt;memory&gt;",
        "throttled",
        "rapl_counter",
        "&lt;b&gt;here&lt;/b&gt;",
        "+20.0 %",
    ):
        assert part in text
    for table in re.findall(r"<table.*?</table>", text.partition("</main>")[0], re.DOTALL):
        head, *rows = re.findall(r"<tr>.*?</tr>", table, re.DOTALL)
        assert {len(re.findall(r"<t[hd][ >]", row)) for row in rows} == {len(re.findall(r"<th[ >]", head))}
    for hostile in ("<b>here", "<memory>", "<thermal>", "1</script>"):
        assert hostile not in text
    assert "http://" not in text.split('id="llem-data"')[0]


def test_the_table_of_figures_says_that_energy_was_estimated(out: Path, tmp_path: Path) -> None:
    page, said = tmp_path / "report.html", "<strong>Energy is NOT measured</strong>"
    write_report([out], page)
    assert said not in page.read_text()
    for file in out.rglob("result.json"):
        file.write_text(file.read_text().replace('"measured": true', '"measured": false'))
    write_report([out], page)
    assert said in page.read_text()


def test_figures_are_vector_and_bitmap_with_captions(out: Path, tmp_path: Path) -> None:
    pytest.importorskip("vl_convert", reason="figures need the extra `report`")
    files = write_figures([out / "now"], tmp_path / "figures")
    by_suffix = {suffix: [file for file in files if file.suffix == suffix] for suffix in (".svg", ".png", ".pdf")}
    assert {len(figures) for figures in by_suffix.values()} == {6}
    for file in by_suffix[".svg"]:
        assert re.match(r'<svg [^>]*width="(241|504)pt"', file.read_text())
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in by_suffix[".png"])
    assert all(file.read_bytes().startswith(b"%PDF") for file in by_suffix[".pdf"])
    captions = (tmp_path / "figures" / "captions.md").read_text()
    assert re.findall(r"^\*\*(.+?)\*\*", captions, re.MULTILINE) == [file.stem for file in by_suffix[".svg"]]


@pytest.mark.parametrize("raw", [b"PAR1 not parquet", b""])
def test_readings_that_cannot_be_read_are_named(out: Path, tmp_path: Path, raw: bytes) -> None:
    """They were a traceback of the reader's library."""
    readings = next(out.rglob("power.parquet"))
    readings.write_bytes(raw)

    with pytest.raises(StoreError, match=f"{readings}: not the readings of a cycle"):
        write_report([out], tmp_path / "report.html")
