"""The rows of a data set, one after the other: from a file, from a data set on the hub, or of another package.

`texts` reads them, and looks only as far as it needs: files may be larger than the memory. A row that cannot be read is
there as the error that says so, where others can follow it.
"""

from __future__ import annotations

import csv
import importlib
import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from pytest_llem.errors import EngineNotInstalledError, WorkloadError
from pytest_llem.job.config import DATA_FILES, JSON_LINES, PARQUET, TEXT_LINES, WorkloadSettings
from pytest_llem.job.files import expanded, found, named_json, open_regular, parse_json, require_plain
from pytest_llem.workload import registered
from pytest_llem.workload.hub import hub_obstacle

WHERE = "correct the path; a relative one starts at the study, and the file must be where the cycle runs"

LIST = "a JSON list of objects or strings"

CHUNK = 1 << 20
"""Characters of a JSON list that are read at once. Chosen: many entries, and little memory."""

LONGEST_WORD = 16
"""Characters from which on an error of a JSON decoder has nothing to do with where the text ends; `-Infinity` has 9."""

Read = Callable[[int], str]

_DECODER = json.JSONDecoder()
_MAY_GO_ON = re.compile(r"[-+.0-9eE]*\Z")
_NO_SPACE = re.compile(r"[^ \t\n\r]")

Row = tuple[str, Any]
"""Where a row stands, and what it holds: a `WorkloadError` where that cannot be read."""


def rows_of(settings: WorkloadSettings) -> Iterator[Row]:
    """The rows in their order. Raises `WorkloadError` where there is no such data set, or no going on in it."""
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


def unknown_ending(dataset: str) -> WorkloadError:
    """The error for a file in no format that is read."""
    return WorkloadError(
        f"workload.dataset {dataset!r}: its ending {Path(dataset).suffix or '(none)'} is none of a data set's",
        fix=f"use one of: {', '.join(DATA_FILES)}",
    )


def _text_lines(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        if text := line.strip():
            yield f"{path}:{number}", _decodable(line, path, number) or text


def _jsonl_rows(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        if line.strip():
            where = f"{path}:{number}"
            try:
                yield where, _decodable(line, path, number) or parse_json(line, where, finite=False)
            except ValueError as problem:
                yield where, WorkloadError(str(problem), fix="one JSON object a line")


def _json_rows(path: Path) -> Iterator[Row]:
    """The entries of a list, each decoded when it is asked for: no more of the file is in memory than a few of them."""
    with io.TextIOWrapper(_opened(path), encoding="utf-8-sig") as stream:

        def read(count: int) -> str:
            try:
                return stream.read(count)
            except UnicodeDecodeError:
                raise WorkloadError(f"{path}: not UTF-8", fix="save the file as UTF-8") from None

        try:
            yield from _entries(read, path)
        except ValueError as problem:
            raise WorkloadError(str(problem), fix=LIST) from None


def _entries(read: Read, path: Path) -> Iterator[Row]:
    text, at = _more(read, "", 0)
    if text[at : at + 1] != "[":
        lines = "; a file of one object a line ends in .jsonl" if text[at : at + 1] == "{" else ""
        raise WorkloadError(f"{path}: expected a JSON list", fix=LIST + lines)
    number = 0
    text, at = _more(read, text, at + 1)
    while number or text[at : at + 1] != "]":
        where = f"{path}[{number}]"
        with named_json(where):
            entry, text, at = _entry(read, text, at)
        yield where, entry
        number += 1
        text, at = _more(read, text, at)
        if text[at : at + 1] == "]":
            break
        if text[at : at + 1] != ",":
            raise ValueError(f"{where}: not JSON: neither comma nor ] behind it")
        text, at = _more(read, text, at + 1)
    text, at = _more(read, text, at + 1)
    if text:
        raise ValueError(f"{path}: not JSON: more behind the list")


def _entry(read: Read, text: str, at: int) -> tuple[Any, str, int]:
    """The value that begins at a place of the text read so far; that text, and where the value ends in it."""
    while True:
        try:
            value, end = _DECODER.raw_decode(text, at)
        except json.JSONDecodeError as problem:
            # It may be whole with what follows: a string without an end, or what breaks off where the text does.
            if not problem.msg.startswith("Unterminated string") and problem.pos < len(text) - LONGEST_WORD:
                raise ValueError(problem.msg) from None
            value, end = None, len(text)
            message: str | None = problem.msg
        else:
            message = None
        # As much again as is there: the beginning is decoded anew each time.
        further = read(max(CHUNK, len(text) - at)) if _MAY_GO_ON.match(text, end) else ""
        if further:
            text, at = text[at:] + further, 0
        elif message is not None:
            raise ValueError(message)
        else:
            require_plain(value, text[at:end])
            return value, text, end


def _more(read: Read, text: str, at: int) -> tuple[str, int]:
    """The text with what is read behind it, and its first character from a place on that is no white space."""
    while (match := _NO_SPACE.search(text, at)) is None:
        text, at = read(CHUNK), 0
        if not text:
            return "", 0
    return text, match.start()


def _csv_rows(path: Path) -> Iterator[Row]:
    reader = csv.DictReader((_whole(line, path, number) for number, line in _lines(path)), strict=True)
    try:
        names = list(reader.fieldnames or ())
        if len(names) == 1 and set(";\t") & set(names[0]):
            raise WorkloadError(f"{path}:1: one column {names[0]!r}", fix="separate columns by commas")
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise WorkloadError(f"{path}:1: two columns {twice[0]!r}", fix="rename one")
        for row in reader:
            where = f"{path}:{reader.line_num}"
            longer = WorkloadError(f"{where}: more fields than the header has", fix="quote texts that hold commas")
            yield where, longer if None in row else row
    except csv.Error as problem:
        fix = "quote texts as CSV does, or write the longest ones as JSON lines (.jsonl)"
        raise WorkloadError(f"{path}:{reader.reader.line_num}: {problem}", fix=fix) from None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file with their numbers, however they end; what is not UTF-8 is escaped in them."""
    with io.TextIOWrapper(_opened(path), encoding="utf-8-sig", errors="surrogateescape") as stream:
        yield from enumerate(stream, start=1)


def _decodable(line: str, path: Path, number: int) -> WorkloadError | None:
    """The error for a line that is not UTF-8."""
    try:
        line.encode()
    except UnicodeEncodeError:
        return WorkloadError(f"{path}:{number}: not UTF-8", fix="save the file as UTF-8")
    return None


def _whole(line: str, path: Path, number: int) -> str:
    if (problem := _decodable(line, path, number)) is not None:
        raise problem
    return line


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
