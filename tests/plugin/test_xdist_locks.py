"""The lock order (result, then device, then runner) has no deadlock: workers that hand themselves items as xdist does.

Without engines, so that many orders of events are seen in a moment; `test_xdist.py` has the same with real runs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_llem.results.layout import CycleKey
from pytest_llem.results.store import RunStore

EXPERIMENTS, CYCLES = 3, 3
WORKER = """
import os, random, sys, time
from pathlib import Path
from pytest_llem.machine.devices import Demand
from pytest_llem.errors import LlemError
from pytest_llem.results.attempts import get_or_measure
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.store import RunStore
from pytest_llem.machine.leases import LeaseRequest, take_lease

worker = int(sys.argv[1])
choice = random.Random(worker)

def measured(place, key):
    def measure(attempt, job_dir):
        demand = Demand("cuda", devices, choice.randint(1, len(devices)))
        with take_lease(demand, timeout_s=100, request=LeaseRequest(str(key), "run", place)):
            time.sleep(choice.random() * 0.02)
        raise LlemError("there is no engine here")
    return get_or_measure(store, key, measure)

for line in sys.stdin:
    kind, *rest = line.split()
    if kind == "run":
        store = RunStore.open(Path(rest[0]))
        os.environ["LLEM_LEASE_DIR"], devices = rest[1], tuple(rest[2].split(","))
    else:
        place, experiment, cycle = map(int, rest)
        for one in [cycle] if kind == "cycle" else range(1, cycle + 1):
            measured(place, CycleKey("study", f"e{experiment}", f"{experiment:064x}", one))
    with (store.run_dir / f"done-{worker}").open("a") as done:
        print(line.strip(), file=done)
"""


@pytest.fixture(scope="module")
def workers() -> Iterator[list[subprocess.Popen[str]]]:
    started = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(number)], stdin=subprocess.PIPE, text=True)
        for number in range(4)
    ]
    yield started
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("devices", ["GPU-a", "GPU-a,GPU-b"], ids=["one device", "two devices"])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_last_cycles_and_first_gates_never_wait_for_each_other(
    tmp_path: Path, workers: list[subprocess.Popen[str]], count: int, devices: str
) -> None:
    """A gate asks for cycles that other workers hold, or have been handed and not begun."""
    store = RunStore.create(tmp_path, "run", environment={})
    cycles = [(experiment, cycle) for cycle in range(1, CYCLES + 1) for experiment in range(EXPERIMENTS)]
    gates = [(experiment, CYCLES) for experiment in range(EXPERIMENTS)]
    items = [("cycle", *one) for one in cycles] + [("gate", *one) for one in gates]
    lines = [f"{kind} {place} {experiment} {cycle}" for place, (kind, experiment, cycle) in enumerate(items)]
    dealt = [lines[number::count] for number in range(count)]
    dealt[0].reverse()  # its gates come before cycles that they ask for, its own and the others'
    begin = f"run {store.run_dir} {tmp_path / 'leases'} {devices}"
    hands = [[begin, *hand] for hand in dealt]

    for process, hand in zip(workers, hands, strict=False):
        assert process.stdin is not None
        process.stdin.writelines(f"{line}\n" for line in hand)
        process.stdin.flush()
    deadline = time.monotonic() + 120
    done: list[list[str]] = []
    while done != hands and time.monotonic() < deadline:
        time.sleep(0.05)
        files = [store.run_dir / f"done-{number}" for number in range(count)]
        done = [path.read_text().splitlines() if path.exists() else [] for path in files]
    assert done == hands

    for experiment, cycle in cycles:
        key = CycleKey("study", f"e{experiment}", f"{experiment:064x}", cycle)
        state = json.loads((store.directory(key) / "state.json").read_text())
        assert state["attempts"] == ["failed"], "each is tried once, whoever asks for it"
