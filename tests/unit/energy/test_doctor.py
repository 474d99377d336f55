from __future__ import annotations

from pathlib import Path

import pytest

from pytest_llem.energy import doctor
from tests.simulated_nvml.simulation import Simulation
from tests.unit.energy.cycle import calibrate, uuids
from tests.unit.energy.powercap_tree import PowercapTree


def about(subject: str) -> list[doctor.Finding]:
    return [finding for finding in doctor.describe() if finding.subject == subject]


def test_a_healthy_calibrated_gpu_has_nothing_to_fix(simulation: Simulation) -> None:
    calibrate(simulation)

    findings = about(uuids(simulation)[0])

    assert {finding.level for finding in findings} == {"ok"}
    assert any("a step every 100.0 ms" in finding.message for finding in findings)


def test_what_makes_numbers_worse_is_named_with_its_remedy(simulation: Simulation) -> None:
    gpu = simulation.gpus[0]
    gpu.persistence = gpu.ecc = 0
    gpu.mig = 1
    gpu.set_pids(4242)

    text = "\n".join(f"{finding.message} | {finding.fix}" for finding in about(uuids(simulation)[0]))

    for expected in ("not calibrated", "llem doctor --calibrate", "nvidia-smi -i 0 -pm 1", "ECC is off", "MIG", "4242"):
        assert expected in text


def test_a_lost_gpu_is_a_problem_and_not_a_crash(simulation: Simulation) -> None:
    simulation.gpus[0].error = 15

    assert [finding.level for finding in about("nvml")] == ["problem"]


def test_readable_rapl_counters_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PowercapTree.shown(tmp_path, monkeypatch)

    assert about("rapl") == [doctor.Finding("ok", "rapl", "readable: package-0, dram-0")]


def test_gpus_to_calibrate_are_those_that_are_visible(simulation: Simulation, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.gpu_uuids() == list(uuids(simulation))
    simulation.machine.init_error = 9
    assert doctor.gpu_uuids() == []
