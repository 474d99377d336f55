"""Git: which commits are searched, and a work tree that leaves the user's alone."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from pytest_llem.bisect.commits import Repository
from pytest_llem.errors import SettingsError
from tests.planted_commits import repository


def git(at: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    done = subprocess.run(["git", "-C", str(at), *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Commits 0 to 4, a branch `side` from commit 1 that was merged after commit 4, and one, `apart`, that was not."""
    path = repository(tmp_path_factory.mktemp("merged") / "r", [0, 1, 2, 3, 4])
    git(path, "checkout", "-q", "-b", "side", "HEAD~3")
    git(path, "commit", "-q", "--allow-empty", "-m", "on the side")
    git(path, "checkout", "-q", "-b", "apart", "main~1")
    git(path, "commit", "-q", "--allow-empty", "-m", "apart")
    git(path, "checkout", "-q", "main")
    git(path, "merge", "-q", "-m", "merge side", "side")
    return path


def test_a_merge_is_one_commit_of_the_line(merged: Path) -> None:
    """In topological order commits of a branch come after the culprit without having it: bad, then good again."""
    found = Repository(merged).between("main~4..main")
    assert [commit.subject for commit in found] == ["commit 1", "commit 2", "commit 3", "commit 4", "merge side"]
    assert len(found[-1].parents) == 2


@pytest.mark.parametrize(
    ("named", "problem"),
    [
        ("main", "no range of commits"),
        ("main...side", "no range of commits"),
        ("main~1..nowhere", "no commit 'nowhere'"),
        ("--all..main", "no commit '--all'"),
        ("main..main", "are the same commit"),
        ("main..main~2", "write main~2..main"),
        ("apart..main", r"git merge-base apart main\)\.\.main"),
        ("side..main", "on a branch that was merged into main"),
    ],
)
def test_what_is_no_range_is_refused_with_what_to_write(merged: Path, named: str, problem: str) -> None:
    with pytest.raises(SettingsError) as raised:
        Repository(merged).between(named)
    assert raised.match(problem)


def test_the_line_before_a_merged_branch_is_named(merged: Path) -> None:
    """`v1.2..main`, where the release was cut on a branch: the fix is a range that works."""
    with pytest.raises(SettingsError) as raised:
        Repository(merged).between("side..main")
    fix = str(raised.value.fix).rpartition(" ")[2]
    assert Repository(merged).between(fix)[0].subject == "commit 1"


def test_a_shallow_clone_is_what_lacks_the_commit(merged: Path, tmp_path: Path) -> None:
    """Checkouts in CI have a single commit."""
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{merged}", "shallow")
    with pytest.raises(SettingsError, match="git fetch --unshallow"):
        Repository(tmp_path / "shallow").between("HEAD~3..HEAD")


def test_the_work_tree_has_the_commit_and_nothing_of_the_one_before(merged: Path, tmp_path: Path) -> None:
    """A compiled file of one commit was measured as that of the next; ignored files stay, for incremental builds."""
    found = Repository(merged)
    (merged / "level").write_text("changed\n")
    with found.worktree(tmp_path / "tree", "main~1") as tree:
        (tree / "level").write_text("patched by the build\n")
        (tree / "stale.so").touch()
        (tree / "built.o").touch()
        (merged / ".git" / "info" / "exclude").write_text("*.o\n")
        found.check_out(tree, "main~2")
        assert (tree / "level").read_text() == "3\n"
        assert sorted(each.name for each in tree.iterdir()) == [".git", "built.o", "level"]
    assert not (tmp_path / "tree").exists()
    assert (merged / "level").read_text() == "changed\n"
    git(merged, "checkout", "-q", "level")


def test_a_work_tree_is_removed_after_an_error_and_one_left_behind_is_replaced(merged: Path, tmp_path: Path) -> None:
    git(merged, "worktree", "add", "-q", "--detach", str(tmp_path / "tree"), "main~3")
    with suppress(KeyboardInterrupt), Repository(merged).worktree(tmp_path / "tree", "main") as tree:
        assert git(tree, "log", "-1", "--format=%s") == "merge side"
        raise KeyboardInterrupt
    assert len(git(merged, "worktree", "list").splitlines()) == 1
    assert git(merged, "status", "--porcelain") == ""


def test_hooks_of_the_repository_do_not_run(merged: Path, tmp_path: Path) -> None:
    """A post-checkout hook that installs dependencies ran for every commit, in the user's environment."""
    hook = merged / ".git" / "hooks" / "post-checkout"
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path / 'ran'}\n")
    hook.chmod(0o755)
    with Repository(merged).worktree(tmp_path / "tree", "main") as tree:
        Repository(merged).check_out(tree, "main~2")
    assert not (tmp_path / "ran").exists()
    hook.unlink()


def test_submodules_are_those_of_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels often live in one, and a search that leaves it where it was measures none of their changes."""
    for name, value in (("COUNT", "1"), ("KEY_0", "protocol.file.allow"), ("VALUE_0", "always")):
        monkeypatch.setenv(f"GIT_CONFIG_{name}", value)
    kernels = repository(tmp_path / "kernels", [1])
    whole = repository(tmp_path / "whole", [0])
    git(whole, "submodule", "--quiet", "add", str(kernels), "kernels")
    git(whole, "commit", "-q", "-m", "with kernels")
    (kernels / "level").write_text("2\n")
    git(kernels, "commit", "-q", "-a", "-m", "faster")
    git(whole / "kernels", "pull", "-q")
    git(whole, "commit", "-q", "-a", "-m", "newer kernels")
    found = Repository(whole)
    with found.worktree(tmp_path / "tree", "main~2") as tree:
        levels = []
        for commit in ("main~1", "main", "main~1"):
            found.check_out(tree, commit)
            levels.append((tree / "kernels" / "level").read_text())
    assert levels == ["1\n", "2\n", "1\n"]
    assert not (tmp_path / "tree").exists()
    assert git(whole, "worktree", "list").count("\n") == 0
