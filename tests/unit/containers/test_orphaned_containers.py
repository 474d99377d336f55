"""Whose container is it, and is that process still there?"""

from __future__ import annotations

import subprocess
import sys

from pytest_llem.containers.orphaned_containers import SessionIdentity, owner_is_dead
from pytest_llem.machine.processes import start_ticks


def test_a_live_owner_is_alive() -> None:
    labels = SessionIdentity().labels("run")

    assert owner_is_dead(labels) is False
    assert labels["llem.run"] == "run"


def test_a_reused_pid_is_not_the_owner() -> None:
    labels = {**SessionIdentity().labels("run"), "llem.pid-start": "1"}

    assert owner_is_dead(labels) is True


def test_a_killed_owner_is_dead_even_before_it_is_waited_for() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    ticks = start_ticks(process.pid)
    labels = {**SessionIdentity().labels("run"), "llem.pid": str(process.pid), "llem.pid-start": str(ticks)}
    assert owner_is_dead(labels) is False

    process.kill()
    while start_ticks(process.pid) is not None:
        pass

    assert owner_is_dead(labels) is True
    process.wait()


def test_what_cannot_be_known_is_unknown() -> None:
    labels = SessionIdentity().labels("run")

    assert owner_is_dead({}) is None
    assert owner_is_dead({**labels, "llem.pid-namespace": "pid:[1]"}) is None
    assert owner_is_dead({**labels, "llem.boot": "another", "llem.host": "another"}) is None
    assert owner_is_dead({**labels, "llem.boot": "another"}) is True, "this machine has been booted again since"
