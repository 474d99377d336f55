"""What a package of `llem publish` holds beside its results: the runs' plans, and the files that its studies name.

`publish.studies` writes them, `llem reproduce` reads them. The formats are published: fields may be added.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pytest_llem.errors import StoreError
from pytest_llem.job.files import open_regular, reason
from pytest_llem.job.wire import read_versioned
from pytest_llem.results.layout import STUDIES, registration_file, study_in_package
from pytest_llem.results.manifest import Manifest, manifests_at, read_manifest
from pytest_llem.results.preregister import deviations
from pytest_llem.results.registration import read_registration

PLANS = "data/runs"
"""The directory with each run's manifest: what was planned, and what became of it."""
SUMS = "SHA256SUMS"
"""The file with the digest of each other one."""
SHOWN = 3
"""Files that an error names. Chosen: the tool that it names lists all."""
INPUTS_VERSION = 1
"""Raised when a field is renamed, removed or changes its meaning."""
CHUNK = 1 << 20
"""Chosen: a mebibyte at a time, so that a large file takes no memory."""


@dataclass(frozen=True)
class Input:
    """A file that a study names: `path` is from the study's own file, `absent` says why it is not in the package."""

    setting: str
    path: str
    sha256: str | None
    bytes: int | None
    rows: int | None
    absent: str | None = None


@dataclass(frozen=True)
class NamedFiles:
    """`studies/STUDY.inputs.json`."""

    files: tuple[Input, ...]
    schema_version: int = INPUTS_VERSION


@dataclass(frozen=True)
class AsRegistered:
    """A run of a registered study held against its registration: none of `deviations` is "as registered".

    `checked` is whether the package has the registration itself, whose hash holds; else its texts are not known.
    """

    study: str
    run: str
    rule: str
    registered_at: str
    sha256: str
    checked: bool
    deviations: tuple[str, ...]


def require_as_published(package: Path, *folders: str) -> None:
    """Raise `StoreError` where files in these folders of a package are not those that its sums are of."""
    sums = package / SUMS
    if not sums.is_file():
        return
    try:
        listed = [line.partition("  ") for line in sums.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as problem:
        raise StoreError(f"{sums}: {reason(problem)}", fix="fetch the package again") from None
    wrong = []
    for digest, _, name in listed:
        if name.startswith(tuple(f"{folder}/" for folder in folders)) and ".." not in Path(name).parts:
            try:
                if file_sha256(package / name) != digest:
                    wrong.append(f"{name} was changed")
            except OSError as problem:
                wrong.append(f"{name}: {reason(problem)}")
    if wrong:
        more = f", and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise StoreError(
            f"{package}: is not as it was published: {', '.join(wrong[:SHOWN])}{more}",
            fix=f"fetch it again (in it, sha256sum -c {SUMS} lists all); name a study of yours with --study FILE",
        )


def manifests_in(package: Path) -> list[Manifest]:
    """Those of the runs in a package, or of the runs that lie there, newest first."""
    plans = sorted((package / PLANS).glob("*.json"), reverse=True)
    return [read_manifest(plan) for plan in plans] or manifests_at(package)


def as_registered(package: Path, study: str) -> list[AsRegistered]:
    """Each run of a study that was registered. `StoreError` for a registration that was edited, or is another."""
    file = package / registration_file(Path(study_in_package(study)))
    kept = read_registration(file) if file.is_file() else None
    found = []
    for manifest in manifests_in(package):
        for plan in manifest.studies:
            if plan.name != study or plan.registration is None:
                continue
            known = plan.registration
            if kept is not None and kept.sha256 != known.sha256:
                fix = "ask who published it: each run is held against what it was registered as"
                raise StoreError(f"{file}: is not what run {manifest.run_id} was registered as", fix=fix)
            checked = tuple(deviations(kept or known, manifest, plan))
            found.append(
                AsRegistered(
                    study, manifest.run_id, known.rule, known.registered_at, known.sha256, kept is not None, checked
                )
            )
    return found


def inputs_file(study: str) -> str:
    """Where a package says which files a study names, relative to the package."""
    return str(Path(study_in_package(study)).with_suffix(".inputs.json"))


def needed(package: Path, study: str) -> Iterator[str]:
    """What is to be put where before a study of a package can be measured, a sentence for each file."""
    file = package / inputs_file(study)
    if not file.is_file():
        return
    for entry in read_versioned(NamedFiles, file, INPUTS_VERSION, "list of files").files:
        place = package / STUDIES / entry.path
        if not place.resolve().is_relative_to(package.resolve()):
            raise StoreError(f"{file}: {entry.path} lies outside of the package", fix="ask who published it")
        facts = [f"{entry.rows:,} rows"] if entry.rows is not None else []
        facts += [f"{entry.bytes:,} bytes, sha256 {entry.sha256}"] if entry.sha256 is not None else []
        told = f" ({', '.join(facts)})" if facts else ""
        if not place.is_file():
            why = f"; not in the package: {entry.absent}" if entry.absent else ""
            yield f"put {Path(entry.path).name}{told} at {place}: {entry.setting} of study {study}{why}"
        elif entry.sha256 is not None and file_sha256(place) != entry.sha256:
            yield f"replace {place}, which is another file than {entry.setting} of study {study} was{told}"


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, however large it is."""
    digest = hashlib.sha256()
    with open_regular(path) as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
