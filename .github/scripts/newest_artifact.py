"""Writes the id of the default branch's newest run that kept the artifact $ARTIFACT to $GITHUB_OUTPUT as `run`.

A fork's branch may bear the default branch's name: only runs of this repository's own commits count. Standard library
alone, as it runs before anything is installed.
"""

from __future__ import annotations

import json
import os
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any


def ask(path: str) -> Any:
    """The answer of GitHub's API."""
    headers = {"Authorization": f"Bearer {os.environ['TOKEN']}", "Accept": "application/vnd.github+json"}
    address = f"{os.environ['GITHUB_API_URL']}/repos/{os.environ['GITHUB_REPOSITORY']}{path}"
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=30) as answer:
        return json.load(answer)


def newest_run() -> int | None:
    """The run's id; `None` where no run kept one, or it expired."""
    branch = ask("")["default_branch"]
    query = urllib.parse.urlencode({"name": os.environ["ARTIFACT"], "per_page": 100})
    found = [
        artifact
        for artifact in ask(f"/actions/artifacts?{query}")["artifacts"]
        if not artifact["expired"]
        and artifact["workflow_run"]["head_branch"] == branch
        and artifact["workflow_run"]["head_repository_id"] == artifact["workflow_run"]["repository_id"]
    ]
    newest = max(found, key=lambda artifact: str(artifact["created_at"]), default=None)
    return None if newest is None else int(newest["workflow_run"]["id"])


if __name__ == "__main__":
    run = newest_run()
    with Path(os.environ["GITHUB_OUTPUT"]).open("a", encoding="utf-8") as outputs:
        outputs.write(f"run={'' if run is None else run}\n")
