"""Keeps an engine imported inside a long-lived container, and forks a fresh worker for each cycle.

    serve ENGINE     the container's program, under `lifeline`; never returns
    cycle JOB_DIR    by exec: runs one job in a fresh process and exits with its code
    memory           by exec: bytes in use per visible GPU, as JSON

`containers.kept` starts all three with `python3 -m` and reads their codes and output: change both together.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytest_llem.engines import engine_info
from pytest_llem.worker.channel import receive, send

ADDRESS = "/llem/forkserver.sock"
START_S = 30.0
"""How long the serving process may take to listen. Chosen: it imports little before it does."""
OOM_KILL_EVENT = "oom_kill"


def main(arguments: list[str]) -> int:
    """Run one of the three verbs; returns the exit code."""
    if arguments[:1] == ["serve"]:
        serve(arguments[1])
        return 0
    if arguments[:1] == ["cycle"]:
        return cycle(arguments[1])
    if arguments == ["memory"]:
        sys.stdout.write(json.dumps(memory()) + "\n")
        return 0
    return 2


def serve(engine: str) -> None:
    """Answer one request for a cycle after the other, with the reason where forking is not possible."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(ADDRESS)
        Path(ADDRESS).chmod(0o600)
        listener.listen(4)
        channel, problem = _fork_server(engine)
        while True:
            caller, _ = listener.accept()
            with caller:
                request, descriptors = receive(caller)
                if request is not None:
                    _answer(caller, {"problem": problem})
                    if not _relay(caller, channel, request, descriptors):
                        # The server ends when a worker is killed under it: the next cycle gets a new one
                        channel.close()
                        channel, problem = _fork_server(engine)
            for descriptor in descriptors:
                os.close(descriptor)


def cycle(job_dir: str) -> int:
    """Run a job through the fork server, or in a new interpreter where it cannot fork; its output is this program's."""
    before = oom_kills()
    with socket.socket(socket.AF_UNIX) as channel:
        _connect(channel)
        request = {"job_dir": job_dir, "environment": {}, "isolation": "process"}
        send(channel, request, (sys.stdout.fileno(),))
        answer, _ = receive(channel)
        if answer is not None and answer["problem"] is not None:
            sys.stderr.write(f"no fork server: {answer['problem']}\n")
        receive(channel)
        ended, _ = receive(channel)
        code = os.waitstatus_to_exitcode(ended["status"]) if ended is not None else -9
    after = oom_kills()
    if code != 0 and before is not None and after is not None and after > before:
        sys.stdout.write(f"LLEM-EVENT {json.dumps({'event': OOM_KILL_EVENT, 'name': None})}\n")
        sys.stdout.flush()
    return code if code >= 0 else 128 - code


def memory() -> dict[str, int]:
    """Bytes in use by UUID of every GPU that is visible here."""
    import pynvml

    pynvml.nvmlInit()
    handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    return {
        str(pynvml.nvmlDeviceGetUUID(handle)): int(pynvml.nvmlDeviceGetMemoryInfo(handle).used) for handle in handles
    }


def oom_kills() -> int | None:
    """How many processes of this container's memory cgroup the out-of-memory killer has ended; `None` if unknown."""
    for file in ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
        with contextlib.suppress(OSError):
            for line in Path(file).read_text(encoding="ascii").splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    return None


def _connect(channel: socket.socket) -> None:
    """Connect to the serving process, which may have been started a moment ago."""
    deadline = time.monotonic() + START_S
    while True:
        try:
            channel.connect(ADDRESS)
            return
        except (FileNotFoundError, ConnectionRefusedError):
            if time.monotonic() >= deadline:
                raise
        time.sleep(0.02)


def _fork_server(engine: str) -> tuple[socket.socket, str | None]:
    """A server that forks workers; why it starts new interpreters instead, where it does."""
    if not engine_info(engine).preload:
        problem = f"the imports of {engine} are not known to be safe to fork"
    else:
        channel, first = _start(engine)
        if first is not None and "problem" not in first:
            return channel, None
        channel.close()
        problem = str(first["problem"]) if first else "it died during its imports"
    return _start()[0], problem


def _start(*engine: str) -> tuple[socket.socket, dict[str, Any] | None]:
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, "-m", "pytest_llem.worker.forkserver", str(theirs.fileno()), *engine]
        subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(),), start_new_session=True)
    return ours, receive(ours)[0]


def _relay(caller: socket.socket, channel: socket.socket, request: dict[str, Any], descriptors: Sequence[int]) -> bool:
    """Pass one cycle to the fork server; false when the server cannot be used any more."""
    send(channel, request, tuple(descriptors))
    started, _ = receive(channel)
    if started is None:
        return False
    _answer(caller, started)
    readable, _, _ = select.select([caller, channel], [], [])
    if channel not in readable:
        return False  # the caller is gone: closing the channel makes the server kill its child
    ended, _ = receive(channel)
    if ended is None:
        return False
    _answer(caller, ended)
    return True


def _answer(caller: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        send(caller, message)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
