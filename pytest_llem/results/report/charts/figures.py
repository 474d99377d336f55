"""Writes the charts as figures for a paper: at the width of a column, in vector formats and as a bitmap, with captions.

`llem report --figures` calls it. The names of the files stay, because a paper includes them by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_llem.errors import SettingsError
from pytest_llem.job.files import slug, write_text, writing
from pytest_llem.results.metrics import is_energy
from pytest_llem.results.report.charts import charts
from pytest_llem.results.report.charts.chart import Chart, Size
from pytest_llem.results.report.charts.drawing import bands, document, left_out, shown
from pytest_llem.results.report.content import Content, gather_content
from pytest_llem.results.report.provenance import each_once, machine, measured, software, when
from pytest_llem.results.schema import Result
from pytest_llem.results.terminal import ShowProgress, silent

COLUMN, PAGE_WIDTH = Size(241, 8), Size(504, 8)
"""Points: 3.35 and 7 inches, a column and both of the two that most journals and conferences print (IEEE, ACM)."""
TALLEST = 600
"""Points of rows. Chosen: with axes and caption they fill a page."""
PPI = 600
"""Dots an inch of the bitmap: what journals ask of line art at least."""
CAPTIONS = "captions.md"


@dataclass(frozen=True)
class DrawnFigure:
    """A chart as files by their endings, its caption, and whether it is as wide as two columns."""

    name: str
    caption: str
    wide: bool
    files: Mapping[str, bytes]


def write_figures(paths: Sequence[Path], directory: Path, *, progress: ShowProgress = silent) -> list[Path]:
    """Write every chart as SVG, PNG and PDF, and `captions.md`. `SettingsError` without the extra `report`."""
    content = gather_content(paths, progress=progress)
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    figures = []
    for figure in draw(content, ("svg", "png", "pdf"), progress=progress):
        for suffix, drawn in figure.files.items():
            file = directory / f"{figure.name}.{suffix}"
            with writing(file):
                file.write_bytes(drawn)
            written.append(file)
        figures.append(figure)
    if figures:
        write_text(directory / CAPTIONS, captions(figures))
        written.append(directory / CAPTIONS)
    return written


def draw(content: Content, suffixes: Sequence[str], *, progress: ShowProgress = silent) -> Iterator[DrawnFigure]:
    """Every chart that has data, one by one, each the same bytes for the same content. `SettingsError` as above."""
    try:
        import vl_convert
    except ImportError:
        raise SettingsError("figures need vl-convert-python", fix='pip install "pytest-llem[report]"') from None
    narrow, wide = charts(content, COLUMN), {chart.id: chart for chart in charts(content, PAGE_WIDTH)}
    for chart in progress(narrow, "drawing"):
        fitting, size = (wide[chart.id], PAGE_WIDTH) if chart.wide else (chart, COLUMN)
        rows = shown(fitting, bands(fitting, TALLEST))
        spec = json.dumps(document(fitting, rows, size, background="white"))
        svg = _numbered(vl_convert.vegalite_to_svg(spec))
        make: dict[str, Callable[[], bytes]] = {
            "svg": lambda svg=svg: _in_points(svg).encode(),  # type: ignore[misc]
            "png": lambda spec=spec: vl_convert.vegalite_to_png(spec, ppi=PPI),  # type: ignore[misc]
            "pdf": lambda svg=svg: vl_convert.svg_to_pdf(_opaque(svg)),  # type: ignore[misc]
        }
        yield DrawnFigure(
            slug(chart.id), caption(fitting, content), chart.wide, {suffix: make[suffix]() for suffix in suffixes}
        )


def captions(figures: Sequence[DrawnFigure]) -> str:
    """The captions of figures in Markdown."""
    widths = {True: "two columns", False: "one column"}
    return "\n".join(f"**{each.name}** ({widths[each.wide]}). {each.caption}\n" for each in figures)


def _numbered(svg: str) -> str:
    """The drawing with its ids numbered anew: Vega counts them over all drawings of a process."""
    ids = {name: f"part{number}" for number, name in enumerate(dict.fromkeys(re.findall(r' id="(\w+)"', svg)))}
    return re.sub(r'( id="|url\(#)(\w+)', lambda match: match[1] + ids.get(match[2], match[2]), svg)


def _in_points(svg: str) -> str:
    """The drawing with its size in points, which are pixels otherwise."""
    return re.sub(r' (width|height)="([\d.]+)"', r' \1="\2pt"', svg, count=2)


def _opaque(svg: str) -> str:
    """The drawing with opaque colours in place of translucent ones on white.

    Presses ask for it (PDF/X-1a has no transparency), and svg2pdf numbers degrees of transparency in no fixed order,
    so that the same figure would be another file each time.
    """

    def mixed(colour: str, opacity: float) -> str:
        channels = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
        return "#" + "".join(f"{round(255 - (255 - each) * opacity):02x}" for each in channels)

    def tag(match: re.Match[str]) -> str:
        text = match[0]
        stated = {name: float(value) for name, value in re.findall(r' ([a-z-]*opacity)="([\d.]+)"', text)}
        for part in ("fill", "stroke"):
            opacity = stated.get("opacity", 1.0) * stated.get(f"{part}-opacity", 1.0)
            text = re.sub(
                rf' {part}="(#[0-9A-Fa-f]{{6}}|black)"',
                lambda found, part=part, by=opacity: (  # type: ignore[misc]
                    f' {part}="{mixed(found[1].replace("black", "#000000"), by)}"'
                ),
                text,
            )
        return re.sub(r' [a-z-]*opacity="[\d.]+"', "", text)

    return re.sub(r"<[a-z][^<>]*opacity=[^<>]*>", tag, svg)


def caption(chart: Chart, content: Content) -> str:
    """What a reviewer asks of a figure, as one line: what, of how many cycles, measured how, where, with what, when."""
    results = [result for result in content.results.valid if result.study in chart.studies]
    energy = measured(results) if any(is_energy(name) for name in chart.metrics) else ()
    sentences = [
        chart.description,
        left_out(chart, TALLEST),
        _counts(chart, results),
        *energy,
        machine(results),
        software(results),
    ]
    return " ".join(f"{sentence.rstrip('.')}." for sentence in [*sentences, when(results)] if sentence)


def _counts(chart: Chart, results: Sequence[Result]) -> str:
    """How many experiments, cycles and runs, and of which model."""
    cycles: dict[tuple[str, str, str], int] = {}
    for result in results:
        key = (result.run_id, result.study, result.experiment.id)
        cycles[key] = cycles.get(key, 0) + 1
    if not cycles:
        return ""
    counts = sorted({*cycles.values()})
    each = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    studies = ", ".join(chart.studies)
    runs = sorted({result.run_id for result in results})
    models = each_once(str(result.experiment.config.get("model")) for result in results)
    noun = f"valid cycle{'s' * (each != '1')}"
    return f"n = {each} {noun} of each experiment (study {studies}, run {', '.join(runs)}), model {models}"
