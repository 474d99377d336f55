"""`llem preregister`: writes a study and its rule down before it is measured, and holds runs against that.

`cli` calls it; the report and the summary ask for `deviations`. It must find every way in which a run is another one:
"as registered" is what a paper then says.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from pytest_llem.errors import JsonValue, SettingsError, StoreError
from pytest_llem.job.files import require_writable, write_json
from pytest_llem.job.redaction import redact
from pytest_llem.job.wire import encode
from pytest_llem.machine.environment import changes, gather
from pytest_llem.results.layout import registration_file
from pytest_llem.results.manifest import Manifest, StudyPlan, manifests_at
from pytest_llem.results.registration import Registration, protocol_of, read_registration
from pytest_llem.results.state import now
from pytest_llem.results.terminal import show
from pytest_llem.study.experiments import Study
from pytest_llem.study.loader import load_study

SHOWN = 5
"""Names that a sentence lists. Chosen: it stays readable."""


def preregister(options: argparse.Namespace) -> int:
    """Register a study, or with `--check` hold runs against its registration; 1 when one deviates."""
    study = load_study(options.study)
    path = options.out or registration_file(study.path if study.path.exists() else Path(f"{study.name}.yaml"))
    if options.check:
        return _check(read_registration(path), options.check)
    if not (options.rule or "").strip():
        raise SettingsError(
            "--rule is missing", fix='state what decides: --rule "B is adopted if its J/token is lower"'
        )
    if path.is_dir():
        raise SettingsError(f"{path}: is a folder", fix="name the file with -o")
    if path.exists():
        raise SettingsError(
            f"{path}: there is a registration already",
            fix="keep it, and state another file with -o; runs that exist show deviations from the first",
        )
    found = register(study, options.rule.strip())
    require_writable(path.parent)
    write_json(path, encode(found))
    show(f"{path}\nsha256 {found.sha256}\ncommit it, or publish this line, before you measure")
    return 0


def register(study: Study, rule: str) -> Registration:
    """The registration of a study as it is now."""
    facts = gather()
    git = cast("Mapping[str, JsonValue]", facts.get("git") or {})
    commit = git.get("commit")
    return Registration(
        study=study.name,
        rule=rule,
        registered_at=now(),
        file_sha256=study.files[0].sha256,
        experiments={experiment.id: experiment.config_hash for experiment in study.experiments},
        protocol=protocol_of(study),
        versions=_versions(facts),
        commit=commit if isinstance(commit, str) else None,
        files=tuple(
            replace(file, path=Path(file.path).name, text=file.text and redact(file.text)) for file in study.files
        ),
    ).signed


def deviations(registered: Registration, manifest: Manifest, plan: StudyPlan) -> list[str]:
    """Each way in which a run is not what was registered, a sentence each; none is "as registered"."""
    return list(_deviations(registered, manifest, plan))


def _deviations(registered: Registration, manifest: Manifest, plan: StudyPlan) -> Iterator[str]:
    if manifest.started_at < registered.registered_at:
        yield f"it was measured from {manifest.started_at} on, before the registration of {registered.registered_at}"
    ran = {cycle.experiment_id: cycle.config_hash for cycle in plan.cycles}
    yield from _named("not run", [name for name in registered.experiments if name not in ran])
    yield from _named("not registered", [name for name in ran if name not in registered.experiments])
    other = [name for name, known in registered.experiments.items() if ran.get(name, known) != known]
    yield from _named("other settings", other)
    protocol = [f"{text} (registered -> run)" for text in changes(registered.protocol, plan.protocol)]
    yield from protocol
    if not other and not protocol and plan.file_sha256 != registered.file_sha256:
        yield "the study's file was edited, in what changes neither settings nor gates"
    versions = _versions(manifest.environment)
    yield from changes(registered.versions, {**registered.versions, **versions} if versions else registered.versions)
    lost = [
        f"{item.experiment_id} c{item.cycle} ({item.state})"
        for item in manifest.items
        if item.study == plan.name and item.state != "valid"
    ]
    yield from _named("cycles without a valid result", lost)


def _named(what: str, names: Sequence[str]) -> Iterator[str]:
    if names:
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        yield f"{what}: {', '.join(names[:SHOWN])}{more}"


def _versions(environment: Mapping[str, JsonValue]) -> dict[str, str]:
    packages = environment.get("packages")
    found = {"pytest_llem": environment.get("pytest_llem"), **(packages if isinstance(packages, Mapping) else {})}
    return {name: str(version) for name, version in found.items() if version is not None}


def verdict(found: Sequence[str]) -> str:
    """`as registered`, or how many deviations there are."""
    if not found:
        return "as registered"
    return "1 deviation" if len(found) == 1 else f"{len(found)} deviations"


def registered_lines(manifest: Manifest) -> Iterator[str]:
    """A line for each registered study of a run."""
    for plan in manifest.studies:
        if plan.registration is not None:
            found = deviations(plan.registration, manifest, plan)
            more = f" from its registration: {'; '.join(found)}" if found else ""
            yield f"study {plan.name}: {verdict(found)}{more} ({plan.registration.sha256[:12]})"


def _check(registered: Registration, runs: Sequence[Path]) -> int:
    manifests = [manifest for run in runs for manifest in manifests_at(run)]
    pairs = [(each, plan) for each in manifests for plan in each.studies if plan.name == registered.study]
    if not pairs:
        fix = "name a run's directory; of a package that was published, `llem reproduce PACKAGE --check` says it"
        raise StoreError(f"no run of the study {registered.study!r} there", fix=fix)
    show(f"rule of {registered.registered_at}: {registered.rule}")
    whole = True
    for manifest, plan in pairs:
        found = deviations(registered, manifest, plan)
        whole = whole and not found
        show("\n".join([f"run {manifest.run_id}: {verdict(found)}", *(f"  {text}" for text in found)]))
    return int(not whole)
