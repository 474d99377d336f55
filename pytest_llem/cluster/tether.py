"""What a Ray worker process started dies with it, however it ends: cancelled by force, killed, its driver gone.

`python tether.py MARK DIRECTORY` waits for the end of its standard input, whose other end only that process holds;
then it kills every process whose environment has the mark, wherever in the process tree it has moved, and removes the
directory. A file of its own, of the standard library alone: it starts in a few milliseconds.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

ROUNDS = 100
PERIOD_S = 0.05


def main(mark: str, directory: str) -> None:
    """Wait until the process that started this one is gone, then clean up after it."""
    # Ray kills the children of a worker that ends: be nobody's child.
    if os.fork():
        os._exit(0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while os.read(0, 4096):
        pass
    for _ in range(ROUNDS):
        marked = processes_with(mark)
        for pid in marked:
            _kill(pid)
        if not marked:
            break
        time.sleep(PERIOD_S)
    shutil.rmtree(directory, ignore_errors=True)


def processes_with(mark: str) -> list[int]:
    """Processes that were started with the mark in their environment; only this user's can be looked at."""
    found = []
    wanted = mark.encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
