"""Reads texts for prompts: from a file, from a data set on the hub, or the corpus of this package.

`build_workload` calls it, and the built-in models take their tokenizer from the corpus. The order of the texts is part
of a workload: it must not change.
"""

from __future__ import annotations

import csv
import importlib
import io
import os
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, BinaryIO

from pytest_llem.errors import EngineNotInstalledError, WorkloadError
from pytest_llem.job.config import DATA_FILES, JSON_LINES, PARQUET, SYNTHETIC, TEXT_LINES, WorkloadSettings
from pytest_llem.job.files import expanded, found, open_regular, parse_json
from pytest_llem.job.request import Texts
from pytest_llem.workload import registered
from pytest_llem.workload.hub import hub_obstacle

DEFAULT_COLUMNS = ("text", "prompt", "input", "question", "instruction", "content")
WHERE = "correct the path; a relative one starts at the study, and the file must be where the cycle runs"

Row = tuple[str, Any]
"""Where a row stands, and what it holds."""


def read_texts(settings: WorkloadSettings, texts: Iterable[str | None] | None = None) -> tuple[list[str], int]:
    """The data set's texts, as many as `prompts`, in the order asked for, and how many rows without text were skipped.

    `texts` are those of its rows where somebody else has read it. Raises `WorkloadError` when the data set is absent,
    has too few texts, or no such column.
    """
    taken: list[str] = []
    skipped = 0
    for text in texts_of(_rows(settings), settings.column) if texts is None else texts:
        if text is None:
            skipped += 1
            continue
        taken.append(text)
        # A seeded choice needs all of them; else no more is read than is needed.
        if len(taken) == settings.prompts and settings.order != "shuffled":
            break
    if len(taken) < settings.prompts:
        passed_over = f"; {skipped} rows without text were passed over" if skipped else ""
        raise WorkloadError(
            f"workload.dataset {settings.dataset!r} has {len(taken)} prompts, and {settings.prompts} were asked for"
            f"{passed_over}",
            fix=f"set workload.prompts to at most {len(taken)}",
            details={"available": len(taken), "wanted": settings.prompts},
        )
    return ordered(taken, settings), skipped


def _rows(settings: WorkloadSettings) -> Iterator[Row]:
    if settings.dataset in registered.data_sets():
        return registered.rows(settings)
    path = expanded(settings.dataset)
    suffix = path.suffix.lower()
    if suffix in TEXT_LINES:
        return _text_lines(path)
    if suffix in JSON_LINES:
        return _jsonl_rows(path)
    if suffix == ".json":
        return _json_rows(path)
    if suffix == ".csv":
        return _csv_rows(path)
    if suffix == PARQUET:
        raise WorkloadError(
            f"workload.dataset {settings.dataset!r}: a Parquet file is read where pytest runs, and it is not there",
            fix="put it under the same path there, or convert it to JSON lines (.jsonl)",
        )
    if (here := found(settings.dataset)) is not None and here.is_file():
        raise unknown_ending(settings.dataset)
    return _hub_rows(settings)


@lru_cache(maxsize=4)
def texts_of_package(settings: WorkloadSettings) -> Texts | None:
    """The texts of a data set that another package adds, for workers without it; `None` for any other data set."""
    if settings.dataset == SYNTHETIC or settings.dataset not in registered.data_sets():
        return None
    texts, skipped = read_texts(settings)
    return Texts(tuple(texts), skipped)


def unknown_ending(dataset: str) -> WorkloadError:
    """The error for a file in no format that is read."""
    return WorkloadError(
        f"workload.dataset {dataset!r}: its ending {Path(dataset).suffix or '(none)'} is none of a data set's",
        fix=f"use one of: {', '.join(DATA_FILES)}",
    )


def ordered(texts: Sequence[str], settings: WorkloadSettings) -> list[str]:
    """The first `prompts` texts as they come (`interleaved`) or by length (`grouped`); a seeded choice (`shuffled`)."""
    if settings.order == "shuffled":
        uniform = random.Random(settings.seed).random
        keyed = sorted((uniform(), index) for index in range(len(texts)))
        return [texts[index] for _, index in keyed[: settings.prompts]]
    chosen = list(texts[: settings.prompts])
    return sorted(chosen, key=len) if settings.order == "grouped" else chosen


@lru_cache(maxsize=1)
def corpus_text() -> str:
    """The corpus, a paragraph a line: about 108 KB of ASCII.

    It is the running text of Isaac Newton's *Opticks* (fourth edition, 1730), which is in the public domain, without
    headings, tables, figures and footnotes.
    """
    return (files("pytest_llem.workload") / "corpus.txt").read_text(encoding="ascii")


def texts_of(rows: Iterator[Row], column: str | None) -> Iterator[str | None]:
    """Each row's text, `None` where that is null or blank, from one column: the first that has a text in the first row.

    A row of plain text has no columns.
    """
    for where, row in rows:
        if isinstance(row, str) and column is None:
            yield row if row.strip() else None
            continue
        if row is None:
            yield None
            continue
        if not isinstance(row, dict):
            text = f"{where}: expected an object{'' if column else ' or a text'}, got {type(row).__name__}"
            raise WorkloadError(text, fix=f"write an object with the text in column {column or DEFAULT_COLUMNS[0]}")
        if column is None:
            column = next((name for name in DEFAULT_COLUMNS if _is_text(row.get(name))), None)
            there = [row[name] for name in DEFAULT_COLUMNS if name in row]
            if column is None and there and all(value is None or isinstance(value, str) for value in there):
                yield None
                continue
        value = row.get(column) if column is not None else 0
        if not isinstance(value, str) and (value is not None or column not in row):
            with_text = [name for name, value in row.items() if _is_text(value)]
            raise no_text(where, column, with_text or row)
        yield value if isinstance(value, str) and value.strip() else None


def no_text(where: str, column: str | None, columns: Iterable[object]) -> WorkloadError:
    """The error for a row without the column, with the nearest one that there is."""
    names = sorted({str(name) for name in columns} - {column})
    near = get_close_matches(column or "", names, n=1)
    return WorkloadError(
        f"{where}: no text in column {column or ' or '.join(DEFAULT_COLUMNS)}",
        fix=f"did you mean {near[0]!r}?"
        if near
        else f"set workload.column to one of: {', '.join(names) or 'none here'}",
        details={"columns": ", ".join(names)},
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _text_lines(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_lines(path), start=1):
        if text := line.strip():
            yield f"{path}:{number}", text


def _jsonl_rows(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            where = f"{path}:{number}"
            try:
                yield where, parse_json(line, where, finite=False)
            except ValueError as problem:
                raise WorkloadError(str(problem), fix="one JSON object a line") from None


def _json_rows(path: Path) -> Iterator[Row]:
    with _opened(path) as stream:
        try:
            rows = parse_json(stream.read(), path, finite=False)
        except ValueError as problem:
            raise WorkloadError(str(problem), fix="a JSON list of objects or strings") from None
    if not isinstance(rows, list):
        raise WorkloadError(f"{path}: expected a JSON list", fix="a JSON list of objects or strings")
    for number, row in enumerate(rows):
        yield f"{path}[{number}]", row


def _csv_rows(path: Path) -> Iterator[Row]:
    reader = csv.DictReader(_lines(path), strict=True)
    try:
        twice = [name for name, count in Counter(reader.fieldnames or ()).items() if count > 1]
        if twice:
            raise WorkloadError(f"{path}:1: two columns {twice[0]!r}", fix="rename one")
        for row in reader:
            if None in row:
                text = f"{path}:{reader.line_num}: more fields than the header has"
                raise WorkloadError(text, fix="quote texts that hold commas")
            yield f"{path}:{reader.line_num}", row
    except csv.Error as problem:
        fix = "quote texts as CSV does, or write the longest ones as JSON lines (.jsonl)"
        raise WorkloadError(f"{path}:{reader.reader.line_num}: {problem}", fix=fix) from None


def _lines(path: Path) -> Iterator[str]:
    """The lines of a text file, however they end. `WorkloadError` names the first one that is not UTF-8."""
    with io.TextIOWrapper(_opened(path), encoding="utf-8-sig", errors="surrogateescape") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                line.encode()
            except UnicodeEncodeError:
                raise WorkloadError(f"{path}:{number}: not UTF-8", fix="save the file as UTF-8") from None
            yield line


def _opened(path: Path) -> BinaryIO:
    try:
        return open_regular(path)
    except OSError as problem:
        fix = "make it readable to this user" if isinstance(problem, PermissionError) else WHERE
        raise WorkloadError(f"workload.dataset {str(path)!r}: {problem.strerror or problem}", fix=fix) from None


def _hub_rows(settings: WorkloadSettings) -> Iterator[Row]:
    """Rows of a hub data set, streamed, so that no more is downloaded than is used; from the cache when offline."""
    offline = hub_obstacle()
    if offline is not None:
        # Read when the package is imported, which else asks the hub for half a minute before it looks into its cache.
        os.environ["HF_DATASETS_OFFLINE"] = "1"
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise EngineNotInstalledError(
            f"workload.dataset {settings.dataset!r} lies on the hub, and the package 'datasets' is not installed",
            fix="pip install datasets, or use workload.dataset: synthetic, or a .jsonl or .txt file",
        ) from None
    split = settings.split or "train"
    try:
        streaming = settings.order != "shuffled" and offline is None
        rows = datasets.load_dataset(settings.dataset, split=split, revision=settings.revision, streaming=streaming)
        for number, row in enumerate(rows):
            yield f"{settings.dataset}[{split}][{number}]", dict(row)
    except (OSError, ValueError, RuntimeError) as problem:
        text = " ".join(str(problem).split())[:300]
        if offline is not None:
            raise WorkloadError(
                f"workload.dataset {settings.dataset!r} is not in the local cache, and cannot be fetched: {offline}",
                fix="download it where the hub can be reached, give a .jsonl file, or use workload.dataset: synthetic",
                details={"type": type(problem).__name__, "cause": text},
            ) from problem
        raise WorkloadError(
            f"workload.dataset {settings.dataset!r} cannot be read: {text}",
            fix="offline? download it first, give a .jsonl file, or use workload.dataset: synthetic",
            details={"type": type(problem).__name__},
        ) from problem
