"""What the plugin keeps in pytest's `config.stash`, and which run this process belongs to."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_llem.session.collection import Collected
    from pytest_llem.session.reporting import Reporting
    from pytest_llem.session.session import LlemSession
    from pytest_llem.session.xdist.controller import ItemCount


@dataclass(frozen=True)
class RunIdentity:
    """The run that this pytest process belongs to: made once, in the controller, and passed to xdist's workers."""

    id: str
    worker: str | None

    @property
    def in_controller(self) -> bool:
        """Whether this process reports; an xdist worker does not."""
        return self.worker is None

    @property
    def lock(self) -> Path:
        """The file that processes of the run lock to make its directory; there once a worker has met a study."""
        return Path(tempfile.gettempdir()) / f"llem-{self.id}.lock"


RUN: pytest.StashKey[RunIdentity] = pytest.StashKey()
CHECKED: pytest.StashKey[LlemSession] = pytest.StashKey()
"""A session that was made before its process was set up."""
SESSION: pytest.StashKey[LlemSession] = pytest.StashKey()
COLLECTED: pytest.StashKey[Collected] = pytest.StashKey()
REPORTING: pytest.StashKey[Reporting] = pytest.StashKey()
TALLY: pytest.StashKey[ItemCount] = pytest.StashKey()
