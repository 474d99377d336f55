"""How often a GPU's settings are back when what set them is killed: `python -m tests.benchmarks.device_put_back`.

Each try sets four settings of a simulated GPU by the package's own code, in real processes; kills one of them (SIGKILL,
or a signal that asks) at a random moment; and looks at the GPU at the first moment at which its lease is free. The
container wants a Docker daemon (`. .ci/docker-for-tests.sh`). `--write-docs` puts the figures into docs/device.md.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from pytest_llem import doctor
from pytest_llem.job.job import DeviceSet
from pytest_llem.machine.devices import gpu_uuids
from pytest_llem.machine.gpu_settings.guard import MODULE as GUARD
from pytest_llem.machine.leases import take_lease
from tests.figures import write_figures
from tests.hostile.report import table
from tests.set_board import IMAGE, Board
from tests.simulated_nvml.simulation import build_library, preload

SEED = 20261130
LATEST_S = 0.3
"""How late a kill comes after the settings. Chosen: far longer than a set takes, and short beside a cycle."""

SET_NS = 10_000_000
"""How long a set takes where a kill is to hit it."""

ENDS_S = 40.0
"""Chosen: longer than a guard tries."""

PAGE = Path(__file__).parents[2] / "docs" / "device.md"


@dataclass(frozen=True)
class Try:
    """One kill: whether it hit, whether the GPU was as before once its lease was free, what is left, the time taken."""

    point: str
    hit: bool
    back: bool
    left: tuple[str, ...]
    seconds: float


def _held(board: Board, chance: random.Random, kind: str) -> subprocess.Popen[bytes]:
    """The process that has set the GPU, some time after it has."""
    holder = board.start(kind)
    board.wait_for(board.is_set, holder)
    time.sleep(chance.uniform(0, LATEST_S))
    return holder


def _worker(board: Board, chance: random.Random) -> bool:
    """The measured process, which its fork server has forked."""
    holder = _held(board, chance, "cycle")
    board.wait_for(lambda: bool(_workers(board)), holder)
    return _kill(_workers(board))


def _workers(board: Board) -> list[psutil.Process]:
    found: list[psutil.Process] = []
    for server in board.processes("pytest_llem.worker.forkserver"):
        with contextlib.suppress(psutil.Error):
            found += server.children()
    return found


def _fork_server(board: Board, chance: random.Random) -> bool:
    holder = _held(board, chance, "cycle")
    board.wait_for(lambda: bool(_workers(board)), holder)
    parents = [worker.parent() for worker in _workers(board)]
    return _kill([parent for parent in parents if parent is not None])


def _guard_first(board: Board, chance: random.Random) -> bool:
    """Then the process that has set puts back itself, at its own end."""
    holder = _held(board, chance, "light")
    hit = board.kill(GUARD)
    assert holder.stdin is not None
    holder.stdin.close()
    return hit


def _pytest(board: Board, chance: random.Random) -> bool:
    return _signal(_held(board, chance, "pytest"))


def _xdist_worker(board: Board, chance: random.Random) -> bool:
    """The worker of `-n 1` that measures; its controller goes on with another."""
    holder = _held(board, chance, "pytest -n1")
    return _kill([child for child in psutil.Process(holder.pid).children() if "stdin" in " ".join(child.cmdline())])


def _container(board: Board, chance: random.Random) -> bool:
    """A container of a real daemon, whose end ends the cycle; or whoever waits for it."""
    holder = _held(board, chance, "container")
    name = f"llem-put-back-{holder.pid}"
    board.wait_for(lambda: _docker("inspect", "--format={{.State.Running}}", name) == "true", holder)
    if chance.random() < 0.5:
        return _docker("kill", name) == name
    hit = _signal(holder)
    _docker("rm", "-f", name)
    return hit


def _docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False).stdout.strip()


def _node(board: Board, chance: random.Random) -> bool:
    """What measures on a node; all that it has started is swept away with it."""
    return _signal(_held(board, chance, "node"))


def _writing(board: Board, chance: random.Random) -> bool:
    """Around the writing of the record: before the guard, before the first change, in the middle of either."""
    holder = board.start("light")
    board.wait_for(lambda: bool(list(board.record.parent.glob("settings-*"))), holder)
    time.sleep(chance.uniform(0, 0.003))
    return _signal(holder)


def _setting(board: Board, chance: random.Random) -> bool:
    """Between the first and the last of four sets, by NVML or by a sudo that outlives whoever called it."""
    if chance.random() < 0.5:
        board.through_sudo()
    board.gpu.set_latency_ns = SET_NS
    holder = board.start("light")
    board.wait_for(board.record.exists, holder)
    time.sleep(chance.uniform(0, 4 * SET_NS / 1e9))
    return _signal(holder)


def _restoring(board: Board, chance: random.Random) -> bool:
    """While it is put back, by the process that has set it or by the guard."""
    board.gpu.set_latency_ns = SET_NS
    holder = _held(board, chance, "light")
    assert holder.stdin is not None
    if chance.random() < 0.5:
        holder.stdin.close()
        time.sleep(chance.uniform(0, 4 * SET_NS / 1e9))
        return _signal(holder)
    hit = _signal(holder)
    time.sleep(chance.uniform(0, 4 * SET_NS / 1e9))
    board.kill(GUARD)
    _next_run(board, chance)
    return hit


def _both(board: Board, chance: random.Random) -> bool:
    """Guard and pytest at once, so that a record is left."""
    holder = _held(board, chance, "light")
    hit = board.kill(GUARD)
    hit = _signal(holder) and hit
    holder.wait()
    hit = hit and board.record.exists() and board.gpu.settings != board.before
    _next_run(board, chance)
    return hit


def _next_run(board: Board, chance: random.Random) -> None:
    """Whoever leases the GPU next, of whatever study, or `llem doctor --restore`."""
    while not board.is_free():
        time.sleep(0.005)
    with board.here():
        if chance.random() < 0.5:
            doctor.restore_settings()
        else:
            with take_lease(DeviceSet("cuda", (board.uuid,)), timeout_s=ENDS_S):
                assert board.gpu.settings == board.before


def _asked_to_end(board: Board, chance: random.Random) -> bool:
    return _signal(_held(board, chance, "light"), chance.choice((signal.SIGTERM, signal.SIGINT, signal.SIGHUP)))


POINTS: dict[str, Callable[[Board, random.Random], bool]] = {
    "worker": _worker,
    "fork server": _fork_server,
    "guard, before the end of the cycle": _guard_first,
    "pytest": _pytest,
    "xdist worker": _xdist_worker,
    "container": _container,
    "node agent": _node,
    "while the record is written": _writing,
    "while settings are made": _setting,
    "while they are put back": _restoring,
    "guard and pytest, then the next run": _both,
    "SIGTERM, SIGINT or SIGHUP": _asked_to_end,
}


def kill_one(point: str, directory: Path, library: Path, chance: random.Random) -> Try:
    """Set, kill, and look."""
    board = Board(directory, library)
    hit = POINTS[point](board, chance)
    killed = time.monotonic()
    while not board.is_free() and time.monotonic() < killed + ENDS_S:
        time.sleep(0.002)
    back = board.gpu.settings == board.before and not board.record.exists() and board.is_free()
    seconds = time.monotonic() - killed
    board.kill("put-back.yaml")  # the controller of xdist goes on
    while (left := board.processes()) and time.monotonic() < killed + ENDS_S:
        time.sleep(0.02)
    names = tuple(" ".join(process.cmdline())[-80:] for process in left)
    for process in left:
        process.kill()
    return Try(point, hit, back, names, seconds)


def _signal(holder: subprocess.Popen[bytes], number: int = signal.SIGKILL) -> bool:
    holder.send_signal(number)
    return holder.returncode is None


def _kill(victims: Sequence[psutil.Process]) -> bool:
    for victim in victims:
        with contextlib.suppress(psutil.Error):
            victim.kill()
            return True
    return False


def can_kill(point: str) -> bool:
    """Whether what a point needs is here."""
    if point != "container":
        return True
    return shutil.which("docker") is not None and bool(_docker("image", "inspect", "--format={{.Id}}", IMAGE))


def figures(found: Sequence[Try]) -> str:
    """The table of docs/device.md."""
    rows: list[Sequence[object]] = []
    for point in POINTS:
        own = [one for one in found if one.point == point]
        if own:
            late = sum(not one.hit for one in own)
            slowest = f"{max(one.seconds for one in own):.2f} s"
            rows.append((point, len(own), late, sum(one.back for one in own), slowest))
    rows.append(("all", len(found), sum(not one.hit for one in found), sum(one.back for one in found), ""))
    return table(("killed", "tries", "of them too late", "settings back", "free again after at most"), rows)


def main() -> None:
    """Kill, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=100, help="at each point")
    parser.add_argument("--minutes", type=float, default=600.0, help="begin no further round after so many")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--point", action="append", help="this one alone (repeatable)")
    parser.add_argument("--write-docs", action="store_true")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    found: list[Try] = []
    with tempfile.TemporaryDirectory() as place:
        library = build_library(Path(place))
        preload(library)
        gpu_uuids.cache_clear()
        begun = time.monotonic()
        for number in range(options.tries):
            if time.monotonic() - begun > options.minutes * 60:
                break
            for point in options.point or POINTS:
                if can_kill(point):
                    with tempfile.TemporaryDirectory() as directory:
                        found.append(kill_one(point, Path(directory), library, chance))
                    if not found[-1].back or found[-1].left:
                        print(number, found[-1], flush=True)
            print(number, sum(one.back for one in found), "of", len(found), flush=True)
    print(figures(found))
    if options.write_docs:
        write_figures("put-back", figures(found), PAGE)


if __name__ == "__main__":
    main()
