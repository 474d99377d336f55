"""A table as LaTeX (booktabs, siunitx), Markdown and CSV. `command` calls it: all three hold the same figures."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from pytest_llem.results.publish.latex import document, escaped
from pytest_llem.results.publish.tables import AT_LEAST, CYCLES, ESTIMATED, FigureCell, MetricColumn, PaperTable
from pytest_llem.results.terminal import UNCERTAIN, as_markdown, spreadsheet


def as_latex(table: PaperTable) -> str:
    """A floating table that compiles alone and by `\\input`; its label is `tab:` and its name."""
    heads = [escaped(head) for head in table.heads]
    heads += [f"{{{escaped(_head(column))}}}" for column in table.columns]
    kinds = "l" * len(table.heads) + "".join(map(_kind, table.columns))
    if table.counts is not None:
        heads, kinds = [*heads, CYCLES], kinds + "l"
    body = [
        r"\begin{table}",
        r"  \centering",
        r"  \sisetup{separate-uncertainty=true, detect-weight=true, table-align-uncertainty=false}",
        rf"  \caption{{{escaped(table.caption)}}}",
        rf"  \label{{tab:{table.name}}}",
        rf"  \begin{{tabular}}{{{kinds}}}",
        r"    \toprule",
        f"    {' & '.join(heads)} \\\\",
        r"    \midrule",
    ]
    for place, names in enumerate(table.names):
        if table.begins_group(place):
            body.append(r"    \addlinespace")
        repeated = len(names) > 1 and place > 0 and not table.begins_group(place)
        cells = ["" if repeated and at == 0 else escaped(name) for at, name in enumerate(names)]
        cells += [_number(column, column.cells[place]) for column in table.columns]
        cells += [] if table.counts is None else [escaped(table.counts[place])]
        body.append(f"    {' & '.join(cells)} \\\\")
    body += [r"    \bottomrule", r"  \end{tabular}", r"\end{table}"]
    return document(body, ["booktabs", "siunitx"])


def _all_estimated(column: MetricColumn) -> bool:
    """Whether the mark belongs to the head."""
    shown = [cell for cell in column.cells if cell.text]
    return bool(shown) and all(cell.estimated for cell in shown)


def _head(column: MetricColumn) -> str:
    return column.head + ESTIMATED * _all_estimated(column)


def _aligned(column: MetricColumn, cell: FigureCell) -> bool:
    """Whether siunitx aligns the cell: a plain number, with or without an uncertainty."""
    number = cell.text.replace(f" {UNCERTAIN} ", "").replace(".", "").removeprefix("-")
    return number.isdigit() and not cell.at_least and (not cell.estimated or _all_estimated(column))


def _kind(column: MetricColumn) -> str:
    """The column's type: its digits before and behind the point, and those of its uncertainties."""
    parts = [cell.parts for cell in column.cells if _aligned(column, cell)]
    if not parts:
        return "c"
    before = max(len(value.partition(".")[0]) for value, _ in parts)
    behind = max(len(value.partition(".")[2]) for value, _ in parts)
    digits = max(
        (len(f"{uncertainty}".replace(".", "").lstrip("0")) for _, uncertainty in parts if uncertainty), default=0
    )
    return f"S[table-format={before}.{behind}{f'({digits})' if digits else ''}]"


def _number(column: MetricColumn, cell: FigureCell) -> str:
    value, uncertainty = cell.parts
    number = value if uncertainty is None else f"{value} +- {uncertainty}"
    if _aligned(column, cell):
        return rf"\bfseries {number}" if cell.best else number
    mark = rf"\textsuperscript{{{ESTIMATED}}}" if cell.estimated and not _all_estimated(column) else ""
    bound = r"$\geq$\," if cell.at_least else ""
    text = f"{bound}{escaped(cell.text or '–')}{mark}"
    return rf"{{\bfseries {text}}}" if cell.best else f"{{{text}}}"


def as_markdown_table(table: PaperTable) -> str:
    """The same as GitHub-flavoured Markdown, every name in full."""
    heads = [*table.heads, *(_head(column) for column in table.columns)]
    kinds = [":---"] * len(table.heads) + ["---:"] * len(table.columns)
    if table.counts is not None:
        heads, kinds = [*heads, CYCLES], [*kinds, ":---"]
    rows = []
    for place, names in enumerate(table.names):
        cells = [as_markdown(name) for name in names]
        for column in table.columns:
            text = as_markdown(_plain(column, column.cells[place]) or "–")
            cells.append(f"**{text}**" if column.cells[place].best else text)
        rows.append([*cells, *([] if table.counts is None else [table.counts[place]])])
    lines = [" | ".join(row) for row in ([as_markdown(head) for head in heads], kinds, *rows)]
    return f"**Table.** {as_markdown(table.caption)}\n\n" + "".join(f"| {line} |\n" for line in lines)


def _plain(column: MetricColumn, cell: FigureCell) -> str:
    mark = ESTIMATED if cell.estimated and not _all_estimated(column) else ""
    return f"{f'{AT_LEAST} ' if cell.at_least else ''}{cell.text}{mark}"


def as_csv(table: PaperTable) -> str:
    """The same as CSV: behind each value its `±`, or both ends of its interval, and what its signs say in `notes`."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    heads = [*table.heads]
    for column in table.columns:
        ends = _has_ends(column)
        heads += [
            column.head,
            *((f"{column.head} low", f"{column.head} high") if ends else (f"{column.head} {UNCERTAIN}",)),
        ]
    writer.writerow(
        [spreadsheet(head) for head in (*heads, CYCLES if table.counts is not None else None, "notes") if head]
    )
    for place, names in enumerate(table.names):
        cells = [spreadsheet(name) for name in names]
        for column in table.columns:
            cells += _figures(column.cells[place].text, ends=_has_ends(column))
        cells += [] if table.counts is None else [table.counts[place]]
        writer.writerow([*cells, "; ".join(_notes(table, place))])
    return stream.getvalue()


def _has_ends(column: MetricColumn) -> bool:
    return any(cell.text.endswith(")") for cell in column.cells)


def _figures(text: str, *, ends: bool) -> list[str]:
    """Value and uncertainty, or value, low and high, of a cell's text; empty where one is not known."""
    value, _, uncertainty = text.partition(f" {UNCERTAIN}")
    if not ends:
        return [value, uncertainty.strip(" ?")]
    value, _, interval = value.partition(" (")
    low, _, high = interval.removesuffix(")").partition("–")
    return [value, low, high]


def _notes(table: PaperTable, place: int) -> Iterator[str]:
    for column in table.columns:
        cell = column.cells[place]
        for said, word in ((cell.best, "best"), (cell.estimated, "estimated"), (cell.at_least, "at least")):
            if said and cell.text:
                yield f"{column.head}: {word}"
