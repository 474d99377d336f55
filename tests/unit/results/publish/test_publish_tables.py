"""The tables of a paper: the same figures in LaTeX, Markdown and CSV, and bold only where the data say so."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_llem.cli import main
from pytest_llem.errors import SettingsError
from pytest_llem.results.manifest import StudyPlan
from pytest_llem.results.publish.latex import escaped
from pytest_llem.results.publish.prose import methods
from pytest_llem.results.publish.tables import FigureCell, MetricColumn, PaperTable, tables
from pytest_llem.results.publish.written import as_csv, as_latex, as_markdown_table
from pytest_llem.results.report.content import gather_content
from pytest_llem.study.report_settings import Grid, Price, ReportSettings
from tests.unit.results.publish.conftest import Bench, compiled, measured

if TYPE_CHECKING:
    from tests.unit.results.conftest import Worker

    MakeWorker = Callable[..., Worker]


def test_rows_are_grouped_as_asked_and_no_setting_is_averaged_away(run: Path) -> None:
    content = gather_content([run])
    (by,) = tables(content, by=["transformers.batch_size"])
    assert by.heads == ("batch_size", "dtype")
    assert by.names == (("1", "bfloat16"), ("1", "float32"), ("8", "bfloat16"), ("8", "float32"))
    assert [by.begins_group(place) for place in range(4)] == [False, False, True, False]
    assert by.counts == ("3", "3", "3", "2 of 3")


def test_bold_is_what_is_better_than_all_others_beyond_the_interval_and_nothing_else(run: Path) -> None:
    """A smallest mean alone would be bold in nearly every table."""
    (table,) = tables(gather_content([run]), [["joules_per_output_token", "output_tokens_per_s"]], ["batch_size"])
    energy, speed = table.columns
    assert [cell.best for cell in energy.cells] == [False, False, True, False]
    assert not any(cell.best for cell in speed.cells), "all are equally fast"
    assert "Bold: " in table.caption
    (close,) = tables(gather_content([run]), [["output_tokens_per_s"]])
    assert "Bold" not in close.caption


def test_grams_and_money_stand_beside_joules_with_their_factors(run: Path, tmp_path: Path) -> None:
    """A table of a paper lost them, though the report of the same run had them."""
    content = gather_content([run])
    settings = ReportSettings(Grid(360, "a grid's operator"), 2.0, Price(0.36, "EUR"))
    plan = StudyPlan("sizes_50%", None, report=settings)
    content = replace(content, manifests={"r1": replace(content.manifests["r1"], studies=(plan,))})
    (table,) = tables(content)
    joules, *_, grams, money = table.columns
    assert (grams.head, money.head) == ("gCO2e/Mtoken", "EUR/Mtoken")
    assert joules.head == "mJ/token"
    value, uncertainty = (float(text or "nan") for text in joules.cells[2].parts)
    stated = tuple(float(text or "nan") for text in grams.cells[2].parts)
    assert stated == pytest.approx((value * 0.2, uncertainty * 0.2), rel=0.05)  # of a mJ: 1e3 / 3.6e6 * 360 * 2
    assert [cell.best for cell in grams.cells] == [cell.best for cell in joules.cells]
    assert any(cell.best for cell in grams.cells)
    assert (
        "360 gCO2e/kWh (a grid's operator); 0.36 EUR/kWh. Boundary: the electricity of the CPU packages"
        in table.caption
    )
    (chosen,) = tables(content, [["output_tokens_per_s"]])
    assert "kWh" not in chosen.caption
    (told, *_) = methods(content, tmp_path)
    assert any(each.startswith("Emissions and costs are stated per million output tokens") for each in told.sentences)
    latex = tmp_path / "t.tex"
    latex.write_text(as_latex(replace(table, name="t")))
    compiled(latex, tmp_path)


def test_what_grows_with_the_window_is_never_best(run: Path) -> None:
    (table,) = tables(gather_content([run]), [["energy_j"]])
    assert not any(cell.best for cell in table.columns[0].cells)


def test_an_estimate_is_marked_and_never_bold(tmp_path: Path, bench: Bench, worker: MakeWorker) -> None:
    (table,) = tables(gather_content([measured(tmp_path, bench, worker, estimated=True)]))
    energy = table.columns[0]
    assert all(cell.estimated for cell in energy.cells)
    assert not any(cell.best for cell in energy.cells)
    assert "NOT measured" in table.caption
    assert "J/token*}" in as_latex(table)


def test_all_three_formats_hold_the_same_figures(run: Path) -> None:
    (table,) = tables(gather_content([run]), by=["batch_size"])
    rows = [*csv.reader(io.StringIO(as_csv(table)))]
    assert rows[0][:4] == ["batch_size", "dtype", "mJ/token", "mJ/token ±"]
    latex, markdown = as_latex(table), as_markdown_table(table)
    for row in rows[1:]:
        assert f"{row[2]} +- {row[3]}" in latex
        assert f"{row[2]} ± {row[3]}" in markdown
    best = rows[3]
    assert rf"\bfseries {best[2]} +- {best[3]}" in latex
    assert f"**{best[2]} ± {best[3]}**" in markdown
    assert best[-1] == "mJ/token: best; J/request: best"


def test_an_interval_that_is_not_even_has_two_columns(tmp_path: Path) -> None:
    cells = (FigureCell("61.8 (57.4–66.1)"), FigureCell(""), FigureCell("60 ±?"))
    column = MetricColumn("accuracy", "accuracy (%)", cells)
    table = PaperTable("t", "c", ("a",), (("1",), ("=2",), ("3",)), (column,), None)
    assert as_csv(table).splitlines()[1:] == ["1,61.8,57.4,66.1,", "'=2,,,,", "3,60,,,"]
    assert "{61.8 (57.4--66.1)}" in as_latex(table)


def test_a_metric_that_nothing_measured_and_a_setting_that_nothing_has_are_refused(run: Path) -> None:
    content = gather_content([run])
    with pytest.raises(SettingsError, match="no valid cycle has accuracy"):
        tables(content, [["accuracy"]])
    with pytest.raises(SettingsError, match="no study has a setting 'colour'"):
        tables(content, by=["colour"])


def test_a_table_compiles_alone_and_by_input(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A study's name with `_` and `%` broke the caption."""
    assert main(["publish", str(run), "-o", str(tmp_path / "paper"), "--by", "batch_size"]) == 0
    (table,) = (tmp_path / "paper/tables").glob("*.tex")
    odd = escaped(" ".join(chr(code) for code in (*range(32, 0x250), 0x2009, 0x3B1, 0x4E2D, 0x1F600)))
    paper = tmp_path / "paper.tex"
    paper.write_text(
        "\\documentclass{article}\\usepackage{booktabs,siunitx}\\begin{document}\n"
        f"Before \\input{{{table.relative_to(tmp_path)}}} after.\n{odd}\\end{{document}}\n"
    )
    compiled(table, tmp_path)
    compiled(paper, tmp_path)
