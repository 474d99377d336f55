"""A hub that is not there is noticed at once, and what lies in the local cache still works."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pytest_llem.engines.builtin import builtin_path
from pytest_llem.errors import WorkloadError
from pytest_llem.job.config import WorkloadSettings
from pytest_llem.job.request import Texts
from pytest_llem.workload.hub import hub_obstacle, probe, switch_off_when_absent
from pytest_llem.workload.texts import read_rows


class Hub:
    """An endpoint that answers every request with one status; `paths` holds what it was asked for."""

    def __init__(self, status: int) -> None:
        self.paths: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                outer.paths.append(self.path)
                self.send_response(status)
                self.end_headers()

            do_GET = do_HEAD  # noqa: N815 (the name that http.server looks for)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def hub(request: pytest.FixtureRequest) -> Iterator[Hub]:
    one = Hub(request.param)
    yield one
    one.close()


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        # Set before it is deleted, so that what the code sets is undone too.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def closed_port() -> str:
    with socket.socket() as probe_socket:
        probe_socket.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe_socket.getsockname()[1]}"


@pytest.mark.parametrize("hub", [200, 401, 404], indirect=True)
def test_any_answer_shows_that_the_hub_is_there(hub: Hub) -> None:
    assert probe(hub.url) is None


@pytest.mark.parametrize("hub", [502, 503], indirect=True)
def test_a_proxy_without_a_way_out_is_no_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    assert f"{hub.url} answered 50" in str(hub_obstacle())
    assert "answered" in str(hub_obstacle())
    assert hub.paths == ["/"]


def test_a_closed_port_and_a_silent_host_are_named() -> None:
    url = closed_port()
    assert f"{url} was not reached" in str(probe(url))
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert probe(f"http://127.0.0.1:{silent.getsockname()[1]}", 0.1) is not None


def test_a_hub_that_is_switched_off_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", closed_port())
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "switched off" in str(hub_obstacle())


def test_a_client_that_was_told_not_to_ask_still_has_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_llem.workload.hub._reasons", {})
    url = closed_port()
    monkeypatch.setenv("HF_ENDPOINT", url)
    switch_off_when_absent()
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert f"{url} was not reached" in str(hub_obstacle())


def test_a_data_set_is_looked_for_in_the_cache_when_the_hub_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def load_dataset(name: str, **keywords: Any) -> list[dict[str, str]]:
        asked.append({"offline": os.environ.get("HF_DATASETS_OFFLINE"), **keywords})
        if name == "some/absent":
            raise ConnectionError("Couldn't reach it")
        return [{"text": "one"}, {"text": "two"}]

    package = ModuleType("datasets")
    package.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", package)
    url = closed_port()
    monkeypatch.setenv("HF_ENDPOINT", url)
    assert read_rows(WorkloadSettings("some/cached", 2, None, 4, 0)) == Texts(("one", "two"), 0)
    assert (asked[0]["offline"], asked[0]["streaming"]) == ("1", False)
    with pytest.raises(WorkloadError, match=f"not in the local cache.*{url} was not reached"):
        read_rows(WorkloadSettings("some/absent", 2, None, 4, 0))


LOADING = """\
import dataclasses, json, sys
from pytest_llem.engines import open_engine
from pytest_llem.errors import LlemError
from pytest_llem.job.config import Decoding, ExperimentConfig, MeasurementSettings, WorkloadSettings
from pytest_llem.job.job import DeviceSet
found = {}
for model in ("some/cached", "some/absent"):
    config = ExperimentConfig(model, dtype="float32", workload=WorkloadSettings("synthetic", 1, 8, 4, 0),
                              decoding=Decoding(), measurement=MeasurementSettings(1.0))
    engine = open_engine("transformers")
    engine.prepare(config, DeviceSet("cpu"))
    try:
        engine.load()
        found[model] = engine.shape().parameters
    except LlemError as problem:
        found[model] = [type(problem).__name__, problem.message, problem.fix]
print(json.dumps(found))
"""


@pytest.mark.engine
@pytest.mark.parametrize("hub", [503], indirect=True)
def test_models_load_from_the_cache_and_absent_ones_fail_after_one_question(hub: Hub, tmp_path: Path) -> None:
    """The hub's client asks six times over 23 seconds on its own."""
    pytest.importorskip("transformers")
    repository = tmp_path / "hub" / "models--some--cached"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / ("a" * 40)).symlink_to(builtin_path("builtin:tiny-llama"), target_is_directory=True)
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_ENDPOINT": hub.url, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", LOADING], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["some/cached"] == 360768
    kind, message, fix = found["some/absent"]
    assert kind == "ModelNotFoundError"
    assert "not in the local cache" in message
    assert "answered 503" in message
    assert "builtin:tiny-llama" in fix
    assert hub.paths.count("/") == 1
    assert not [path for path in hub.paths if "some" in path]
