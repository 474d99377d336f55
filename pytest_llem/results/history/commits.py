"""What commits and clocks say against a history: rewritten history, runs out of order, wrong clocks, unsaved changes.

`llem history check` prints it. Nothing here changes what is read: runs stay in the order of `HistoryRun.at`.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path

from pytest_llem.errors import StoreError
from pytest_llem.results.history.files import History
from pytest_llem.results.history.record import HistoryRun, utc
from pytest_llem.results.terminal import duration_text

TOLERANCE = timedelta(minutes=1)
"""Chosen: clocks that are kept right over a network differ by far less, and those that nobody sets by more."""
NAMED = 3
"""Runs that a sentence names. Chosen: enough to begin with, and it stays a sentence."""
TIMEOUT_S = 60
"""Chosen: a walk over a million commits ends sooner."""


def problems(history: History, repository: Path | None = None, now: datetime | None = None) -> list[str]:
    """Why the commits or times of a history may mislead: a sentence for each kind, with the first runs concerned.

    `repository` is a clone of what was measured, by default the one of the working directory if it has any of the
    commits; without it only times are looked at. `now` is the present time by default. Raises `StoreError` where
    `repository` is none.
    """
    runs = list({entry.run.run_id: entry.run for entry in history.entries}.values())
    clone = Clone(repository or Path.cwd(), [run.commit for run in runs if run.commit])
    if repository is not None and not clone.found:
        raise StoreError(f"{repository}: no git repository", fix="name a clone of the repository that was measured")
    return [
        *_wrong_clocks(runs, now or datetime.now(timezone.utc)),
        *_out_of_order(runs, clone),
        *(_gone(runs, clone) if repository is not None or clone.known else ()),
        *_dirty(runs),
    ]


class Clone:
    """What a clone knows of commits; nothing where there is none."""

    def __init__(self, directory: Path, commits: Iterable[str]) -> None:
        self.directory = directory
        self.found = self._git("rev-parse", "--git-dir") is not None
        # Never as options: anybody may have written the history.
        asked = sorted({commit for commit in commits if re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", commit)})
        told = (self._git("cat-file", "--batch-check", given=asked) or "").splitlines() if self.found else []
        self.known = {name for name, _, rest in (line.partition(" ") for line in told) if rest.startswith("commit ")}

    def unreachable(self) -> set[str]:
        """Commits that are here, and that neither a branch nor a tag nor `HEAD` has in its history."""
        walked = self._git("rev-list", "--stdin", "--not", "--all", given=sorted(self.known)) if self.known else None
        return set((walked or "").splitlines()) & self.known

    def is_shallow(self) -> bool:
        """Whether only the newest part of the history was fetched."""
        return self._git("rev-parse", "--is-shallow-repository") == "true"

    def is_ancestor(self, commit: str, of: str) -> bool | None:
        """Whether a commit is in the history of another; `None` where one of them is not known."""
        if not {commit, of} <= self.known:
            return None
        return self._git("merge-base", "--is-ancestor", commit, of) is not None

    def _git(self, *arguments: str, given: Sequence[str] = ()) -> str | None:
        """What git prints, `None` if it fails. It fetches nothing, also in a partial clone."""
        try:
            done = subprocess.run(
                ["git", "-C", str(self.directory), *arguments],
                input="".join(f"{line}\n" for line in given),
                env={**os.environ, "GIT_NO_LAZY_FETCH": "1"},
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None


def _wrong_clocks(runs: Sequence[HistoryRun], now: datetime) -> Iterator[str]:
    early = [(run, _moment(run.committed_at) - _moment(run.started_at)) for run in runs if run.committed_at]
    named = [f"{_named(run)} by {_duration(ahead)}" for run, ahead in _beyond(early)]
    if named:
        yield (
            f"{_count(named)} began before the commit that was measured: {_first(named)}; a clock is wrong, and such a "
            "run stands at the time of its commit"
        )
    late = [(run, _moment(run.started_at) - now) for run in runs]
    named = [f"{_named(run)} by {_duration(ahead)}" for run, ahead in _beyond(late)]
    if named:
        yield (
            f"{_count(named)} began in the future: {_first(named)}; a clock is wrong, and such a run stands after all "
            "others until then"
        )


def _out_of_order(runs: Sequence[HistoryRun], clone: Clone) -> Iterator[str]:
    """By the commits' times; where a clone knows both, only if one is an ancestor of the other."""
    named: list[str] = []
    newest: HistoryRun | None = None
    for run in runs:
        if run.commit is None or run.committed_at is None:
            continue
        if newest is None or newest.commit is None or utc(run.committed_at) >= utc(newest.committed_at or ""):
            newest = run
        elif run.commit != newest.commit and clone.is_ancestor(run.commit, newest.commit) is not False:
            named.append(f"{_named(run)} after {_named(newest)}")
    if named:
        yield (
            f"{_count(named)} measured an older commit than a run before: {_first(named)}; an older commit was "
            "measured again, or a clock is wrong; runs stand in the order of their starts"
        )


def _gone(runs: Sequence[HistoryRun], clone: Clone) -> Iterator[str]:
    missing = [_named(run) for run in runs if run.commit and run.commit not in clone.known]
    if missing:
        why = "it is a shallow clone" if clone.is_shallow() else "history was rewritten, or it is another repository"
        yield (
            f"{_count(missing)} measured commits that {clone.directory} does not have: {_first(missing)}; {why}; what "
            "they measured still counts"
        )
    unreachable = clone.unreachable()
    left = [_named(run) for run in runs if run.commit in unreachable]
    if left:
        yield (
            f"{_count(left)} measured commits that no branch or tag has any more: {_first(left)}; history was "
            "rewritten; what they measured still counts"
        )


def _dirty(runs: Sequence[HistoryRun]) -> Iterator[str]:
    named = [_named(run) for run in runs if run.dirty]
    if named:
        yield f"{_count(named)} measured changes that no commit has: {_first(named)}"


def _beyond(ahead: Sequence[tuple[HistoryRun, timedelta]]) -> list[tuple[HistoryRun, timedelta]]:
    return [(run, difference) for run, difference in ahead if difference > TOLERANCE]


def _moment(text: str | None) -> datetime:
    return datetime.fromisoformat(utc(text or ""))


def _duration(difference: timedelta) -> str:
    return duration_text(difference.total_seconds())


def _named(run: HistoryRun) -> str:
    """`20261101T000000Z-a (4f2a91c, node-1)`."""
    facts = [run.commit[:7] if run.commit else None, run.hostname]
    return f"{run.run_id} ({', '.join(fact for fact in facts if fact)})" if any(facts) else run.run_id


def _count(named: Sequence[str]) -> str:
    return f"{len(named)} run{'s' * (len(named) > 1)}"


def _first(named: Sequence[str]) -> str:
    more = [f"{len(named) - NAMED} more"] if len(named) > NAMED else []
    return ", ".join([*named[:NAMED], *more])
