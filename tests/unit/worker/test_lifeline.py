"""What a lifeline keeps alive ends with its owner, and with nothing else."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pytest_llem.worker import lifeline
from tests.timed import on_a_clock

pytestmark = on_a_clock

ENDS_S = 120.0
STUBBORN = (
    "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "subprocess.Popen(['sleep', '300'], start_new_session=True); print('ready', flush=True); time.sleep(300)"
)

TIDY = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork():
    os.wait()
else:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(pathlib.Path(sys.argv[1]).touch()))
    print("ready", flush=True)
    time.sleep(300)
"""

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[subprocess.Popen[bytes]] = []

    def begin(*arguments: str) -> subprocess.Popen[bytes]:
        command = lifeline.command("run", *arguments)
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        return started[-1]

    yield begin
    for process in started:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


def ready(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The processes below a lifeline whose program has said that it is ready."""
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return psutil.Process(process.pid).children(recursive=True)


@pytest.mark.parametrize(
    ("code", "expected"), [("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 137)]
)
def test_the_exit_code_of_the_program_is_passed_on(start: Start, code: str, expected: int) -> None:
    assert start("-c", code).wait(ENDS_S) == expected


def test_everything_ends_with_standard_input(start: Start) -> None:
    """Also a program that ignores SIGTERM, and what it started in a session of its own."""
    process = start("-c", STUBBORN)
    below = ready(process)
    assert len(below) == 2
    assert process.stdin is not None

    process.stdin.close()

    assert process.wait(ENDS_S) == lifeline.LOST_OWNER_EXIT
    assert psutil.wait_procs(below, ENDS_S)[1] == []


def test_what_the_program_started_may_tidy_up_as_well(start: Start, tmp_path: Path) -> None:
    """An engine's own processes are in the group of the worker, and end in order if they are asked to."""
    process = start("-c", TIDY, str(tmp_path / "tidied"))
    ready(process)
    assert process.stdin is not None

    process.stdin.close()

    assert process.wait(ENDS_S) == lifeline.LOST_OWNER_EXIT
    assert (tmp_path / "tidied").exists()


def test_input_is_no_reason_to_end(start: Start) -> None:
    """`docker attach` and a key must not end a measurement."""
    process = start("-c", "import time; print('ready', flush=True); time.sleep(300)")
    below = ready(process)
    assert process.stdin is not None
    process.stdin.write(b"0\n")
    process.stdin.flush()

    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    assert all(child.is_running() for child in below)


def test_sigterm_reaches_the_program(start: Start) -> None:
    """`docker stop` ends a worker as it would without a lifeline."""
    process = start("-c", "import time; print('ready', flush=True); time.sleep(300)")
    ready(process)

    process.terminate()

    assert process.wait(ENDS_S) == 128 + signal.SIGTERM


def test_without_a_program_it_waits(start: Start) -> None:
    process = start()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    assert process.stdin is not None

    process.stdin.close()

    assert process.wait(ENDS_S) == lifeline.LOST_OWNER_EXIT


def test_a_served_program_that_is_not_there_is_reported() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = lifeline.command("serve", str(theirs.fileno()), "", "no-such-program-of-llem")
        ended = subprocess.run(command, pass_fds=(theirs.fileno(),), check=False)

        assert ended.returncode == lifeline.SHELL_NOT_FOUND
        assert json.loads(ours.recv(4096)) == {"failed": "no-such-program-of-llem: No such file or directory"}


def test_a_sweep_finds_marked_processes_wherever_they_went(tmp_path: Path) -> None:
    """Also a grandchild in a session of its own, whose parent is gone."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    mark = "LLEM_LIFELINE=unit-test-of-the-lifeline"
    code = (
        "import os, subprocess, sys, time\n"
        "keep = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE)\n"
        "os.environ['LLEM_LIFELINE'] = 'unit-test-of-the-lifeline'\n"
        'inner = \'import subprocess; subprocess.Popen(["sleep", "300"], start_new_session=True)\'\n'
        "subprocess.run([sys.executable, '-c', inner])\n"
        "subprocess.Popen(['sleep', '300'])\n"
        "print('ready', flush=True)\n"
        "time.sleep(300)\n"
    )
    command = lifeline.command("sweep", mark, str(scratch))
    owner = subprocess.Popen([sys.executable, "-c", code, *command], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"ready\n"
    assert len(lifeline.processes_with(mark)) == 2

    os.kill(owner.pid, signal.SIGKILL)
    owner.communicate()

    deadline = time.monotonic() + 120
    while (lifeline.processes_with(mark) or scratch.exists()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert lifeline.processes_with(mark) == []
    assert not scratch.exists()
