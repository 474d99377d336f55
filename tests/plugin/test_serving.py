"""Servers that are started for cycles: shared, watched, and never left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from pytest_llem.errors import LlemError
from pytest_llem.job.files import read_json
from pytest_llem.job.job import DeviceSet, Job, JobDir, load_job
from pytest_llem.job.report import RunReport
from pytest_llem.machine.leases import Lease
from pytest_llem.runners.protocol import OnEvent
from pytest_llem.servers import runner as serving_runner
from pytest_llem.servers import server as servers
from pytest_llem.servers import starting
from pytest_llem.servers.runner import ServingRunner
from pytest_llem.servers.server import Readiness
from tests.plugin.serving.bench import GONE_S, SERVER, Bench, Client, end_all, error_of, gone, job_of, left


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setenv("LLEM_TEST_MARK", str(tmp_path))
    made = Bench(tmp_path)
    yield made
    made.runner.close()
    assert left(tmp_path) == []


def test_cycles_share_a_server_until_one_needs_another(bench: Bench) -> None:
    first_dir, first = bench.run(job_of())
    second_dir, second = bench.run(replace(job_of(2), experiment_id="other"))
    _, third = bench.run(job_of(3, dtype="bfloat16"))

    assert [one["id"] for one in (first, second, third)] == ["study-1", "study-1", "study-2"]
    assert [one["reused"] for one in (first, second, third)] == [False, True, False]
    assert [one["cycle"] for one in (first, second, third)] == [1, 2, 1]
    assert first_dir.measurement.exists()
    job = load_job(second_dir.job)
    assert job.server is not None
    assert job.server.started_as == "command"
    assert job.server.ready_s == first["ready_s"] > 0.3
    assert first["log"] == "servers/study-1.log"
    assert "as float32 to ''" in bench.log(1), "it sees no GPU that was not leased"
    assert "as bfloat16 to ''" in bench.log(2)
    assert bench.runner.loaded
    assert [text for text in bench.said if text is None] == [None, None], "told when each server was ready"


def test_a_server_sees_the_leased_gpus_and_no_others(bench: Bench) -> None:
    bench.run(replace(job_of(), devices=DeviceSet("cuda", ("GPU-1", "GPU-2"))))

    assert "to 'GPU-1,GPU-2'" in bench.log(1)


def test_the_process_named_in_the_job_is_the_root_of_all_that_the_server_runs(bench: Bench) -> None:
    job_dir, _ = bench.run(job_of(1, "--child"))

    server = load_job(job_dir.job).server
    assert server is not None
    assert server.pid is not None
    tree = {process.pid for process in psutil.Process(server.pid).children(recursive=True)}
    assert tree == set(left(bench.path)) - {server.pid}
    assert len(tree) == 2


def test_a_server_that_ends_early_is_an_error_with_its_code_and_last_words(bench: Bench) -> None:
    job_dir, _ = bench.run(job_of(1, "--fault", "early"))

    error = error_of(job_dir)
    assert error["category"] == "server_start"
    assert error["details"]["exit_code"] == 3
    assert "ended with exit code 3: ValueError: this model cannot be served" in error["message"]
    assert error["log_tail"][-1] == "ValueError: this model cannot be served"
    assert not bench.runner.loaded


def test_a_server_that_is_never_ready_is_killed_at_its_deadline(bench: Bench) -> None:
    job_dir, _ = bench.run(job_of(1, "--fault", "never", ready_timeout_s=1.0))

    error = error_of(job_dir)
    assert error["category"] == "server_not_ready"
    assert "within 1 s (openai.ready_timeout_s)" in error["message"]
    assert "/health was answered with HTTP 503" in error["message"]
    assert left(bench.path) == []


def test_a_server_is_not_kept_after_a_cycle_that_failed(bench: Bench) -> None:
    """It may still work on what the cycle asked for, and that would count as the next one's energy."""

    class Fails(Client):
        def run(self, job: Job, job_dir: JobDir, on_event: OnEvent, lease: Lease | None = None) -> RunReport:
            if job.cycle == 2:
                raise LlemError("no client could be started")
            job_dir.write_error(LlemError("killed at its deadline"))
            return RunReport("local", "default", "process")

    whole, bench.runner._inner = bench.client, Fails()
    bench.run(job_of(1))
    assert not bench.runner.loaded
    second_dir, _ = bench.run(job_of(2))
    assert error_of(second_dir)["message"] == "no client could be started"
    assert not bench.runner.loaded

    bench.runner._inner = whole
    job_dir, server = bench.run(job_of(3))
    assert job_dir.measurement.exists()
    assert (server["id"], server["reused"]) == ("study-3", False)


def test_a_program_that_is_not_there_is_said_before_and_when_it_is_started(bench: Bench) -> None:
    job = job_of(command=["no-such-server", "{model}", "{port}"])
    job_dir, _ = bench.run(job)

    assert error_of(job_dir)["category"] == "server_start"
    assert "no-such-server: No such file" in error_of(job_dir)["message"]
    [problem] = bench.runner.preflight("openai", [job.config], DeviceSet("cpu")).problems
    assert "no program 'no-such-server'" in problem.message


def test_a_server_that_dies_in_a_cycle_fails_it_and_the_next_gets_a_new_one(bench: Bench) -> None:
    bench.client.requests = 6
    first_dir, _ = bench.run(job_of(1, "--fault", "mid"))
    second_dir, _ = bench.run(job_of(2, "--fault", "mid"))
    third_dir, third = bench.run(job_of(3, "--fault", "mid"))

    assert first_dir.measurement.exists()
    error = error_of(second_dir)
    assert error["category"] == "server_died"
    assert error["details"]["exit_code"] == 7
    assert error["details"]["client"].startswith("the client was cut off")
    assert error["log_tail"][-1] == "RuntimeError: the model fell over"
    assert third_dir.measurement.exists()
    assert third["id"] == "study-2"


def test_a_client_that_waits_for_a_dead_server_is_ended(bench: Bench) -> None:
    bench.client.requests, bench.client.patient = 20, True
    begun = time.monotonic()
    job_dir, _ = bench.run(job_of(1, "--fault", "mid"))

    assert error_of(job_dir)["category"] == "server_died"
    assert time.monotonic() - begun < GONE_S


def test_what_was_measured_against_a_server_that_died_is_kept_and_not_used(bench: Bench) -> None:
    class Unaware(Client):
        def run(self, job: Job, job_dir: JobDir, on_event: OnEvent, lease: Lease | None = None) -> RunReport:
            report = super().run(job, job_dir, lambda event: None, lease)
            job_dir.error.unlink()
            job_dir.measurement.write_text('{"kept": true}')
            return report

    bench.runner._inner = Unaware(requests=20)
    job_dir, _ = bench.run(job_of(1, "--fault", "mid"))

    assert error_of(job_dir)["category"] == "server_died"
    assert read_json(job_dir.path / serving_runner.ASIDE) == {"kept": True}


def test_a_server_that_ignores_its_end_is_killed_with_all_that_it_started(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its child leads a session of its own, as engine processes of some servers do."""
    monkeypatch.setattr(serving_runner, "STOP_GRACE_S", 0.3)
    bench.run(job_of(1, "--fault", "stubborn", "--child"))
    assert len(left(bench.path)) == 3

    bench.runner.unload()
    assert left(bench.path) == []


def test_a_taken_port_is_left_for_another_even_if_its_owner_answers(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Foreign(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    foreign = ThreadingHTTPServer(("127.0.0.1", 0), Foreign)
    threading.Thread(target=foreign.serve_forever, daemon=True).start()
    ports = iter([foreign.server_port])
    free = servers.free_port
    monkeypatch.setattr(starting, "free_port", lambda: next(ports, None) or free())
    job_dir, server = bench.run(job_of())
    foreign.shutdown()

    assert job_dir.measurement.exists()
    assert server["id"] == "study-2"
    assert "Address already in use" in bench.log(1)


def test_an_interruption_while_the_server_starts_leaves_nothing(bench: Bench) -> None:
    def interrupt(text: str | None) -> None:
        raise KeyboardInterrupt

    bench.runner._tell = interrupt
    with pytest.raises(KeyboardInterrupt):
        bench.run(job_of(1, "--child"))
    assert left(bench.path) == []
    assert error_of(JobDir(bench.path / "job-1"))["category"] == "interrupted"


def test_secrets_are_taken_out_of_the_log(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "a-secret-of-mine")
    monkeypatch.setenv("OUR_KEY", "what-opens-the-door")
    words = "import os; print('got', *map(os.environ.get, ('HF_TOKEN', 'OUR_KEY', 'GREETING')), flush=True)"
    job_dir, _ = bench.run(
        job_of(
            command=[sys.executable, "-c", words, "{model}", "{port}"],
            environment={"GREETING": "hello {dtype}"},
            api_key_env="OUR_KEY",
        )
    )

    assert "got *** *** hello float32" in bench.log(1)
    told = json.dumps(error_of(job_dir))
    assert "got *** *** hello float32" in told
    assert "a-secret-of-mine" not in told


@pytest.mark.parametrize(
    ("statuses", "path", "ready"),
    [
        ({"/health": 200, "/v1/models": 200}, None, True),
        ({"/health": 200, "/v1/models": 500}, None, True),
        ({"/health": 200, "/v1/models": 503}, None, False),
        ({"/health": 503, "/v1/models": 200}, None, False),
        ({"/health": 404, "/v1/models": 200}, None, True),
        ({"/health": 404, "/v1/models": 401}, None, True),
        ({"/health": 404, "/v1/models": 404}, None, False),
        ({"/health": 503, "/ready": 204}, "/ready", True),
        ({"/health": 200, "/ready": 500}, "/ready", False),
    ],
)
def test_a_server_is_ready_when_it_is_in_good_health_and_knows_its_models(
    statuses: dict[str, int], path: str | None, ready: bool
) -> None:
    """As of a server that fails at /v1/models, one that loads, one without /health, one that wants a key.

    None of them ends its answer, for which a start would have waited for ever.
    """
    asked = threading.Event()

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(statuses.get(self.path, 404))
            self.end_headers()
            self.wfile.write(b"{")
            asked.wait(20)

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    assert Readiness(server.server_port, path).asked() is ready
    asked.set()
    server.shutdown()
    server.server_close()
    assert not Readiness(server.server_port, path).asked()


def test_a_server_may_be_asked_for_anew_for_every_cycle(bench: Bench) -> None:
    for cycle, isolation in ((1, "process"), (2, "process"), (3, "server")):
        job_dir = JobDir(bench.path / f"job-{cycle}")
        job = job_of(cycle, keep_server=isolation == "server")
        job_dir.write_job(job)
        report = bench.runner.run(job, job_dir, lambda event: None)
        assert report.isolation == isolation
        assert report.facts["client"] == "ran"
        assert bench.runner.loaded == (isolation == "server")
    assert len(list((bench.path / "servers").iterdir())) == 3


def test_a_server_is_not_kept_where_another_process_may_wait_for_its_devices(tmp_path: Path) -> None:
    runner = ServingRunner(Client(), tmp_path, {}, lambda text: None, keep=False)
    job_dir = JobDir(tmp_path / "job")
    job_dir.write_job(job_of())
    runner.run(job_of(), job_dir, lambda event: None)

    assert job_dir.measurement.exists()
    assert not runner.loaded


HOLDER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.plugin.serving.bench import Bench, job_of
bench = Bench(Path(sys.argv[2]))
bench.run(job_of(1, "--child", "--fault", "stubborn"))
print("ready", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("victim", ["pytest", "lifeline"])
def test_nothing_outlives_a_killed_process(
    victim: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Killed by SIGKILL, so that nobody can tidy up; the server ignores SIGTERM."""
    monkeypatch.setenv("LLEM_TEST_MARK", str(tmp_path))
    root = str(Path(__file__).parents[2])
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, root, str(tmp_path)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    request.addfinalizer(lambda: end_all(tmp_path))
    assert holder.stdout is not None
    assert holder.stdout.readline() == "ready\n"
    server = load_job(JobDir(tmp_path / "job-1").job).server
    assert server is not None
    assert server.pid is not None
    [scripted] = [one for one in psutil.Process(server.pid).children() if str(SERVER) in one.cmdline()]

    os.kill(server.pid if victim == "lifeline" else holder.pid, signal.SIGKILL)
    psutil.wait_procs([scripted], GONE_S)
    assert not scripted.is_running()
    holder.kill()
    holder.communicate()
    # When the lifeline is gone, only the kernel is left to act, and it knows of the server alone.
    assert victim == "lifeline" or gone(tmp_path)
