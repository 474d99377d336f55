"""A registration: a study and the rule that decides on it, as they were written down before anything was measured.

`preregister` writes it beside the study, a run of the study takes it into its manifest. The file is a published format:
fields may be added. Its own hash shows edits; that it existed at its date, only a public place can show.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pytest_llem.errors import JsonValue, StoreError
from pytest_llem.job.files import read_json
from pytest_llem.job.wire import encode, read_versioned
from pytest_llem.results.layout import registration_file
from pytest_llem.study.experiments import Study
from pytest_llem.study.model import SourceText

REGISTRATION_VERSION = 1
"""Raised when a field is renamed, removed or changes its meaning."""


@dataclass(frozen=True)
class Registration:
    """What was registered: the rule in words, and the study as it was then.

    `experiments` are configuration hashes by id, `protocol` what else decides (`protocol_of`); `versions` are those of
    packages, `commit` that of the working directory; `files` are the study and its bases, secrets redacted, and empty
    in a run's manifest. `sha256` is that of all else.
    """

    study: str
    rule: str
    registered_at: str
    file_sha256: str
    experiments: Mapping[str, str]
    protocol: Mapping[str, JsonValue]
    versions: Mapping[str, str] = field(default_factory=dict)
    commit: str | None = None
    files: tuple[SourceText, ...] = ()
    sha256: str = ""
    schema_version: int = REGISTRATION_VERSION

    @property
    def signed(self) -> Registration:
        """The same with its hash."""
        data = encode(self)
        assert isinstance(data, dict)
        return replace(self, sha256=_digest(data))


def _digest(data: Mapping[str, JsonValue]) -> str:
    """What `sha256` has to be: of the file's own facts, so that those of older and newer versions hold as well."""
    facts = {name: value for name, value in data.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def protocol_of(study: Study) -> dict[str, JsonValue]:
    """How a study is run and judged, options of the run included: flat settings, and a digest of all gates."""
    gates = [[each.id, encode(each.expect), encode(each.compare)] for each in study.experiments]
    digest = hashlib.sha256(json.dumps(gates, sort_keys=True).encode()).hexdigest()[:12]
    execution = encode(study.execution)
    assert isinstance(execution, dict)
    thresholds = {f"thresholds.{name}": value for name, value in study.thresholds.items()}
    protocol = {**{f"execution.{name}": value for name, value in execution.items()}, **thresholds, "gates": digest}
    race = encode(study.optimize) if study.optimize is not None else None
    if isinstance(race, dict):
        protocol |= {f"optimize.{name}": value for name, value in race.items()}
    return protocol


def read_registration(path: Path) -> Registration:
    """A registration; `StoreError` when it is absent, broken, of a newer version, or was edited."""
    found = read_versioned(Registration, path, REGISTRATION_VERSION, "registration")
    if found.sha256 != _digest(read_json(path)):
        raise StoreError(f"{path}: was changed after it was registered", fix="restore the file as it was written")
    return found


def registration_of(study: Path) -> Registration | None:
    """What lies beside a study's file, without the texts; `None` where it is not registered."""
    path = registration_file(study)
    return replace(read_registration(path), files=()) if path.is_file() else None
