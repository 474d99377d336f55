"""Whose processes compute on a GPU, where the measured ones run in a container and the meter on the host."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from pytest_llem.energy.processes import containers_of, listening_pid
from pytest_llem.energy.validity import DeviceEvidence, Evidence, check
from pytest_llem.errors import JsonValue
from pytest_llem.job.config import Thresholds
from pytest_llem.job.measurement import Window

OWN, OTHER = "a" * 64, "b" * 64
WINDOW = Window("measure", 10, 20)


def test_a_process_is_told_by_its_control_group(tmp_path: Path) -> None:
    for pid, text in (
        (7, f"0::/system.slice/docker-{OWN}.scope\n"),
        (8, "0::/user.slice\n"),
        (9, f"1:cpu:/docker/{OTHER}"),
    ):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "cgroup").write_text(text)

    assert containers_of([7, 8, 9, 10], tmp_path) == {7: OWN, 8: None, 9: OTHER}


def listing(**groups: str | None) -> dict[str, JsonValue]:
    pids: list[JsonValue] = [int(name[1:]) for name in groups]
    return {
        "t_ns": 0,
        "event": "processes",
        "foreign": pids,
        "unknown": [],
        "containers": {name[1:]: group for name, group in groups.items()},
    }


@pytest.mark.parametrize(
    ("own", "listings", "foreign"),
    [
        # What starts later elsewhere is foreign; what the container starts is not.
        ({OWN}, [listing(), listing(p5=OWN), listing(p5=OWN, p6=OTHER)], True),
        ({OWN}, [listing(), listing(p5=OWN), listing(p5=OWN, p8=None)], True),
        ({OWN}, [listing(), listing(p5=OWN), listing(p5=OWN, p9=OWN)], False),
        # Control groups that name no container of ours tell nothing: then only what was there before counts.
        ({OWN}, [listing(), listing(p5=None)], False),
        ({OWN}, [listing(p8=None), listing(p5=None)], True),
        (set(), [listing(), listing(p5=OWN)], False),
        # It ended between the two looks.
        ({OWN}, [listing(p5=OWN), {**listing(p5=OWN), "foreign": [5, 6]}], False),
    ],
)
def test_from_the_host_every_listing_is_judged(
    own: set[str], listings: list[dict[str, JsonValue]], foreign: bool
) -> None:
    device = DeviceEvidence("GPU-1", None, (), tuple(listings), None)
    evidence = Evidence((WINDOW,), (device,), (), "host", frozenset(own))

    found = {note.code for note in check(evidence, (), Thresholds())}

    assert ("foreign_process" in found) is foreign


def test_a_listener_that_closes_other_descriptors_meanwhile_is_found() -> None:
    """One that was closed between the two looks hid the process: its energy was then that of nobody.

    Here it is the descriptor by which this process lists its own.
    """
    below = os.open(os.devnull, os.O_RDONLY)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert listener.fileno() > below
        os.close(below)
        assert listening_pid(listener.getsockname()[1]) == os.getpid()
