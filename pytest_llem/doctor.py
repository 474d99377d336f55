"""`llem doctor`: what this machine can measure and run, and the fix for what it cannot.

`cli` opens `run` by name. The keys of its JSON are an interface and must stay; sections and findings may be added.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, entry_points, version
from importlib.util import find_spec
from pathlib import Path

from pytest_llem.containers import remove_orphaned_containers
from pytest_llem.containers.daemon import DaemonFacts, connect, daemon_facts
from pytest_llem.containers.images import DefaultImage, default_image, own_image
from pytest_llem.energy import calibrate, calibration
from pytest_llem.energy import doctor as sensors
from pytest_llem.energy.doctor import Finding, Level
from pytest_llem.energy.gpu_meter import NvmlMeter
from pytest_llem.engines import ENTRY_POINT_GROUP, engines
from pytest_llem.engines.info import EngineInfo
from pytest_llem.errors import DeviceError, LlemError, SettingsError
from pytest_llem.job.job import DeviceSet
from pytest_llem.job.metric_names import METRICS_GROUP, registered_metrics
from pytest_llem.job.registered import load, package
from pytest_llem.machine.devices import visible_of
from pytest_llem.machine.gpu_settings import standing
from pytest_llem.machine.gpu_settings.record import recorded_gpus
from pytest_llem.machine.lease_files import LEASE_DIR_VARIABLE, NO_LEASES, lease_dir
from pytest_llem.machine.leases import take_lease
from pytest_llem.results.exports import GROUP as EXPORTS_GROUP
from pytest_llem.results.exports import registered_formats
from pytest_llem.results.terminal import CLEAR
from pytest_llem.scoring.given import GROUP as SCORERS_GROUP
from pytest_llem.scoring.registry import registered_scorers
from pytest_llem.worker.probe import torch_build
from pytest_llem.workload.hub import hub_cache
from pytest_llem.workload.registered import GROUP as DATA_SETS_GROUP
from pytest_llem.workload.registered import data_sets

IMPORT_TIMEOUT_S = 180.0
"""Chosen: a first import of torch and an engine from a slow network disk may take minutes."""
DOCKER_TIMEOUT_S = 3.0
"""Chosen: a daemon that is idle answers within milliseconds."""
LEASE_TIMEOUT_S = 60.0
"""Chosen: long enough for a short cycle to end; a person is waiting."""
FEW_FREE_BYTES = 10 * 2**30
"""Chosen: less does not hold the weights of a 7-billion-parameter model in 16 bits."""
_MARKS: dict[Level, str] = {"ok": "ok  ", "absent": "-   ", "warn": "warn", "problem": "FAIL"}


@dataclass(frozen=True)
class ReportSection:
    """Findings about one part of the machine."""

    name: str
    findings: tuple[Finding, ...]


def run(options: argparse.Namespace) -> int:
    """The verb: print what was found; 1 when there is a problem, else 0. First put back or calibrate, if asked."""
    if options.restore:
        restore_settings()
    if options.calibrate:
        calibrate_gpus(options.gpu, with_load=not options.without_load)
    sections = examine(_doing)
    _doing("")
    problems = any(finding.level == "problem" for section in sections for finding in section.findings)
    if options.json:
        found = [{"section": section.name, **asdict(finding)} for section in sections for finding in section.findings]
        sys.stdout.write(json.dumps({"ok": not problems, "findings": found}, indent=2) + "\n")
    else:
        sys.stdout.write("\n".join(text_lines(sections)) + "\n")
    return 1 if problems else 0


def examine(doing: Callable[[str], None]) -> list[ReportSection]:
    """Look at sensors, engines, Docker and directories. Each engine is imported in a process of its own: seconds.

    `doing` hears of each step before it begins.
    """
    doing("reading sensors")
    energy = tuple(_whole("meters", sensors.describe()))
    settings = tuple(_whole("settings", standing.describe()))
    found = tuple(_whole("engines", _engines(doing)))
    added = tuple(_added())
    doing("asking the Docker daemon")
    daemon, *images = _docker(gpus=bool(sensors.gpu_uuids()))
    if daemon.level != "ok" and not any(finding.level in ("ok", "warn") for finding in found):
        fix = "pip install 'pytest-llem[transformers]'"
        found += (Finding("problem", "engines", "no engine can be imported here, and no Docker daemon answers", fix),)
    return [
        ReportSection("energy", energy),
        *([ReportSection("settings of GPUs", settings)] if settings else []),
        ReportSection("engines", found),
        *([ReportSection("added by packages", added)] if added else []),
        ReportSection("docker", (daemon, *images)),
        ReportSection("directories", tuple(_directories())),
    ]


def text_lines(sections: Sequence[ReportSection]) -> Iterator[str]:
    """The findings for people, one a line with its fix below."""
    for section in sections:
        yield section.name
        width = max((len(finding.subject) for finding in section.findings), default=0)
        for finding in section.findings:
            yield f"  {_MARKS[finding.level]}  {finding.subject:<{width}}  {finding.message}"
            if finding.fix is not None:
                yield f"        {'':<{width}}  fix: {finding.fix}"
    levels = [finding.level for section in sections for finding in section.findings]
    problems, warnings = levels.count("problem"), levels.count("warn")
    yield f"{problems} problem{'s' * (problems != 1)}, {warnings} warning{'s' * (warnings != 1)}"


def calibrate_gpus(chosen: Sequence[str], *, with_load: bool) -> None:
    """Calibrate the chosen visible GPUs (all for none), each under its lease.

    Raises `LlemError` when a GPU does not exist, is in use, or cannot be loaded.
    """
    obstacle = NvmlMeter.obstacle()
    if obstacle is not None:
        raise obstacle
    known = sensors.gpu_uuids()
    unknown = [uuid for uuid in chosen if uuid not in known]
    if unknown or not known:
        raise SettingsError(
            f"no visible GPU {', '.join(unknown)}".rstrip(),
            fix=f"choose from: {', '.join(known)}" if known else "check CUDA_VISIBLE_DEVICES",
        )
    for uuid in chosen or known:
        devices, remove = DeviceSet("cuda", (uuid,)), remove_orphaned_containers
        with take_lease(devices, timeout_s=LEASE_TIMEOUT_S, on_wait=_say, remove_containers=remove):
            _say(f"calibrating {uuid}: about a minute, leave the GPU alone")
            found = calibrate.calibrate(uuid, partial(calibrate.MatmulLoad, uuid) if with_load else None)
        _say(f"kept in {calibration.path_of(found.uuid, found.driver)}")


def restore_settings() -> None:
    """Put GPUs back as before runs that are gone. Raises `DeviceError` for those that are in use, or resist."""
    problems: list[DeviceError] = []
    recorded = recorded_gpus()
    if not recorded:
        _say(f"nothing to put back: no run has left a record in {lease_dir()}")
    for uuid in recorded:
        try:
            with take_lease(DeviceSet("cuda", (uuid,)), timeout_s=LEASE_TIMEOUT_S, on_wait=_say) as lease:
                for restored in lease.restored:
                    _say(f"put back: {restored}")
        except DeviceError as problem:
            problems.append(problem)
    if problems:
        fixes = dict.fromkeys(problem.fix for problem in problems if problem.fix)
        raise DeviceError("; ".join(problem.message for problem in problems), fix="; ".join(fixes) or None)


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


def _doing(step: str) -> None:
    """Show on a terminal what takes its time, in place of the step before."""
    if sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        sys.stderr.write(f"{CLEAR}{step}{' ...' if step else ''}")
        sys.stderr.flush()


def _engines(doing: Callable[[str], None]) -> Iterator[Finding]:
    for info in engines().values():
        remark = "" if info.verified else ", not yet verified on hardware"
        missing = [module for module in info.modules if find_spec(module) is None]
        if not info.modules:
            yield Finding("ok", info.name, _registered_by(info.name) + remark)
        elif missing:
            container = "" if info.serves_over_http else f"let it run in a container (--llem-runner={info.name}=docker)"
            fix = ", or ".join(way for way in (info.install, container) if way)
            yield Finding("absent", info.name, f"not installed here ({', '.join(missing)}){remark}", fix)
        else:
            doing(f"importing {' and '.join(info.modules)}")
            versions = ", ".join(f"{module} {_version(module)}" for module in info.modules)
            failure = _import_failure(info.modules)
            if failure is None:
                yield _runs_on(info, versions + remark)
            else:
                text = f"{versions} cannot be imported: {failure}"
                yield Finding("problem", info.name, text, f"reinstall {info.modules[-1]}")


def _runs_on(info: EngineInfo, text: str) -> Finding:
    """An engine that can be imported; a warning where its torch was built for other devices than are visible."""
    try:
        kind, build = visible_of("auto")[0], torch_build()
    except DeviceError:
        return Finding("ok", info.name, text)  # the sensors say what is wrong
    if info.runs_on(kind, build):
        return Finding("ok", info.name, text)
    fix = f"install a torch that is built for {kind}, or measure with --llem-device={build}"
    return Finding("warn", info.name, f"{text}: its torch was built for {build}, and {kind} is what is here", fix)


def _whole(subject: str, findings: Iterable[Finding]) -> Iterator[Finding]:
    """The findings; where a package stands against all of one kind, that instead of the rest."""
    try:
        yield from findings
    except LlemError as error:
        yield Finding("problem", subject, error.message, error.fix)


def _added() -> Iterator[Finding]:
    """The metrics, data sets, scorers and export formats of other packages, each imported."""
    yield from _whole("metrics", _of_group(METRICS_GROUP, "metric", registered_metrics))
    yield from _whole("data sets", _of_group(DATA_SETS_GROUP, "data set", data_sets))
    yield from _whole("scorers", _of_group(SCORERS_GROUP, "scorer", registered_scorers))
    yield from _whole("export formats", _of_group(EXPORTS_GROUP, "export format", registered_formats))


def _of_group(group: str, kind: str, registered: Callable[[], Collection[str]]) -> Iterator[Finding]:
    if registered():
        for point in entry_points(group=group):
            load(point, kind)
            yield Finding("ok", point.name, f"{kind} of {package(point)}")


def _registered_by(name: str) -> str:
    owners = [point.dist for point in entry_points(group=ENTRY_POINT_GROUP, name=name)]
    return ", ".join(f"registered by {owner.name} {owner.version}" for owner in owners if owner is not None)


def _version(module: str) -> str:
    try:
        return version(module)
    except PackageNotFoundError:
        return "of unknown version"


def _import_failure(modules: Sequence[str]) -> str | None:
    """The last line of the error when modules are imported in a new interpreter; `None` when that works."""
    code = f"import {', '.join(modules)}"
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=IMPORT_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"no end after {IMPORT_TIMEOUT_S:.0f} s"
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit code {done.returncode}"


def _docker(*, gpus: bool) -> Iterator[Finding]:
    """The daemon, and the image that each engine would run in there."""
    try:
        with closing(connect(DOCKER_TIMEOUT_S)) as client:
            yield _daemon(daemon_facts(client), gpus)
            for info in engines().values():
                if info.stock_image is not None:
                    yield _image(info.name, default_image(client, info.name))
    except LlemError as error:
        yield Finding("warn", "daemon", error.message, error.fix)


def _image(engine: str, image: DefaultImage) -> Finding:
    if image.own:
        return Finding("ok", f"image of {engine}", f"{image.name}: this project's own, which is present")
    where = "present" if image.present else "pulled when it is first used"
    why = f"its publisher's, since {own_image(engine)} is not present"
    return Finding("ok" if image.present else "absent", f"image of {engine}", f"{image.name}: {why}; {where}")


def _daemon(facts: DaemonFacts, gpus: bool) -> Finding:
    found = f"{facts.version} at {facts.address}"
    if gpus and not facts.gpus:
        fix = "sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker"
        return Finding("warn", "daemon", f"{found}; its containers cannot use this machine's GPUs", fix)
    return Finding("ok", "daemon", found + (", with GPUs" if facts.gpus else ""))


def _directories() -> Iterator[Finding]:
    if os.environ.get(LEASE_DIR_VARIABLE) == NO_LEASES:
        text = "off: nothing keeps two runs from measuring on one device at a time"
        yield Finding("warn", "device leases", text, f"unset {LEASE_DIR_VARIABLE}")
    else:
        yield _writable("device leases", lease_dir(), f"or name another one in {LEASE_DIR_VARIABLE}")
    directory = calibration.default_directory()
    yield _writable("calibrations", directory, f"or name another one in {calibration.DIRECTORY_VARIABLE}")
    yield _writable("models of the hub", hub_cache(), "or name another one in HF_HOME", needed_bytes=FEW_FREE_BYTES)


def _writable(subject: str, directory: Path, otherwise: str, *, needed_bytes: int = 0) -> Finding:
    """Whether files can be made in a directory, or it can be made itself."""
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return Finding("problem", subject, f"{directory} is not writable", f"make {existing} writable, {otherwise}")
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        text = f"{directory}: only {free / 2**30:.1f} GiB are free"
        return Finding("warn", subject, text, f"free some space, {otherwise}")
    return Finding("ok", subject, str(directory))
