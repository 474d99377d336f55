"""Nothing secret in any file, log, report, terminal or process list that a run leaves; the long form is `secrets`."""

from __future__ import annotations

import random
from pathlib import Path

from tests.hostile import secrets
from tests.hostile.report import SEED


def test_no_planted_secret_is_found_in_what_a_run_leaves(tmp_path: Path) -> None:
    found, looked = secrets.attempt(tmp_path, random.Random(SEED))

    assert found == []
    assert looked > 50


def test_the_search_finds_what_is_there() -> None:
    text = "c2VjcmV0LXNlY3JldA== and secret%2Bsecret"
    found = secrets.leaks({"A": "secret-secret", "B": "secret+secret"}, {"here": text})
    assert {(leak.variable, leak.spelling) for leak in found} >= {("A", "base64"), ("B", "percent")}
