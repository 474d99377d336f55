"""The parent of a server that is started as a command: ends it when pytest asks, and when pytest is gone.

    python -I -S supervisor.py DESCRIPTOR [INHERITED,...] PROGRAM ARGUMENT...

`DESCRIPTOR` is a socket to pytest. Over it go a line of JSON for the start (`{"pid": 1}` or `{"failed": "..."}`) and
one for the end (`{"code": 0}`, negative for a signal); pytest writes the seconds of grace to end the server, and
hanging up, however that happens, ends it as well. Descendants that left the process group or lost their parents are
found too, because orphans become this process's children. A file of its own, of the standard library alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
LOST_GRACE_S = 2.0
"""How long a server has to end by itself when its pytest died."""


def main(arguments: list[str]) -> int:
    """Run the server until it ends or must; exits with its code, or 128 plus the number of the signal."""
    descriptor, inherited, *command = arguments
    channel = socket.socket(fileno=int(descriptor))
    # Handlers, not SIG_IGN, which the server would inherit.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def die_with_supervisor() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    try:
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            pass_fds=tuple(int(number) for number in inherited.split(",") if number),
            preexec_fn=die_with_supervisor,
        )
    except OSError as problem:
        tell(channel, {"failed": f"{problem.filename or command[0]}: {problem.strerror}"})
        return 127
    tell(channel, {"pid": server.pid})
    threading.Thread(target=end_when_told, args=(channel, server.pid), daemon=True).start()
    code = wait_for(server.pid)
    while kill_descendants():
        reap()
    tell(channel, {"code": code})
    return code if code >= 0 else 128 - code


def tell(channel: socket.socket, message: dict[str, object]) -> None:
    """Send a line, if anybody is left to read it."""
    with contextlib.suppress(OSError):
        channel.sendall(json.dumps(message).encode() + b"\n")


def end_when_told(channel: socket.socket, pid: int) -> None:
    """Wait for pytest's word or its end; then SIGTERM to the server, and SIGKILL to everything after the grace."""
    try:
        word = channel.recv(64)
    except OSError:
        word = b""
    deadline = time.monotonic() + (float(word) if word else LOST_GRACE_S)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    channel.settimeout(0.05)
    hung_up = not word
    while time.monotonic() < deadline:
        if hung_up:
            time.sleep(0.05)
            continue
        try:
            hung_up = not channel.recv(64)
        except TimeoutError:
            continue
        except OSError:
            hung_up = True
        if hung_up:
            deadline = min(deadline, time.monotonic() + LOST_GRACE_S)
    kill_descendants()


def wait_for(pid: int) -> int:
    """The exit code of the server, negative for a signal; orphans that end meanwhile are reaped."""
    while True:
        try:
            ended, status = os.waitpid(-1, 0)
        except InterruptedError:
            continue
        if ended == pid:
            return os.waitstatus_to_exitcode(status)


def reap() -> None:
    """Collect what has ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    time.sleep(0.01)


def kill_descendants() -> bool:
    """SIGKILL to every process below this one; whether there was any that is not a zombie yet."""
    parents: dict[int, list[int]] = {}
    dead: set[int] = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                fields = (entry / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
                parents.setdefault(int(fields[1]), []).append(int(entry.name))
                if fields[0] in ("Z", "X"):
                    dead.add(int(entry.name))
    found = False
    todo = [os.getpid()]
    while todo:
        for pid in parents.get(todo.pop(), ()):
            todo.append(pid)
            if pid not in dead:
                found = True
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
