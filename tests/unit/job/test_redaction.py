"""No secret in what is written: errors and logs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pytest_llem.errors import EngineError
from pytest_llem.job.job import JobDir
from pytest_llem.job.redaction import redact, redact_file


def test_an_error_loses_known_values_and_whatever_looks_like_a_credential(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "my-own-odd-token")
    error = EngineError(
        "401 for http://user:secret1@proxy:3128 with my-own-odd-token", details={"headers": ["Bearer abcdefgh1234"]}
    )
    JobDir(tmp_path).write_error(
        error, traceback="raise Denied('hf_abcdefgh12345')", log_tail=["OPENAI_API_KEY=abc123"]
    )
    text = JobDir(tmp_path).error.read_text()
    for secret in ("secret1", "my-own-odd-token", "abcdefgh1234", "hf_abcdefgh12345", "abc123"):
        assert secret not in text
    assert json.loads(text)["message"] == "401 for http://***@proxy:3128 with ***"


def test_a_log_is_rewritten_only_where_it_holds_something(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    log.write_text("loading\nmax_token: 123456\n")
    before = log.stat().st_ino, log.stat().st_mtime_ns
    redact_file(log)
    assert (log.stat().st_ino, log.stat().st_mtime_ns) == before
    log.write_bytes(b"loading\nurl hf_abcdefgh12345 \xff\n")
    redact_file(log)
    assert log.read_text() == "loading\nurl *** \ufffd\n"
    redact_file(tmp_path / "absent.log")


def test_counts_of_tokens_are_no_secrets() -> None:
    assert redact("max_token: 123456, output_tokens=64") == "max_token: 123456, output_tokens=64"
