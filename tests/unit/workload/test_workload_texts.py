"""A data set that cannot be read as it is written is an error with file and line; what is read is read whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pytest_llem.errors import WorkloadError
from pytest_llem.job.config import WorkloadSettings
from pytest_llem.workload.texts import read_rows

BOM = b"\xef\xbb\xbf"


def texts(path: Path, raw: bytes, prompts: int = 2) -> tuple[list[str], int]:
    path.write_bytes(raw)
    read = read_rows(WorkloadSettings(dataset=str(path), prompts=prompts))
    return list(read.texts), read.skipped


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("a.txt", b"one\ntwo\n"),
        ("a.jsonl", b'{"text": "one"}\n{"text": "two"}\n'),
        ("a.json", b'["one", "two"]'),
        ("a.csv", b"text,n\none,1\ntwo,2\n"),
    ],
)
def test_a_byte_order_mark_is_no_text(tmp_path: Path, name: str, raw: bytes) -> None:
    """It stood in the first prompt, or made the file unreadable."""
    assert texts(tmp_path / name, BOM + raw) == (["one", "two"], 0)


WRONG = {
    "CSV field": ("a.csv", b"text\none\n" + b"x" * 131_073 + b"\n", r"a\.csv:3: field larger than .*131072", "jsonl"),
    "CSV quote that never ends": ("a.csv", b'text\none\n"two\nthree\n', r"a\.csv:4: unexpected end", "quote"),
    "CSV row that is too long": ("a.csv", b'text\n"o\nne"\ntwo, three\n', r"a\.csv:4: more fields than", "quote"),
    "CSV of semicolons": ("a.csv", b"text;n\na;1\n", r"a\.csv:1: one column 'text;n'", "separate columns by commas"),
    "CSV column twice": ("a.csv", b"text,text\na,b\n", r"a\.csv:1: two columns 'text'", "rename"),
    "text of another encoding": ("a.txt", b"one\ncaf\xe9\n", r"a\.txt:2: not UTF-8", "save"),
    "CSV of another encoding": ("a.csv", b"text\none\ncaf\xe9\n", r"a\.csv:3: not UTF-8", "save"),
    "lines of another encoding": ("a.jsonl", b'{"text": "one"}\n{"text": "\xe9"}\n', r"a\.jsonl:2: not UTF-8", "save"),
    "JSON of another encoding": ("a.json", b'["one", "caf\xe9"]', r"a\.json: not UTF-8", "save"),
    "UTF-16": ("a.txt", "one\ntwo\n".encode("utf-16"), r"a\.txt:1: not UTF-8", "save"),
    "half a character": ("a.jsonl", b'{"text": "one"}\n{"text": "\\ud800"}\n', r"a\.jsonl:2: not JSON.*surrog", "line"),
    "half a character in a list": ("a.json", b'["one", "\\ud800"]', r"a\.json\[1\]: not JSON.*surrogate", "list"),
    "depth": ("a.jsonl", b'{"text": "one"}\n' + b"[" * 5000 + b"\n", r"a\.jsonl:2: not JSON: nested", "line"),
    "a number": ("a.json", b'["one", 2]', r"a\.json\[1\]: expected an object or a text, got int", "object"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_read_is_named_with_its_line(tmp_path: Path, case: str) -> None:
    name, raw, message, fix = WRONG[case]

    with pytest.raises(WorkloadError, match=message) as caught:
        texts(tmp_path / name, raw)

    assert fix in str(caught.value.fix)


def test_null_is_passed_over_and_counted_wherever_it_stands(tmp_path: Path) -> None:
    assert texts(tmp_path / "a.json", b'[null, "one", {"text": null}, "two"]') == (["one", "two"], 2)
    assert texts(tmp_path / "a.jsonl", b'null\n{"text": null}\n"one"\n"two"\n') == (["one", "two"], 2)


def test_only_regular_files_are_data_sets(tmp_path: Path) -> None:
    """A FIFO blocked the worker until its time was up."""
    os.mkfifo(tmp_path / "a.jsonl")

    with pytest.raises(WorkloadError, match="not a regular file"):
        read_rows(WorkloadSettings(dataset=str(tmp_path / "a.jsonl")))
