"""The figures of a paper: vector files that are the same bytes each time, with captions that compile."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pytest_llem.cli import main
from tests.unit.results.publish.conftest import compiled


def test_figures_are_the_same_bytes_again_and_compile_with_their_captions(run: Path, tmp_path: Path) -> None:
    """The PDF of one drawing differed from run to run: degrees of transparency were numbered in no order."""
    pytest.importorskip("vl_convert", reason="figures need the extra `report`")
    first, again = tmp_path / "first", tmp_path / "again"
    for out in (first, again):
        assert main(["publish", str(run), "-o", str(out)]) == 0
    files = sorted(file.relative_to(first) for file in first.rglob("*") if file.is_file())
    assert {file.suffix for file in files if file.parent.name == "figures"} == {".pdf", ".svg", ".md", ".tex"}
    assert [file for file in files if (first / file).read_bytes() != (again / file).read_bytes()] == []
    drawing = (first / "figures/cycles.svg").read_text()
    assert re.search(r'opacity="0\.\d+"', drawing), "a drawing with transparency, or nothing is shown here"
    compiled(first / "figures/figures.tex", first / "figures")
