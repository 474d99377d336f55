"""`llem doctor` on simulated GPUs."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from pytest_llem import doctor
from pytest_llem.cli import main
from pytest_llem.containers import orphaned_containers
from pytest_llem.energy import calibrate, calibration
from pytest_llem.engines.info import EngineInfo
from pytest_llem.job.job import DeviceSet
from pytest_llem.machine.lease_files import LEASE_DIR_VARIABLE, lease_file
from pytest_llem.machine.leases import take_lease
from pytest_llem.results.terminal import CLEAR
from tests.installed import Site
from tests.simulated_nvml.plugin import make_simulation, simulated_nvml_library, simulation
from tests.simulated_nvml.simulation import Simulation
from tests.unit.energy.cycle import quicken, uuids
from tests.unit.energy.test_calibrate import SteadyLoad

__all__ = ["make_simulation", "simulated_nvml_library", "simulation"]


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One engine that can be imported at once, one that is broken, no Docker daemon, and directories of its own."""
    (tmp_path / "broken_engine.py").write_text("raise ImportError('built for another CUDA')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    engines_are(monkeypatch, EngineInfo("transformers", modules=("json",)))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    monkeypatch.setenv(LEASE_DIR_VARIABLE, str(tmp_path / "leases"))
    monkeypatch.setenv("LLEM_CALIBRATION_DIR", str(tmp_path / "calibration"))


def engines_are(monkeypatch: pytest.MonkeyPatch, *infos: EngineInfo) -> None:
    monkeypatch.setattr(doctor, "engines", lambda: {info.name: info for info in infos})


def findings(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, str]]:
    data = json.loads(capsys.readouterr().out)
    return {f"{finding['section']}/{finding['subject']}": finding for finding in data["findings"]}


def test_a_machine_that_measures_exits_with_0_though_docker_is_down(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0

    found = findings(capsys)
    assert found["engines/transformers"]["level"] == "ok"
    assert found["docker/daemon"]["level"] == "warn"
    assert "DOCKER_HOST" in found["docker/daemon"]["fix"]
    assert found["directories/device leases"]["level"] == "ok"


def test_what_packages_add_is_listed_and_what_is_broken_is_a_problem(
    capsys: pytest.CaptureFixture[str], site: Site
) -> None:
    source = "def rows(settings): ...\n"
    site.add("llem-rows", source, datasets="rows = llem_rows:rows", exports="gone = llem_rows:gone")

    assert main(["doctor", "--json"]) == 1

    found = findings(capsys)
    assert found["added by packages/rows"]["message"] == "data set of llem-rows 1.0"
    assert "'gone' of llem-rows 1.0 cannot be used" in found["added by packages/export formats"]["message"]
    assert found["engines/transformers"]["level"] == "ok"


def test_on_a_terminal_it_says_what_it_waits_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was silent for as long as an engine takes to import; a file or a pipe must stay free of it."""
    main(["doctor"])
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    main(["doctor"])
    steps = capsys.readouterr().err.split(CLEAR)
    assert steps == ["", "reading sensors ...", "importing json ...", "asking the Docker daemon ...", ""]


def test_an_engine_that_is_there_and_breaks_is_a_problem_with_its_own_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engines_are(monkeypatch, EngineInfo("sglang", modules=("broken_engine",)))

    assert main(["doctor", "--json"]) == 1

    broken = findings(capsys)["engines/sglang"]
    assert broken["level"] == "problem"
    assert "built for another CUDA" in broken["message"]


@pytest.mark.usefixtures("simulation")
def test_an_engine_whose_torch_is_not_for_the_gpus_here_is_warned_of(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything was `ok`, and each study was refused."""
    engines_are(monkeypatch, EngineInfo("transformers", modules=("json",), packages=("torch",)))
    monkeypatch.setattr(doctor, "torch_build", lambda: "cpu")

    assert main(["doctor", "--json"]) == 0

    found = findings(capsys)["engines/transformers"]
    assert found["level"] == "warn"
    assert "its torch was built for cpu, and cuda is what is here" in found["message"]
    assert "--llem-device=cpu" in found["fix"]


def test_an_engine_that_nobody_verified_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = EngineInfo(
        "new", modules=("no_such_module_here",), install="pip install no-such-module-here", verified=False
    )
    engines_are(monkeypatch, EngineInfo("transformers", modules=("json",)), absent)

    assert main(["doctor"]) == 0

    text = capsys.readouterr().out
    assert "not yet verified on hardware" in text
    assert "fix: pip install no-such-module-here" in text


def test_nothing_to_run_with_is_a_problem(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    engines_are(monkeypatch)

    assert main(["doctor"]) == 1
    assert "no engine can be imported here" in capsys.readouterr().out


def test_a_directory_that_cannot_be_made_is_a_problem(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(LEASE_DIR_VARIABLE, str(tmp_path / "file" / "leases"))

    assert main(["doctor", "--json"]) == 1

    finding = findings(capsys)["directories/device leases"]
    assert finding["level"] == "problem"
    assert LEASE_DIR_VARIABLE in finding["fix"]


def test_calibrate_loads_an_idle_gpu_keeps_the_result_and_shows_it(
    simulation: Simulation, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    quicken(simulation)
    monkeypatch.setattr(calibrate, "IDLE_PERIODS", 12)
    uuid = uuids(simulation)[0]
    made_while_idle: list[str] = []

    def load(of: str) -> SteadyLoad:
        made_while_idle.append(of)
        # As on a real GPU, the load is a process on it.
        simulation.gpus[0].set_pids(1)
        return SteadyLoad(simulation.gpus[0])

    monkeypatch.setattr(calibrate, "MatmulLoad", load)
    assert main(["doctor", "--calibrate", "--gpu", uuid]) == 0

    assert made_while_idle == [uuid]
    known = calibration.load(uuid, simulation.machine.driver.decode())
    assert known is not None
    assert known.counter_type == "accumulating"
    assert "energy counter calibrated on" in capsys.readouterr().out


def test_calibrate_removes_what_a_dead_pytest_left_on_the_gpu(
    simulation: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container that goes on there would be taken for the GPU's idle power."""
    quicken(simulation)
    monkeypatch.setattr(calibrate, "IDLE_PERIODS", 12)
    uuid = uuids(simulation)[0]
    with take_lease(DeviceSet("cuda", (uuid,)), timeout_s=0) as lease:
        lease.occupied_by(pid=os.getpid(), container="llem-left")
    file = lease_file(uuid)
    file.write_text(json.dumps({**json.loads(file.read_text()), "owner_start_ticks": -1}))
    removals: list[str] = []
    monkeypatch.setattr(orphaned_containers, "remove_orphaned_containers", lambda: removals.append(uuid))

    assert main(["doctor", "--calibrate", "--without-load", "--gpu", uuid]) == 0

    assert removals == [uuid]


def test_calibrate_without_torch_says_what_to_install(
    simulation: Simulation, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    quicken(simulation)

    assert main(["doctor", "--calibrate"]) == 2

    assert "calibration under load needs torch" in (said := capsys.readouterr().err)
    assert "--without-load" in said


def test_calibrate_refuses_a_gpu_that_is_not_visible(
    simulation: Simulation, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--calibrate", "--gpu", "GPU-other"]) == 2
    assert uuids(simulation)[0] in capsys.readouterr().err
