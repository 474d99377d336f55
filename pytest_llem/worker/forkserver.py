"""The parent of every worker: forks one with the engine imported, or, without an engine, starts a new interpreter.

`runners.process` and `container_forkserver` start it, from the same version: messages may change on both sides. Written
by hand, because `multiprocessing`'s fork server swallows errors of its preloads (python/cpython#141860), imports the
caller's main module into every child, and gives no session per child. One cycle at a time:

    server: {"ready": true} | {"problem": "..."}        once, after the imports
    caller: {"job_dir": ..., "environment": {...}, "isolation": ...}   with the log and the lease as descriptors, or
            {"resident": true, ...}                     for many jobs, with a socket to ask for them before the lease
            {"check": [SOURCE, TARGET], ...}            to compare settings with the engine: see `engines.signatures`
    server: {"pid": N}
    server: {"status": S}                               as returned by waitpid, when nothing of the child is left

All that a worker started ends with it, also what left its session: orphans become children of this process. When the
caller is gone (it has ended, or its end of the socket closes), the server and all below it end at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import os
import re
import select
import signal
import socket
import sys
import time
import traceback
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pytest_llem.engines import engine_info
from pytest_llem.engines.signatures import main as check_settings
from pytest_llem.job.job import JobDir
from pytest_llem.worker.channel import receive, send
from pytest_llem.worker.entry import run_job, serve
from pytest_llem.worker.lifeline import PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG, end_descendants, prctl

REST_S = 1.0
"""How long what a worker leaves behind may take to end by itself. Chosen: enough for `multiprocessing`'s resource
tracker, which removes shared memory when its processes are gone."""

KILLED_S = 10.0
"""Chosen: SIGKILL takes milliseconds; what still is there hangs in a driver, and must not stop the run."""


def main(descriptor: int, engine: str | None = None) -> None:
    """Import the engine, then serve cycles from the socket at `descriptor` until the caller is gone."""
    # A forked child must not take a Ctrl-C meant for pytest; pytest ends its worker itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = socket.socket(fileno=descriptor)
    parent = _end_of_parent()
    if engine is not None and not _import(engine, channel):
        return
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    send(channel, {"ready": True})
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    server = os.getpid()
    while True:
        select.select([channel.fileno(), *parent], [], [])
        request, descriptors = (None, []) if _is_closed(channel, parent) else receive(channel)
        if request is None:
            return
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            channel.close()
            for own in (wake_read, wake_write, *parent):
                os.close(own)
            _child(request, descriptors, server, new_interpreter=engine is None)
        for inherited in descriptors:
            os.close(inherited)
        with contextlib.suppress(ConnectionError):  # `_wait` sees that the caller is gone
            send(channel, {"pid": pid})
        if not _wait(pid, channel, parent, wake_read):
            return


def _import(engine: str, channel: socket.socket) -> bool:
    """Preload the engine; false, with the problem said, where that fails. Its end is the caller's, at any moment."""
    # SIGIO, which ends the process, when the other end closes: imports that take seconds listen to nothing else.
    flags = fcntl.fcntl(channel, fcntl.F_GETFL)
    fcntl.fcntl(channel, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(channel, fcntl.F_SETFL, flags | os.O_ASYNC)
    with contextlib.suppress(BlockingIOError):
        if not channel.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
            return False
    try:
        preload(engine)
        problem = unsafe_to_fork()
    except Exception as error:  # noqa: BLE001  a broken package raises anything; the log has the rest
        traceback.print_exc()
        problem = f"{type(error).__name__}: {error}"
    fcntl.fcntl(channel, fcntl.F_SETFL, flags)
    if problem is not None:
        send(channel, {"problem": problem})
    return problem is None


def preload(engine: str) -> None:
    """Import what `engine` needs, 4-7 s of CPU for a fresh process, and keep it out of collections of garbage.

    Raises `ImportError` where it cannot run.
    """
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # numpy's OpenBLAS starts its thread pool on import; nothing here computes with numpy.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    info = engine_info(engine)
    optional = [name for name in info.preload_if_installed if find_spec(re.split("[.:]", name)[0]) is not None]
    for name in (*info.preload, info.engine.partition(":")[0], "pytest_llem.worker.cycle", *optional):
        module, _, attribute = name.partition(":")
        imported = importlib.import_module(module)
        if attribute:
            getattr(imported, attribute)
    # 400,000 objects of modules, which stay: a child's collections would copy them, 0.3 s each, also within windows.
    gc.freeze()


def unsafe_to_fork() -> str | None:
    """Why a fork is not safe, or `None`: another thread may hold a lock, and a CUDA context does not survive it."""
    tasks = Path("/proc/self/task")
    threads = len(list(tasks.iterdir())) if tasks.is_dir() else 1
    if threads != 1:
        return f"the imports started {threads - 1} thread(s)"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "the imports initialised CUDA"
    return None


def _end_of_parent() -> list[int]:
    """A descriptor that is readable once the parent has ended: its other children may hold the socket, too."""
    with contextlib.suppress(AttributeError, OSError):  # before Linux 5.3
        return [os.pidfd_open(os.getppid())]
    return []


def _wait(pid: int, channel: socket.socket, parent: list[int], wake_read: int) -> bool:
    """Wait for the child and report its status; false when the caller went away, and all was killed."""
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            break
        readable, _, _ = select.select([channel.fileno(), wake_read, *parent], [], [], 5.0)
        if wake_read in readable:
            os.read(wake_read, 4096)
        if _is_closed(channel, parent):
            end_descendants(KILLED_S)
            return False
    rest_s = time.monotonic() + REST_S
    while _has_children() and time.monotonic() < rest_s and not _is_closed(channel, parent):
        time.sleep(0.01)
    end_descendants(KILLED_S)
    with contextlib.suppress(ConnectionError):
        send(channel, {"status": status})
    return True


def _is_closed(channel: socket.socket, parent: list[int]) -> bool:
    if select.select(parent, [], [], 0)[0]:
        return True
    try:
        return not channel.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except ConnectionError:  # closed before it had read all
        return True


def _has_children() -> bool:
    """Whether a child is left; those that have ended are reaped."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def kill_group(pid: int, number: int = signal.SIGKILL) -> None:
    """Signal a process group; a group that is gone is no error."""
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def _child(request: dict[str, Any], descriptors: list[int], server: int, *, new_interpreter: bool) -> None:
    code = 70
    try:
        os.setsid()
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != server:
            return
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        log, *others = descriptors
        os.dup2(log, 1)
        os.dup2(log, 2)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        for inherited in others:
            os.set_inheritable(inherited, True)
        os.environ.update(request["environment"])
        if new_interpreter:
            # Python ignores these two, and a program inherits that.
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            flags = ["-P"] if getattr(sys.flags, "safe_path", False) else []
            os.execv(sys.executable, [sys.executable, *flags, "-m", *_program(request, others)])
        if "check" in request:
            code = _check(request["check"])
            return
        if request.get("resident"):
            with socket.socket(fileno=others[0]) as control:
                control.set_inheritable(False)
                code = serve(control, start_method="forkserver", isolation=request["isolation"])
            return
        job_dir = JobDir(Path(request["job_dir"]))
        mirror = bool(os.environ.get("LLEM_EVENT_PREFIX"))
        code = run_job(job_dir, job_dir, start_method="forkserver", isolation=request["isolation"], mirror=mirror)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        # The server's own exit handlers are not the child's to run.
        os._exit(code)


def _program(request: dict[str, Any], descriptors: list[int]) -> list[str]:
    """The module that serves a request in an interpreter of its own, and its arguments."""
    if "check" in request:
        return [check_settings.__module__, *request["check"]]
    work = f"--resident={descriptors[0]}" if request.get("resident") else request["job_dir"]
    return ["pytest_llem.worker", "--start-method=spawn", f"--isolation={request['isolation']}", work]


def _check(arguments: list[str]) -> int:
    try:
        return check_settings(arguments)
    except Exception:  # noqa: BLE001  whatever an engine raises is for the log, which nothing else would reach
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


if __name__ == "__main__":
    with contextlib.suppress(ConnectionError):
        main(int(sys.argv[1]), *sys.argv[2:3])
    # Taking torch down takes a second, and nothing is left to do.
    os._exit(0)
