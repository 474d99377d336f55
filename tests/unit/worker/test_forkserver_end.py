"""A fork server ends with its parent, whoever else holds its socket."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

PARENT = """
import os, sys, time
from pathlib import Path
from pytest_llem.runners.process import ForkServer
server = ForkServer("builtin", Path(sys.argv[1]), preload=False)
if sys.argv[2] == "busy":
    environment = {"PYTHONPATH": str(Path(sys.argv[1]).parent)}
    server.fork({"check": ["x", "y"], "environment": environment}, Path(sys.argv[1]))
child = os.fork()
if not child:
    time.sleep(60)
    os._exit(0)
print(child, server._process.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("state", ["idle", "busy"])
def test_a_child_of_the_parent_that_lives_on_does_not_keep_it(tmp_path: Path, state: str) -> None:
    """A test's `multiprocessing` fixture outlived a killed pytest, and with it the fork server and its cycle."""
    # The worker imports it, and takes its time.
    (tmp_path / "sitecustomize.py").write_text("import time\ntime.sleep(60)\n")
    command = [sys.executable, "-c", PARENT, str(tmp_path / "log"), state]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child, server = (psutil.Process(int(word)) for word in parent.stdout.readline().split())
        below = server.children(recursive=True)
        parent.kill()
        parent.wait()
        assert child.is_running()
        gone, left = psutil.wait_procs([server, *below], timeout=30.0)
        child.kill()
    assert (len(gone), left) == (1 + (state == "busy"), [])
