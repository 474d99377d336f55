"""The guard's program: waits for the end of the process that has set GPUs, however that ended, and puts them back.

All that it needs is imported before it says that it is ready: later it may be gone from the disk.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence

from pytest_llem.energy.nvml_devices import nvml
from pytest_llem.errors import DeviceError
from pytest_llem.machine.gpu_settings.change import put_back
from pytest_llem.machine.gpu_settings.guard import READY
from pytest_llem.machine.gpu_settings.record import note_problem

TRIES, PAUSE_S = 10, 1.0
"""Chosen: a driver that recovers, or a zeusd that starts again, takes seconds."""


def main(arguments: Sequence[str]) -> int:
    """Wait for the end of the process that sets, then put back: CHANNEL PID LOCKS UUID..."""
    channel, pid, _, *uuids = arguments
    # Whoever ends the children of pytest, or its process group, must not find it.
    if os.fork():
        os._exit(0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    with nvml(), socket.socket(fileno=int(channel)) as owner:
        _wait_for_end(owner, int(pid))
        for uuid in uuids:
            _put_back(uuid)
    return 0


def _wait_for_end(owner: socket.socket, pid: int) -> None:
    """Until the channel is closed, or the process has ended: another that it forked may hold the channel open."""
    watched = select.poll()  # select() refuses descriptors from 1024 on, which a large pytest passes
    watched.register(owner, select.POLLIN)
    try:
        watched.register(os.pidfd_open(pid), select.POLLIN)
    except ProcessLookupError:
        return
    except (OSError, AttributeError):
        pass  # no such call on old kernels: the channel alone decides
    with contextlib.suppress(OSError):
        owner.sendall(READY)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    watched.poll()


def _put_back(uuid: str) -> None:
    for left in reversed(range(TRIES)):
        try:
            put_back(uuid)
        except (DeviceError, OSError) as problem:
            with contextlib.suppress(DeviceError, OSError):
                note_problem(uuid, str(problem))
            if left:
                time.sleep(PAUSE_S)
        else:
            return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
