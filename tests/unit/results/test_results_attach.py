"""`llem attach`: a command's run measured as a cycle is, with its own output, signals and exit code."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from pytest_llem.cli import main
from pytest_llem.job.job import JobDir
from pytest_llem.machine.lease_files import LEASE_DIR_VARIABLE
from pytest_llem.results.layout import run_directories
from pytest_llem.results.manifest import current_manifest, run_state
from pytest_llem.results.reading import load
from pytest_llem.results.schema import Result
from tests.engines.servers.scripted import Script, scripted
from tests.installed import Site
from tests.timed import on_a_clock

WORK = "import time\nwhile time.process_time() < 0.6: pass\nprint('done')"


@pytest.fixture(autouse=True)
def leases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LEASE_DIR_VARIABLE, str(tmp_path / "leases"))


def attached(out: Path, *arguments: str) -> int:
    return main(["attach", "-o", str(out), "--meter", "estimate", *arguments])


def only_result(out: Path) -> Result:
    (result,) = load(out)
    return result


def only_cycle(out: Path) -> JobDir:
    (path,) = out.glob("*/*/*/c1")
    return JobDir(path)


@on_a_clock
def test_a_command_is_measured_with_all_its_children_and_its_result_is_one_of_a_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The work of a grandchild was missing from the command's energy, which is that of a tree."""
    out = tmp_path / "runs"
    assert attached(out, "--name", "busy", "--", "sh", "-c", f'{sys.executable} -c "$0" && true', WORK) == 0
    said = capfd.readouterr()
    assert said.out == "done\n"  # nothing of it but the command's
    assert "NOT measured but estimated: estimate" in said.err
    result = only_result(out)
    assert result.validity.valid
    assert (result.study, result.experiment.id, result.engine.name) == ("attached", "busy", "command")
    energy, watts = result.energy.energy_j, 0.0
    assert energy is not None
    assert result.energy.uncertainty_j is not None
    with only_cycle(out).measurement.open() as stream:
        watts = json.load(stream)["energy"]["facts"]["watts_per_thread"]
    assert 0.6 <= energy / watts < 1.2
    # Nobody counted tokens: they are unknown, and not none.
    assert (result.tokens.output, result.workload.requests, result.energy.joules_per_output_token) == (None, None, None)
    assert result.throughput.output_tokens_per_s is None
    (run,) = run_directories(out)
    assert run_state(current_manifest(run)) == "complete"
    assert only_cycle(out).power.exists()
    assert main(["list", str(out)]) == 0
    assert main(["export", str(out), "--format", "csv", "-o", str(tmp_path / "all.csv")]) == 0


def test_the_exit_code_is_that_of_the_command_and_a_failed_commands_energy_is_not_valid(tmp_path: Path) -> None:
    """A benchmark that broke off passed for one that used little energy."""
    assert attached(tmp_path / "runs", "--", "sh", "-c", "exit 7") == 7
    assert [reason.code for reason in only_result(tmp_path / "runs").validity.reasons] == ["command_failed"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--", "no-such-command"), 127),
        (("--", "./not-executable"), 126),
        (("--meter", "nvml", "--", "true"), 125),
        (("--server", "http://127.0.0.1:9", "--", "true"), 125),
        (("--gpus", "0", "--", "true"), 125),
        (("--gpus", "²", "--", "true"), 125),
        (("--idle-s", "inf", "--", "true"), 125),
        (("--idle-s", "nan", "--", "true"), 125),
        (("--idle-s=-1", "--", "true"), 125),
        (("--",), 125),
    ],
)
def test_what_cannot_be_measured_is_not_run(
    tmp_path: Path, arguments: tuple[str, ...], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script that went on behind an unmeasured command took its exit code for the command's.

    `--idle-s inf` was a traceback where there is a sensor, and nothing was measured at rest for `nan` and below 0.
    """
    monkeypatch.chdir(tmp_path)
    Path("not-executable").write_text("#!/bin/sh\n")
    assert attached(tmp_path / "runs", *arguments) == code


def test_a_signal_goes_to_the_command_and_what_was_measured_until_then_stays(tmp_path: Path) -> None:
    """Ctrl-C ended the meter, and left a run without a result and a command without a parent."""
    out = tmp_path / "runs"
    script = "import sys,time\ntry:\n print('up', flush=True)\n time.sleep(30)\nexcept KeyboardInterrupt: sys.exit(8)"
    command = [sys.executable, "-c"]
    command += ["import sys; from pytest_llem.cli import main; sys.exit(main(sys.argv[1:]))", "attach", "-o", str(out)]
    command += ["--meter", "estimate", "--", sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)
    assert process.returncode == 8
    result = only_result(out)
    assert [reason.code for reason in result.validity.reasons] == ["command_failed"]
    assert result.energy.energy_j is not None


VLLM = {"data": [{"id": "llama", "owned_by": "vllm"}]}
COUNTS = "vllm:generation_tokens_total {}\nvllm:prompt_tokens_total {}\nvllm:num_requests_running {}\n"


def test_tokens_are_those_that_the_server_counted_while_the_command_ran(tmp_path: Path) -> None:
    """Tokens that the server had counted before the command were taken for the command's."""
    asked = {"/version": {"version": "0.26.0"}}
    with scripted(Script(models=VLLM, metrics=COUNTS.format(1000, 50, 0), aside=asked)) as server:
        flag = tmp_path / "started"

        def later() -> None:
            while not flag.exists():
                time.sleep(0.01)
            server.script.metrics = COUNTS.format(1400, 250, 0)
            flag.unlink()

        thread = threading.Thread(target=later)
        thread.start()
        wait = f"import os,time\nopen({str(flag)!r},'w')\nwhile os.path.exists({str(flag)!r}): time.sleep(0.01)\n"
        assert attached(tmp_path / "runs", "--server", server.url, "--", sys.executable, "-c", wait) == 0
        thread.join()
    result = only_result(tmp_path / "runs")
    assert (result.engine.name, result.engine.version) == ("vllm", "0.26.0")
    assert (result.tokens.output, result.tokens.input, result.workload.requests) == (400, 200, None)
    assert result.experiment.config["model"] == "llama"
    energy = result.energy
    # The server is this very process, which is counted with the command.
    assert energy.energy_j is not None
    assert energy.joules_per_output_token == pytest.approx(energy.energy_j / 400)
    assert energy.joules_per_total_token == pytest.approx(energy.energy_j / 600)
    assert energy.joules_per_request is None


def test_a_server_that_others_use_or_that_counts_nothing_is_said_to(tmp_path: Path) -> None:
    """Joules per token of a shared server passed for the command's own."""
    with scripted(Script(models=VLLM, metrics=COUNTS.format(10, 10, 1))) as server:
        assert attached(tmp_path / "shared", "--server", server.url, "--", "true") == 0
        server.script.metrics = None
        assert attached(tmp_path / "mute", "--server", server.url, "--", "true") == 0
    assert "server_in_use" in {note.code for note in only_result(tmp_path / "shared").warnings}
    mute = only_result(tmp_path / "mute")
    assert "server_not_counting" in {note.code for note in mute.warnings}
    assert (mute.tokens.output, mute.energy.joules_per_output_token) == (None, None)


def test_a_secret_in_the_command_is_written_nowhere(tmp_path: Path) -> None:
    """The command line of a benchmark holds its key; so did the experiment's name, and with it every file's path."""
    secret = "swordfish0123456789"
    assert attached(tmp_path / "runs", "--", "env", f"MY_API_KEY={secret}", "true", "--api-key", secret) == 0
    files = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    written = [path for path in files if secret in str(path) or secret.encode() in path.read_bytes()]
    assert not written


METRICS = """
from pytest_llem import Metric

FAILS = Metric("fails", "1", False, "What fails", False, of=lambda result: result.tokens.output / 2)
"""


def test_a_metric_of_another_package_that_fails_is_a_note_that_names_it(
    tmp_path: Path, site: Site, capfd: pytest.CaptureFixture[str]
) -> None:
    """It was a warning of Python's with a line of code, and a package that is broken failed a command that had run."""
    site.add("llem-extras", METRICS, metrics="fails = llem_extras:FAILS")
    out = tmp_path / "runs"
    assert attached(out, "--idle-s", "0", "--", "true") == 0
    (told,) = [line for line in capfd.readouterr().err.splitlines() if "fails" in line]
    (run,) = run_directories(out)
    assert told == (
        "llem: note: the metric 'fails' of llem-extras 1.0 is left out: it raised TypeError: "
        f"unsupported operand type(s) for /: 'NoneType' and 'int' (first in run {run.name}, attached, true, cycle 1)"
    )
    site.add("llem-extras", METRICS, metrics="fails = llem_extras:GONE")
    assert attached(tmp_path / "none", "--", "sh", "-c", f"touch {tmp_path}/ran") == 125
    assert "'fails' of llem-extras 1.0 cannot be used" in capfd.readouterr().err
    assert not (tmp_path / "ran").exists()


def waits(tmp_path: Path, change: Callable[[], None]) -> tuple[list[str], threading.Thread]:
    """A command that waits until `change` was made, and the thread that makes it once the command runs."""
    flag = tmp_path / "started"

    def later() -> None:
        while not flag.exists():
            time.sleep(0.01)
        change()
        flag.unlink()

    thread = threading.Thread(target=later)
    thread.start()
    script = f"import os,time\nopen({str(flag)!r},'w')\nwhile os.path.exists({str(flag)!r}): time.sleep(0.01)\n"
    return [sys.executable, "-c", script], thread


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (COUNTS.format(1000, 500, 0), COUNTS.format(10, 700, 0)),
        (f"{COUNTS.format(1000, 50, 0)}vllm:request_success_total 9\n", COUNTS.format(1400, 250, 0)),
        (
            f"{COUNTS.format(1000, 50, 0)}process_start_time_seconds 1.7e+09\n",
            f"{COUNTS.format(1400, 250, 0)}process_start_time_seconds 1.8e+09\n",
        ),
    ],
)
def test_what_a_server_counted_before_and_after_a_restart_is_no_difference(
    tmp_path: Path, before: str, after: str
) -> None:
    """Each counter was taken for itself: one that had passed its old value had grown by a number, which was valid."""
    with scripted(Script(models=VLLM, metrics=before)) as server:
        command, thread = waits(tmp_path, lambda: setattr(server.script, "metrics", after))
        assert attached(tmp_path / "runs", "--server", server.url, "--", *command) == 0
        thread.join()
    result = only_result(tmp_path / "runs")
    assert [reason.code for reason in result.validity.reasons] == ["server_restarted"]
    assert (result.tokens.output, result.tokens.input, result.engine.statistics) == (None, None, {})


SERVER = """
import http.server, json, sys

class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        text = {"/metrics": sys.argv[2], "/v1/models": json.dumps({"data": [{"id": "m", "owned_by": "vllm"}]})}
        body = text.get(self.path, "{}").encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    do_POST = do_GET
    def log_message(self, *given):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""


def test_another_process_at_the_port_is_another_server_whatever_it_counts(tmp_path: Path) -> None:
    """Its energy was that of the first alone, and its counters, which had passed the old ones, were subtracted."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def start(generated: int) -> subprocess.Popen[bytes]:
        said = COUNTS.format(generated, generated, 0)
        process = subprocess.Popen([sys.executable, "-c", SERVER, str(port), said])
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                return process
            time.sleep(0.02)
        raise AssertionError("it does not listen")

    running = [start(100)]

    def again() -> None:
        running[0].kill()
        running[0].wait()
        running.append(start(500))

    try:
        command, thread = waits(tmp_path, again)
        assert attached(tmp_path / "runs", "--server", f"http://127.0.0.1:{port}", "--", *command) == 0
        thread.join()
    finally:
        for each in running:
            each.kill()
            each.wait()
    result = only_result(tmp_path / "runs")
    assert [reason.code for reason in result.validity.reasons] == ["server_restarted"]
    assert result.tokens.output is None


def test_tokens_that_are_not_known_in_the_end_are_said_to_be(tmp_path: Path) -> None:
    """They were null without a word: of a server that hung, and of one whose metrics have other names."""
    with scripted(Script(models=VLLM, metrics=COUNTS.format(10, 10, 0))) as server:
        command, thread = waits(tmp_path, lambda: setattr(server.script, "metrics", None))
        assert attached(tmp_path / "hung", "--server", server.url, "--", *command) == 0
        thread.join()
        server.script.metrics = "tgi_request_count 12\n"
        assert attached(tmp_path / "other", "--server", server.url, "--", "true") == 0
    for out, why in (("hung", "was not answered after"), ("other", "states no count of generated tokens")):
        (note,) = [note for note in only_result(tmp_path / out).warnings if note.code == "server_not_counting"]
        assert why in note.message


def test_a_server_with_several_models_is_named_after_none(tmp_path: Path) -> None:
    """The tokens of all were those of the first. Adapters, and other names of one model, are no other models."""
    one = {"id": "llama", "owned_by": "vllm", "root": "/llama"}
    others = [{**one, "id": "alias"}, {**one, "id": "adapter", "root": "/adapter", "parent": "llama"}]
    with scripted(Script(models={"data": [one, *others]}, metrics=COUNTS.format(10, 10, 0))) as server:
        assert attached(tmp_path / "one", "--server", server.url, "--", "true") == 0
        server.script.models = {"data": [one, {**one, "id": "qwen", "root": "/qwen"}]}
        assert attached(tmp_path / "two", "--server", server.url, "--", "true") == 0
    first, second = only_result(tmp_path / "one"), only_result(tmp_path / "two")
    assert first.experiment.config["model"] == "llama"
    assert "several_models" not in {note.code for note in first.warnings}
    assert (second.experiment.config["model"], second.engine.effective["model_path"]) == (None, None)
    (note,) = [note for note in second.warnings if note.code == "several_models"]
    assert "2 models (llama, qwen)" in note.message


def test_errors_name_options_and_not_settings_of_studies(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert attached(tmp_path / "file", "--", "true") == 125
    assert f"llem: {tmp_path / 'file'}: not a directory" in capfd.readouterr().err
    assert attached(tmp_path / "runs", "--server", "http://me:secret@127.0.0.1:9", "--", "true") == 125
    said = capfd.readouterr().err
    assert "--server holds a user name" in said
    assert "openai" not in said
    assert attached(tmp_path / "runs", "--device", "cuda", "--", "true") == 125
    said = capfd.readouterr().err
    assert "or write --device cpu" in said
    assert "device.kind" not in said
