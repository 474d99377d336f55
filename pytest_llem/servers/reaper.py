"""`python -m pytest_llem.servers.reaper CONTAINER`: removes a server's container when pytest is gone.

`container.ContainerServer` starts it and holds its standard input open. It must stay apart from `worker.lifeline`: it
needs the Docker client, which may be imported only at the end, because waiting beside a measurement must cost little.
"""

from __future__ import annotations

import os
import signal
import sys


def main(container: str) -> int:
    """Wait for the end of standard input, then remove the container by force."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while os.read(0, 4096):
        pass
    # Only now: a waiting process should take no memory to speak of beside a measurement
    from pytest_llem.containers.orphaned_containers import remove_container

    remove_container(container)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
