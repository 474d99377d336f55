"""Reads data sets in Parquet files, which workers cannot: their side has the standard library alone.

`measure_here` hands the texts over with the job, on whichever machine it runs, and the session looks at files before
anything runs. The texts and their order must be those that any other format with the same rows gives.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from pytest_llem.errors import WorkloadError
from pytest_llem.job.config import PARQUET, WorkloadSettings
from pytest_llem.job.files import found, open_regular, reason
from pytest_llem.job.request import Texts
from pytest_llem.workload.questions import ID
from pytest_llem.workload.rows import Row
from pytest_llem.workload.texts import DEFAULT_COLUMNS, no_text, read_rows
from pytest_llem.workload.traffic import TRACES

TEXT_TYPES = ("string", "large_string", "dictionary<values=string", "null")
"""How Arrow writes the types of columns that hold texts, or nothing (`pyarrow.DataType`)."""

NESTED_COLUMNS = frozenset(("messages", "conversations"))
"""Columns of sessions (`workload.traffic`)."""

BATCH_ROWS = 1024
"""Chosen: more prompts than most studies ask for, and few megabytes."""


def parquet_texts(settings: WorkloadSettings) -> Texts | None:
    """What a Parquet file holds; `None` for any other data set, and for a file that is not here.

    Raises `WorkloadError` as `read_rows` does.
    """
    path = found(settings.dataset)
    if path is None or path.suffix.lower() != PARQUET:
        return None
    return _texts(settings, path, path.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _texts(settings: WorkloadSettings, path: Path, changed_ns: int) -> Texts:
    return read_rows(settings, _rows(path, settings))


def _rows(path: Path, settings: WorkloadSettings) -> Iterator[Row]:
    """The rows, with the column of texts alone or those that may be meant, else all; of questions also their answers.

    Raises `WorkloadError`.
    """
    column, answers = settings.column, settings.answer_column
    import pyarrow
    import pyarrow.parquet

    try:
        with open_regular(path) as stream:
            file = pyarrow.parquet.ParquetFile(stream)
            with_text = [field.name for field in file.schema_arrow if str(field.type).startswith(TEXT_TYPES)]
            columns = [name for name in ([column] if column is not None else DEFAULT_COLUMNS) if name in with_text]
            nested = {field.name for field in file.schema_arrow if str(field.type).startswith(("list", "large_list"))}
            names = file.schema_arrow.names
            is_trace = column is None and any(set(names) >= keys for keys, _ in TRACES)
            if not columns and (is_trace or nested & ({column} if column is not None else NESTED_COLUMNS)):
                columns = names
            if not columns:
                raise no_text(str(path), column, with_text or names)
            if answers is not None:
                columns = [name for name in names if name in (*columns, answers, ID)] if answers in names else names
            rows = (row for batch in file.iter_batches(BATCH_ROWS, columns=columns) for row in batch.to_pylist())
            yield from ((f"{path}[{number}]", row) for number, row in enumerate(rows))
    except (OSError, pyarrow.ArrowException) as problem:
        text = " ".join(reason(problem).split())[:200]
        raise WorkloadError(
            f"workload.dataset {str(path)!r}: {text}", fix="name a whole Parquet file, or write it again"
        ) from None
