"""Studies whose servers are started: what they may say, and the whole way from a study to its results."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from pytest_llem.engines.openai.settings import ClientSettings, OpenAISettings, read_settings
from pytest_llem.errors import JsonValue, StudyError
from pytest_llem.job.files import read_json
from pytest_llem.job.job import DeviceSet
from pytest_llem.results.reading import read_result
from pytest_llem.servers.plan import server_notice
from pytest_llem.servers.spec import ServerSpec
from pytest_llem.study import load_study
from pytest_llem.study.declared import keys_of
from tests.plugin.serving.bench import SERVER, end_all, job_of, left

STUDY = """\
name: served
model: builtin:tiny-llama
engine: openai
workload: {prompts: 2, input_tokens: 8, output_tokens: 4}
measurement: {min_duration_s: 0.05, idle: {duration_s: 0}, warmup: {max_repeats: 1}}
openai:
  command: [PYTHON, SERVER, --model, "{model}", --port, "{port}", --dtype, "{dtype}", --child]
  enable_prefix_caching: false
experiments:
  - {id: one, dtype: float32}
  - {id: sharing, dtype: float32, workload: {prompts: 3}}
  - {id: another, dtype: bfloat16, measurement: {min_duration_s: 600}}
execution: {cycles: 1, retries: 0}
"""


@pytest.fixture
def study(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a study of two servers; what it starts can be found by its mark."""
    monkeypatch.setenv("LLEM_TEST_MARK", str(pytester.path))

    def write(**execution: object) -> Path:
        text = STUDY.replace("PYTHON", sys.executable).replace("SERVER", str(SERVER))
        more = "".join(f", {name}: {value}" for name, value in execution.items())
        path = pytester.path / "served.yaml"
        path.write_text(text.replace(", retries: 0}", f", retries: 0{more}}}"))
        return path

    return write


def test_a_study_shares_its_servers_and_leaves_none_when_it_is_interrupted(
    pytester: pytest.Pytester, study: Callable[..., Path], request: pytest.FixtureRequest
) -> None:
    """The whole way: two cycles on one server, and Ctrl-C while the next one measures on another."""
    study()
    request.addfinalizer(lambda: end_all(pytester.path))
    run = subprocess.Popen(
        [sys.executable, "-m", "pytest", "served.yaml", "-v"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 240
    while not measures(pytester.path, "another"):
        assert time.monotonic() < deadline, "the last cycle never began to measure"
        assert run.poll() is None, run.communicate()[0]
        time.sleep(0.1)
    servers = [process for process in map(psutil.Process, left(pytester.path)) if str(SERVER) in process.cmdline()]
    assert len(servers) == 2, "one server and its lifeline: the other server has ended"
    run.send_signal(signal.SIGINT)
    output, _ = run.communicate(timeout=120)
    assert run.returncode == pytest.ExitCode.INTERRUPTED, output
    assert left(pytester.path) == []
    [error] = map(read_json, pytester.path.glob("llem-results/*/served/*/c1/error.json"))
    assert error["category"] == "interrupted"

    paths = sorted(pytester.path.glob("llem-results/*/served/*/c1/result.json"))
    results = {result.experiment.id: result for result in map(read_result, paths)}
    assert {id: result.status for id, result in results.items()} == {"one": "valid", "sharing": "valid"}
    server: dict[str, Any] = {id: result.runner.facts["server"] for id, result in results.items()}
    assert {id: (one["id"], one["reused"]) for id, one in server.items()} == {
        "one": ("served-1", False),
        "sharing": ("served-1", True),
    }
    for result in results.values():
        assert result.energy.scope == "process_estimate"
        assert result.energy.energy_j is not None
        settings: Any = result.experiment.config["settings"]
        assert "base_url" not in settings, "it differs from run to run"
    logs = {path.name: path.read_text() for path in pytester.path.glob("llem-results/*/servers/*")}
    assert sorted(logs) == ["served-1.log", "served-2.log"]
    assert "as bfloat16" in logs["served-2.log"]


def measures(path: Path, experiment: str) -> bool:
    """Whether a cycle of the experiment has reached its measure window."""
    events = path.glob(f"llem-results/*/served/{experiment}*/c1/events.jsonl")
    return any('"event": "window_begin", "name": "measure"' in one.read_text() for one in events)


def test_a_kept_engine_beside_a_server_is_refused_at_collection(
    pytester: pytest.Pytester, study: Callable[..., Path]
) -> None:
    study(isolation="load")
    result = pytester.runpytest("served.yaml", "--collect-only")
    result.stdout.fnmatch_lines(["*served.yaml:7:*openai.command*execution.isolation: load*", "*fix: *stays loaded*"])
    assert result.ret == pytest.ExitCode.INTERRUPTED


def test_a_client_in_a_container_beside_a_server_is_refused_at_collection(
    pytester: pytest.Pytester, study: Callable[..., Path]
) -> None:
    study()
    result = pytester.runpytest("served.yaml", "--collect-only", "--llem-runner=docker")
    result.stdout.fnmatch_lines(["*served.yaml:7:*openai.command*the runner docker*", "*fix: *openai.image*"])


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ("sequential", None),
        ("interleaved", "order: interleaved starts its 2 servers 4 times in all; with order: sequential it would be 2"),
    ],
)
def test_an_order_that_starts_servers_again_and_again_is_said(
    study: Callable[..., Path], order: str, said: str | None
) -> None:
    path = study(order=order)
    path.write_text(path.read_text().replace("cycles: 1", "cycles: 2"))
    assert server_notice(load_study(path)) == (None if said is None else f"study served: {said}")


COMMAND = ["serve", "{model}", "--port", "{port}"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "openai.base_url, openai.command and openai.image are all missing"),
        ({"base_url": "http://127.0.0.1:1/v1", "command": COMMAND}, "openai.base_url cannot be combined with"),
        ({"base_url": "http://127.0.0.1:1/v1", "server_args": ["-v"]}, "openai.base_url cannot be combined with"),
        ({"command": ["serve", "{modle}", "{port}"]}, "unknown placeholder {modle} (did you mean 'model'?"),
        ({"command": ["serve", "{model}"]}, "the server is not told its port"),
        ({"command": ["serve", "{port}"]}, "the server is not told its model"),
        ({"command": ["serve", "{gguf}", "{model}", "{port}"]}, "its model twice, as {model} and as {gguf}"),
        ({"command": COMMAND, "tensor_parallel_size": 2}, "openai.tensor_parallel_size 2 does not reach the server"),
        ({"image": "an/image", "server_args": COMMAND, "dtype": "float16"}, "dtype float16 does not reach the server"),
        ({"command": COMMAND, "weights": "dummy"}, "weights dummy does not reach the server"),
    ],
)
def test_a_study_says_which_server_and_tells_it_everything(
    tmp_path: Path, settings: dict[str, JsonValue], said: str
) -> None:
    common = {name: settings[name] for name in ("dtype", "weights") if name in settings}
    section = {name: value for name, value in settings.items() if name not in common}
    path = tmp_path / "study.yaml"
    path.write_text(json.dumps({"model": "builtin:tiny-llama", "engine": "openai", "openai": section, **common}))
    with pytest.raises(StudyError, match=re.escape(said)):
        load_study(path)


def test_braces_that_are_no_placeholders_reach_the_server_as_they_are(tmp_path: Path) -> None:
    arguments: list[JsonValue] = ["--config", '{"method": "{unknown}", "n": {}}', "{dtype}", "{load_format}"]
    spec = ServerSpec.of(job_of(server_args=arguments).config, DeviceSet("cpu"))
    launch = spec.filled("the-model", "127.0.0.1", 8000)
    assert launch.arguments == ("--config", '{"method": "{unknown}", "n": {}}', "float32", "auto")
    assert launch.command[-4:] == ("--model", "the-model", "--port", "8000")


def test_every_setting_is_the_clients_or_the_servers() -> None:
    """What the study accepts and the client does not know would fail every cycle."""
    written_out = {name: key.default for name, key in keys_of(OpenAISettings).items() if key.default is not None}
    config = replace(job_of().config, settings={**written_out, "base_url": "http://127.0.0.1:1/v1"})
    settings = read_settings(config, {})
    assert settings == ClientSettings(base_url="http://127.0.0.1:1/v1")


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["/usr/bin/python3", "-c", "import os\nprint(1)"], "python3"),
        (["python", "-m", "a.module", "--port", "1"], "a.module"),
        (["python", "serve.py"], "serve.py"),
        (["/opt/bin/vllm", "serve"], "vllm"),
    ],
)
def test_a_server_is_called_by_what_it_runs(command: list[JsonValue], name: str) -> None:
    """Not by a program that was given as text: that stood in every message, line by line."""
    assert ServerSpec.of(job_of(command=command).config, DeviceSet("cpu")).name == name
