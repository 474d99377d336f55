"""JSON lists are read an entry at a time, and are for that no other lists than those that JSON has."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from pytest_llem.errors import WorkloadError
from pytest_llem.job.config import WorkloadSettings
from pytest_llem.workload import rows
from pytest_llem.workload.rows import rows_of

PARTS: list[Any] = [
    "",
    'é\U0001f600\\"',
    "[,]{}",
    "\u2028",
    12,
    -3.5e-7,
    1e300,
    True,
    False,
    None,
    [],
    {},
    [[1]],
    {"a": "]"},
]


def entries(path: Path, content: str) -> list[Any]:
    path.write_text(content, encoding="utf-8")
    return [row for _, row in rows_of(WorkloadSettings(dataset=str(path)))]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1 << 20])
def test_a_list_is_read_as_json_reads_it_wherever_a_read_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    """A number was cut in two where a read ended: 12 became 1, and then 2."""
    monkeypatch.setattr(rows, "CHUNK", chunk)
    dice = random.Random(chunk)
    for indent in (None, 0, 3) * 5:
        whole = [dice.choice(PARTS) for _ in range(dice.randrange(9))]
        for ascii_only in (True, False):
            text = json.dumps(whole, indent=indent, ensure_ascii=ascii_only)
            assert entries(tmp_path / "a.json", f" {text}\n ") == whole


@pytest.mark.parametrize("chunk", [1, 5, 1 << 20])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"a\.json: expected a JSON list"),
        ('{"a": 1}\n{"a": 2}', r"a\.json: expected a JSON list"),
        ("[1, 2", r"a\.json\[1\]: not JSON: neither comma nor \] behind it"),
        ("[1 2]", r"a\.json\[0\]: not JSON: neither comma"),
        ("[1,]", r"a\.json\[1\]: not JSON: Expecting value"),
        ('[1, "x]', r"a\.json\[1\]: not JSON: Unterminated string"),
        ("[1, tru]", r"a\.json\[1\]: not JSON: Expecting value"),
        ("[1]]", r"a\.json: not JSON: more behind the list"),
        ("[" + "[" * 5000 + "]" * 5001, r"a\.json\[0\]: not JSON: nested deeper"),
        ('["\\ud800"]', r"a\.json\[0\]: not JSON: half of a character"),
    ],
)
def test_what_is_no_list_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, content: str, message: str
) -> None:
    monkeypatch.setattr(rows, "CHUNK", chunk)
    with pytest.raises(WorkloadError, match=message) as caught:
        entries(tmp_path / "a.json", content)
    assert caught.value.fix


def test_a_broken_entry_does_not_make_it_read_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To look whether an entry is whole with what follows, it read a file of gigabytes to its end."""
    monkeypatch.setattr(rows, "CHUNK", 100)
    path = tmp_path / "a.json"
    path.write_bytes(b'[1, {"a": oops}, ' + b"2, " * 10_000 + b"\xff")
    with pytest.raises(WorkloadError, match=r"a\.json\[1\]: not JSON: Expecting value"):
        list(rows_of(WorkloadSettings(dataset=str(path))))
