"""The web pages of a repository that show a commit, and what changed between two.

The trend page calls it. A history is written by whoever can push to it: only an HTTPS address with nothing unusual in
it becomes a link, and only a commit's hash is put behind one.
"""

from __future__ import annotations

import re

from pytest_llem.results.history.record import HistoryRun

_PAGE = re.compile(r"https://(?P<host>[A-Za-z0-9.-]+(?::\d+)?)(?:/[\w.~-]+)+")
_COMMIT = re.compile(r"[0-9a-f]{7,64}")


def commit_pages(repository: str | None) -> str | None:
    """What stands before a commit's hash in its address; `None` where there is no page to link to.

    As GitHub, Gitea and Forgejo have it; GitLab puts `/-` before, Bitbucket has another word.
    """
    match = _PAGE.fullmatch(repository or "")
    if match is None or repository is None:
        return None
    if match["host"] == "bitbucket.org":
        return f"{repository}/commits/"
    return f"{repository}{'/-' if 'gitlab' in match['host'] else ''}/commit/"


def commit_page(run: HistoryRun) -> str | None:
    """The page of a run's commit."""
    pages = commit_pages(run.repository)
    return f"{pages}{run.commit}" if pages and _COMMIT.fullmatch(run.commit or "") else None


def compare_page(before: HistoryRun, after: HistoryRun) -> str | None:
    """The page of what changed from one run's commit to that of another; `None` across repositories."""
    one, other = commit_page(before), commit_page(after)
    if one is None or other is None or before.repository != after.repository or before.commit == after.commit:
        return None
    if one.endswith(f"/commits/{before.commit}"):
        return f"{before.repository}/branches/compare/{after.commit}..{before.commit}"
    return f"{one.rpartition('/commit/')[0]}/compare/{before.commit}...{after.commit}"
