"""One kill of each process, at the same moments each time; `python -m tests.hostile.kills` makes many."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile.kills import IMPORTING, kill_one


@pytest.mark.parametrize(("victim", "results"), [("worker", 0), ("fork server", 1), ("pytest", 2), (IMPORTING, 0)])
def test_a_kill_loses_nothing_and_leaves_nothing(tmp_path: Path, victim: str, results: int) -> None:
    """A fork server once outlived its pytest for seconds, and what had left its session outlived all of them."""
    done = kill_one(tmp_path, victim, results, 0.4)
    assert (done.lost, done.broken, done.orphans, done.green_lie) == (0, 0, 0, False)
    assert done.measured >= results
    # On a busy machine everything takes longer, as coming so far did.
    assert done.seconds < max(2.0, done.after_s)
