"""Which ways to spread tests, xdist's and those of other plugins, can be used with a study, and which are refused.

`plugin.py` calls it in every controller, so it must import little; `start` and `reporting` call it too. A mode may be
allowed only where ids and the studies' order survive it.
"""

from __future__ import annotations

from typing import Any

import pytest

from pytest_llem.machine.lease_files import LEASE_DIR_VARIABLE, leases_are_off
from pytest_llem.session.run import run_identity

REFUSED_MODES = {
    "loadgroup": (
        "it changes the ids of grouped items, which reports and later runs know them by, and measures a group on one "
        "device while others idle"
    ),
    "loadscope": "it gives a whole study to one worker, so the other devices idle, and runs a crashing item again",
    "loadfile": "it gives a whole study to one worker, so the other devices idle, and runs a crashing item again",
    "worksteal": "it gives each worker a block of the study at first, so a device's cycles leave the study's order",
    "each": "it runs every item once per worker, and a cycle is measured once per run",
}

REFUSED_OPTIONS = {"forked": "pytest-forked", "isolate": "pytest-isolate"}
"""Options that run each item in a process that is thrown away, with what it started and knew of the run."""


def is_distributed(config: pytest.Config) -> bool:
    """Whether this process hands items to xdist's workers."""
    return config.getoption("dist", "no") != "no" and bool(config.getoption("tx", ())) and not config.option.collectonly


def worker_count(config: pytest.Config) -> int:
    """How many workers of xdist there will be: each `--tx` may stand for several (`4*popen`)."""
    counts = [spec.partition("*") for spec in config.getoption("tx", ())]
    return sum(int(count) if star and count.isdigit() else 1 for count, star, _ in counts)


def scheduling_problem(config: pytest.Config) -> str | None:
    """Why the items of a study cannot be spread as the command line asks; `None` where they can."""
    for option, plugin in REFUSED_OPTIONS.items():
        if config.getoption(option, False):
            return (
                f"--{option} of {plugin} cannot be used with a study: an item's process ends with all that it knows\n"
                f"fix: leave --{option} out: every cycle is measured in a process of its own anyway"
            )
    if not is_distributed(config):
        return None
    mode = config.getoption("dist")
    if mode in REFUSED_MODES:
        fix = "use --dist=load, which -n alone chooses"
        return f"--dist={mode} cannot be used with a study: {REFUSED_MODES[mode]}\nfix: {fix}"
    elsewhere = [spec for spec in config.getoption("tx") if not _is_local(spec)]
    if elsewhere:
        return (
            f"--tx={elsewhere[0]} cannot be used with a study: devices are leased, and results kept, on this machine\n"
            "fix: use workers of this machine (-n), or spread the study over machines with --llem-runner=ray"
        )
    if leases_are_off() and worker_count(config) > 1:
        return (
            f"-n with several workers cannot be used with {LEASE_DIR_VARIABLE}=none: without leases they would measure "
            f"on the same device\nfix: leave -n out, or let {LEASE_DIR_VARIABLE} name a directory"
        )
    return None


def _is_local(spec: str) -> bool:
    """Whether an execnet specification (`popen`, `2*popen//python=...`) starts a process of this machine."""
    parts = spec.rpartition("*")[2].split("//")
    return "popen" in parts and not any(part.startswith(("ssh=", "socket=", "vagrant_ssh=", "via=")) for part in parts)


def choose_scheduling(config: pytest.Config) -> None:
    """Hand items out one by one, unless the user chose otherwise. Raises `pytest.UsageError` for what is refused."""
    reason = scheduling_problem(config)
    if reason is not None:
        raise pytest.UsageError(reason)
    if is_distributed(config) and config.option.maxschedchunk is None:
        config.option.maxschedchunk = 1
        scheduler: Any = getattr(config.pluginmanager.get_plugin("dsession"), "sched", None)
        if scheduler is not None and scheduler.maxschedchunk is None:
            # A worker met the first study when the scheduler existed but had not started.
            scheduler.maxschedchunk = 1


def refuse_in_worker(config: pytest.Config) -> None:
    """Refuse a worker's first study where scheduling is refused; the run's lock file lets the controller report it."""
    worker_input = getattr(config, "workerinput", None)
    if worker_input is None:
        return
    run_identity(config).lock.touch()
    if worker_input["llem_refusal"]:
        raise pytest.Collector.CollectError(worker_input["llem_refusal"])
