"""What a data package has of studies: their texts, registrations and plans, and the files that they name.

`package` calls it, and `packaged` reads what it writes. A file travels where it is small, lies below its study and is
the one that was measured; else the package says which file is needed.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq

from pytest_llem.errors import JsonValue, StoreError
from pytest_llem.job.config import PARQUET
from pytest_llem.job.files import slug
from pytest_llem.job.wire import encode
from pytest_llem.machine.environment import content_digest
from pytest_llem.results.layout import STUDIES, registration_file, study_in_package
from pytest_llem.results.manifest import Manifest, StudyPlan
from pytest_llem.results.packaged import PLANS, Input, NamedFiles, file_sha256, inputs_file
from pytest_llem.results.publish.scan import without_hosts
from pytest_llem.results.registration import Registration, read_registration
from pytest_llem.results.report.content import Content
from pytest_llem.results.schema import Result
from pytest_llem.study.model import SourceText

MOST_BYTES = 16 << 20
"""Chosen: a data set of some ten thousand prompts travels, and no archive grows by gigabytes unasked."""
COMPARED = {"workload.dataset": "dataset_files", "workload.arrival.file": "arrival_file"}
"""The facts of a result that tell whether a file is the one that was measured."""


def study_files(content: Content, *, with_inputs: bool = True) -> dict[str, bytes]:
    """The files by name; those of the newest run are where `llem reproduce` looks."""
    files: dict[str, bytes] = {}
    for run, manifest in sorted(content.manifests.items(), reverse=True):
        files[f"{PLANS}/{slug(run)}.json"] = json_file(_plan(manifest))
        for plan in manifest.studies:
            sources = [(study_in_package(plan.name), plan.text)]
            sources += [(f"{STUDIES}/{_beside(base.path, plan.path)}", base.text) for base in plan.bases]
            if (registered := _registration(plan)) is not None:
                name = registration_file(Path(study_in_package(plan.name))).as_posix()
                sources.append((name, json_file(encode(registered)).decode()))
            for name, text in sources:
                if text is not None and files.setdefault(name, text.encode()) != text.encode():
                    files[f"{STUDIES}/{run}/{name.partition('/')[2]}"] = text.encode()
    for study in content.axes:
        stated = []
        for found, data in _inputs(content, study, with_inputs):
            name = f"{STUDIES}/{found.path}"
            clash = data is not None and files.setdefault(name, data) != data
            stated.append(replace(found, absent="another study's file has this name") if clash else found)
        if stated:
            files[inputs_file(study)] = json_file(encode(NamedFiles(tuple(stated))))
    return files


def _plan(manifest: Manifest) -> JsonValue:
    """A run's manifest without how it was called; texts are in the files of the studies, hosts are withheld."""
    plans = tuple(
        replace(
            plan,
            path=Path(plan.path).name if plan.path else None,
            text=None,
            bases=tuple(SourceText(Path(base.path).name, None, base.sha256) for base in plan.bases),
        )
        for plan in manifest.studies
    )
    return without_hosts(encode(replace(manifest, studies=plans, invocation=None)))


def _registration(plan: StudyPlan) -> Registration | None:
    """What was registered, with the texts, so that its own hash can be checked; `None` where these are gone."""
    known = plan.registration
    if known is None or plan.path is None:
        return None
    own = SourceText(Path(plan.path).name, plan.text, plan.file_sha256 or "")
    whole = replace(
        known, files=(own, *(SourceText(Path(base.path).name, base.text, base.sha256) for base in plan.bases))
    )
    if whole.signed.sha256 == known.sha256:
        return whole
    try:
        beside = read_registration(registration_file(Path(plan.path)))
    except StoreError:
        return None
    return beside if beside.sha256 == known.sha256 else None


def _inputs(content: Content, study: str, wanted: bool) -> Iterator[tuple[Input, bytes | None]]:
    """The files that a study names, each once, with the content of those that travel."""
    directory = directory_of(content.manifests.values(), study)
    named: dict[tuple[str, Path], Result] = {}
    for result in content.results.of_study(study):
        for setting, path in named_files(result):
            named.setdefault((setting, path), result)
    for (setting, path), result in named.items():
        below = directory is not None and path.is_relative_to(directory) and ".." not in path.parts
        written = path.relative_to(directory).as_posix() if below and directory is not None else path.name
        if not path.is_file():
            yield Input(setting, written, None, None, None, "it was no file any more where it was published"), None
            continue
        size, digest = path.stat().st_size, file_sha256(path)
        found = Input(setting, written, digest, size, _rows(path) if setting == "workload.dataset" else None)
        fact = result.environment.comparable.get(COMPARED.get(setting, ""))
        why = None
        if fact is not None and fact != content_digest(path):
            found, why = replace(found, sha256=None, bytes=None, rows=None), "it was changed since it was measured"
        elif not below:
            why = "it lies outside of the study's folder"
        elif size > MOST_BYTES:
            why = f"it is larger than {MOST_BYTES >> 20} MiB"
        elif not wanted:
            why = "it was left out on purpose"
        yield replace(found, absent=why), path.read_bytes() if why is None else None


def named_files(result: Result) -> Iterator[tuple[str, Path]]:
    """The files that a result's workload names by setting; those of the hub and of packages are none."""
    workload = result.experiment.config.get("workload")
    if not isinstance(workload, Mapping):
        return
    arrival, score = workload.get("arrival"), workload.get("score")
    scorer = score.get("python") if isinstance(score, Mapping) else None
    for setting, name in (
        ("workload.dataset", workload.get("dataset")),
        ("workload.arrival.file", arrival.get("file") if isinstance(arrival, Mapping) else None),
        ("workload.score", scorer.rpartition(":")[0] if isinstance(scorer, str) else None),
    ):
        if isinstance(name, str) and Path(name).is_absolute():
            yield setting, Path(name)


def directory_of(manifests: Iterable[Manifest], study: str) -> Path | None:
    """Where a study's file lay, from which its relative paths start."""
    paths = (plan.path for each in manifests for plan in each.studies if plan.name == study)
    return next((Path(path).parent for path in paths if path and Path(path).is_absolute()), None)


def from_study(facts: object, directory: Path | None) -> object:
    """A configuration whose paths below the study's folder start there again, as the study writes them."""
    if isinstance(facts, Mapping):
        return {name: from_study(value, directory) for name, value in facts.items()}
    if isinstance(facts, (list, tuple)):
        return [from_study(each, directory) for each in facts]
    prefix = f"{directory}/"
    return f"./{facts[len(prefix) :]}" if directory and isinstance(facts, str) and facts.startswith(prefix) else facts


def _beside(base: str, study: str | None) -> str:
    """Where a base lies from its study, so that the study finds it; its name where that is above the study."""
    path = Path(base)
    below = path.relative_to(Path(study).parent) if study and path.is_relative_to(Path(study).parent) else None
    return (below if below is not None and ".." not in below.parts else Path(path.name)).as_posix()


def _rows(path: Path) -> int | None:
    """Rows of a data set as its format has them (docs/datasets.md), blank ones too; `None` of what cannot be read."""
    try:
        if path.suffix.lower() == PARQUET:
            return int(pq.read_metadata(path).num_rows)
        with path.open(encoding="utf-8-sig", newline="") as stream:
            if path.suffix.lower() == ".csv":
                return max(0, sum(1 for _ in csv.reader(stream)) - 1)
            if path.suffix.lower() == ".json":
                entries = json.load(stream)
                return len(entries) if isinstance(entries, list) else None
            return sum(1 for _ in stream)
    except (OSError, ValueError, csv.Error):
        return None


def json_file(content: JsonValue) -> bytes:
    """The content of a file of the package."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
