"""The data package: whole, checkable, and without what must not be published."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pytest_llem.cli import main
from pytest_llem.errors import JsonValue, SettingsError, StoreError
from pytest_llem.results.manifest import StudyPlan
from pytest_llem.results.publish.package import Author, data
from pytest_llem.results.publish.scan import refuse
from pytest_llem.results.reading import load
from pytest_llem.results.report.content import gather_content
from pytest_llem.study.model import SourceText
from tests.unit.results.publish.conftest import Bench, measured

if TYPE_CHECKING:
    from tests.unit.results.conftest import Worker

    MakeWorker = Callable[..., Worker]


@pytest.fixture(scope="module")
def paper(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("paper")
    people = ["--author", "Doe, Jane; 0000-0002-1825-0097", "--author", "A Group"]
    assert main(["publish", str(run), "-o", str(out), *people, "--license", "CC-BY-4.0"]) == 0
    return out


def files_of(paper: Path) -> set[str]:
    return {file.relative_to(paper).as_posix() for file in paper.rglob("*") if file.is_file()}


def test_every_cycle_is_in_the_data_with_its_requests_and_readings(paper: Path) -> None:
    results, requests, power = (
        pq.read_table(paper / f"data/{name}.parquet") for name in ("results", "requests", "power")
    )
    assert sorted(results["valid"].to_pylist()).count(True) == 11
    assert (results.num_rows, requests.num_rows, power.num_rows) == (12, 12 * 6, 12 * 400)
    which = {(row["experiment"], row["cycle"]) for row in power.select(["experiment", "cycle"]).to_pylist()}
    assert which == {*zip(results["experiment"].to_pylist(), results["cycle"].to_pylist(), strict=True)}
    assert power.schema.field("power_w").metadata[b"unit"] == b"W"


def test_results_are_read_from_the_package_as_from_the_run(
    tmp_path: Path, bench: Bench, worker: MakeWorker, run: Path, paper: Path
) -> None:
    """Rows of a table are no results: nobody could compare with a package, or reproduce it."""
    theirs, published = load(run), load(paper)
    assert published.rows() == theirs.rows()
    assert theirs[0].environment.host["hostname"] == "node17"
    assert "hostname" not in published[0].environment.host
    git: JsonValue = {"commit": "0a1b", "repository": "https://git.lab/team/work"}
    made = measured(
        tmp_path / "out", bench, worker, host={"git": git, "cache": "/home/alice/.cache/m", "at": str(Path.home())}
    )
    assert main(["publish", str(made), "-o", str(tmp_path / "paper")]) == 0
    host = load(tmp_path / "paper")[0].environment.host
    assert host == {"git": {"commit": "0a1b"}, "cache": "~/.cache/m", "at": "~"}


def test_a_study_is_published_so_that_it_finds_what_it_is_based_on(run: Path) -> None:
    content = gather_content([run])
    bases = tuple(SourceText(name, "model: m\n", "") for name in ("lab/parts/base.yaml", "common/other.yaml"))
    plan = StudyPlan("sizes_50%", "lab/study.yaml", text="base: parts/base.yaml\n", bases=bases)
    content = replace(content, manifests={"r1": replace(content.manifests["r1"], studies=(plan,))})
    assert {name for name in data(content) if name.startswith("studies/")} == {
        "studies/sizes_50.yaml",
        "studies/parts/base.yaml",
        "studies/other.yaml",
    }


def test_checksums_and_crate_name_every_file(paper: Path) -> None:
    sums = dict(line.split("  ")[::-1] for line in (paper / "SHA256SUMS").read_text().splitlines())
    assert {*sums} == files_of(paper) - {"SHA256SUMS"}
    assert all(hashlib.sha256((paper / name).read_bytes()).hexdigest() == digest for name, digest in sums.items())
    graph = {each["@id"]: each for each in json.loads((paper / "ro-crate-metadata.json").read_text())["@graph"]}
    parts = {part["@id"] for part in graph["./"]["hasPart"]}
    assert parts == {*sums} - {"ro-crate-metadata.json"}
    assert all(graph[part]["contentSize"] == str((paper / part).stat().st_size) for part in parts)
    named = [graph["./"]["license"], *graph["./"]["author"], graph["#publish"]["instrument"]]
    assert all(each["@id"] in graph for each in named), "a reference to nothing"


def test_authors_are_those_who_were_named_and_no_citation_is_made_up(paper: Path, run: Path, tmp_path: Path) -> None:
    citation = yaml.safe_load((paper / "CITATION.cff").read_text())
    person = {"family-names": "Doe", "given-names": "Jane", "orcid": "https://orcid.org/0000-0002-1825-0097"}
    assert citation["authors"] == [person, {"name": "A Group"}]
    assert json.loads((paper / ".zenodo.json").read_text())["creators"][1] == {"name": "A Group"}
    assert main(["publish", str(run), "-o", str(tmp_path)]) == 0
    assert not {"CITATION.cff", ".zenodo.json"} & files_of(tmp_path)
    for wrong, why in ((" ; 1", "no name"), ("Doe, Jane; 0000-0002", "'0000-0002' is no ORCID")):
        with pytest.raises(SettingsError, match=why):
            Author.of(wrong)
    assert main(["publish", str(run), "-o", str(tmp_path), "--license", "see the web"]) == 2
    for author in (", ", "Doe,", "Doe, Jane; 0000-0002-1825-0079", "Doe, Jane; 1234"):
        assert main(["publish", str(run), "-o", str(tmp_path / "no"), "--author", author]) == 2
    assert not (tmp_path / "no").exists()


def test_what_a_user_wrote_stays_and_what_is_no_longer_made_goes(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Publishing again would have overwritten a methods section that was reworded."""
    publish = ["publish", str(run), "-o", str(tmp_path)]
    assert main([*publish, "--table", "energy_j", "--table", "avg_power_w"]) == 0
    assert "no text of the study sizes_50%, which no run.json here has" in capsys.readouterr().out
    (tmp_path / "paper.tex").write_text("mine")
    assert main(publish) == 0
    assert "tables/sizes_50-1.tex" not in files_of(tmp_path)
    (tmp_path / "methods.md").write_text("reworded")
    assert main(publish) == 2
    assert "methods.md: is not as it was published" in capsys.readouterr().err
    assert (tmp_path / "methods.md").read_text() == "reworded"
    assert (tmp_path / "paper.tex").read_text() == "mine"


def test_a_folder_with_sums_of_other_files_is_left_alone(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a user's own SHA256SUMS listed was removed as what is no longer made."""
    (tmp_path / "disk.iso").write_bytes(b"mine")
    sums = f"{hashlib.sha256(b'mine').hexdigest()}  disk.iso\n"
    (tmp_path / "SHA256SUMS").write_text(sums)
    assert main(["publish", str(run), "-o", str(tmp_path)]) == 2
    assert "SHA256SUMS: is of other files than llem publish writes" in capsys.readouterr().err
    assert files_of(tmp_path) == {"disk.iso", "SHA256SUMS"}
    assert main(["publish", str(run), "-o", str(tmp_path / "disk.iso")]) == 2
    said = capsys.readouterr().err
    assert "disk.iso: is not a folder\nfix: name another folder with -o" in said


@pytest.mark.parametrize(
    ("changed", "said"), [(b"{}", "result.json was changed"), (None, "result.json: No such file or directory")]
)
def test_a_package_that_is_not_as_it_was_published_is_not_reproduced(
    paper: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: bytes | None, said: str
) -> None:
    """Edited figures were judged as the original's."""
    package = tmp_path / "päper of 2026"
    shutil.copytree(paper, package)
    (package / "methods.md").write_text("reworded")
    assert main(["reproduce", str(package), "--check"]) == 0
    file = sorted((package / "data" / "results").rglob("result.json"))[0]
    file.unlink()
    if changed is not None:
        file.write_bytes(changed)
    assert main(["reproduce", str(package), "--check"]) == 2
    told = capsys.readouterr().err
    assert "is not as it was published: data/results/" in told
    assert said in told


def test_options_of_pytest_that_no_shell_would_take_are_an_error(
    paper: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They were a traceback, after all else had been read."""
    assert main(["reproduce", str(paper), "--pytest", "-k 'a"]) == 2
    assert "--pytest -k 'a: No closing quotation" in capsys.readouterr().err


def test_a_home_in_the_results_stops_it_before_anything_is_written(
    tmp_path: Path, bench: Bench, worker: MakeWorker, capsys: pytest.CaptureFixture[str]
) -> None:
    run = measured(tmp_path / "out", bench, worker, model="/home/alice/models/llama")
    publish = ["publish", str(run), "-o", str(tmp_path / "paper")]
    assert main(publish) == 2
    said = capsys.readouterr().err
    assert "data/results.parquet: row 1, column model: a home's path, /home/alice" in said
    assert not (tmp_path / "paper").exists()
    assert main([*publish, "--allow", "/home/alice"]) == 0


def test_secrets_and_hosts_are_found_wherever_they_stand() -> None:
    table = pa.table({"note": ["fine", "on node17.lab"], "number": [1, 2]})
    stream = io.BytesIO()
    pq.write_table(table, stream)
    files = {
        "data/a.parquet": stream.getvalue(),
        "b.yaml": b"key: 1\ntoken: hf_abcdefgh12345678901234567890abcdefg\nhttps://example.org/home/alice\n",
        "c.md": b"node171, anode17 and a-node17 are other names; /opt/app/home/page is no home, nor http://lab/data/home/x",
        "tables/on-node17.md": b"",
        "d.yaml": b"data: /var/home/bob/a\nmore: /mnt/data2/home/carol/b\n",
    }
    with pytest.raises(StoreError) as caught:
        refuse(files, {"node17"}, [])
    assert "data/a.parquet: row 2, column note: a host's name, node17" in str(caught.value)
    assert "b.yaml: line 2: a secret" in str(caught.value)
    assert "alice" not in str(caught.value), "a path of a URL"
    assert "c.md" not in str(caught.value)
    assert "tables/on-node17.md: its name: a host's name, node17" not in str(caught.value), "a word of another name"
    assert "d.yaml: line 1: a home's path, /var/home/bob" in str(caught.value)
    assert "d.yaml: line 2: a home's path, /mnt/data2/home/carol" in str(caught.value)
    refuse({"c.md": files["c.md"], "data/a.parquet": files["data/a.parquet"]}, {"node17"}, ["node17"])
