"""Where the Hugging Face hub's files are cached, and whether the hub can be reached, asked once and quickly.

Engines, `texts`, `containers`, `machine`, `session` and `llem doctor` ask it. It must stay standard library only: they
ask before they import the hub's library, which else tries for 30 s.
"""

from __future__ import annotations

import functools
import os
import threading
from pathlib import Path

from pytest_llem.job.files import expanded

DEFAULT_ENDPOINT = "https://huggingface.co"
DEADLINE_S = 5.0
"""Chosen: a hub that can be used answers within a second, and the library would try for half a minute."""
GATEWAY_ERRORS = (502, 503, 504)
"""Answers of a proxy, or of the hub itself, that say that nobody is there to serve."""


OFFLINE = "HF_HUB_OFFLINE"


def hub_obstacle() -> str | None:
    """Why nothing can be had from the hub, or `None`; what lies in the local cache can be used all the same."""
    if os.environ.get(OFFLINE, "").upper() in ("1", "ON", "YES", "TRUE"):
        return _reasons.get(OFFLINE, f"the hub is switched off ({OFFLINE})")
    return probe(os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT)


def switch_off_when_absent() -> None:
    """Tell the hub's client, before it is imported, not to ask a hub that is not there; its cache is used as before."""
    reason = hub_obstacle()
    if reason is not None:
        _reasons[OFFLINE] = reason
        os.environ[OFFLINE] = "1"


_reasons: dict[str, str] = {}


@functools.cache
def probe(endpoint: str, deadline_s: float = DEADLINE_S) -> str | None:
    """Why an endpoint does not answer within the deadline, or `None`; by the environment's proxies, asked once."""
    found: list[str | None] = []
    # A look-up of a name can take longer than any socket's timeout: hence the thread.
    thread = threading.Thread(target=lambda: found.append(_ask(endpoint, deadline_s)), daemon=True)
    thread.start()
    thread.join(deadline_s)
    return found[0] if found else f"{endpoint} did not answer within {deadline_s:g} s"


def _ask(endpoint: str, timeout_s: float) -> str | None:
    # Imported for the one question: what only looks at studies has no use for a client.
    import ssl
    import urllib.error
    import urllib.request

    request = urllib.request.Request(endpoint, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=timeout_s):
            return None
    except urllib.error.HTTPError as answer:
        return f"{endpoint} answered {answer.code} {answer.reason}" if answer.code in GATEWAY_ERRORS else None
    except urllib.error.URLError as problem:
        # Certificates are the library's business: it may know authorities that Python does not.
        return None if isinstance(problem.reason, ssl.SSLError) else f"{endpoint} was not reached: {problem.reason}"
    except (OSError, ValueError) as problem:
        return f"{endpoint} was not reached: {problem}"


def hub_cache() -> Path:
    """Where this machine keeps what it downloaded from the hub, as `huggingface_hub` finds it."""
    if os.environ.get("HF_HUB_CACHE"):
        return expanded(os.environ["HF_HUB_CACHE"])
    home = os.environ.get("HF_HOME")
    if home:
        return expanded(home) / "hub"
    return expanded(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface" / "hub"


def cached_repository(kind: str, name: str) -> Path:
    """Where that cache has one of the hub's `models` or `datasets`, if it has it."""
    return hub_cache() / f"{kind}--{name.replace('/', '--')}"


def cached_commit(kind: str, name: str, revision: str | None) -> str | None:
    """The commit that the cache has under a revision, `main` by default; `None` where it has none."""
    try:
        commit = cached_repository(kind, name) / "refs" / (revision or "main")
        return commit.read_text(encoding="ascii").strip() or None
    except (OSError, ValueError):
        return None
