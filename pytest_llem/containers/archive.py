"""Copies the worker side and jobs into containers and results out of them, as tar archives: the daemon may be remote.

`ephemeral`, `kept`, `preflight` and `runner` use it; `inputs` and `options` its paths. An image gets the worker side of
the package whole (docs/architecture.md). Archives that come back must not be trusted: only known names are taken.
"""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest_llem
from pytest_llem.containers.errors import docker_error
from pytest_llem.job.job import JobDir
from pytest_llem.worker import lifeline

ROOT = "/llem"
SITE = f"{ROOT}/site"
JOBS = f"{ROOT}/jobs"
LIFELINE = f"{SITE}/pytest_llem/worker/lifeline.py"
WORKER_MODULES = ("__init__.py", "errors.py", "py.typed")
WORKER_PACKAGES = ("job", "worker", "engines", "energy", "workload", "scoring")
"""The three lowest floors of the package, carried whole (docs/architecture.md)."""
WRITABLE = (ROOT, f"{ROOT}/home", f"{ROOT}/cache", f"{ROOT}/hub", JOBS)
MOST_BYTES = 16 * 2**30
"""Chosen: readings of eight GPUs over a day; a sparse file in a container may state any size."""

COMES_BACK = ("events.jsonl", "samples.jsonl", "answers.jsonl", "measurement.json", "error.json")
"""Copied out in this order: the outcome last, so that it never exists without what it rests on."""


@cache
def worker_archive() -> bytes:
    """The worker side and `pynvml` as a tar for `/`; directories are open to all, as the image's user is unknown."""
    package = Path(pytest_llem.__file__).parent
    sources = [package / name for name in WORKER_MODULES]
    for name in WORKER_PACKAGES:
        sources += sorted(path for path in (package / name).rglob("*") if path.is_file() and path.suffix != ".pyc")
    files = {f"{SITE}/pytest_llem/{path.relative_to(package)}": path.read_bytes() for path in sources}
    pynvml = find_spec("pynvml")
    if pynvml is not None and pynvml.origin is not None:
        files[f"{SITE}/pynvml.py"] = Path(pynvml.origin).read_bytes()
    return _archive(files, WRITABLE)


def lifeline_archive() -> bytes:
    """`LIFELINE` alone, for a container in which nothing is measured, to be unpacked at `/`."""
    return _archive({LIFELINE: Path(lifeline.__file__).read_bytes()})


def files_archive(files: Mapping[str, str]) -> bytes:
    """Texts by absolute path, to be unpacked at `/`."""
    return _archive({path: text.encode() for path, text in files.items()})


def job_archive(job_json: bytes, name: str) -> bytes:
    """A job directory with its `job.json` alone, to be unpacked at `/`."""
    return _archive({f"{JOBS}/{name}/job.json": job_json}, (f"{JOBS}/{name}",))


def take_results(chunks: Iterable[bytes], job_dir: JobDir, image: str) -> list[str]:
    """Write the worker's known regular files from its archive; their names. `DockerError` when it is cut off."""
    found: dict[str, Path] = {}
    stream = io.BufferedReader(_Chunks(iter(chunks)))
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for entry in archive:
                name = Path(entry.name).name
                if not entry.isreg() or name not in COMES_BACK or len(Path(entry.name).parts) > 2:
                    continue
                if entry.size > MOST_BYTES:
                    raise tarfile.TarError(f"{name} holds {entry.size / 2**30:.0f} GiB")
                content = archive.extractfile(entry)
                assert content is not None
                descriptor, temporary = tempfile.mkstemp(dir=job_dir.path, prefix=f".{name}.")
                found[name] = Path(temporary)
                with os.fdopen(descriptor, "wb") as target:
                    shutil.copyfileobj(content, target)
                    target.flush()
                    os.fchmod(descriptor, 0o644)
                    os.fsync(descriptor)
        for name in COMES_BACK:
            if name in found:
                found[name].replace(job_dir.path / name)
    except (tarfile.TarError, EOFError) as problem:
        raise docker_error("docker", image, message=f"the results could not be copied out: {problem}") from None
    finally:
        for temporary_path in found.values():
            temporary_path.unlink(missing_ok=True)
    return [name for name in COMES_BACK if name in found]


def _archive(files: Mapping[str, bytes], directories: Iterable[str] = ()) -> bytes:
    """An uncompressed tar of files, readable by all, and directories, open to all."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in directories:
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.type, entry.mode = tarfile.DIRTYPE, 0o777
            archive.addfile(entry)
        for path, content in files.items():
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


class _Chunks(io.RawIOBase):
    """An iterator of byte strings as a readable file."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = chunk
        taken = self._rest[: len(buffer)]
        buffer[: len(taken)] = taken
        self._rest = self._rest[len(taken) :]
        return len(taken)
