"""What is wrong with the commits and the clocks of a history: each has an outcome, and is said."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest

from pytest_llem.errors import StoreError
from pytest_llem.results.history.commits import problems
from pytest_llem.results.history.files import History
from pytest_llem.results.history.record import HistoryRun
from tests.unit.results.history.test_history_files import entry

NOW = datetime(2026, 12, 1, tzinfo=timezone.utc)
A, B = "a" * 40, "b" * 40


def run(name: str, started: str, commit: str | None = None, committed: str | None = None) -> HistoryRun:
    return HistoryRun(
        name, "s", f"2026-11-{started}:00Z", commit, committed and f"2026-11-{committed}:00Z", hostname="h"
    )


def said(*runs: HistoryRun, repository: Path | None = None) -> list[str]:
    entries = tuple(entry("1", run=run) for run in sorted(runs, key=lambda run: run.at))
    return problems(History("h", entries), repository, NOW)


class Repository:
    """A real one, in which commits are made."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self.git("init", "-q", "-b", "main")

    def git(self, *arguments: str) -> str:
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        command = ["git", "-C", str(self.path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def commit(self, message: str) -> str:
        self.git("commit", "-q", "--allow-empty", "-m", message)
        return self.git("rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository")


def test_runs_in_order_have_nothing_against_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where no repository is near, and where a run was outside one."""
    monkeypatch.chdir(tmp_path)
    first = run("r1", "01T10:00", A, "01T09:00")
    assert said(first, replace(first, run_id="r1b"), run("r2", "02T10:00", B, "02T09:00"), run("r3", "03T10:00")) == []


def test_a_clock_that_is_wrong_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run cannot begin before its commit was made; it stands at that time, and not in the past."""
    monkeypatch.chdir(tmp_path)
    early, late = run("r1", "01T10:00", A, "01T13:00"), run("r2", "30T23:59", B, "02T13:00")
    before, future = said(early, replace(late, started_at="2027-11-30T00:00:00Z"))
    assert before == (
        "1 run began before the commit that was measured: r1 (aaaaaaa, h) by 3.0 h; a clock is wrong, and such a run "
        "stands at the time of its commit"
    )
    assert "1 run began in the future: r2 (bbbbbbb, h) by 364.0 days" in future


def test_an_older_commit_after_a_newer_one_is_said(repository: Repository) -> None:
    """The clock of one of two runners, or somebody who measured an old commit again: a step there is no change."""
    old, new = repository.commit("old"), repository.commit("new")
    runs = (run("r1", "03T10:00", new, "02T10:00"), run("r2", "04T10:00", old, "01T10:00"))
    assert said(*runs, repository=repository.path) == [
        f"1 run measured an older commit than a run before: r2 ({old[:7]}, h) after r1 ({new[:7]}, h); an older commit "
        "was measured again, or a clock is wrong; runs stand in the order of their starts"
    ]


def test_commits_of_two_branches_are_in_no_order(repository: Repository) -> None:
    """A branch that was begun earlier and measured later is no mistake."""
    repository.commit("base")
    main = repository.commit("main")
    repository.git("checkout", "-q", "-b", "branch", "HEAD~1")
    branch = repository.commit("branch")
    runs = (run("r1", "03T10:00", main, "02T10:00"), run("r2", "04T10:00", branch, "01T10:00"))
    assert said(*runs, repository=repository.path) == []


def test_rewritten_history_is_said(repository: Repository, tmp_path: Path) -> None:
    """After a force-push a commit may still lie here, or be gone for everybody who clones."""
    repository.commit("base")
    dropped = repository.commit("dropped")
    repository.git("reset", "-q", "--hard", "HEAD~1")
    kept = repository.commit("kept")
    runs = (run("r1", "01T10:00", dropped, "01T09:00"), run("r2", "02T10:00", kept, "02T09:00"))
    (here,) = said(*runs, repository=repository.path)
    assert here.startswith(f"1 run measured commits that no branch or tag has any more: r1 ({dropped[:7]}, h); history")
    repository.git("clone", "-q", "--no-local", str(repository.path), str(tmp_path / "clone"))
    (cloned,) = said(*runs, repository=tmp_path / "clone")
    assert f"does not have: r1 ({dropped[:7]}, h); history was rewritten" in cloned
    repository.git("clone", "-q", "--depth=1", f"file://{repository.path}", str(tmp_path / "shallow"))
    (shallow,) = said(*runs, repository=tmp_path / "shallow")
    assert "it is a shallow clone" in shallow


def test_somebody_in_another_repository_hears_nothing_of_it(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The working directory is asked only if it has one of the commits; what is named is meant."""
    repository.commit("another")
    monkeypatch.chdir(repository.path)
    one = run("r1", "01T10:00", A, "01T09:00")
    assert said(one) == []
    assert len(said(one, repository=repository.path)) == 1


def test_what_is_named_must_be_a_repository(tmp_path: Path) -> None:
    """A wrong path must not read as a history without problems."""
    with pytest.raises(StoreError, match="no git repository"):
        said(run("r1", "01T10:00", A), repository=tmp_path / "nothing")


def test_a_commit_is_never_an_option_of_git(repository: Repository) -> None:
    """A history comes from wherever its branch comes from."""
    repository.commit("base")
    said(run("r1", "01T10:00", f"--output={repository.path / 'written'}", "01T09:00"), repository=repository.path)
    assert not (repository.path / "written").exists()


def test_unsaved_changes_and_many_runs_are_said_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a run with changes measured is in no commit, and nobody reads two hundred names."""
    monkeypatch.chdir(tmp_path)
    runs = [replace(run(f"r{number}", f"0{number}T10:00"), dirty=True, hostname=None) for number in range(1, 6)]
    assert said(*runs) == ["5 runs measured changes that no commit has: r1, r2, r3, 2 more"]
