"""What a package has of its studies, so that another laboratory can measure them and check what was registered."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llem.cli import main
from pytest_llem.errors import StoreError
from pytest_llem.job.files import write_json
from pytest_llem.job.wire import encode
from pytest_llem.machine.environment import content_digest
from pytest_llem.results.manifest import PlannedCycle, StudyPlan
from pytest_llem.results.packaged import as_registered, needed
from pytest_llem.results.publish import studies
from pytest_llem.results.publish.package import data
from pytest_llem.results.registration import Registration
from pytest_llem.results.report.content import Content, gather_content
from pytest_llem.study.model import SourceText
from tests.unit.results.publish.conftest import Bench, measured

if TYPE_CHECKING:
    from tests.unit.results.conftest import Worker

    MakeWorker = Callable[..., Worker]

STUDY = "sizes_50%"
TEXT = "model: m\nworkload: {dataset: data/prompts.jsonl}\n"
PROMPTS = '{"prompt": "one"}\n{"prompt": "two"}\n'


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A study with its data set."""
    (tmp_path / "lab" / "data").mkdir(parents=True)
    (tmp_path / "lab" / "study.yaml").write_text(TEXT)
    (tmp_path / "lab" / "data" / "prompts.jsonl").write_text(PROMPTS)
    return tmp_path / "lab"


def content_of(run: Path, lab: Path, named: Path | None = None, registration: Registration | None = None) -> Content:
    """The run as if its study had been that of the laboratory, with this data set."""
    content = gather_content([run])
    named = named or lab / "data" / "prompts.jsonl"
    results = []
    for result in content.results:
        config: Any = result.experiment.config
        config = {**config, "workload": {**config["workload"], "dataset": str(named)}}
        facts: Any = {"dataset_files": content_digest(named)}
        update = {
            "experiment": replace(result.experiment, config=config),
            "environment": replace(result.environment, comparable=facts),
        }
        results.append(result.model_copy(update=update))
    ran = {(each.experiment.id, each.experiment.config_hash): None for each in content.results}
    digest = hashlib.sha256(TEXT.encode()).hexdigest()
    cycles = tuple(PlannedCycle(*each, 1) for each in ran)
    plan = StudyPlan(
        STUDY, str(lab / "study.yaml"), text=TEXT, file_sha256=digest, cycles=cycles, registration=registration
    )
    (manifest,) = content.manifests.values()
    manifest = replace(manifest, studies=(plan,), items=())
    return replace(
        content, results=replace(content.results, items=tuple(results)), manifests={manifest.run_id: manifest}
    )


def written(package: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_bytes(content)
    return package


def stated(files: dict[str, bytes]) -> dict[str, Any]:
    (entry,) = json.loads(files["studies/sizes_50.inputs.json"])["files"]
    return dict(entry)


def test_a_data_set_travels_to_where_its_study_finds_it(run: Path, lab: Path, tmp_path: Path) -> None:
    """A package could not be reproduced, and its results named a directory of somebody's machine."""
    files = data(content_of(run, lab))
    assert files["studies/data/prompts.jsonl"] == PROMPTS.encode()
    digest = hashlib.sha256(PROMPTS.encode()).hexdigest()
    entry = stated(files)
    assert (entry["rows"], entry["bytes"], entry["sha256"]) == (2, len(PROMPTS), digest)
    result = next(json.loads(text) for name, text in files.items() if name.endswith("result.json"))
    assert result["experiment"]["config"]["workload"]["dataset"] == "./data/prompts.jsonl"
    assert str(lab).encode() not in b"".join(files.values())
    package = written(tmp_path / "paper", files)
    assert [*needed(package, STUDY)] == []
    (package / "studies/data/prompts.jsonl").write_text("other\n")
    (said,) = needed(package, STUDY)
    assert said.startswith("replace ")
    assert digest in said


def test_a_data_set_that_stays_behind_is_named_with_its_rows_and_hash(
    run: Path, lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = data(content_of(run, lab), with_inputs=False)
    assert "studies/data/prompts.jsonl" not in files
    (said,) = needed(written(tmp_path / "paper", files), STUDY)
    place = tmp_path / "paper" / "studies" / "data" / "prompts.jsonl"
    assert said.startswith(f"put prompts.jsonl (2 rows, {len(PROMPTS)} bytes, sha256 ")
    assert f") at {place}: workload.dataset of study {STUDY}; not in the package: it was left out on purpose" in said
    monkeypatch.setattr(studies, "MOST_BYTES", 10)
    assert "it is larger than" in stated(data(content_of(run, lab)))["absent"]
    monkeypatch.undo()
    outside = tmp_path / "far.jsonl"
    outside.write_text(PROMPTS)
    assert stated(data(content_of(run, lab, outside)))["absent"] == "it lies outside of the study's folder"
    around = lab / ".." / "near.jsonl"  # written so, it would have been put beside the package's studies
    around.write_text(PROMPTS)
    assert stated(data(content_of(run, lab, around)))["absent"] == "it lies outside of the study's folder"


def test_a_data_set_that_changed_since_is_not_published_as_the_one_that_was_measured(run: Path, lab: Path) -> None:
    content = content_of(run, lab)
    (lab / "data" / "prompts.jsonl").write_text("something else\n")
    files = data(content)
    assert "studies/data/prompts.jsonl" not in files
    entry = stated(files)
    assert (entry["absent"], entry["sha256"]) == ("it was changed since it was measured", None)
    (lab / "data" / "prompts.jsonl").unlink()
    assert stated(data(content))["absent"].startswith("it was no file any more")


def test_a_list_of_files_that_leads_out_of_the_package_is_refused(run: Path, lab: Path, tmp_path: Path) -> None:
    files = data(content_of(run, lab))
    listed = files["studies/sizes_50.inputs.json"].replace(b"data/prompts.jsonl", b"../../secret.txt")
    package = written(tmp_path / "paper", {**files, "studies/sizes_50.inputs.json": listed})
    with pytest.raises(StoreError, match="lies outside of the package"):
        list(needed(package, STUDY))


def registered(lab: Path, **changes: Any) -> Registration:
    digest = hashlib.sha256(TEXT.encode()).hexdigest()
    found = Registration(
        study=STUDY,
        rule="8 is adopted if it is lower",
        registered_at="2020-01-01T00:00:00+00:00",
        file_sha256=digest,
        experiments={},
        protocol={},
        files=(SourceText("study.yaml", TEXT, digest),),
    )
    return replace(found, **changes).signed


def test_a_package_has_the_registration_so_that_a_reader_can_check_it(run: Path, lab: Path, tmp_path: Path) -> None:
    """The word of the methods paragraph was all that a reader had."""
    ran = {each.experiment.id: each.experiment.config_hash for each in gather_content([run]).results}
    whole = registered(lab, experiments=ran)
    content = content_of(run, lab, registration=replace(whole, files=()))
    package = written(tmp_path / "paper", data(content))
    (found,) = as_registered(package, STUDY)
    assert (found.deviations, found.checked, found.sha256) == ((), True, whole.sha256)
    assert json.loads((package / "studies/sizes_50.registration.json").read_text())["files"][0]["text"] == TEXT
    file = package / "studies" / "sizes_50.registration.json"
    text = file.read_text()
    file.write_text(text.replace("8 is adopted", "8 is refused"))
    with pytest.raises(StoreError, match="was changed after it was registered"):
        as_registered(package, STUDY)
    other = registered(lab, experiments=ran, rule="another rule")
    write_json(file, encode(other))
    with pytest.raises(StoreError, match="is not what run r1 was registered as"):
        as_registered(package, STUDY)
    file.unlink()
    assert not as_registered(package, STUDY)[0].checked


def test_deviations_and_lost_texts_are_seen_in_the_package(run: Path, lab: Path, tmp_path: Path) -> None:
    whole = registered(lab, experiments={"batch_size:99": "0" * 64}, files=(SourceText("study.yaml", "gone", "x"),))
    content = content_of(run, lab, registration=replace(whole, files=()))
    files = data(content)
    assert "studies/sizes_50.registration.json" not in files, "its hash could not be checked"
    (found,) = as_registered(written(tmp_path / "paper", files), STUDY)
    assert "not run: batch_size:99" in found.deviations
    assert not found.checked
    write_json(lab / "study.registration.json", encode(whole))
    assert "studies/sizes_50.registration.json" in data(content), "the file beside the study has the texts"


def test_a_package_of_several_studies_is_judged_study_by_study(
    tmp_path: Path, bench: Bench, worker: MakeWorker, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was refused, and a run's directory, which was to be named instead, is not in a package."""
    out = tmp_path / "out"
    measured(out, bench, worker)
    measured(out, bench, worker, name="r2", study="more")
    paper = tmp_path / "paper"
    assert main(["publish", str(out), "-o", str(paper)]) == 0
    reproduce = ["reproduce", str(paper), "--run", str(out), "--out", str(tmp_path / "mine"), "--format", "json"]
    capsys.readouterr()
    main(reproduce)
    record = json.loads(capsys.readouterr().out)
    assert [each["study"] for each in record["reproductions"]] == ["more", STUDY]
    main([*reproduce, "--study", "more"])
    (only,) = json.loads(capsys.readouterr().out)["reproductions"]
    assert only == record["reproductions"][0]
    assert main([*reproduce, "--study", "less"]) == 2
    assert "use one of: more, sizes_50%" in capsys.readouterr().err
    assert main(["reproduce", str(paper), "--run", str(run), "--out", str(tmp_path / "mine")]) == 2
    assert "or choose one with --study NAME" in capsys.readouterr().err
