"""Reads and writes whole files: atomic writes, and JSON files that state their version.

Both sides use it for what must never be seen half written. Standard library only, for workers.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import TypeVar

from pytest_llem.errors import JsonValue, StoreError
from pytest_llem.job.wire import decode

T = TypeVar("T")
SLUG_LENGTH = 80
"""Chosen: three such names and a file's stay far below the 255 bytes that Linux file systems allow each."""

LOG_TAIL_BYTES = 65536
"""Chosen: far more than the last lines of a traceback need, and read within a millisecond."""

# The umask can be read only by setting it, which is safe only once, before there are threads.
_UMASK = os.umask(0)
os.umask(_UMASK)


def read_versioned(cls: type[T], path: Path, newest: int, what: str) -> T:
    """Read a JSON file into a dataclass; `StoreError` if it is absent, broken, or newer than `newest`."""
    data = read_json(path)
    version = data.get("schema_version")
    if isinstance(version, int) and version > newest:
        raise StoreError(
            f"{path}: {what} format {version} is newer than {newest}, the newest this version reads",
            fix="use the version of pytest-llem that wrote it, or a newer one",
        )
    try:
        return decode(cls, data)
    except ValueError as problem:
        raise StoreError(f"{path}: {problem}") from None


def write_json(path: Path, data: JsonValue, *, durable: bool = True) -> None:
    """Write JSON atomically, as `write_text` does. NaN and infinity are refused."""
    write_text(path, json.dumps(data, indent=2, allow_nan=False, ensure_ascii=False) + "\n", durable=durable)


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Write a text file in UTF-8, as `write_bytes` does."""
    write_bytes(path, text.encode(), durable=durable)


def write_bytes(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a file atomically: a temporary file in the same directory, fsync, rename. Thread-safe.

    Without `durable` the fsync, which takes longest, is left out: for files that only the present run reads.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        Path(name).chmod(0o666 & ~_UMASK)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict[str, JsonValue]:
    """Read a JSON object; `StoreError` names the file if it is absent or broken."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise StoreError(f"{path}: {problem.strerror or problem}") from None
    except ValueError as problem:
        raise StoreError(f"{path}: not JSON: {problem}") from None
    if not isinstance(data, dict):
        raise StoreError(f"{path}: expected a JSON object, got {type(data).__name__}")
    return data


def log_tail(path: Path, lines: int = 15) -> list[str]:
    """The last lines of a log, at most its last 64 KiB; empty when there is no log."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
            return stream.read().decode("utf-8", "replace").splitlines()[-lines:]
    except OSError:
        return []


def slug(text: str) -> str:
    """`text` in `[A-Za-z0-9._-]`, at most 80 characters, never hidden and never empty."""
    kept = re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:SLUG_LENGTH].strip("-.")
    return kept or "x"
