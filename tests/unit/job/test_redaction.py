"""No secret in what is written: errors and logs."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from urllib.parse import quote

import pytest

from pytest_llem.errors import EngineError, JsonValue
from pytest_llem.job.job import JobDir
from pytest_llem.job.redaction import (
    REDACTED,
    has_credential,
    hidden,
    name_secrets,
    redact,
    redact_arguments,
    redact_file,
    redacted,
)


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


SECRET = "p4ss/wörd+with=odd&marks"


@pytest.mark.parametrize("before", ["", "a", "ab", "user:"])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_a_known_secret_is_found_in_base64_wherever_it_stands(before: str, encode: type) -> None:
    values = hidden({"HF_TOKEN": SECRET})
    whole = encode(f"{before}{SECRET} and more".encode()).decode()
    kept = redact(f"Authorization: {whole}", values).partition("***")
    assert kept[1] == "***"
    assert len(kept[0].removeprefix("Authorization: ")) <= len(before) * 4 / 3 + 1


def test_a_known_secret_is_found_percent_encoded_and_in_json() -> None:
    values = hidden({"HF_TOKEN": SECRET})
    for text in (quote(SECRET, safe=""), quote(SECRET), json.dumps(SECRET), quote(SECRET, safe="").lower()):
        assert "rd" not in redact(text, values)


def test_variables_that_sound_secret_are_hidden_but_no_plain_words() -> None:
    environment = {
        "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG",
        "DATABASE_URL": "postgres://app:hunter22%2B@db/llm",
        "SOME_SECRET": "production",
        "MAX_TOKEN": "12345678",
        "TOKENIZERS_PARALLELISM": "hunter2-hunter2",
    }
    text = "wJalrXUtnFEMI/K7MDENG hunter22+ production 12345678 hunter2-hunter2"
    assert redact(text, hidden(environment)) == "*** *** production 12345678 hunter2-hunter2"


def test_a_key_of_several_lines_is_hidden_line_by_line() -> None:
    key = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAA\nBG5vbmUAAAAEbm9uZQ==\n-----END"
    assert redact("x BG5vbmUAAAAEbm9uZQ== y", hidden({"DEPLOY_KEY": key})) == "x *** y"
    assert redact(f"before\n{key} OPENSSH PRIVATE KEY-----\nafter", ()) == "before\n***\nafter"


def test_a_variable_that_a_setting_names_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORP_LLM", "quite-ordinary")
    assert redact("quite-ordinary") == "quite-ordinary"
    name_secrets({"api_key_env": "CORP_LLM", "served_model": "HOME"})
    assert redact("quite-ordinary") == "***"


def test_what_is_a_token_of_another_kind_stays() -> None:
    for text in (
        "one token: not JSON",
        "special token: <|im_start|>",
        "pad_token=<|endoftext|>",
        "joules per output token: 0.012345J",
        "time per token: 12.34ms/token",
        "eos_token: </s>",
        "pip install hf_transfer",
        "mask_token: extra_id_99",
        "first token: \u2581Berlin1",
    ):
        assert redact(text, ()) == text
    special: JsonValue = {
        "pad_token": "<|endoftext|>",
        "mask_token": "extra_id_99",
        "unk_token": "[UNK]",
        "max_token": 12345678,
    }
    assert redacted(special, ()) == special


def test_only_what_is_surely_a_credential_is_refused_in_a_study() -> None:
    for name in ("org/hf_quantized8bit-of-something-long", "sk-learn", "s3://bucket/of/a/data-set/that/is/long.jsonl"):
        assert not has_credential(name)
    for credential in ("postgres://me:pw12@database/of/results", "x hf_abcdefghijklmnopqrstuvwxyz12345678"):
        assert has_credential(credential)


def test_a_secret_is_known_by_its_key_in_json() -> None:
    found = redacted({"headers": {"X-Api-Key": "correct horse", "accept": "text/plain"}, "hub_token": "a1b2c3d4e5"}, ())
    assert found == {"headers": {"X-Api-Key": "***", "accept": "text/plain"}, "hub_token": "***"}


@pytest.mark.parametrize(
    "text", ["HF_TOKEN=correcthorse", "CI_JOB_TOKEN: pa$$word", "{'access_token': 'correcthorse'}"]
)
def test_a_token_that_is_named_as_a_credential_is_hidden_whatever_it_looks_like(text: str) -> None:
    assert redact(text, ()).rstrip("'}").endswith("***")


@pytest.mark.parametrize(
    "unit", ["-", "a-", "_", "token-", "token=", "password=1", "token:     ", "eyJaaaaaaaa.", "eyJ-", "a"]
)
def test_a_long_line_takes_no_time(unit: str) -> None:
    started = time.thread_time()
    redact(unit * (200_000 // len(unit)), ())
    assert time.thread_time() - started < 5


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("/models/hf_checkpoints/llama", False),
        ("hf_transformers_backend", False),
        ("org/sk-learn-experiments-v2", False),
        ("https://user@host/path", False),
        ("hf_aBcDeFgHiJkLmNoPqRsTuVwXyZaBcDeFgH", True),
        ("sk-0123456789abcdef01", True),
        ("sk-proj-Ab1-Cd2-Ef3-Gh4-Ij5", True),
        ("hf_transfer of hf_abcdefgh123456789", True),
        ("https://user:word@host/path", True),
    ],
)
def test_a_study_may_say_what_only_begins_like_a_credential(text: str, is_one: bool) -> None:
    assert has_credential(text) == is_one


def test_words_beside_basic_and_bearer_paths_and_names_of_servers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "ollama")
    monkeypatch.setenv("TLS_KEY", __file__)
    for text in (
        "a basic configuration and Basic authentication; Bearer authentication is off",
        "answered by ollama 0.5",
        f"{__file__}: no such key",
    ):
        assert redact(text) == text
    assert (
        redact("Authorization: BASIC dXNlcjpwYXNz and bearer abcdefg.hi") == "Authorization: BASIC *** and bearer ***"
    )


def test_an_argument_after_the_option_of_a_secret_is_hidden() -> None:
    """`run.json` keeps the command line, and another plugin's password stood in it."""
    arguments = ["--password", "swordfish", "--api-key=swordfish", "-k", "secret or swordfish", "--tokens", "a1b2c3d4"]
    assert redact_arguments(arguments) == [
        "--password", REDACTED, f"--api-key={REDACTED}", "-k", "secret or swordfish", "--tokens", "a1b2c3d4",
    ]  # fmt: skip


def test_a_header_and_a_user_of_a_command_are_hidden_whatever_their_scheme() -> None:
    """`llem attach -- curl -u me:password` kept the password in run.json and result.json."""
    arguments = ["-u", "me:swordfish", "-u", "1000:1000", "-H", "Authorization: Token sword", "--header=Cookie: a=b1"]
    assert redact_arguments([*arguments, "-H", '{"authorization": "swordfish", "n": "1"}', "-u", "bench.py"]) == [
        "-u", f"me:{REDACTED}", "-u", "1000:1000", "-H", f"Authorization: {REDACTED}", f"--header=Cookie: {REDACTED}",
        "-H", f'{{"authorization": "{REDACTED}", "n": "1"}}', "-u", "bench.py",
    ]  # fmt: skip
