"""The charts of a report: axes as they were swept, names that tell experiments apart, and figures fit for a paper."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest

from pytest_llem.errors import JsonValue
from pytest_llem.results.manifest import Manifest, ManifestItem, StudyPlan
from pytest_llem.results.reading import Results
from pytest_llem.results.report.charts import Chart, charts, svg_of
from pytest_llem.results.report.charts.chart import Size
from pytest_llem.results.report.charts.drawing import MAX_ROWS, bands, document, shown
from pytest_llem.results.report.charts.figures import COLUMN, PAGE_WIDTH, TALLEST, caption
from pytest_llem.results.report.charts.scales import unit_of
from pytest_llem.results.report.content import Content, ExperimentRow
from pytest_llem.results.schema import Result
from pytest_llem.results.summary import summarise_metrics
from pytest_llem.study.model import SweptAxis
from tests.unit.results.conftest import Bench

NF4 = "load_in_4bit=true, bnb_4bit_quant_type=nf4, bnb_4bit_use_double_quant="
GROUP = ("none", f"{NF4}true", f"{NF4}false")
QUANTIZATION = SweptAxis("quantization", "quantization", GROUP, GROUP)
BATCH = SweptAxis("transformers.batch_size", "batch_size", ("1", "4", "16"), (1, 4, 16))
DTYPE = SweptAxis("dtype", "dtype", ("float32", "bfloat16"), ("float32", "bfloat16"))
RUN = "20261129T120000Z-aaaaaaaa"


def content_of(
    *axes: SweptAxis,
    headline: str | None = None,
    runs: Sequence[str] = (RUN,),
    studies: Sequence[str] = ("study",),
    unmeasured: int = 0,
) -> Content:
    """Runs of three cycles at every point of the axes; the last `unmeasured` points have no valid cycle."""
    first = Bench().result()
    points = list(itertools.product(*(axis.values for axis in axes)))
    ids = ["-".join(f"{axis.title}:{value}" for axis, value in zip(axes, point, strict=True)) for point in points]
    plans = [
        StudyPlan(study, None, axes=axes, points=dict(zip(ids, points, strict=True)), headline=headline)
        for study in studies
    ]
    results: list[Result] = []
    rows: list[ExperimentRow] = []
    manifests: dict[str, Manifest] = {}
    for run, plan in itertools.product(runs, plans):
        planned = [ManifestItem(plan.name, id, "0", 1, "valid", (), "") for id in ids]
        items = (*(manifests[run].items if run in manifests else ()), *planned)
        manifests[run] = Manifest(run, "2026-11-29T12:00:00+00:00", {}, tuple(plans), items)
        for place, (id, point) in enumerate(plan.points.items()):
            if place < len(points) - unmeasured:
                group = [_cycle(first, run, plan.name, id, place, cycle) for cycle in (1, 2, 3)]
                results += group
                rows.append(_row(run, plan.name, id, group, dict(zip((a.name for a in axes), point, strict=True))))
    found = Results(tuple(results))
    return Content(
        found, found, tuple(rows), {plan.name: plan.study_axes() for plan in plans}, {}, 0, (), manifests=manifests
    )


def _cycle(result: Result, run: str, study: str, id: str, place: int, cycle: int) -> Result:
    cost = (1 + 0.01 * cycle) / (1 + place)
    energy = replace(result.energy, joules_per_output_token=0.8 * cost, energy_j=20 * cost)
    throughput = replace(result.throughput, output_tokens_per_s=10.0 / cost)
    experiment = replace(result.experiment, id=id, config_hash=f"{place:08x}")
    names = {"run_id": run, "study": study, "cycle": cycle, "experiment": experiment}
    return result.model_copy(update={**names, "energy": energy, "throughput": throughput})


def _row(run: str, study: str, id: str, group: Sequence[Result], point: dict[str, JsonValue]) -> ExperimentRow:
    return ExperimentRow(
        key=f"{run}/{study}/{id}",
        run=run,
        study=study,
        experiment=id,
        engine="transformers 5",
        model="m",
        valid=3,
        total=3,
        metrics=summarise_metrics(group),
        phases={},
        idle_j=0.1,
        net_j=0.4,
        settings={},
        notes=(),
        point=point,
    )


def chart_of(content: Content, id: str) -> Chart:
    """The one chart of that name."""
    (found,) = (chart for chart in charts(content) if chart.id == id)
    return found


def marks_of(spec: Any) -> list[str]:
    """The marks of a chart's layers."""
    return [layer["mark"] if isinstance(layer["mark"], str) else layer["mark"]["type"] for layer in spec["layer"]]


def test_a_named_group_is_one_axis_with_one_chart() -> None:
    """Each setting of a three-way group had a chart of its own: eight of them."""
    names = [chart.id for chart in charts(content_of(BATCH, QUANTIZATION))]
    assert [name for name in names if name.startswith("effect")] == [
        "effect-transformers.batch_size",
        "effect-quantization",
    ]
    assert len(names) == len(set(names))


def test_only_numbers_are_joined_by_a_line() -> None:
    """A line ran from one dtype to the next, as if there were something between them."""
    content = content_of(BATCH, DTYPE)
    assert "line" in marks_of(chart_of(content, "effect-transformers.batch_size").spec)
    assert "line" not in marks_of(chart_of(content, "effect-dtype").spec)
    assert [chart.id for chart in charts(content_of(DTYPE)) if chart.id.startswith("by-")] == []


def test_an_effect_is_that_of_its_pairs() -> None:
    """The mean over all experiments of a value mixed the effects of the other axes into it."""
    chart = chart_of(content_of(BATCH, DTYPE), "effect-dtype")
    drawn = json.loads(json.dumps(chart.spec))["layer"][-1]["data"]["values"]
    ratios = sorted(float(str(row["ratio"])) for row in chart.rows)
    assert ratios == pytest.approx([1 / 2, 3 / 4, 5 / 6])
    assert drawn[1]["ratio"] == pytest.approx((1 / 2 * 3 / 4 * 5 / 6) ** (1 / 3))
    assert drawn[1]["change"] == "−32 %"
    assert all(row["low"] is None or row["low"] <= row["ratio"] <= row["high"] for row in drawn)
    assert {row["key"] for row in chart.rows} == {
        f"{RUN}/study/batch_size:{size}-dtype:bfloat16" for size in (1, 4, 16)
    }


def test_names_are_the_values_and_tell_every_experiment_apart() -> None:
    """Ids of a group were cut to the same 260 pixels, and experiments of one name were drawn on one row."""
    content = content_of(BATCH, QUANTIZATION, runs=(RUN, "20261130T120000Z-bbbbbbbb"), studies=("study", "other"))
    for size in (COLUMN, Size(480, 11)):
        cycles = next(chart for chart in charts(content, size) if chart.id == "cycles")
        names = {str(row["key"]): str(row["label"]) for row in cycles.rows}
        assert len(set(names.values())) == len(names) == 36
        assert max(len(line) for name in names.values() for line in name.split("\n")) <= size.letters(0.45)
    assert names[f"{RUN}/study/batch_size:4-quantization:none"].replace("\n", " ") == (
        "batch_size 4, quantization none study, 20261129T120000Z"
    )
    assert 'Limit": 260' not in json.dumps(cycles.spec)


def test_the_id_names_what_the_axes_do_not_tell_apart() -> None:
    content = content_of(DTYPE)
    explicit = replace(content.experiments[0], key="x", experiment="eager", metrics=content.experiments[1].metrics)
    chart = chart_of(replace(content, experiments=(*content.experiments, explicit)), "split")
    assert {row["label"] for row in chart.rows} == {"dtype:float32", "bfloat16", "eager"}


def test_listed_experiments_have_the_names_that_the_user_gave() -> None:
    """Without a sweep, the settings that happen to differ stood for names."""
    content = content_of(BATCH, DTYPE)
    plan = StudyPlan("study", None)
    listed = replace(content, manifests={RUN: replace(content.manifests[RUN], studies=(plan,))})
    pareto: Any = chart_of(listed, "pareto")
    assert {row["label"] for row in pareto.rows if row["experiment"] == "batch_size:4-dtype:bfloat16"} == {
        "batch_size:4-dtype:bfloat16"
    }
    assert pareto.spec["layer"][-2]["encoding"]["color"]["title"] == "experiment"


def test_a_value_has_the_same_colour_in_every_chart_and_numbers_are_in_order() -> None:
    """A chart without the first value gave its colour to the second; of two studies, 8 came before 2."""
    large = replace(BATCH, labels=("32", "2"), values=(32, 2))
    content, other = content_of(BATCH, DTYPE), content_of(large, DTYPE, studies=("large",), runs=("r",))
    both = replace(
        content,
        results=Results((*content.results, *other.results)),
        experiments=(*content.experiments, *other.experiments),
        axes={**content.axes, **other.axes},
        manifests={**content.manifests, **other.manifests},
    )
    seen: dict[str, set[str]] = {}
    for chart in charts(both):
        spec: Any = chart.spec
        for layer in spec.get("layer", ()):
            colour = layer["encoding"].get("color", {})
            if str(colour.get("field")).startswith("axis"):
                for value, shade in zip(colour["scale"]["domain"], colour["scale"]["range"], strict=True):
                    seen.setdefault(value, set()).add(shade)
    assert all(len(shades) == 1 for shades in seen.values())
    pareto: Any = chart_of(both, "pareto").spec
    assert pareto["layer"][-2]["encoding"]["color"]["scale"]["domain"] == ["1", "2", "4", "16", "32"]


@pytest.mark.parametrize("headline", ["ttft_p50_s", "output_tokens_per_s"])
def test_charts_show_the_headline(headline: str) -> None:
    """They showed energy per output token, whatever the study's headline was."""
    made = {chart.id: chart for chart in charts(content_of(BATCH, DTYPE, headline=headline))}
    title = unit_of(headline, ()).name
    for id in ("by-transformers.batch_size", "effect-dtype", "cycles"):
        assert title in json.dumps(made[id].spec)
        assert made[id].metrics == (headline,)
    assert made["pareto"].metrics[0] == ("joules_per_output_token" if headline == "output_tokens_per_s" else headline)


def test_the_front_is_named_and_no_name_hides_another() -> None:
    rows: Any = chart_of(content_of(BATCH, DTYPE, QUANTIZATION), "pareto").rows
    fastest = max(row["x"] for row in rows)
    assert [row["x"] for row in rows if row["front"]] == [fastest]
    assert all("name" in row for row in rows if row["front"])
    several: Any = chart_of(content_of(BATCH), "pareto").rows
    assert len({(row["name_x"], row["name_y"]) for row in several}) == 3


def test_what_was_not_measured_is_counted() -> None:
    """Experiments that failed were missing from a chart without a word."""
    made = {chart.id: chart.description for chart in charts(content_of(BATCH, DTYPE, unmeasured=2))}
    assert all("Not shown: 2 experiments" in made[id] for id in ("by-transformers.batch_size", "pareto", "cycles"))
    assert not any("Not shown" in chart.description for chart in charts(content_of(BATCH)))


def test_small_values_have_a_prefix() -> None:
    assert unit_of("joules_per_output_token", [0.004, 0.0005]).title == "Energy per output token (mJ)"
    assert unit_of("joules_per_output_token", [0.004]).of(0.004) == pytest.approx(4)
    assert unit_of("joules_per_output_token", [0.4]).title == "Energy per output token (J)"
    assert unit_of("peak_memory_bytes", [8e10]).title.endswith("(GB)")


@pytest.mark.parametrize("axes", [(), (BATCH,), (BATCH, DTYPE), (QUANTIZATION, BATCH, DTYPE)], ids=len)
def test_every_chart_compiles_and_is_drawn_in_the_ink_of_its_page(axes: tuple[SweptAxis, ...]) -> None:
    pytest.importorskip("vl_convert", reason="charts need the extra `report`")
    for chart in charts(content_of(*axes)):
        svg = svg_of(chart)
        assert svg is not None
        assert svg.startswith("<svg ")
        assert "currentColor" in svg
        assert not re.search(r'(fill|stroke)="(white|black|#000)', svg)
        assert "undefined" not in svg
        assert not re.search(r"(href|src|url)=?.?https?:", svg)
        assert set(re.findall(r"url\(#([^)]+)\)", svg)) <= set(re.findall(r'id="([^"]+)"', svg))
        assert all(id.startswith(re.sub(r"\W", "-", chart.id)) for id in re.findall(r'\bid="([^"]+)"', svg))


def test_a_text_that_svg_cannot_hold_is_drawn_without_it() -> None:
    """vl-convert aborts the process at a control character: pytest ended with signal 6 while it wrote its report."""
    pytest.importorskip("vl_convert", reason="charts need the extra `report`")
    texts = ("a\0b", "c\x1b[31md", "e\ufffef", "g\ud800h", "\N{GRINNING FACE} \n::error::i")
    for chart in charts(content_of(SweptAxis("x", "x\0", texts, texts), DTYPE)):
        svg = svg_of(chart)
        assert svg is not None
        ElementTree.fromstring(svg)


def test_the_ticks_of_an_axis_are_the_values_that_were_swept() -> None:
    """Two ticks at 16 and 32 had the labels 20 and 30: a format without a precision gets one from their distance."""
    pytest.importorskip("vl_convert", reason="charts need the extra `report`")
    for values in ((16, 32), (0.85, 0.9), (1000, 131072), (0, 25)):
        axis = SweptAxis("x", "x", tuple(map(str, values)), values)
        for id in ("by-x", "effect-x"):
            svg = svg_of(chart_of(content_of(axis), id)) or ""
            assert {str(value) for value in values} <= set(re.findall(r">([^<>]+)</text>", svg))


def test_nothing_is_drawn_outside_of_the_axes() -> None:
    """Pairs far from their mean lay beside the chart, over its names."""
    sizes = SweptAxis("size", "size", tuple(map(str, range(12))), tuple(range(12)))
    chart = chart_of(content_of(sizes, DTYPE), "effect-dtype")
    spec: Any = chart.spec
    low, high = spec["layer"][1]["encoding"]["x"]["scale"]["domain"]
    assert all(low < float(str(row["ratio"])) < high for row in chart.rows)


def test_a_bar_down_to_zero_ends_at_the_foot_of_a_logarithmic_axis() -> None:
    """It was drawn from the value's upper bound to the top of the chart: a value known badly looked huge."""
    pytest.importorskip("vl_convert", reason="charts need the extra `report`")
    sizes = SweptAxis("size", "size", tuple(map(str, range(30))), tuple(range(30)))
    content = content_of(sizes)
    last = content.experiments[-1]
    summary = last.metrics["joules_per_output_token"]
    unsure = {"joules_per_output_token": replace(summary, uncertainty=2 * summary.value)}
    chart = chart_of(
        replace(content, experiments=(*content.experiments[:-1], replace(last, metrics=unsure))), "by-size"
    )
    bars = re.findall(r'translate\([\d.]+,([\d.]+)\)" x2="0" y2="(-[\d.]+)"', svg_of(chart) or "")
    assert float(bars[-1][0]) == pytest.approx(chart.spec["height"])
    assert all(float(foot) + float(up) >= 0 for foot, up in bars)


def test_a_chart_of_too_many_points_is_not_drawn() -> None:
    pytest.importorskip("vl_convert", reason="charts need the extra `report`")
    chart = chart_of(content_of(BATCH), "pareto")
    assert svg_of(replace(chart, rows=[*chart.rows] * MAX_ROWS)) is None


def test_joules_of_other_meters_have_fronts_of_their_own() -> None:
    """A GPU under a board's sensor was dominated by a CPU of which only one process was estimated."""
    content = content_of(BATCH)
    assert sum(bool(row["front"]) for row in chart_of(content, "pareto").rows) == 1
    first, *others = content.experiments
    apart = replace(content, experiments=(replace(first, meter="estimate (process_estimate)"), *others))
    chart = chart_of(apart, "pareto")
    assert [row["label"] for row in chart.rows if row["front"]] == ["batch_size 1", "batch_size 16"]
    assert "Other meters have fronts of their own: there are 2 kinds." in chart.description


def test_figures_fit_a_column_of_print() -> None:
    """They were 640 pixels wide whatever they held, with labels of 3 points once they were in a column."""
    content = content_of(QUANTIZATION, BATCH)
    made = {chart.id: chart for chart in charts(content, COLUMN)}
    assert (COLUMN.width / 72, PAGE_WIDTH.width / 72) == pytest.approx((3.35, 7.0), abs=0.01)
    assert not made["by-transformers.batch_size"].wide
    assert made["cycles"].wide
    config: Any = document(made["cycles"], [], PAGE_WIDTH)["config"]
    assert 7 <= config["axis"]["labelFontSize"] <= config["axis"]["titleFontSize"] <= 9


def test_a_figure_fits_a_page_and_says_what_it_leaves_out() -> None:
    """The rows of further experiments were left out of a figure without a word."""
    sizes = SweptAxis("size", "size", tuple(map(str, range(60))), tuple(range(60)))
    content = content_of(sizes)
    (cycles,) = (chart for chart in charts(content, PAGE_WIDTH) if chart.id == "cycles")
    most = bands(cycles, TALLEST)
    assert most is not None
    assert cycles.step is not None
    assert most * cycles.step <= 600
    assert len({row["key"] for row in shown(cycles, most)}) == most < 60
    assert f"The first {most} of 60 experiments." in caption(cycles, content)


def test_a_caption_says_what_a_reviewer_asks() -> None:
    content = content_of(BATCH, DTYPE, unmeasured=1)
    text = caption(chart_of(content, "effect-dtype"), content)
    for part in (
        "ratio to that at dtype float32, the geometric mean over 2 pairs of experiments that differ in dtype alone",
        "95 % intervals",
        "n = 3 valid cycles of each experiment (study study, run 20261129T120000Z-aaaaaaaa)",
        "model builtin:tiny-llama",
        "Energy is measured (meter rapl, scope cpu_package)",
        "transformers 5.23",
        "Measured on 2023-11-14.",
    ):
        assert part in text
    assert "\n" not in text
    estimated = [
        result.model_copy(update={"energy": replace(result.energy, measured=False)}) for result in content.results
    ]
    content = replace(content, results=Results(tuple(estimated)))
    assert "Energy is NOT measured but estimated" in caption(chart_of(content, "cycles"), content)


def test_a_caption_names_the_boards_that_were_used() -> None:
    """Of eight boards in a machine, two ran the model."""
    content = content_of(BATCH)
    boards: Any = [
        {"name": "NVIDIA H100", "uuid": f"GPU-{n}", "driver": "570.1", "power_limit_w": 700.0} for n in range(8)
    ]
    used = [
        result.model_copy(
            update={
                "runner": replace(result.runner, device_kind="cuda", device_ids=("GPU-1", "GPU-5")),
                "environment": replace(result.environment, host={"gpus": boards, "cpu": {"model": "EPYC"}}),
                "energy": replace(result.energy, gain_uncertainty_rel=0.05),
            }
        )
        for result in content.results
    ]
    content = replace(content, results=Results(tuple(used)))
    text = caption(chart_of(content, "cycles"), content)
    assert "Machine: 2 × NVIDIA H100 (driver 570.1, power limit 700 W), EPYC." in text
    assert "The sensor's gain error, ±5 % (k=2) and alike in all values of one board, is not in the intervals." in text
