"""Checks a study's settings against the engine version that will run, before the first cycle.

The session calls it under the lease of the first cycle; the local runner and a cluster's nodes call `check_here`. It
must ask an engine once per run, over all experiments of a study; what is refused fails only the items that need it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from filelock import FileLock

from pytest_llem.engines import engine_info
from pytest_llem.engines.signatures import SignatureReport
from pytest_llem.errors import EngineSettingError, JsonValue
from pytest_llem.job.config import ExperimentConfig
from pytest_llem.job.files import read_json, write_json
from pytest_llem.job.job import DeviceSet
from pytest_llem.job.wire import decode, encode
from pytest_llem.runners.process import CHECK_MODULE, SpawnedProcess, WorkerProcess, end
from pytest_llem.runners.protocol import Runner
from pytest_llem.study import Experiment, Study

DEADLINE_S = 300.0
"""Chosen: as `process.START_DEADLINE_S`, for it is the import that takes long."""

StartCheck = Callable[[tuple[str, str], Path], WorkerProcess]
"""Starts a comparison, given its source and target (see `engines.signatures.main`) and its log."""


def require_accepted_settings(
    runner: Runner, study: Study, experiment: Experiment, devices: DeviceSet, directory: Path
) -> str | None:
    """Raise `EngineSettingError` when the engine that will run does not take a setting of this experiment.

    Asks the engine where `directory` holds no answer of it yet. Returns why nothing could be compared, or `None`.
    """
    if engine_info(experiment.engine).signatures is None:
        return None
    record = directory / "settings.json"
    directory.mkdir(parents=True, exist_ok=True)
    with FileLock(directory / "settings.lock"):
        if not record.exists():
            checked = runner.check_settings(distinct(study.experiments, experiment.engine), directory, devices)
            if checked is None:
                return None
            write_json(record, encode(checked))
    report = decode(SignatureReport, read_json(record))
    problems = [problem for problem in report.problems if problem.concerns(experiment.config)]
    if problems:
        lines = [f"{study.locate(problem.path)}: {problem.message}" for problem in problems]
        fixes = dict.fromkeys(problem.fix for problem in problems if problem.fix)
        details: Mapping[str, JsonValue] = {"settings": [problem.path for problem in problems]}
        raise EngineSettingError("; ".join(lines), fix="; ".join(fixes) or None, details=details)
    return report.unchecked


def check_here(
    configs: Sequence[ExperimentConfig], directory: Path, start: StartCheck | None = None
) -> SignatureReport:
    """Compare settings with the engine here, in a process of `start` or a new interpreter; files go to `directory`."""
    source, target, log = (directory / name for name in ("configs.json", "report.json", "check.log"))
    write_json(source, encode(configs))
    arguments = str(source), str(target)
    process = start(arguments, log) if start is not None else SpawnedProcess((CHECK_MODULE, *arguments), log)
    try:
        code = process.wait(DEADLINE_S)
    finally:
        end(process, grace_s=0.0)
    ending = f"took more than {DEADLINE_S:g} s" if code is None else f"ended with exit code {code}"
    if target.exists():
        return decode(SignatureReport, read_json(target))
    return SignatureReport(unchecked=f"the comparison with the engine's signatures {ending}: see {log}")


def distinct(experiments: Iterable[Experiment], engine: str) -> list[ExperimentConfig]:
    """Few configurations that hold every value of every setting which reaches this engine."""
    seen: set[tuple[str, str]] = set()
    configs: list[ExperimentConfig] = []
    for experiment in experiments:
        if experiment.engine != engine:
            continue
        reaching = {
            (path, repr(value))
            for path, value in experiment.flat_settings.items()
            if path.partition(".")[0] in (engine, "decoding")
        }
        if not configs or not reaching <= seen:
            seen |= reaching
            configs.append(experiment.config)
    return configs
