"""What was registered, and how a run deviates from it: "as registered" is what a paper then says."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_llem.cli import main
from pytest_llem.errors import JsonValue, StoreError
from pytest_llem.job.wire import encode
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.manifest import Manifest, ManifestItem, PlannedCycle, StudyPlan
from pytest_llem.results.preregister import deviations, register, registered_lines
from pytest_llem.results.registration import Registration, protocol_of, read_registration, registration_of
from pytest_llem.study.loader import load_study
from pytest_llem.study.model import Overrides

STUDY = "model: builtin:tiny-llama\nsweep: {transformers.batch_size: [1, 2]}\nexecution: {cycles: 2}\n"
RULE = "batch 2 is adopted if its joules per token are lower"
Change = Callable[[Manifest, StudyPlan], tuple[Manifest, StudyPlan]]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    return path


def ran(registered: Registration) -> tuple[Manifest, StudyPlan]:
    """A run of exactly what was registered, begun after it, every cycle valid."""
    keys = [CycleKey(registered.study, id, of, cycle) for id, of in registered.experiments.items() for cycle in (1, 2)]
    plan = StudyPlan(
        registered.study,
        None,
        protocol=registered.protocol,
        cycles=tuple(PlannedCycle(key.experiment_id, key.config_hash, key.cycle) for key in keys),
        required_cycles=2,
        file_sha256=registered.file_sha256,
        registration=replace(registered, files=()),
    )
    items = tuple(
        ManifestItem(key.study, key.experiment_id, key.config_hash, key.cycle, "valid", ("valid",), "d") for key in keys
    )
    environment: dict[str, JsonValue] = {
        "pytest_llem": registered.versions["pytest_llem"],
        "packages": {name: version for name, version in registered.versions.items() if name != "pytest_llem"},
    }
    return Manifest("run-1", "2999-01-01T00:00:00+00:00", environment, (plan,), items), plan


def test_a_run_of_what_was_registered_is_as_registered(study: Path) -> None:
    registered = register(load_study(study), RULE)
    manifest, plan = ran(registered)
    assert deviations(registered, manifest, plan) == []
    assert next(registered_lines(manifest)).startswith("study study: as registered (")


CHANGES: dict[str, Change] = {
    "before the registration": lambda m, p: (replace(m, started_at="2020-01-01T00:00:00+00:00"), p),
    "not run: batch_size:1": lambda m, p: (m, replace(p, cycles=p.cycles[2:])),
    "not registered: extra": lambda m, p: (m, replace(p, cycles=(*p.cycles, PlannedCycle("extra", "0", 1)))),
    "other settings: batch_size:1": lambda m, p: (
        m,
        replace(p, cycles=(PlannedCycle("batch_size:1", "0", 1), *p.cycles[2:])),
    ),
    "the study's file was edited": lambda m, p: (m, replace(p, file_sha256="0")),
    "execution.cycles: 2 -> 1": lambda m, p: (m, replace(p, protocol={**p.protocol, "execution.cycles": 1})),
    "execution.order: sequential -> shuffled": lambda m, p: (
        m,
        replace(p, protocol={**p.protocol, "execution.order": "shuffled"}),
    ),
    "thresholds.clocks_rel: None -> 0.9": lambda m, p: (
        m,
        replace(p, protocol={**p.protocol, "thresholds.clocks_rel": 0.9}),
    ),
    "torch: ": lambda m, p: (replace(m, environment={**m.environment, "packages": {"torch": "0.1"}}), p),
    "batch_size:1 c1 (invalid)": lambda m, p: (
        replace(m, items=(replace(m.items[0], state="invalid"), *m.items[1:])),
        p,
    ),
}


@pytest.mark.parametrize("said", CHANGES)
def test_each_deviation_is_named(said: str, study: Path) -> None:
    """One that is not seen makes "as registered" false."""
    registered = register(load_study(study), RULE)
    manifest, plan = CHANGES[said](*ran(registered))
    found = deviations(registered, manifest, plan)
    assert any(said in text for text in found), found


def test_a_registration_is_written_once_and_an_edit_is_seen(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preregister", str(study), "--rule", RULE]) == 0
    path = study.with_name("study.registration.json")
    kept = read_registration(path)
    assert f"sha256 {kept.sha256}" in capsys.readouterr().out
    assert (kept.rule, kept.protocol["execution.cycles"]) == (RULE, 2)
    assert [*kept.experiments] == ["batch_size:1", "batch_size:2"]
    assert kept.files[0].text == STUDY
    assert main(["preregister", str(study), "--rule", "another"]) == 2
    assert "there is a registration already" in capsys.readouterr().err
    assert main(["preregister", str(study), "--rule", "x", "-o", str(study.parent)]) == 2
    assert f"{study.parent}: is a folder" in capsys.readouterr().err
    assert registration_of(study) == replace(kept, files=())
    path.write_text(json.dumps({**json.loads(path.read_text()), "rule": "whatever came out"}))
    with pytest.raises(StoreError, match="was changed after it was registered"):
        registration_of(study)


def test_gates_and_thresholds_of_the_run_are_part_of_it(study: Path) -> None:
    """`--llem-fail-if` and the ini file change what decides without a letter in the study's file."""
    registered = protocol_of(load_study(study))
    stricter = load_study(study, overrides=Overrides(fail_if={"joules_per_output_token": "1%"}))
    lenient = load_study(study, validity={"clocks_rel": 0.9})
    assert protocol_of(load_study(study)) == registered
    assert protocol_of(stricter)["gates"] != registered["gates"]
    assert protocol_of(lenient)["thresholds.clocks_rel"] == 0.9


def test_a_registration_of_another_version_holds(study: Path, tmp_path: Path) -> None:
    """Its hash is over what its file says: a field more or less in this version would make each earlier one edited."""
    data = encode(register(load_study(study), RULE))
    assert isinstance(data, dict)
    del data["commit"], data["sha256"]
    signed = json.dumps(data, sort_keys=True, separators=(",", ":"))
    path = tmp_path / "older.json"
    path.write_text(json.dumps({**data, "sha256": hashlib.sha256(signed.encode()).hexdigest()}))
    assert read_registration(path).commit is None


def test_a_study_needs_a_rule_and_a_check_needs_runs(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preregister", str(study)]) == 2
    assert "--rule is missing" in capsys.readouterr().err
    assert main(["preregister", str(study), "--rule", RULE]) == 0
    assert main(["preregister", str(study), "--check", str(study.parent)]) == 2
    assert "no run of the study 'study'" in capsys.readouterr().err
