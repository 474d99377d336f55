"""The guard of a lease: starts the process that puts GPUs back when the pytest that has set them is gone.

`change` starts one before the first change and ends it once all is back; `guarding` is its program. It holds copies of
the lease's locks, so that nobody gets a GPU before that is as it was; it leads a session of its own, is nobody's child,
ignores signals, and bears none of the marks by which the processes of a worker are found and killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence

from pytest_llem.errors import DeviceSettingsError
from pytest_llem.worker.lifeline import unmarked

MODULE = "pytest_llem.machine.gpu_settings.guarding"
SAFE_PATH = ("-P",) if sys.version_info >= (3, 11) else ()

START_LIMIT_S = 60.0
"""Chosen: an interpreter starts in a tenth of a second, on a machine under load in seconds."""

END_LIMIT_S = 10.0
"""Chosen: a guard that finds everything back ends at once; one that does not keeps the lease itself."""

READY = b"ready"


class Guard:
    """The guard's end in the process that sets; `DeviceSettingsError` where none can be started."""

    def __init__(self, uuids: Sequence[str], descriptors: Sequence[int]) -> None:
        self._channel, theirs = socket.socketpair()
        locks = ",".join(map(str, descriptors))
        with theirs:
            arguments = [str(theirs.fileno()), str(os.getpid()), locks, *uuids]
            process = subprocess.Popen(
                [sys.executable, *SAFE_PATH, "-m", MODULE, *arguments],
                env=unmarked(os.environ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(theirs.fileno(), *descriptors),
                start_new_session=True,
            )
        self._channel.settimeout(START_LIMIT_S)
        answer = b""
        with contextlib.suppress(OSError):
            answer = self._channel.recv(len(READY))
        if answer != READY:
            said: list[str] = []
            # It leads a group, and what it has forked may be the one that hangs, in a driver even beyond a signal.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                said = process.communicate(timeout=END_LIMIT_S)[1].decode(errors="replace").strip().splitlines()
            self._channel.close()
            raise DeviceSettingsError(
                f"no guard for the settings of {', '.join(uuids)}: {said[-1] if said else 'it did not start'}",
                fix=f"run {sys.executable} -m {MODULE} by hand; nothing was changed",
            )
        assert process.stderr is not None
        process.stderr.close()
        process.wait()

    def end(self) -> None:
        """Let it look once more whether all is back, and wait for its end."""
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_WR)
            self._channel.settimeout(END_LIMIT_S)
            self._channel.recv(1)
        self._channel.close()
