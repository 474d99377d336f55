"""How the client of OpenAI-compatible servers reaches one: addresses, TLS, keys, loading, and the fields it knows."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from pytest_llem.errors import EngineError, EngineSettingError, ServerUnreachableError
from tests.engines.servers.bench import Bench, bench, codes, run, texts

__all__ = ["bench"]

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Self-signed ones: `good.pem` for the address of this machine, `other.pem` for another host."""
    directory = tmp_path_factory.mktemp("certificates")
    for name, host in (("good", "IP:127.0.0.1"), ("other", "DNS:elsewhere.example")):
        words = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=here"
        files = ["-keyout", f"{name}.key", "-out", f"{name}.pem", "-addext", f"subjectAltName={host}"]
        subprocess.run([*words.split(), *files], cwd=directory, check=True, capture_output=True)
    return directory


def tls(certificates: Path, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / f"{name}.pem", certificates / f"{name}.key")
    return context


def test_a_server_with_a_certificate_of_its_own_is_trusted_by_name(bench: Bench, certificates: Path) -> None:
    server = bench.server(tls=tls(certificates, "good"))
    engine = bench.engine(server, ca_file=str(certificates / "good.pem"))
    assert [done.error for done in run(engine, texts(2))] == [None, None]


@pytest.mark.parametrize(
    ("served", "trusted", "advice"),
    [
        ("good", None, "openai.ca_file"),
        ("good", "other", "openai.ca_file"),
        ("other", "other", "as its certificate names it"),
    ],
)
def test_a_certificate_that_is_not_trusted_says_what_helps(
    bench: Bench, certificates: Path, served: str, trusted: str | None, advice: str
) -> None:
    ca_file = str(certificates / f"{trusted}.pem") if trusted else None
    with pytest.raises(ServerUnreachableError, match="no safe connection to https") as caught:
        bench.engine(bench.server(tls=tls(certificates, served)), ca_file=ca_file)
    assert advice in str(caught.value.fix)


def test_http_and_https_taken_for_each_other_say_so(bench: Bench, certificates: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as plain:

        def refuse() -> None:
            connection, _ = plain.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

        threading.Thread(target=refuse, daemon=True).start()
        with pytest.raises(ServerUnreachableError) as caught:
            bench.engine(f"https://127.0.0.1:{plain.getsockname()[1]}")
    assert "write openai.base_url with http://" in str(caught.value.fix)
    with pytest.raises(ServerUnreachableError) as caught:
        bench.engine(bench.server(tls=tls(certificates, "good")).url.replace("https:", "http:"))
    assert "https://" in str(caught.value.fix)


BROKEN = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


@pytest.mark.parametrize("text", [None, "no certificate", BROKEN])
def test_a_file_without_certificates_is_named(bench: Bench, tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "authority.pem"
    if text is not None:
        path.write_text(text)
    with pytest.raises(EngineSettingError, match=r"openai\.ca_file .*authority\.pem") as caught:
        bench.engine("https://127.0.0.1:1", ca_file=str(path))
    assert "PEM" in str(caught.value.fix)


@pytest.mark.parametrize("api", ["completions", "chat"])
@pytest.mark.parametrize("models", [200, 404])
@pytest.mark.parametrize("root", ["/openai", "/vllm", "/vllm/v1", ""])
def test_an_address_without_a_version_may_be_that_of_the_api(bench: Bench, api: str, models: int, root: str) -> None:
    server = bench.server(root=root, models_status=models)
    engine = bench.engine(server, base_url=f"{server.url}{root.removesuffix('/v1')}/", api=api)
    assert [done.error for done in run(engine, texts(2))] == [None, None]


def test_models_behind_another_key_do_not_keep_from_measuring(bench: Bench) -> None:
    engine = bench.engine(bench.server(models_status=401), served_model="mine")
    assert [done.error for done in run(engine, texts(1))] == [None]


def test_a_server_that_loads_with_its_first_request_is_waited_for(bench: Bench) -> None:
    engine = bench.engine(bench.server(health=(404,), busy=1))
    assert [done.error for done in run(engine, texts(1))] == [None]
    with pytest.raises(ServerUnreachableError, match="not ready after 0"):
        bench.engine(bench.server(busy=99), ready_timeout_s=0.5)


def test_a_server_that_refuses_work_for_ever_is_not_waited_for(bench: Bench) -> None:
    with pytest.raises(EngineError, match="refuses a request for one token: HTTP 503"):
        bench.engine(bench.server(busy=99, retry_after=None))
    assert bench.engine(bench.server(busy=1, retry_after="soon"))


@pytest.mark.parametrize("refuses", [True, False])
def test_a_server_that_knows_only_the_other_name_of_the_limit_is_asked_by_that(bench: Bench, refuses: bool) -> None:
    server = bench.server(limits=("max_completion_tokens",), refuses_limits=refuses)
    engine = bench.engine(server, api="chat")
    assert [done.generated for done in run(engine, texts(2))] == [8, 8]
    assert all("max_tokens" not in body for body in server.measured)
    assert engine.effective()["refused_fields"] == ("max_tokens",)
    assert "fields_refused" in codes(engine)[1]


def test_a_server_that_knows_no_limit_is_asked_by_its_usual_name(bench: Bench) -> None:
    engine = bench.engine(bench.server(limits=(), refuses_limits=False), api="chat")
    assert engine.effective()["refused_fields"] == ()


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:99999", "http://[::1", "http://:80/v1", "http://127.0.0.1:0/v1", "http://h:x/v1", "ftp://h/v1"],
)
def test_an_address_that_is_none_is_refused(bench: Bench, url: str) -> None:
    with pytest.raises(EngineSettingError, match="is not the URL of a server"):
        bench.engine("", base_url=url)


def test_a_key_of_several_lines_is_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header cannot hold it: aiohttp's ValueError was the error."""
    monkeypatch.setenv("MY_SERVERS_KEY", "one-half\nanother-half")
    with pytest.raises(EngineSettingError, match="MY_SERVERS_KEY holds more than a line") as caught:
        bench.engine(bench.server(), api_key_env="MY_SERVERS_KEY")
    assert "half" not in str(caught.value)


@pytest.mark.parametrize("models", [{"data": [{"id": "\ud800"}]}, "deep"])
def test_a_list_of_models_that_cannot_be_read_is_none(bench: Bench, models: Any) -> None:
    server = bench.server(models=models if models != "deep" else {})
    if models == "deep":
        server.script.raw_models = "[" * 100_000 + "]" * 100_000
    assert bench.engine(server).effective()["served_model"] == "nobody/knows-it"
