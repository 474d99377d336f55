"""Posts a comment to a pull request by GitHub's REST API, or writes the one that was posted before anew.

The verb `llem comment --post` calls it. Standard library alone. The token goes to the API's own address and nowhere
else: no redirect is followed, no page of another server is read, and no message has it.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path

from pytest_llem.errors import GitHubError, JsonValue, SettingsError
from pytest_llem.job.files import parse_json, read_json

ACTIONS_LOGIN = "github-actions[bot]"
"""Who writes with the token of a workflow, which may not ask `GET /user` (GitHub's documentation)."""
TRIES = 4
"""Chosen: with pauses of 1, 2 and 4 s a restart of a server passes."""
LONGEST_PAUSE_S = 120.0
"""Chosen: what asks for more is an hourly limit, for which no job should wait."""
DEFAULT_PAUSE_S = 60.0
"""After a secondary limit without a time of its own, as GitHub's documentation asks."""
PAGE = 100
"""Comments per page: the most that GitHub gives."""
LARGEST = 16_000_000
"""Bytes of an answer. Chosen: a hundred comments of the longest kind."""
TIMEOUT_S = 30.0
"""Chosen: GitHub itself ends a request after 10 s."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Gives a redirect back as an error: the token must not follow it."""

    def redirect_request(self, *_: object) -> None:
        """None is followed."""


@dataclass(frozen=True)
class PullRequests:
    """The pull requests of one repository, as GitHub's API has them; `pause` waits for so many seconds."""

    api: str
    repository: str
    token: str = field(repr=False)
    pause: Callable[[float], object] = time.sleep

    def upsert(self, number: int, marker: str, text: str) -> str:
        """Write the comment that begins with the marker, or a new one; its address. Raises `GitHubError`.

        Only a comment of this token's own user is written anew, whatever others write into theirs. Found again before
        each try: a server that failed may have kept the comment all the same.
        """
        for attempt in range(TRIES):
            try:
                own = self._login()
                found = next(
                    (each for each in self._comments(number) if _begins(each, marker) and _author(each) == own), None
                )
                if found is None:
                    kept = self._ask("POST", self._path("issues", number, "comments"), {"body": text})
                else:
                    kept = self._ask("PATCH", self._path("issues/comments", found["id"]), {"body": text})
                return str(kept.get("html_url")) if isinstance(kept, Mapping) else ""
            except _PassingError as problem:
                if attempt == TRIES - 1 or problem.pause > LONGEST_PAUSE_S:
                    raise GitHubError(problem.said, fix="run the job again later") from None
                self.pause(problem.pause or 2.0**attempt)
        raise AssertionError("unreachable")

    def number_at(self, owner: str, branch: str, commit: str) -> int | None:
        """The open pull request whose head is this commit of this branch; `None` where it moved on. As GitHub says."""
        query = urllib.parse.urlencode({"head": f"{owner}:{branch}", "state": "open", "per_page": PAGE})
        for each in self._pages(f"{self._path('pulls')}?{query}"):
            head = each.get("head")
            if isinstance(head, Mapping) and head.get("sha") == commit and isinstance(each.get("number"), int):
                return int(str(each["number"]))
        return None

    def _login(self) -> str:
        try:
            user = self._ask("GET", "/user")
        except GitHubError as problem:
            if problem.details.get("status") in (403, 404):
                return ACTIONS_LOGIN
            raise
        return str(user.get("login")) if isinstance(user, Mapping) else ""

    def _comments(self, number: int) -> Iterator[Mapping[str, JsonValue]]:
        yield from self._pages(f"{self._path('issues', number, 'comments')}?per_page={PAGE}")

    def _pages(self, path: str) -> Iterator[Mapping[str, JsonValue]]:
        following: str | None = path
        while following is not None:
            found, following = self._page(following)
            yield from (each for each in (found if isinstance(found, list) else ()) if isinstance(each, Mapping))

    def _path(self, *parts: object) -> str:
        return "/".join(("/repos", self.repository, *map(str, parts)))

    def _ask(self, method: str, path: str, data: Mapping[str, JsonValue] | None = None) -> JsonValue:
        return self._page(path, method, data)[0]

    def _page(
        self, path: str, method: str = "GET", data: Mapping[str, JsonValue] | None = None
    ) -> tuple[JsonValue, str | None]:
        """An answer and the path of its next page."""
        request = urllib.request.Request(
            self.api + path,
            data=None if data is None else json.dumps(data).encode(),
            method=method,
            headers={
                "Accept": "application/vnd.github+json",
                "Authorization": f"Bearer {self.token}",
                "Content-Type": "application/json",
                "User-Agent": "pytest-llem",
                "X-GitHub-Api-Version": "2022-11-28",
            },
        )
        what = f"{method} {self.api}{path}"
        try:
            with urllib.request.build_opener(_NoRedirect).open(request, timeout=TIMEOUT_S) as answer:
                body, link = answer.read(LARGEST), answer.headers.get("Link", "")
        except urllib.error.HTTPError as problem:
            with problem:
                raise self._refused(what, problem) from None
        except (OSError, http.client.HTTPException) as problem:
            cause = getattr(problem, "reason", problem)
            raise _PassingError(f"{what}: {cause}", 0.0) from None
        try:
            return parse_json(body, what), self._next(link)
        except ValueError as problem:
            raise _PassingError(str(problem), 0.0) from None

    def _next(self, link: str) -> str | None:
        """The path of the next page by the header `Link`; one of another server is none."""
        for part in link.split(","):
            address, _, kind = part.partition(";")
            url = address.strip().strip("<>")
            if 'rel="next"' in kind and url.startswith(self.api + "/"):
                return url.removeprefix(self.api)
        return None

    def _refused(self, what: str, problem: urllib.error.HTTPError) -> Exception:
        """What an answer of 300 or more means: an error, or one that passes."""
        status, said = problem.code, _message(problem).replace(self.token, "***")
        told = f"{what}: {status} {said}"
        limited = status == 429 or (
            status == 403 and ("rate limit" in said.lower() or problem.headers.get("x-ratelimit-remaining") == "0")
        )
        if status >= 500:
            return _PassingError(told, 0.0)
        if limited:
            return _PassingError(told, _pause(problem.headers))
        fixes = {
            401: "the token is wrong or has expired: GITHUB_TOKEN: ${{ github.token }}",
            403: "give the job `permissions: {pull-requests: write}`; from a fork no token has that: docs/ci.md has "
            "a second workflow for those",
            404: "check GITHUB_REPOSITORY and the number; a token that may not see the repository gets this too",
            422: "GitHub refuses the text, or the conversation is locked",
        }
        fix = fixes.get(status, "the repository moved: set GITHUB_REPOSITORY anew" if status < 400 else None)
        return GitHubError(told, fix=fix, details={"status": status})


class _PassingError(Exception):
    """An answer after which a later try may succeed, and how long to wait for that; 0 where it was not said."""

    def __init__(self, said: str, pause: float) -> None:
        super().__init__(said)
        self.said, self.pause = said, pause


def from_environment(environment: Mapping[str, str]) -> PullRequests:
    """The repository of the workflow, by the variables that GitHub gives. Raises `SettingsError` for absent ones."""
    missing = [name for name in ("GITHUB_REPOSITORY", "GITHUB_TOKEN") if not environment.get(name)]
    if missing:
        raise SettingsError(
            f"--post takes {' and '.join(missing)} from the environment",
            fix="in a workflow: env: {GITHUB_TOKEN: ${{ github.token }}}; leave out --post to print the comment",
        )
    api = environment.get("GITHUB_API_URL") or "https://api.github.com"
    return PullRequests(api.rstrip("/"), environment["GITHUB_REPOSITORY"], environment["GITHUB_TOKEN"])


def number_of_event(environment: Mapping[str, str], pulls: PullRequests) -> int | None:
    """The pull request that a workflow's event is about; `None` where the one behind a `workflow_run` moved on.

    Of `workflow_run` GitHub names the head's owner, branch and commit, and the number is looked up by these: a number
    that the run itself hands over could be any. Raises `SettingsError` for another event.
    """
    path = environment.get("GITHUB_EVENT_PATH")
    event = read_json(Path(path)) if path else {}
    pull, run = event.get("pull_request"), event.get("workflow_run")
    if isinstance(pull, Mapping) and isinstance(pull.get("number"), int):
        return int(str(pull["number"]))
    if isinstance(run, Mapping) and str(run.get("event")) == "pull_request":
        repository = run.get("head_repository")
        owner = repository.get("owner") if isinstance(repository, Mapping) else None
        if isinstance(owner, Mapping):
            return pulls.number_at(str(owner.get("login")), str(run.get("head_branch")), str(run.get("head_sha")))
    raise SettingsError(
        "the event of this workflow is about no pull request", fix="name one: --pull-request N; or leave out --post"
    )


def _begins(comment: Mapping[str, JsonValue], marker: str) -> bool:
    return str(comment.get("body")).lstrip().startswith(marker)


def _author(comment: Mapping[str, JsonValue]) -> str | None:
    user = comment.get("user")
    return str(user.get("login")) if isinstance(user, Mapping) else None


def _message(problem: urllib.error.HTTPError) -> str:
    """What GitHub says of an error, in one line."""
    try:
        told = json.loads(problem.read(LARGEST))
    except (ValueError, OSError, http.client.HTTPException):
        told = None
    said = told.get("message") if isinstance(told, dict) else None
    details = [each.get("message") for each in told.get("errors") or () if isinstance(each, dict)] if said else []
    return "; ".join(str(part) for part in (said or problem.reason, *details) if part)


def _pause(headers: Message) -> float:
    """How long a limit asks to wait: `retry-after`, else until `x-ratelimit-reset`, else a minute."""

    def number(name: str) -> float | None:
        try:
            return float(headers.get(name) or "")
        except ValueError:
            return None

    after, reset = number("retry-after"), number("x-ratelimit-reset")
    if after is not None:
        return max(after, 0.001)
    if headers.get("x-ratelimit-remaining") == "0" and reset is not None:
        return max(reset - time.time(), 0.001)
    return DEFAULT_PAUSE_S
