"""Setting a pytest process up for studies."""

from __future__ import annotations

import contextlib
import gc
import signal
from types import FrameType

import pytest

from pytest_llem.errors import LlemError
from pytest_llem.session.collection import Collected, take_in_studies
from pytest_llem.session.isolation import refuse_combinations
from pytest_llem.session.options import run_options
from pytest_llem.session.session import LlemSession
from pytest_llem.session.stash import CHECKED, COLLECTED, REPORTING, RUN, SESSION
from pytest_llem.session.xdist.controller import distribute
from pytest_llem.session.xdist.crashes import ReportSerialisation
from pytest_llem.session.xdist.scheduling import refused_in_worker


def begin(config: pytest.Config) -> LlemSession:
    """Set up this process for studies: arguments, reports, signals. Called once, when the first study is named.

    A worker of xdist gets the settings and the studies that the controller has loaded and checked. The controller of
    workers that meet their first study while they collect, by a marker, begins when they have collected.
    """
    refused_in_worker(config)
    settled = getattr(config, "workerinput", {}).get("llem_settled")
    session = LlemSession.resettled(config, settled) if settled is not None else config.stash.get(CHECKED, None)
    session = session or checked(config)
    take_in_studies(config)
    config.stash[COLLECTED] = Collected()
    config.pluginmanager.register(config.stash[COLLECTED], "llem-collected")
    # Registered before other plugins' cleanups, and so the last: what was left out of garbage collection comes back.
    config.add_cleanup(gc.unfreeze)
    if config.stash[RUN].in_controller:
        from pytest_llem.session.reporting import Reporting

        if not session.options.collect_only and not config.option.xmlpath:
            config.option.xmlpath = str(session.run_dir / "junit.xml")
        config.stash[REPORTING] = Reporting(config, session)
        config.pluginmanager.register(config.stash[REPORTING], "llem-reporting")
        distribute(config, session)
    else:
        config.pluginmanager.register(ReportSerialisation(), "llem-carrying")
    if settled is None:
        refuse_combinations(config, session)
    config.stash[SESSION] = session
    _interrupt_on_sigterm()
    return session


def checked(config: pytest.Config) -> LlemSession:
    """A session whose options make sense; a usage error otherwise."""
    session = LlemSession(config, config.stash[RUN], run_options(config))
    try:
        if session.sharding is not None:
            _ = session.sharding.recorded
    except LlemError as error:
        raise pytest.UsageError(f"--llem-shard-times: {error}") from None
    try:
        _ = session.baseline
    except LlemError as error:
        raise pytest.UsageError(f"--llem-baseline={session.options.baseline}: {error}") from None
    return session


def current(config: pytest.Config) -> LlemSession:
    """This process's session, begun when a test is the first to need one."""
    session = config.stash.get(SESSION, None)
    return session if session is not None else begin(config)


def _interrupt_on_sigterm() -> None:
    """Let SIGTERM end the run as Ctrl-C does: workers killed, results kept, exit code told."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with contextlib.suppress(ValueError):  # not in the main thread
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, interrupt)
