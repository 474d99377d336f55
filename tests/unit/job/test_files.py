"""Files are read or refused by name, never with a traceback, and written whole or not at all, where files belong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pytest_llem.errors import StoreError
from pytest_llem.job.files import (
    MAX_JSON_DEPTH,
    expanded,
    found,
    open_regular,
    parse_json,
    read_json,
    require_room,
    require_writable,
    write_json,
    write_text,
)


@pytest.mark.parametrize("depth", [MAX_JSON_DEPTH + 1, 900, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_deep_json_is_refused_by_name(depth: int, opening: str, closing: str) -> None:
    """It was a RecursionError, in the parser or in whatever walked the value afterwards."""
    with pytest.raises(ValueError, match=r"answer\.json: not JSON: nested deeper than 100 levels"):
        parse_json(opening * depth + "1" + closing * depth, "answer.json")


def test_json_as_deep_as_allowed_is_read() -> None:
    assert parse_json("[" * MAX_JSON_DEPTH + "]" * MAX_JSON_DEPTH, "x")
    assert parse_json('{"a": [' + ", ".join(["[1]"] * 1000) + "]}", "x") == {"a": [[1]] * 1000}


@pytest.mark.parametrize("text", [r'"\ud800"', r'{"a": {"\udfff": 1}}', r'["\uD83D", "\ude00"]'])
def test_a_lone_surrogate_is_no_text(text: str) -> None:
    """It was a UnicodeEncodeError where the text was written or shown."""
    with pytest.raises(ValueError, match=r"x: not JSON: .*surrogate"):
        parse_json(text, "x")


def test_pairs_of_surrogates_are_text() -> None:
    assert parse_json(r'"\ud83d\ude00 \\ud800"', "x") == "\U0001f600 \\ud800"


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b'{"a": "\xff"}', "not UTF-8"),
        (b"{", "not JSON"),
        (b"9" * 5000, "not JSON"),
        (b"", "not JSON"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
    ],
)
def test_broken_json_is_refused_by_name(raw: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=f"^x: {why}"):
        parse_json(raw, "x")


def test_a_broken_line_is_named_by_its_column_alone() -> None:
    """The third line of a file was said to break off in "line 2 column 1"."""
    with pytest.raises(ValueError, match=r"^trace\.jsonl:3: not JSON: Expecting ':' delimiter at column 13$"):
        parse_json('{"a": 1, "b"\n', "trace.jsonl:3")
    with pytest.raises(ValueError, match=r"^x: not JSON: Unterminated string starting at column 1$"):
        parse_json('"cut', "x")
    with pytest.raises(ValueError, match=r"^x\.json: not JSON: Expecting ',' delimiter at line 2$"):
        parse_json('{"a": 1\n"b": 2}\n', "x.json")


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_what_is_not_a_finite_number_is_refused(number: str) -> None:
    """No limit is ever exceeded by NaN: a gate would pass."""
    with pytest.raises(ValueError, match=f"x: not JSON: {number} is not a finite number"):
        parse_json(f"[{number}]", "x")
    assert parse_json(f"[{number}]", "x", finite=False)


def test_a_byte_order_mark_is_no_content() -> None:
    assert parse_json(b'\xef\xbb\xbf{"a": 1}', "x") == {"a": 1}


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Renamed first, it is there and empty after a power failure. What only the present run reads need not wait."""
    path = tmp_path / "state.json"
    synced: list[tuple[int, bool]] = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append((os.fstat(file).st_size, path.exists())))
    write_text(path, "whole")
    assert synced == [(5, False)]
    write_text(path, "progress", durable=False)
    assert len(synced) == 1


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    """A FIFO blocked for ever, and /dev/zero filled the memory."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(OSError, match="not a regular file"):
            open_regular(path)
        with pytest.raises(StoreError, match=f"{path}: not a regular file"):
            read_json(path)


@pytest.mark.parametrize("name", ["", "absent", "a\0b", "x" * 5000])
def test_a_path_that_leads_nowhere_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError):
        read_json(tmp_path / name)


def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.json"
    with path.open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(StoreError, match="larger than 1 GiB"):
        read_json(path)


def test_a_place_that_can_be_written_stays_as_it_was(tmp_path: Path) -> None:
    require_writable(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["file", "file/below", "loop", "dangling", "n" * 300, f"a/{'n' * 300}", "a\0b"])
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(StoreError, match=str(tmp_path)) as caught:
        require_writable(tmp_path / name)
    assert caught.value.fix is not None


def test_special_file_systems_are_found_by_trying() -> None:
    with pytest.raises(StoreError, match="/proc/llem"):
        require_writable(Path("/proc/llem"))


def test_a_pipe_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    """A report for /dev/stdout, written by root, replaced the device."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(StoreError, match="pipe: cannot be written: not a regular file"):
        write_text(pipe, "text")
    assert pipe.is_fifo()


def test_a_name_as_long_as_the_file_system_allows_is_written(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    write_text(path, "text")
    assert path.read_text() == "text"


def test_a_file_name_that_is_not_utf8_breaks_no_file(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"path": os.fsdecode(b"results-\xff")})
    assert read_json(tmp_path / "x.json") == {"path": "results-?"}


@pytest.mark.parametrize("name", ["~nobody-here/x", "x" * 5000, "a\0b", "absent"])
def test_a_name_that_leads_nowhere_is_not_found(name: str) -> None:
    """`~nobody-here` was a RuntimeError, and a name of 5,000 letters an OSError."""
    assert expanded(name) == Path(name)
    assert found(name) is None


def test_a_path_in_the_users_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x").touch()

    assert found("~/x") == tmp_path / "x"


def test_a_disk_without_room_is_told_with_what_is_free_and_needed(tmp_path: Path) -> None:
    require_room(tmp_path / "not" / "made", needed_bytes=1, needed_files=1)
    with pytest.raises(StoreError, match=r"[\d,]+\.\d MiB free, and the run needs about 1,048,576,000,000\.0 MiB"):
        require_room(tmp_path / "not" / "made", needed_bytes=10**6 << 40, needed_files=1)
