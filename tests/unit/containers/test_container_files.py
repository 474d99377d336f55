"""What is copied into a container, what is taken out of it, and what its output is made of."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_llem.containers.archive import COMES_BACK, take_results, worker_archive
from pytest_llem.containers.errors import DockerError
from pytest_llem.containers.stream import OutputPump
from pytest_llem.job.job import Deadlines, JobDir
from pytest_llem.job.redaction import redact, secrets_of
from pytest_llem.runners.watch import DeadlineWatch


def packed(*entries: tuple[str, bytes], link: str | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in entries:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        if link:
            info = tarfile.TarInfo(link)
            info.type = tarfile.SYMTYPE
            info.linkname = "/etc/passwd"
            archive.addfile(info)
    return buffer.getvalue()


def test_the_worker_runs_from_the_archive_alone(tmp_path: Path) -> None:
    """Nothing of the pytest side, and nothing that is installed here, may be needed inside."""
    with tarfile.open(fileobj=io.BytesIO(worker_archive())) as archive:
        archive.extractall(tmp_path, filter="data")
    site = tmp_path / "llem" / "site"

    code = "import sys; sys.path.insert(0, sys.argv[1]); import pytest_llem.worker.cycle"
    ended = subprocess.run(
        [sys.executable, "-S", "-E", "-c", code, str(site)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 0, ended.stderr
    assert (site / "pynvml.py").exists()
    assert not (site / "pytest_llem" / "plugin.py").exists()


def test_only_the_workers_files_are_taken(tmp_path: Path) -> None:
    """An archive from a container is not to be trusted with paths."""
    data = packed(
        ("job/measurement.json", b"{}"),
        ("job/events.jsonl", b"{}\n"),
        ("job/answers.jsonl", b"{}\n"),
        ("job/job.json", b"evil"),
        ("job/../../escape.json", b"evil"),
        ("job/deep/error.json", b"evil"),
        link="job/error.json",
    )

    taken = take_results([data[:700], data[700:]], JobDir(tmp_path), "image")

    assert taken == ["events.jsonl", "answers.jsonl", "measurement.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(taken)
    assert COMES_BACK[-1] == "error.json"


def test_a_cut_off_archive_leaves_nothing_half(tmp_path: Path) -> None:
    data = packed(("job/measurement.json", b"x" * 100_000))

    with pytest.raises(DockerError, match="copied out"):
        take_results([data[:50_000]], JobDir(tmp_path), "image")

    assert list(tmp_path.iterdir()) == []


def test_a_file_that_states_an_absurd_size_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("job/measurement.json")
    info.size = 2**50

    with pytest.raises(DockerError, match="1048576 GiB"):
        take_results([info.tobuf()], JobDir(tmp_path), "image")

    assert list(tmp_path.iterdir()) == []


def test_output_without_an_end_of_line_does_not_pile_up(tmp_path: Path) -> None:
    sizes: list[int] = []

    def frames() -> Iterator[tuple[int, bytes]]:
        for _ in range(64):
            yield 1, b"y" * 2**17
            sizes.append((tmp_path / "worker.log").stat().st_size)

    pump = OutputPump(frames(), tmp_path / "worker.log")
    pump.start()
    list(pump.rest(30.0))

    assert sizes[-1] > 2**22
    assert (tmp_path / "worker.log").stat().st_size >= 64 * 2**17


def test_output_is_told_apart_line_by_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "s3cret-value")

    def frames() -> Iterator[tuple[int, bytes]]:
        yield 1, b'LLEM-EVENT {"event": "phase", "na'
        yield 2, b"loading hf_abcdefghijkl s3cret-value\n"
        yield 1, b'me": "load"}\nplain\nLLEM-EVENT not json\n'
        yield 1, b"without end"

    live = io.StringIO()
    pump = OutputPump(frames(), tmp_path / "worker.log", live)
    pump.start()

    events = list(pump.rest(5.0))

    assert events == [{"event": "phase", "name": "load"}]
    assert [json.loads(line) for line in live.getvalue().splitlines()] == events
    assert (tmp_path / "worker.log").read_text() == "loading *** ***\nplain\nLLEM-EVENT not json\nwithout end\n"
    assert pump.ended


def test_redaction_hides_values_and_shapes() -> None:
    text = "HF_TOKEN=hf_0123456789 https://me:pw12@proxy api_key: 'abcdefgh' value-of-mine short"

    hidden = redact(text, ["value-of-mine", "short"])

    for secret in ("hf_0123456789", "me:pw12", "abcdefgh", "value-of-mine"):
        assert secret not in hidden
    assert hidden.endswith("short")
    assert secrets_of({"HF_TOKEN": "x", "HTTPS_PROXY": "", "HOME": "/"}) == {"HF_TOKEN": "x"}


def test_deadlines_run_on_the_receivers_clock() -> None:
    now = [100.0]
    watch = DeadlineWatch(Deadlines(timeout_s=50, load_timeout_s=10, silence_s=20), clock=lambda: now[0])

    watch.heard({"event": "phase", "name": "load", "t_ns": 5})
    now[0] += 9
    watch.heard({"event": "heartbeat", "t_ns": 10**18})
    assert watch.overdue() is None
    now[0] += 2
    assert "load_timeout_s" in str(watch.overdue())
    watch.heard({"event": "phase", "name": "measure"})
    assert watch.overdue() is None
    now[0] += 21
    assert "sign of life" in str(watch.overdue())
    now[0] += 20
    assert "timeout_s" in str(watch.overdue())
