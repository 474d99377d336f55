"""Reads texts for prompts: from a file, from a data set on the hub, or the corpus of this package.

`build_workload` calls it, and the built-in models take their tokenizer from the corpus. The order of the texts is part
of a workload: it must not change.
"""

from __future__ import annotations

import csv
import importlib
import json
import os
import random
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

from pytest_llem.errors import EngineNotInstalledError, WorkloadError
from pytest_llem.job.config import WorkloadSettings
from pytest_llem.workload.hub import hub_obstacle

DEFAULT_COLUMNS = ("text", "prompt", "input", "question", "instruction", "content")
TEXT_SUFFIXES = (".txt", ".text", ".md")
JSONL_SUFFIXES = (".jsonl", ".ndjson")


def read_texts(settings: WorkloadSettings) -> list[str]:
    """The data set's texts, as many as `prompts`, in the order asked for.

    Raises `WorkloadError` when the data set is absent, has too few texts, or no such column.
    """
    path, column = Path(settings.dataset).expanduser(), settings.column
    suffix = path.suffix.lower()
    if suffix in TEXT_SUFFIXES:
        texts = _text_lines(path)
    elif suffix in JSONL_SUFFIXES:
        texts = _jsonl_texts(path, column)
    elif suffix == ".json":
        texts = _json_texts(path, column)
    elif suffix == ".csv":
        texts = _csv_texts(path, column)
    elif suffix == ".parquet":
        text = f"workload.dataset {settings.dataset!r}: parquet files are not read"
        raise WorkloadError(text, fix="convert it to JSON lines (.jsonl)")
    else:
        texts = _hub_texts(settings)
    # A seeded choice needs all of them; else no more is read than is needed.
    taken = list(texts) if settings.order == "shuffled" else list(islice(texts, settings.prompts))
    if len(taken) < settings.prompts:
        raise WorkloadError(
            f"workload.dataset {settings.dataset!r} has {len(taken)} prompts, and {settings.prompts} were asked for",
            fix=f"set workload.prompts to at most {len(taken)}",
            details={"available": len(taken), "wanted": settings.prompts},
        )
    return ordered(taken, settings)


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


def _text_lines(path: Path) -> Iterator[str]:
    with _opened(path) as stream:
        for line in stream:
            if text := line.strip():
                yield text


def _jsonl_texts(path: Path, column: str | None) -> Iterator[str]:
    with _opened(path) as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as problem:
                raise WorkloadError(f"{path}:{number}: not JSON: {problem}", fix="one JSON object a line") from None
            yield _text_of(row, column, f"{path}:{number}")


def _json_texts(path: Path, column: str | None) -> Iterator[str]:
    with _opened(path) as stream:
        try:
            rows = json.load(stream)
        except ValueError as problem:
            raise WorkloadError(f"{path}: not JSON: {problem}", fix="a JSON list of objects or strings") from None
    if not isinstance(rows, list):
        raise WorkloadError(f"{path}: expected a JSON list", fix="a JSON list of objects or strings")
    for number, row in enumerate(rows):
        yield _text_of(row, column, f"{path}[{number}]")


def _csv_texts(path: Path, column: str | None) -> Iterator[str]:
    with _opened(path) as stream:
        for number, row in enumerate(csv.DictReader(stream), start=2):
            yield _text_of(row, column, f"{path}:{number}")


def _text_of(row: Any, column: str | None, where: str) -> str:
    if isinstance(row, str) and column is None:
        return row
    if not isinstance(row, dict):
        raise WorkloadError(f"{where}: expected a JSON object, got {type(row).__name__}", fix="one JSON object a line")
    names = (column,) if column is not None else DEFAULT_COLUMNS
    for name in names:
        if isinstance(row.get(name), str):
            return str(row[name])
    raise WorkloadError(
        f"{where}: no text in column {' or '.join(names)}",
        fix=f"set workload.column to one of: {', '.join(sorted(map(str, row)))}",
        details={"columns": ", ".join(sorted(map(str, row)))},
    )


def _opened(path: Path) -> Any:
    try:
        return path.open(encoding="utf-8")
    except OSError as problem:
        raise WorkloadError(
            f"workload.dataset {str(path)!r}: {problem.strerror or problem}",
            fix="correct the path; it is relative to the directory in which the worker runs",
        ) from None


def _hub_texts(settings: WorkloadSettings) -> Iterator[str]:
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
            yield _text_of(dict(row), settings.column, f"{settings.dataset}[{split}][{number}]")
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
