"""What the process that reports adds for studies: scheduling, the count of items, and what crashed workers leave."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest

from pytest_llem.distribution.scheduling import is_distributed, settle_scheduling
from pytest_llem.distribution.tally import Tally
from pytest_llem.stash import REPORTING, TALLY

if TYPE_CHECKING:
    from pytest_llem.session import LlemSession


def distribute(config: pytest.Config, session: LlemSession) -> None:
    """Set up the process that reports, before its items run. `pytest.UsageError` for a scheduling that does not fit."""
    settle_scheduling(config)
    config.stash[TALLY] = Tally()
    config.pluginmanager.register(config.stash[TALLY], "llem-tally")
    if is_distributed(config):
        from pytest_llem.distribution.crashes import Crashes
        from pytest_llem.distribution.workers import Header

        config.pluginmanager.register(Crashes(config, session), "llem-crashes")
        config.pluginmanager.register(Header(config, session), "llem-workers")


def begin_late(config: pytest.Config, ids: Sequence[str]) -> None:
    """Begin in xdist's controller, whose loop runs already, for studies that its workers met while they collected."""
    from pytest_llem.session import begin

    begin(config)
    config.stash[TALLY].selected(ids)
    config.stash[REPORTING].start_live()
