"""What the plugin keeps in pytest's `config.stash`, and which run this process belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_llem.collection import Collected
    from pytest_llem.reporting import Reporting
    from pytest_llem.session import LlemSession


@dataclass(frozen=True)
class RunIdentity:
    """The run that this pytest process belongs to: made once, in the controller, and passed to xdist's workers."""

    id: str
    worker: str | None

    @property
    def in_controller(self) -> bool:
        """Whether this process reports; an xdist worker does not."""
        return self.worker is None


RUN: pytest.StashKey[RunIdentity] = pytest.StashKey()
SESSION: pytest.StashKey[LlemSession] = pytest.StashKey()
COLLECTED: pytest.StashKey[Collected] = pytest.StashKey()
REPORTING: pytest.StashKey[Reporting] = pytest.StashKey()
