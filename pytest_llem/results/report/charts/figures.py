"""Writes the charts as figures for a paper: at the width of a column, in vector formats and as a bitmap, with captions.

`llem report --figures` calls it. The names of the files stay, because a paper includes them by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pytest_llem.errors import SettingsError
from pytest_llem.job.files import slug, write_text, writing
from pytest_llem.results.metrics import is_energy
from pytest_llem.results.report.charts import charts
from pytest_llem.results.report.charts.chart import Chart, Size
from pytest_llem.results.report.charts.drawing import bands, document, left_out, shown
from pytest_llem.results.report.content import Content, gather_content
from pytest_llem.results.schema import Result
from pytest_llem.results.terminal import ShowProgress, silent

COLUMN, PAGE_WIDTH = Size(241, 8), Size(504, 8)
"""Points: 3.35 and 7 inches, a column and both of the two that most journals and conferences print (IEEE, ACM)."""
TALLEST = 600
"""Points of rows. Chosen: with axes and caption they fill a page."""
PPI = 600
"""Dots an inch of the bitmap: what journals ask of line art at least."""
CAPTIONS = "captions.md"


def write_figures(paths: Sequence[Path], directory: Path, *, progress: ShowProgress = silent) -> list[Path]:
    """Write every chart as SVG, PNG and PDF, and `captions.md`. `SettingsError` without the extra `report`."""
    try:
        import vl_convert
    except ImportError:
        raise SettingsError("figures need vl-convert-python", fix='pip install "pytest-llem[report]"') from None
    content = gather_content(paths, progress=progress)
    narrow, wide = charts(content, COLUMN), {chart.id: chart for chart in charts(content, PAGE_WIDTH)}
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    captions: list[str] = []
    for chart in progress(narrow, "drawing"):
        fitting, size = (wide[chart.id], PAGE_WIDTH) if chart.wide else (chart, COLUMN)
        rows = shown(fitting, bands(fitting, TALLEST))
        spec = json.dumps(document(fitting, rows, size, background="white"))
        drawn: dict[str, str | bytes] = {
            "svg": _in_points(vl_convert.vegalite_to_svg(spec)),
            "png": vl_convert.vegalite_to_png(spec, ppi=PPI),
            "pdf": vl_convert.vegalite_to_pdf(spec),
        }
        name = slug(chart.id)
        for suffix, figure in drawn.items():
            file = directory / f"{name}.{suffix}"
            with writing(file):
                file.write_bytes(figure.encode() if isinstance(figure, str) else figure)
            written.append(file)
        columns = "two columns" if chart.wide else "one column"
        captions.append(f"**{name}** ({columns}). {caption(fitting, content)}\n")
    if captions:
        write_text(directory / CAPTIONS, "\n".join(captions))
        written.append(directory / CAPTIONS)
    return written


def _in_points(svg: str) -> str:
    """The drawing with its size in points, which are pixels otherwise."""
    return re.sub(r' (width|height)="([\d.]+)"', r' \1="\2pt"', svg, count=2)


def caption(chart: Chart, content: Content) -> str:
    """What a reviewer asks of a figure, as one line: what, of how many cycles, measured how, where, with what, when."""
    results = [result for result in content.results.valid if result.study in chart.studies]
    energy = _energy(results) if any(is_energy(name) for name in chart.metrics) else ()
    sentences = [
        chart.description,
        left_out(chart, TALLEST),
        _counts(chart, results),
        *energy,
        _machine(results),
        _software(results),
    ]
    return " ".join(f"{sentence.rstrip('.')}." for sentence in [*sentences, _when(results)] if sentence)


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
    models = _each(str(result.experiment.config.get("model")) for result in results)
    noun = f"valid cycle{'s' * (each != '1')}"
    return f"n = {each} {noun} of each experiment (study {studies}, run {', '.join(runs)}), model {models}"


def _energy(results: Sequence[Result]) -> Iterator[str]:
    """Which meter, what its joules cover, and what the uncertainty leaves out."""
    metered = [result.energy for result in results if result.energy.meter != "none"]
    for meter, scope, measured in dict.fromkeys((energy.meter, energy.scope, energy.measured) for energy in metered):
        kind = "measured" if measured else "NOT measured but estimated"
        yield f"Energy is {kind} (meter {meter}{f', scope {scope}' if scope else ''})"
    gains = sorted({gain for energy in metered if (gain := energy.gain_uncertainty_rel) is not None})
    if gains:
        stated = f"±{gains[-1] * 100:.2g} %"
        yield f"The sensor's gain error, {stated} (k=2) and alike in all values of one board, is not in the intervals"


def _machine(results: Sequence[Result]) -> str:
    """The devices that were used, by name, with driver and power limit."""
    machines: list[str] = []
    for result in results:
        host, used = result.environment.host, set(result.runner.device_ids)
        gpus = [gpu for gpu in _list(host.get("gpus")) if isinstance(gpu, Mapping) and gpu.get("uuid") in used]
        named: dict[str, int] = {}
        for gpu in gpus:
            facts = [("driver", gpu.get("driver"), ""), ("power limit", gpu.get("power_limit_w"), " W")]
            told = ", ".join(f"{fact} {_plain(value)}{unit}" for fact, value, unit in facts if value is not None)
            name = f"{gpu.get('name')} ({told})" if told else str(gpu.get("name"))
            named[name] = named.get(name, 0) + 1
        cpu = host.get("cpu")
        model = cpu.get("model") if isinstance(cpu, Mapping) else None
        devices = [f"{count} × {name}" if count > 1 else name for name, count in named.items()]
        if not devices and used:
            devices = [f"{len(used)} {result.runner.device_kind} device{'s' * (len(used) != 1)}"]
        machines.append(", ".join([*devices, *([str(model)] if model else [])]))
    told = _each(machines)
    return f"Machine: {told}" if told else ""


def _software(results: Sequence[Result]) -> str:
    engines = _each(f"{result.engine.name} {result.engine.version}" for result in results)
    images = _each(str(result.runner.image_digest or result.runner.image or "") for result in results)
    torch = _each(_version(result, "torch") for result in results)
    own = _each(str(result.environment.host.get("pytest_llem") or "") for result in results)
    named = {"torch": torch, "image": images, "pytest-llem": own}
    return ", ".join([engines, *(f"{what} {version}" for what, version in named.items() if version)])


def _version(result: Result, package: str) -> str:
    packages = result.environment.worker.get("packages")
    return str(packages.get(package) or "") if isinstance(packages, Mapping) else ""


def _when(results: Sequence[Result]) -> str:
    days = sorted({(result.measured_from or result.created_at)[:10] for result in results})
    if not days:
        return ""
    return f"Measured on {days[0]}" if len(days) == 1 else f"Measured from {days[0]} to {days[-1]}"


def _each(texts: Iterator[str] | Sequence[str]) -> str:
    """Each text once."""
    return "; ".join(text for text in dict.fromkeys(texts) if text)


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _list(value: object) -> Sequence[object]:
    return value if isinstance(value, (list, tuple)) else ()
