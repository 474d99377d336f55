"""Reads what a data set asks: texts or questions, one a row, or what `traffic` recognises as sessions and traces.

`build_workload` calls it, and the pytest side for what workers cannot read. The order of the texts is part of a
workload: it must not change.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from functools import lru_cache
from itertools import chain, islice
from typing import Any, TypeVar

from pytest_llem.errors import WorkloadError
from pytest_llem.job.config import SYNTHETIC, WorkloadSettings
from pytest_llem.job.request import Question, Texts
from pytest_llem.workload import registered
from pytest_llem.workload.questions import TextRow, example_of, question_of, require_not_shown, require_own_ids
from pytest_llem.workload.rows import Row, rows_of
from pytest_llem.workload.tasks import texts_of_task
from pytest_llem.workload.traffic import read_traffic, recognise, require_used_times, too_few

T = TypeVar("T")

LOOKED_AT = 100
"""Rows among which one has to be readable. Chosen: what is broken up to there is no part of sessions or a trace."""

DEFAULT_COLUMNS = ("text", "prompt", "input", "question", "instruction", "content")


def read_rows(settings: WorkloadSettings, rows: Iterator[Row] | None = None) -> Texts:
    """What the workload needs of a data set, as many texts or requests as `prompts`, in the order asked for.

    `rows` are those where somebody else reads it. Raises `WorkloadError` when the data set is absent, has too few rows,
    or no such column.
    """
    rows = rows_of(settings) if rows is None else rows
    first: list[Row] = []
    for row in islice(rows, LOOKED_AT):
        first.append(row)
        # Logs often begin within a line.
        if row[1] is not None and not isinstance(row[1], WorkloadError):
            break
    rows = chain(first, rows)
    traffic = recognise(first[-1][1], settings.column, DEFAULT_COLUMNS) if first else None
    if traffic is not None:
        return read_traffic(traffic, rows, settings)
    require_used_times(settings)
    entries = _texts_of(rows, settings)
    examples = tuple(example_of(entry, settings) for entry in islice(entries, settings.few_shot or 0))
    taken: list[tuple[str, Question | None]] = []
    skipped = 0
    for entry in entries:
        question = question_of(entry, settings) if settings.scored else None
        if entry.text is None:
            skipped += 1
            continue
        taken.append((entry.text, question))
        # A seeded choice needs all of them; else no more is read than is needed.
        if len(taken) == settings.prompts and settings.order != "shuffled":
            break
    if len(taken) < settings.prompts:
        left_out = [f"{skipped} rows without text were passed over"] if skipped else []
        left_out += [f"the first {len(examples)} rows are examples (workload.few_shot)"] if examples else []
        raise too_few(settings, len(taken), "; ".join(left_out))
    chosen = ordered(taken, settings)
    questions = tuple(question for _, question in chosen if question is not None)
    require_own_ids(questions)
    require_not_shown(chosen, examples)
    return Texts(tuple(text for text, _ in chosen), skipped, questions=questions, examples=examples)


@lru_cache(maxsize=4)
def texts_of_package(settings: WorkloadSettings) -> Texts | None:
    """What a task asks, or a data set holds that another package adds, for workers without it; `None` for any other."""
    if settings.task is not None:
        return texts_of_task(settings)
    if settings.dataset == SYNTHETIC or settings.dataset not in registered.data_sets():
        return None
    return read_rows(settings)


def ordered(texts: Sequence[tuple[str, T]], settings: WorkloadSettings) -> list[tuple[str, T]]:
    """The first `prompts` texts as they come (`interleaved`) or by length (`grouped`); a seeded choice (`shuffled`).

    Each text is there with what belongs to it.
    """
    if settings.order == "shuffled":
        uniform = random.Random(settings.seed).random
        keyed = sorted((uniform(), index) for index in range(len(texts)))
        return [texts[index] for _, index in keyed[: settings.prompts]]
    chosen = list(texts[: settings.prompts])
    return sorted(chosen, key=lambda entry: len(entry[0])) if settings.order == "grouped" else chosen


def _texts_of(rows: Iterator[Row], settings: WorkloadSettings) -> Iterator[TextRow]:
    """Each row with its text, which is null or blank or of one column: the first that has a text in the first row.

    A row of plain text has no columns.
    """
    column = settings.column
    candidates = [name for name in DEFAULT_COLUMNS if name != settings.answer_column]
    for number, (where, row) in enumerate(rows, start=1):
        if isinstance(row, WorkloadError):
            raise row
        if isinstance(row, str) and column is None:
            yield TextRow(where, number, row, None, row if row.strip() else None)
            continue
        if row is None:
            yield TextRow(where, number, row, column, None)
            continue
        if not isinstance(row, dict):
            text = f"{where}: expected an object{'' if column else ' or a text'}, got {type(row).__name__}"
            raise WorkloadError(text, fix=f"write an object with the text in column {column or DEFAULT_COLUMNS[0]}")
        if column is None:
            column = next((name for name in candidates if _is_text(row.get(name))), None)
            there = [row[name] for name in candidates if name in row]
            if column is None and there and all(value is None or isinstance(value, str) for value in there):
                yield TextRow(where, number, row, None, None)
                continue
        value = row.get(column) if column is not None else 0
        if not isinstance(value, str) and (value is not None or column not in row):
            with_text = [name for name, value in row.items() if _is_text(value)]
            raise no_text(where, column, with_text or row)
        yield TextRow(where, number, row, column, value if isinstance(value, str) and value.strip() else None)


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
