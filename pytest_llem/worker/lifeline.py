"""Ends what a process has started when that process is gone, however it ended (SIGKILL, a lost connection).

    run [ARGUMENT...]                              a container's first program: `python ARGUMENT...`, or only waiting
    serve DESCRIPTOR [INHERITED,...] PROGRAM ...   the parent of a server that is started as a command
    sweep MARK DIRECTORY                           the watcher beside a Ray worker process

`containers`, `servers.server` and `cluster.node` start one verb each, which watches a descriptor whose other end only
its owner holds. It runs as a single file (`python -I -S`), here and in images: it may import the standard library only.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

# Linux, include/uapi/linux/prctl.h
PR_SET_PDEATHSIG = 1
# Linux, include/uapi/linux/prctl.h
PR_SET_CHILD_SUBREAPER = 36

LOST_OWNER_EXIT = 129
"""Exit code of `run` when its owner is gone. Chosen: 128 + SIGHUP, what a shell reports for a lost terminal."""

GRACE_S = 2.0
"""How long a child has to end by itself when its owner is gone. Chosen: enough to flush files, and no more, since
whoever wants the devices next waits for it."""

PERIOD_S = 0.05
"""Chosen: short beside the grace, and no load."""

SWEEPS = 100
"""Chosen: 5 s in all for processes that keep starting others while they are killed."""

SECRETS = "/llem/secrets.json"
"""Variables for a container's program that its environment, which `docker inspect` shows, must not hold."""

MARKS = ("LLEM_LIFELINE", "LLEM_FORK_SERVER")
"""The variables by which what a node's task, or a fork server, has started is found and killed."""

SHELL_NOT_FOUND = 127
"""Exit code of a POSIX shell for a command that is not found."""


def command(verb: str, *arguments: str) -> list[str]:
    """The command line of one of the verbs on this machine."""
    return [sys.executable, "-I", "-S", str(Path(__file__).resolve()), verb, *arguments]


def run(arguments: Sequence[str]) -> int:
    """Run `python ARGUMENT...` until it ends or standard input does; 128 plus the number for a signal.

    The client of a container keeps that input open, and the daemon closes it when the client is gone. SIGTERM is passed
    on. Without arguments it only waits, as the lock container of a remote device does.
    """
    if not arguments:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
        wait_for_end(0)
        return LOST_OWNER_EXIT
    child = subprocess.Popen(
        [sys.executable, *arguments], stdin=subprocess.DEVNULL, env=with_secrets(), start_new_session=True
    )
    signal.signal(signal.SIGTERM, lambda *_: _kill(-child.pid, signal.SIGTERM))
    return _exit_code(_wait_for(child.pid, owner=0, obeys=False))


def serve(descriptor: int, inherited: Sequence[int], program: Sequence[str]) -> int:
    """Run a server until it ends, its owner says so, or its owner is gone; then nothing that it started is left.

    `descriptor` is a socket to the owner. To it go a line of JSON for the start (`{"pid": 1}` or `{"failed": "..."}`)
    and one for the end (`{"code": 0}`, negative for a signal); from it come the seconds of grace to end the server.
    Descendants that left the process group or lost their parents are found too: orphans become this process's children.
    """
    # Handlers, not SIG_IGN, which the server would inherit.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    prctl(PR_SET_CHILD_SUBREAPER, 1)

    def die_with_parent() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    try:
        server = subprocess.Popen(
            program, stdin=subprocess.DEVNULL, pass_fds=tuple(inherited), preexec_fn=die_with_parent
        )
    except OSError as problem:
        _report(descriptor, {"failed": f"{problem.filename or program[0]}: {problem.strerror}"})
        return SHELL_NOT_FOUND
    _report(descriptor, {"pid": server.pid})
    code = _wait_for(server.pid, owner=descriptor, obeys=True)
    _report(descriptor, {"code": code})
    return _exit_code(code)


def sweep(mark: str, directory: str) -> int:
    """At the end of standard input, kill all processes with `mark` in their environment, and remove `directory`."""
    # Ray kills the children of a worker that ends: be nobody's child.
    if os.fork():
        os._exit(0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    wait_for_end(0)
    kill_marked(mark)
    shutil.rmtree(directory, ignore_errors=True)
    return 0


def with_secrets() -> dict[str, str]:
    """This process's environment, and the variables of the file `SECRETS` where there is one."""
    with contextlib.suppress(FileNotFoundError):
        return {**os.environ, **json.loads(Path(SECRETS).read_text(encoding="utf-8"))}
    return dict(os.environ)


def unmarked(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment for a process that must outlive whoever starts it."""
    return {name: value for name, value in environment.items() if name not in MARKS}


def wait_for_end(descriptor: int) -> None:
    """Read and ignore everything until the other end is closed."""
    while os.read(descriptor, 4096):
        pass


def prctl(option: int, value: int) -> None:
    """Change how the kernel treats this process (prctl(2)), where Python has ctypes: an image's may lack it."""
    with contextlib.suppress(ImportError):
        import ctypes

        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def kill_marked(mark: str) -> None:
    """SIGKILL to all processes with `mark` in their environment, and to those that they start meanwhile."""
    for _ in range(SWEEPS):
        marked = processes_with(mark)
        for pid in marked:
            _kill(pid)
        if not marked:
            break
        time.sleep(PERIOD_S)


def end_descendants(limit_s: float = math.inf) -> None:
    """SIGKILL to every process below this one until none is left, at most for `limit_s`.

    Those that lost their parents count only below a subreaper, or below the first process of a container.
    """
    end_s = time.monotonic() + limit_s
    left = True
    while left:
        left = _kill_descendants() and time.monotonic() < end_s
        # Also those that had ended when it looked: a zombie still counts as a process.
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if left:
            time.sleep(0.01)


def processes_with(mark: str) -> list[int]:
    """Processes that were started with `NAME=VALUE` in their environment; only this user's can be read."""
    wanted = mark.encode()

    def has_mark(entry: Path) -> bool:
        return wanted in (entry / "environ").read_bytes().split(b"\0")

    return _processes(has_mark)


def _wait_for(child: int, owner: int, *, obeys: bool) -> int:
    """Wait for a child, then end everything below this process; the child's exit code, negative for a signal.

    `LOST_OWNER_EXIT` when the owner was gone first. Whether a word of the owner ends the child is `obeys`.
    """
    lost = threading.Event()
    threading.Thread(target=_end_with_owner, args=(owner, obeys, child, lost), daemon=True).start()
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == child:
            break
    end_descendants()
    return LOST_OWNER_EXIT if lost.is_set() else os.waitstatus_to_exitcode(status)


def _end_with_owner(owner: int, obeys: bool, child: int, lost: threading.Event) -> None:
    """Wait for the owner's word (seconds of grace) or its end; then SIGTERM, and after that SIGKILL to all.

    SIGTERM goes to a server alone, which ends its workers itself, and to the group of any other child.
    """
    word = _read(owner)
    while word and not obeys:
        word = _read(owner)
    if not word:
        lost.set()
    deadline = time.monotonic() + (float(word) if word else GRACE_S)
    _kill(child if obeys else -child, signal.SIGTERM)
    while time.monotonic() < deadline:
        if lost.is_set():
            time.sleep(PERIOD_S)
        elif select.select([owner], [], [], PERIOD_S)[0] and not _read(owner):
            lost.set()
            deadline = min(deadline, time.monotonic() + GRACE_S)
    _kill_descendants()


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 64)
    except OSError:
        return b""


def _report(descriptor: int, message: dict[str, Any]) -> None:
    """Send a line, if anybody is left to read it."""
    with contextlib.suppress(OSError):
        os.write(descriptor, json.dumps(message).encode() + b"\n")


def _kill_descendants() -> bool:
    """SIGKILL to every process below this one; whether there was any that is not a zombie yet."""
    parents: dict[int, list[int]] = {}

    def is_dead(entry: Path) -> bool:
        fields = (entry / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        parents.setdefault(int(fields[1]), []).append(int(entry.name))
        return fields[0] in ("Z", "X")

    dead = set(_processes(is_dead))
    below, todo = [], [os.getpid()]
    while todo:
        children = parents.get(todo.pop(), [])
        todo += children
        below += [pid for pid in children if pid not in dead]
    for pid in below:
        _kill(pid)
    return bool(below)


def _processes(matches: Callable[[Path], bool]) -> list[int]:
    """Process ids whose directory in /proc matches; those that end meanwhile or may not be read do not."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                if matches(entry):
                    found.append(int(entry.name))
    return found


def _kill(pid: int, number: int = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _exit_code(code: int) -> int:
    return code if code >= 0 else 128 - code


def main(arguments: Sequence[str]) -> int:
    """Do what one of the three verbs says."""
    verb, *rest = arguments
    if verb == "serve":
        descriptor, inherited, *program = rest
        return serve(int(descriptor), [int(number) for number in inherited.split(",") if number], program)
    return sweep(*rest) if verb == "sweep" else run(rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
