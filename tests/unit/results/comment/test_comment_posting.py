"""One comment, updated in place, at a server that answers as GitHub's REST API does."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from pytest_llem.cli import main
from pytest_llem.errors import GitHubError
from pytest_llem.job.wire import encode
from pytest_llem.results.comment.content import Comment
from pytest_llem.results.comment.posting import PullRequests

ROOT = Path(__file__).parents[4]
TOKEN = "ghs_secret"
BOT = "github-actions[bot]"
MARKER = "<!-- pytest-llem: energy -->"
TEXT = f"{MARKER}\n### ✅ fine\n"


class GitHub(ThreadingHTTPServer):
    """Issue comments and open pull requests of `o/r`. `failures` are answered before anything is looked at."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.comments: list[dict[str, Any]] = []
        self.pulls: list[dict[str, Any]] = []
        self.artifacts: list[dict[str, Any]] = []
        self.failures: list[tuple[int, dict[str, str], str]] = []
        self.asked: list[str] = []
        self.tokens: set[str | None] = set()
        self.login: str | None = None
        self.fail_at = ""
        self.keeps_what_failed = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/api/v3"

    def write(self, body: str, login: str = BOT) -> None:
        number = len(self.comments) + 1
        url = f"https://github.invalid/o/r/pull/7#issuecomment-{number}"
        self.comments.append({"id": number, "body": body, "user": {"login": login}, "html_url": url})


class _Handler(BaseHTTPRequestHandler):
    server: GitHub

    def log_message(self, *_: object) -> None: ...

    def reply(self, status: int, data: object, **headers: str) -> None:
        body = json.dumps(data).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def handle_any(self) -> None:
        github = self.server
        size = int(self.headers.get("Content-Length") or 0)
        data = json.loads(self.rfile.read(size)) if size else {}
        path = urlsplit(self.path)
        github.asked.append(f"{self.command} {path.path.removeprefix('/api/v3')}")
        github.tokens.add(self.headers.get("Authorization"))
        if github.failures and path.path != "/api/v3/user" and self.command.startswith(github.fail_at):
            status, headers, message = github.failures.pop(0)
            if github.keeps_what_failed:
                github.write(data["body"])
            self.reply(status, {"message": message}, **headers)
        elif path.path == "/api/v3/user":
            known = github.login
            self.reply(*((200, {"login": known}) if known else (403, {"message": "Resource not accessible"})))
        elif path.path == "/api/v3/repos/o/r/issues/7/comments" and self.command == "GET":
            query = parse_qs(path.query)
            page, size = int(query.get("page", ["1"])[0]), int(query["per_page"][0])
            link = f'<{github.url}{path.path.removeprefix("/api/v3")}?per_page={size}&page={page + 1}>; rel="next"'
            more = {"Link": link} if page * size < len(github.comments) else {}
            self.reply(200, github.comments[(page - 1) * size : page * size], **more)
        elif path.path == "/api/v3/repos/o/r/issues/7/comments":
            github.write(data["body"])
            self.reply(201, github.comments[-1])
        elif path.path.startswith("/api/v3/repos/o/r/issues/comments/") and self.command == "PATCH":
            found = github.comments[int(path.path.rpartition("/")[2]) - 1]
            found["body"] = data["body"]
            self.reply(200, found)
        elif path.path == "/api/v3/repos/o/r":
            self.reply(200, {"default_branch": "main"})
        elif path.path == "/api/v3/repos/o/r/actions/artifacts":
            self.reply(200, {"artifacts": github.artifacts})
        elif path.path == "/api/v3/repos/o/r/pulls":
            head = parse_qs(path.query)["head"][0]
            self.reply(200, [each for each in github.pulls if each["head"]["label"] == head])
        else:
            self.reply(404, {"message": "Not Found"})

    do_GET = do_POST = do_PATCH = handle_any  # noqa: N815


def serving() -> Iterator[GitHub]:
    """A server for the time of a test."""
    server = GitHub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def github() -> Iterator[GitHub]:
    yield from serving()


def pulls(github: GitHub, pauses: list[float] | None = None) -> PullRequests:
    return PullRequests(github.url, "o/r", TOKEN, pause=(pauses if pauses is not None else []).append)


def test_a_second_run_writes_the_same_comment_anew(github: GitHub) -> None:
    """Each push to a pull request added one more comment."""
    first = pulls(github).upsert(7, MARKER, TEXT)
    again = pulls(github).upsert(7, MARKER, f"{MARKER}\n### ❌ worse\n")
    assert first == again
    assert [each["body"] for each in github.comments] == [f"{MARKER}\n### ❌ worse\n"]
    assert github.tokens == {f"Bearer {TOKEN}"}


def test_it_is_found_beyond_the_first_page(github: GitHub) -> None:
    for number in range(230):
        github.write(f"about {number}", "someone")
    github.write(TEXT)
    pulls(github).upsert(7, MARKER, f"{MARKER} new")
    assert len(github.comments) == 231
    assert github.comments[230]["body"] == f"{MARKER} new"


def test_comments_of_others_are_left_alone(github: GitHub) -> None:
    """Who copies the marker into a comment must not have it overwritten, nor keep the real one from being written."""
    github.write(TEXT, "mallory")
    github.write(f"as it said: {MARKER}")
    github.write("<!-- pytest-llem: energy-2 -->\nof another gate")
    pulls(github).upsert(7, MARKER, TEXT)
    assert [each["user"]["login"] for each in github.comments] == ["mallory", BOT, BOT, BOT]
    assert github.comments[3]["body"] == TEXT


def test_the_owner_of_a_personal_token_has_a_comment_too(github: GitHub) -> None:
    github.login = "alice"
    github.write(TEXT, BOT)
    github.write(TEXT, "alice")
    pulls(github).upsert(7, MARKER, "new")
    assert [each["body"] for each in github.comments] == [TEXT, "new"]


@pytest.mark.parametrize(
    ("failure", "pause"),
    [
        ((502, {}, "Bad Gateway"), 1.0),
        ((403, {"retry-after": "3"}, "You have exceeded a secondary rate limit"), 3.0),
        ((429, {}, "Too many requests: rate limit"), 60.0),
    ],
)
def test_what_passes_is_tried_again_after_its_pause(
    github: GitHub, failure: tuple[int, dict[str, str], str], pause: float
) -> None:
    github.failures = [failure]
    pauses: list[float] = []
    pulls(github, pauses).upsert(7, MARKER, TEXT)
    assert pauses == [pause]
    assert len(github.comments) == 1


def test_a_server_that_kept_what_it_said_had_failed_leads_to_no_second_comment(github: GitHub) -> None:
    github.fail_at, github.keeps_what_failed = "POST", True
    github.failures = [(500, {}, "")]
    pulls(github).upsert(7, MARKER, TEXT)
    assert len(github.comments) == 1


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        ((401, {}, "Bad credentials"), "the token is wrong"),
        ((403, {}, "Resource not accessible by integration"), "pull-requests: write"),
        ((404, {}, "Not Found"), "check GITHUB_REPOSITORY"),
        ((422, {}, "Validation Failed"), "refuses the text"),
        ((301, {"Location": "http://127.0.0.1:9/"}, "Moved Permanently"), "the repository moved"),
        ((403, {"retry-after": "3600"}, "API rate limit exceeded"), "run the job again later"),
    ],
)
def test_each_refusal_says_what_to_do(github: GitHub, failure: tuple[int, dict[str, str], str], said: str) -> None:
    github.failures = [(failure[0], failure[1], f"{failure[2]} {TOKEN}")]
    with pytest.raises(GitHubError) as caught:
        pulls(github).upsert(7, MARKER, TEXT)
    assert said in str(caught.value)
    assert str(failure[0]) in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert len(github.asked) == 2


def test_a_server_that_stays_away_is_an_error(github: GitHub) -> None:
    github.failures = [(503, {}, "Unavailable")] * 4
    with pytest.raises(GitHubError, match="503 Unavailable"):
        pulls(github).upsert(7, MARKER, TEXT)


def test_the_token_goes_to_no_other_server(github: GitHub) -> None:
    """A next page's address comes from outside."""
    other = GitHub()
    github.failures = [(200, {"Link": f'<{other.url}/repos/o/r/issues/7/comments?page=2>; rel="next"'}, "")]
    pulls(github).upsert(7, MARKER, TEXT)
    other.server_close()
    assert other.asked == []
    assert len(github.comments) == 1


@pytest.fixture
def workflow(github: GitHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job of GitHub Actions with a comment's content from another one."""
    monkeypatch.setenv("GITHUB_API_URL", github.url)
    monkeypatch.setenv("GITHUB_REPOSITORY", "o/r")
    monkeypatch.setenv("GITHUB_TOKEN", TOKEN)
    monkeypatch.setenv("GITHUB_EVENT_PATH", str(tmp_path / "event.json"))
    (tmp_path / "comment.json").write_text(json.dumps(encode(Comment("energy", "20261130T000000Z-a"))))
    return tmp_path


def event(folder: Path, data: object) -> None:
    (folder / "event.json").write_text(json.dumps(data))


RUN = {
    "event": "pull_request",
    "head_branch": "fix",
    "head_sha": "a" * 40,
    "head_repository": {"owner": {"login": "mallory"}},
    "pull_requests": [],
}


def test_a_pull_request_of_this_repository(github: GitHub, workflow: Path, capsys: pytest.CaptureFixture[str]) -> None:
    event(workflow, {"pull_request": {"number": 7}})
    assert main(["comment", str(workflow / "comment.json"), "--post"]) == 0
    assert capsys.readouterr().out == "commented: https://github.invalid/o/r/pull/7#issuecomment-1\n"
    assert github.comments[0]["body"].startswith(MARKER)


def test_that_of_a_fork_is_found_by_what_github_says_of_the_run(github: GitHub, workflow: Path) -> None:
    """The run of a fork could name any number: only GitHub's own event says which pull request it was."""
    event(workflow, {"workflow_run": RUN})
    github.pulls = [
        {"number": 6, "head": {"label": "alice:fix", "sha": "a" * 40}},
        {"number": 7, "head": {"label": "mallory:fix", "sha": "a" * 40}},
    ]
    assert main(["comment", str(workflow / "comment.json"), "--post"]) == 0
    assert len(github.comments) == 1


def test_one_with_newer_commits_gets_no_old_verdict(
    github: GitHub, workflow: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    event(workflow, {"workflow_run": RUN})
    github.pulls = [{"number": 7, "head": {"label": "mallory:fix", "sha": "b" * 40}}]
    assert main(["comment", str(workflow / "comment.json"), "--post"]) == 0
    assert "no comment" in capsys.readouterr().out
    assert github.comments == []


@pytest.mark.parametrize("data", [{"push": 1}, {"workflow_run": {**RUN, "event": "push"}}])
def test_an_event_without_a_pull_request(workflow: Path, capsys: pytest.CaptureFixture[str], data: object) -> None:
    event(workflow, data)
    assert main(["comment", str(workflow / "comment.json"), "--post"]) == 2
    assert "--pull-request N" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["0", "-3"])
def test_a_number_that_no_pull_request_has(workflow: Path, capsys: pytest.CaptureFixture[str], number: str) -> None:
    """0 was taken for none, so that the event's pull request got the comment."""
    event(workflow, {"pull_request": {"number": 7}})
    assert main(["comment", str(workflow / "comment.json"), "--post", "--pull-request", number]) == 2
    assert f"--pull-request {number}:" in capsys.readouterr().err


HOSTILE = {
    "not JSON": b"{",
    "no comment": b"[]",
    "newer": b'{"schema_version": 99}',
    "Markdown": b"# approved by @everyone",
    "other types": b'{"schema_version": 1, "name": ["x"], "run_id": "r"}',
    "more keys": b'{"schema_version": 1, "name": "x", "run_id": "r", "body": "x"}',
    "large": b" " * 8_000_001,
    "a limit that is none": json.dumps(
        {
            "schema_version": 1,
            "name": "x",
            "run_id": "r",
            "gates": [
                {
                    "study": "s",
                    "experiment_id": "e",
                    "strict": False,
                    "rows": [
                        {
                            **dict.fromkeys(("metric", "limit", "reason"), ""),
                            **dict.fromkeys(("baseline", "current", "ratio", "ci_low", "ci_high"), 1.0),
                            "kind": "budget",
                            "status": "fail",
                        }
                    ],
                }
            ],
        }
    ).encode(),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_file_that_is_no_comment_is_refused(
    github: GitHub, workflow: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """What a fork's run hands over is data that is read strictly, never text that is posted."""
    event(workflow, {"pull_request": {"number": 7}})
    (workflow / "comment.json").write_bytes(HOSTILE[kind])
    assert main(["comment", str(workflow / "comment.json"), "--post"]) == 2
    assert "comment.json" in capsys.readouterr().err
    assert github.comments == []


def test_without_a_token_it_says_which_variables(
    workflow: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GITHUB_TOKEN")
    assert main(["comment", str(workflow / "comment.json"), "--post"]) == 2
    assert "--post takes GITHUB_TOKEN from the environment" in capsys.readouterr().err


def test_whoever_posts_needs_nothing_installed(workflow: Path) -> None:
    """The job with a token that may write runs this repository's own code, and none of a package."""
    program = "import sys; sys.path.insert(0, sys.argv.pop(1)); from pytest_llem.cli import main; sys.exit(main())"
    arguments = ["-S", "-c", program, str(ROOT), "comment", str(workflow / "comment.json")]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.startswith(MARKER)
