"""Git: the commits between two, and a work tree of its own in which they are checked out one after the other.

`command` calls it. The user's own work tree, index, branch and hooks are never touched.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pytest_llem.errors import SettingsError

QUIET = ("-c", "core.hooksPath=/dev/null", "-c", "advice.detachedHead=false", "-c", "gc.auto=0")
"""Hooks of the user's repository must not run for a checkout that is not theirs."""

OF_A_WORK_TREE = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY")
"""Of the variables that `git rev-parse --local-env-vars` lists."""


@dataclass(frozen=True)
class Commit:
    """A commit, and those that it follows: two or more of a merge."""

    sha: str
    parents: tuple[str, ...]
    subject: str

    @property
    def short(self) -> str:
        """As people write it."""
        return self.sha[:10]


class Repository:
    """The repository that a directory belongs to. Raises `SettingsError` where there is none, or no git."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.top = Path(self.git("rev-parse", "--show-toplevel"))

    def git(self, *arguments: str, at: Path | None = None) -> str:
        """What git prints. Raises `SettingsError` with what it says when it fails."""
        command = ["git", "-C", str(at or self._directory), *QUIET, *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment())
        except FileNotFoundError:
            raise SettingsError("git is not installed", fix="install git") from None
        if done.returncode:
            what = done.stderr.strip().removeprefix("fatal: ") or f"exit code {done.returncode}"
            raise SettingsError(f"git {arguments[0]}: {what}", fix="see what git says")
        return done.stdout.removesuffix("\n")

    def _says(self, *arguments: str) -> bool:
        with contextlib.suppress(SettingsError):
            self.git(*arguments)
            return True
        return False

    def commit(self, name: str) -> str:
        """The id of the commit that a branch, tag or id names."""
        try:
            return self.git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
        except SettingsError:
            raise SettingsError(f"no commit {name!r} in {self.top}", fix=self._deeper("see git log")) from None

    def _deeper(self, otherwise: str) -> str:
        shallow = self.git("rev-parse", "--is-shallow-repository") == "true"
        return "this clone is shallow: git fetch --unshallow --tags" if shallow else otherwise

    def between(self, named: str) -> list[Commit]:
        """The commits of a range GOOD..BAD from good to bad, both with it, along first parents.

        Only along first parents does each commit contain all that are before it, so that what is bad stays bad.
        """
        first, dots, second = named.partition("..")
        if not dots or not first or not second or second.startswith("."):
            raise SettingsError(f"{named!r} is no range of commits", fix="write GOOD..BAD, such as v1.2..HEAD")
        good, bad = self.commit(first), self.commit(second)
        if good == bad:
            raise SettingsError(f"{first} and {second} are the same commit, {good[:10]}", fix="name two commits")
        if not self._says("merge-base", "--is-ancestor", good, bad):
            if self._says("merge-base", "--is-ancestor", bad, good):
                raise SettingsError(f"{second} comes before {first}", fix=f"write {second}..{first}")
            raise SettingsError(
                f"{first} is not an ancestor of {second}: no commit between them has both behind it",
                fix=self._deeper(f"begin where they parted: $(git merge-base {first} {second})..{second}"),
            )
        text = self.git("log", "-z", "--first-parent", "--reverse", "--format=%H%n%P%n%s", f"{good}..{bad}")
        commits = [
            Commit(sha, tuple(parents.split()), subject)
            for sha, parents, subject in (entry.split("\n", 2) for entry in text.split("\0") if entry)
        ]
        start = commits[0].parents[0]
        if start != good:
            raise SettingsError(
                f"{first} is on a branch that was merged into {second}, not on its first-parent line",
                fix=f"name the commit of that line before it: {start[:10]}..{second}",
            )
        subject = self.git("show", "-s", "--format=%s", good)
        return [Commit(good, (), subject), *commits]

    @contextlib.contextmanager
    def worktree(self, path: Path, commit: str) -> Iterator[Path]:
        """A work tree at `path` with this commit, removed at the end whatever happened; one left behind is replaced."""
        self._remove(path)
        try:
            self.git("worktree", "add", "--detach", "--force", str(path), commit)
            yield path
        finally:
            self._remove(path)

    def _remove(self, path: Path) -> None:
        shutil.rmtree(path, ignore_errors=True)  # `git worktree remove` refuses what has submodules or is broken
        self.git("worktree", "prune")

    def check_out(self, path: Path, commit: str) -> None:
        """The commit and its submodules as they are in git; ignored files stay, so that builds are incremental."""
        self.git("checkout", "--detach", "--force", commit, at=path)
        self.git("clean", "-ffdq", at=path)
        if (path / ".gitmodules").exists():
            self.git("submodule", "update", "--init", "--recursive", "--force", at=path)


def environment() -> dict[str, str]:
    """This environment without what would point git at the user's work tree, as inside a hook."""
    return {name: value for name, value in os.environ.items() if name not in OF_A_WORK_TREE}
