"""The first program in every container: runs the worker and ends with the client that is attached.

The client keeps the container's standard input open. When it goes away, however that happens (kill -9, a lost
connection), the daemon closes that input, and the guard ends the worker; so no container outlives its pytest process.

`python3 guard.py ARGUMENT...` runs `python3 ARGUMENT...` and exits with its code; without arguments it only waits.
A file of its own, of the standard library alone: it is copied into the image and never imported there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

GRACE_S = 2.0
LOST_CLIENT_EXIT = 129


def main(arguments: list[str]) -> int:
    """Run the program until it ends or standard input does; 128 plus the number for a signal."""
    if not arguments:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
        _until_input_ends()
        return LOST_CLIENT_EXIT
    child = subprocess.Popen([sys.executable, *arguments], stdin=subprocess.DEVNULL, start_new_session=True)
    signal.signal(signal.SIGTERM, lambda *_: _signal(child, signal.SIGTERM))
    threading.Thread(target=_end_with_input, args=(child,), daemon=True).start()
    code = child.wait()
    return code if code >= 0 else 128 - code


def _until_input_ends() -> None:
    while os.read(0, 4096):
        pass


def _end_with_input(child: subprocess.Popen[bytes]) -> None:
    _until_input_ends()
    _signal(child, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    while child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    _signal(child, signal.SIGKILL)
    os._exit(LOST_CLIENT_EXIT)


def _signal(child: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
