"""Makes a Ray worker process fit to measure from: nothing it starts outlives it, and Ray's own settings are undone.

Only `node` calls it, before each cycle. What cannot be undone becomes a note of the result.
"""

from __future__ import annotations

import contextlib
import os
import platform
import secrets
import shutil
import stat
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path

from pytest_llem.errors import RunnerError
from pytest_llem.job.report import Note
from pytest_llem.worker import lifeline

MARK = "LLEM_LIFELINE"
KEPT_S = 7 * 24 * 3600.0
"""Chosen: longer than any run takes."""

THREADS = "OMP_NUM_THREADS"
_lifelines: list[subprocess.Popen[bytes]] = []


@cache
def own_directory() -> Path:
    """A directory of this process, which is removed, and all that the process started killed, when it is gone."""
    directory = Path(tempfile.mkdtemp(prefix="llem-node-"))
    mark = f"{MARK}={secrets.token_hex(16)}"
    command = lifeline.command("sweep", mark, str(directory))
    process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    process.wait()
    _lifelines.append(process)  # keeps the pipe open
    os.environ[MARK] = mark.partition("=")[2]
    return directory


def run_directory(run_id: str) -> Path:
    """What this node's processes share over one run (the idle state of its GPUs); old runs are removed.

    Raises `RunnerError` where another user has taken the directory's name.
    """
    runs = Path(tempfile.gettempdir()) / f"llem-runs-{os.getuid()}"
    runs.mkdir(mode=0o700, exist_ok=True)
    status = runs.lstat()
    if status.st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode):
        raise RunnerError(
            f"node {platform.node()}: {runs} is not a directory of this user (uid {os.getuid()})",
            fix=f"remove {runs} there, or start the node with a TMPDIR of its own",
        )
    directory = runs / run_id
    directory.mkdir(exist_ok=True)
    os.utime(directory)
    for other in runs.iterdir():
        # The node's other processes do the same, so that it may be gone.
        with contextlib.suppress(FileNotFoundError):
            if time.time() - other.stat().st_mtime > KEPT_S:
                shutil.rmtree(other, ignore_errors=True)
    return directory


def undo_worker_settings(*, threads_chosen: bool) -> tuple[Note, ...]:
    """Undo what Ray does to its workers and would change a measurement; a note for what cannot be undone.

    Ray sets `OMP_NUM_THREADS` to the task's CPUs where nobody did, and starts its workers at a low priority.
    `threads_chosen` says that the task's runtime environment sets the number of threads.
    """
    raylet = _environment_of(os.getppid())
    if not threads_chosen:
        os.environ.pop(THREADS, None)
        if THREADS in raylet:
            os.environ[THREADS] = raylet[THREADS]
    wanted = os.getpriority(os.PRIO_PROCESS, os.getppid())
    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    if niceness <= wanted:
        return ()
    try:
        os.setpriority(os.PRIO_PROCESS, 0, wanted)
    except PermissionError:
        text = f"measured at nice {niceness}, as Ray starts its workers: start the node with RAY_worker_niceness=0"
        return (Note("low_priority", text),)
    return ()


def _environment_of(pid: int) -> dict[str, str]:
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (entry.partition("=") for entry in raw.decode("utf-8", "replace").split("\0") if "=" in entry)
    return {name: value for name, _, value in pairs}
