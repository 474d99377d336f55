"""Runs a command in the place of its caller: same terminal, same files, its signals, and its exit code.

`metering` calls it between the edges of the measure window. What arrives while the command runs goes to the command and
ends nothing here: whoever presses Ctrl-C wants to see what was measured until then.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pytest_llem.errors import SettingsError

HELD_BACK = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""What people and schedulers send to end a command, or to tell it something."""

FAILED, NOT_EXECUTABLE, NOT_FOUND = 125, 126, 127
"""Exit codes of what starts other commands, as `env`, `nice` and `timeout` have them (GNU coreutils): its own failure,
a command that cannot be run, and one that there is not."""

OF_A_SIGNAL = 128
"""What shells add to the number of the signal that ended a command (POSIX, XCU 2.8.2)."""


@dataclass(frozen=True)
class Exit:
    """How a command ended: its exit code, as a shell states it, and the signal that ended it, if one did."""

    code: int
    signal: str | None = None


class NotRunError(SettingsError):
    """The command cannot be started; `code` is the exit code that says so."""

    def __init__(self, message: str, *, fix: str, code: int) -> None:
        super().__init__(message, fix=fix)
        self.code = code


def require_program(command: Sequence[str]) -> None:
    """Raise `NotRunError` for a command that there is not, before anything is held or measured for it."""
    if shutil.which(command[0]) is not None:
        return
    if os.sep in command[0] and Path(command[0]).exists():
        raise NotRunError(f"{command[0]}: cannot be run", fix="make it executable (chmod +x)", code=NOT_EXECUTABLE)
    fix = "correct its name, or give its path; a shell's own words need `sh -c '...'`"
    raise NotRunError(f"{command[0]}: there is no such command", fix=fix, code=NOT_FOUND)


@contextmanager
def signals_held_back() -> Iterator[set[signal.Signals]]:
    """Keep signals for `run` in the body; yields the mask from before. What nobody took until the end is dropped."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*HELD_BACK, signal.SIGCHLD})
    try:
        yield {signal.Signals(number) for number in before}
    finally:
        while signal.sigtimedwait(HELD_BACK, 0) is not None:
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run(
    command: Sequence[str],
    mask: set[signal.Signals],
    descriptors: Sequence[int],
    poll_s: float,
    poll: Callable[[], object],
) -> Exit:
    """Run a command to its end while `signals_held_back`; `poll` is called every `poll_s` seconds meanwhile.

    It inherits the `descriptors`, so that a lease lasts as long as any process of it. A signal of the terminal has
    reached it already, as one of the terminal's group; what another process sent is passed on.
    """
    try:
        process = subprocess.Popen(  # its own mask, or it could not be interrupted
            command, pass_fds=descriptors, preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        )
    except OSError as problem:
        fix = "give a program for this machine; a script needs its first line (#!)"
        raise NotRunError(f"{command[0]}: {problem.strerror}", fix=fix, code=NOT_EXECUTABLE) from None
    while process.poll() is None:
        received = signal.sigtimedwait((*HELD_BACK, signal.SIGCHLD), poll_s)
        if received is None:
            poll()
        elif received.si_signo != signal.SIGCHLD and received.si_code <= 0:  # from a process (sigaction(2))
            with suppress(ProcessLookupError):
                process.send_signal(received.si_signo)
    if process.returncode >= 0:
        return Exit(process.returncode)
    return Exit(OF_A_SIGNAL - process.returncode, signal.Signals(-process.returncode).name)
