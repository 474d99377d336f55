"""`llem publish`: what a paper needs of its runs, in one folder.

`cli` calls it by name. Everything is made before anything is written, and the same runs give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from pytest_llem.errors import WriteError
from pytest_llem.job.files import write_bytes, writing
from pytest_llem.results.layout import study_in_package
from pytest_llem.results.packaged import SUMS
from pytest_llem.results.publish.latex import document, escaped
from pytest_llem.results.publish.package import CRATE, RESULTS, Author, data, metadata
from pytest_llem.results.publish.prose import limitations, methods, prose_as_latex, prose_as_markdown
from pytest_llem.results.publish.scan import hosts, refuse
from pytest_llem.results.publish.tables import tables
from pytest_llem.results.publish.written import as_csv, as_latex, as_markdown_table
from pytest_llem.results.report.charts.figures import CAPTIONS, DrawnFigure, captions, draw
from pytest_llem.results.report.content import Content, gather_content
from pytest_llem.results.report.markup import count
from pytest_llem.results.report.overview import title_of
from pytest_llem.results.terminal import counted, show


def publish(options: argparse.Namespace) -> int:
    """Write the folder."""
    content = gather_content(options.paths, baseline_dir=options.baseline_dir, progress=counted)
    files = dict(_texts(content, options))
    if find_spec("vl_convert") is None:
        show('no figures: they need pip install "pytest-llem[report]"')
    elif figures := [*draw(content, ("pdf", "svg"), progress=counted)]:
        files |= {f"figures/{each.name}.{end}": drawn for each in figures for end, drawn in each.files.items()}
        files[f"figures/{CAPTIONS}"] = captions(figures).encode()
        files["figures/figures.tex"] = _in_latex(figures).encode()
    files |= data(content, with_inputs=not options.without_data_sets)
    for study in content.axes:
        if study_in_package(study) not in files:
            show(f"no text of the study {study}, which no run.json here has: `llem reproduce` will ask for its file")
    valid = content.results.valid
    days = sorted((each.measured_to or each.created_at)[:10] for each in valid)
    text = (
        f"{count(len(valid), 'valid cycle')} of studies {', '.join(content.axes)}, run with pytest-llem: results, "
        "requests and power readings, with the tables, figures, methods and limitations that follow from them."
    )
    authors = [Author.of(each) for each in options.author]
    if not authors:
        show("no CITATION.cff and no .zenodo.json: they need --author 'Family, Given'")
    files = metadata(files, title_of(content), text, days[-1], authors, options.license)
    refuse(files, hosts(content), options.allow)
    results = options.out / RESULTS
    made = written(options.out, files)
    for file in made:
        if results not in file.parents:
            show(f"{file}")
    show(f"{results}: {count(sum(results in file.parents for file in made), 'result')}")
    return 0


def written(out: Path, files: Mapping[str, bytes]) -> list[Path]:
    """Write the files in place of those of the last time. `WriteError` where one of those was changed since."""
    another = "name another folder with -o"
    if out.exists() and not out.is_dir():
        raise WriteError(f"{out}: is not a folder", fix=another)
    sums = out / SUMS
    before = {}
    if sums.exists():
        listed = (line.partition("  ") for line in sums.read_text(errors="replace").splitlines())
        before = {name: digest for digest, _, name in listed}
        if not before.keys() >= {CRATE, *(name for name in files if name.endswith(".md") and "/" not in name)}:
            raise WriteError(f"{sums}: is of other files than llem publish writes", fix=another)
    for name in sorted({*before, *files} - {SUMS}):
        file = out / name
        if not file.is_relative_to(out) or ".." in Path(name).parts or not file.exists():
            continue
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        if digest != before.get(name) and file.read_bytes() != files.get(name):
            fix = f"move it away, or {another}"
            raise WriteError(f"{file}: is not as it was published, and would be lost", fix=fix)
    try:
        for name, content in files.items():
            with writing(out / name):
                (out / name).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(out / name, content)
    except WriteError as problem:
        raise WriteError(problem.message, fix=f"make room, or {another}") from None
    for name in before:
        if name not in files and ".." not in Path(name).parts and not Path(name).is_absolute():
            (out / name).unlink(missing_ok=True)
    return [out / name for name in sorted(files)]


def _texts(content: Content, options: argparse.Namespace) -> Iterator[tuple[str, bytes]]:
    for table in tables(content, options.table, options.by):
        yield f"tables/{table.name}.tex", as_latex(table).encode()
        yield f"tables/{table.name}.md", as_markdown_table(table).encode()
        yield f"tables/{table.name}.csv", as_csv(table).encode()
    for name, paragraphs in (
        ("methods", methods(content, options.baseline_dir)),
        ("limitations", limitations(content, options.baseline_dir)),
    ):
        yield f"{name}.tex", prose_as_latex(paragraphs).encode()
        yield f"{name}.md", prose_as_markdown(name.capitalize(), paragraphs).encode()


def _in_latex(figures: Sequence[DrawnFigure]) -> str:
    """A float for each figure with its caption; its label is `fig:` and its name."""
    body = []
    for each in figures:
        kind = "figure*" if each.wide else "figure"
        body += [
            rf"\begin{{{kind}}}",
            r"  \centering",
            rf"  \includegraphics{{{each.name}.pdf}}",
            rf"  \caption{{{escaped(each.caption)}}}",
            rf"  \label{{fig:{each.name}}}",
            rf"\end{{{kind}}}",
        ]
    return document(body, ["graphicx"])
