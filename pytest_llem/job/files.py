"""Reads and writes whole files: atomic writes, and JSON from outside.

Both sides use it for what must never be seen half written. Standard library only, for workers.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pytest_llem.errors import JsonValue, LlemError, StoreError, WriteError

SLUG_LENGTH = 80
"""Chosen: three such names and a file's stay far below the 255 bytes that Linux file systems allow each."""

MAX_JSON_DEPTH = 100
"""Chosen: more than the files of this project have (a study's 64 levels and those around them), and so few that code
that calls itself for every level stays far from Python's recursion limit (1,000)."""

MAX_JSON_BYTES = 1 << 30
"""Chosen: ten times the largest run's manifest, and what still fits in memory."""

LOG_TAIL_BYTES = 65536
"""Chosen: far more than the last lines of a traceback need, and read within a millisecond."""

# The umask can be read only by setting it, which is safe only once, before there are threads.
_UMASK = os.umask(0)
os.umask(_UMASK)


def write_json(path: Path, data: JsonValue, *, durable: bool = True) -> None:
    """Write JSON atomically, as `write_text` does. NaN and infinity are refused."""
    write_text(path, json.dumps(data, indent=2, allow_nan=False, ensure_ascii=False) + "\n", durable=durable)


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Write a text file in UTF-8, as `write_bytes` does.

    What no UTF-8 can hold, as a file name in another encoding, becomes `?`.
    """
    write_bytes(path, text.encode(errors="replace"), durable=durable)


def write_bytes(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a file atomically: a temporary file in the same directory, fsync, rename. Thread-safe.

    Without `durable` the fsync, which takes longest, is left out: for files that only the present run reads. Raises
    `WriteError`, also where `path` is a device, a pipe or a directory: the rename would replace it.
    """
    with writing(path):
        if path.exists() and not path.is_file():
            raise OSError(errno.EEXIST, "not a regular file")
        _replace(path, data, durable)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make an `OSError` a `WriteError` that names the file."""
    try:
        yield
    except OSError as problem:
        raise WriteError(
            f"{path}: cannot be written: {reason(problem)}",
            fix="make room or restore the directory; --llem-resume reuses what was measured",
        ) from None


@contextlib.contextmanager
def noted(problems: list[str], what: str = "") -> Iterator[None]:
    """Note a failure to write instead of raising it: what else the end of a run does must not be lost with it."""
    try:
        yield
    except LlemError as error:
        problems.append(f"{what}{error}")
    except OSError as problem:
        problems.append(f"{what}{problem.filename or ''}: {reason(problem)}")


def _replace(path: Path, data: bytes, durable: bool) -> None:
    import tempfile  # here: the sampler process, which only reads, starts in milliseconds

    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".llem-")  # not the name, which may be as long as allowed
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


def require_writable(directory: Path) -> None:
    """Raise `StoreError` unless files can be written in a directory, which need not exist yet; nothing stays behind.

    It tries: permissions alone do not tell of read-only mounts, special file systems, quotas, and names too long.
    """
    import tempfile

    above, missing = directory.absolute(), []
    try:
        while not _present(above):
            missing.append(above.name)
            above = above.parent
        with tempfile.TemporaryDirectory(dir=above, prefix=".llem-") as trial:
            Path(trial, *reversed(missing), "x").mkdir(parents=True)
    except (OSError, ValueError) as problem:
        raise StoreError(f"{directory}: {reason(problem)}", fix="choose a directory that can be written") from None


def require_room(directory: Path, *, needed_bytes: int, needed_files: int) -> None:
    """Raise `StoreError` where the file system of a directory, which need not exist yet, has less room than this."""
    above = directory.absolute()
    while not _present(above):
        above = above.parent
    system = os.statvfs(above)
    free = system.f_bavail * system.f_frsize
    if free < needed_bytes:
        text = f"{free / 2**20:,.1f} MiB free, and the run needs about {needed_bytes / 2**20:,.1f} MiB"
    elif system.f_files > 0 and system.f_favail < needed_files:  # some file systems count no files
        text = f"{system.f_favail:,} files can be made, and the run needs about {needed_files:,}"
    else:
        return
    raise StoreError(text, fix="make room, choose another directory with --llem-out, or select fewer cycles")


def _present(path: Path) -> bool:
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def reason(problem: Exception) -> str:
    """Why a file could not be read or written, without its name."""
    return getattr(problem, "strerror", None) or str(problem)


def read_json(path: Path) -> dict[str, JsonValue]:
    """Read a JSON object; `StoreError` names the file if it is absent or broken."""
    data = read_json_value(path)
    if not isinstance(data, dict):
        raise StoreError(f"{path}: expected a JSON object, got {type(data).__name__}")
    return data


def read_json_value(path: Path) -> JsonValue:
    """Read a JSON file; `StoreError` names it if it is absent or broken."""
    try:
        with open_regular(path) as stream:
            if os.fstat(stream.fileno()).st_size > MAX_JSON_BYTES:
                raise StoreError(f"{path}: larger than {MAX_JSON_BYTES >> 30} GiB")
            return parse_json(stream.read(), path)
    except OSError as problem:
        raise StoreError(f"{path}: {problem.strerror or problem}") from None
    except ValueError as problem:
        raise StoreError(str(problem)) from None


def parse_object(text: str | bytes, where: object) -> dict[str, JsonValue]:
    """A JSON object from outside: a `ValueError` as `parse_json` raises, also for any other value."""
    data = parse_json(text, where)
    if not isinstance(data, dict):
        raise ValueError(f"{where}: expected a JSON object, got {type(data).__name__}")
    return data


def parse_json(text: str | bytes, where: object, *, finite: bool = True) -> JsonValue:
    """JSON from outside. Where it is broken, too deep or no text, one `ValueError` that begins with `where`.

    With `finite`, the same for NaN and infinity, which Python's reader takes and gates cannot be judged by.
    """
    with named_json(where):
        # json itself would take bytes for UTF-16 or UTF-32 as well, and let surrogates pass.
        content = text if isinstance(text, str) else text.decode("utf-8-sig")
        data: JsonValue = _FINITE.decode(content) if finite else json.loads(content)
        require_plain(data, content)
        return data


@contextlib.contextmanager
def named_json(where: object) -> Iterator[None]:
    """Whatever is wrong with JSON that is read in the body, as one `ValueError` that begins with `where`."""
    try:
        yield
    except RecursionError:
        raise ValueError(f"{where}: not JSON: nested deeper than {MAX_JSON_DEPTH} levels") from None
    except UnicodeDecodeError as problem:
        raise ValueError(f"{where}: not UTF-8: byte {problem.object[problem.start]:#04x} at {problem.start}") from None
    except UnicodeEncodeError:
        raise ValueError(f"{where}: not JSON: half of a character, a lone surrogate") from None
    except json.JSONDecodeError as problem:
        of_one_line = "\n" not in problem.doc.rstrip()
        place = f"column {min(problem.pos, len(problem.doc.rstrip())) + 1}" if of_one_line else f"line {problem.lineno}"
        raise ValueError(f"{where}: not JSON: {problem.msg.removesuffix(' at')} at {place}") from None
    except ValueError as problem:
        raise ValueError(f"{where}: not JSON: {problem}") from None


def require_plain(data: JsonValue, content: str) -> None:
    """Raise, as `named_json` takes it, for what Python's reader made of a text and other code could stumble over."""
    if content.count("[") + content.count("{") > MAX_JSON_DEPTH and _is_deep(data):
        raise RecursionError
    if "\\u" in content:
        json.dumps(data, ensure_ascii=False).encode()


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number


_FINITE = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)


def _is_deep(data: JsonValue) -> bool:
    """Whether a value has more than `MAX_JSON_DEPTH` levels, found without recursion."""
    level: list[JsonValue] = [data]
    for _ in range(MAX_JSON_DEPTH + 1):
        level = [
            item
            for outer in level
            if isinstance(outer, (dict, list))
            for item in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return True


def open_regular(path: Path) -> BinaryIO:
    """Open a file to read it. `OSError` also where it is none: a FIFO may block for ever, and a device never end."""
    try:
        mode = path.stat().st_mode
    except ValueError:
        raise OSError(errno.EINVAL, "not a path", str(path)) from None
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return path.open("rb")


def expanded(name: str) -> Path:
    """A path with the user's directory for its `~`; as it is where that is unknown."""
    path = Path(name)
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def is_path(name: str) -> bool:
    """Whether a model's or data set's name can only be a path: no id on the hub begins so."""
    return name.startswith((".", "/", "~"))


def found(name: str) -> Path | None:
    """The path, expanded, if something lies there that can be looked at."""
    path = expanded(name)
    try:
        path.stat()
    except (OSError, ValueError):
        return None
    return path


def log_tail(path: Path, lines: int = 15) -> list[str]:
    """The last lines of a log, at most its last 64 KiB; empty when there is no log."""
    try:
        with open_regular(path) as stream:
            stream.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
            return stream.read().decode("utf-8", "replace").splitlines()[-lines:]
    except OSError:
        return []


def slug(text: str) -> str:
    """`text` in `[A-Za-z0-9._-]`, at most 80 characters, never hidden and never empty."""
    kept = re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:SLUG_LENGTH].strip("-.")
    return kept or "x"
