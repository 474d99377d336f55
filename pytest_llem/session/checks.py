"""Checks that hold for all items of a run: made once per engine and runner, by whichever process comes first.

`session.measuring` asks before each cycle. Answers lie in the run's directory, so that the workers of xdist share them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from pytest_llem.errors import LlemError, from_dict
from pytest_llem.job.files import read_json, slug, write_json
from pytest_llem.job.job import DeviceSet
from pytest_llem.job.report import Note
from pytest_llem.job.wire import encode
from pytest_llem.runners.protocol import Runner
from pytest_llem.runners.settings_check import require_accepted_settings
from pytest_llem.servers.spec import require_reachable

if TYPE_CHECKING:
    from pytest_llem.session.experiment_cycle import ExperimentCycle

PREFLIGHTS = ".preflight"


class Checks:
    """The checks of one run, with their answers in the run's directory; `skip` leaves them out."""

    def __init__(self, run_dir: Path, *, skip: bool) -> None:
        self._directory = run_dir / PREFLIGHTS
        self._skip = skip

    def preflight(self, runner: Runner, point: ExperimentCycle, devices: DeviceSet) -> str:
        """Raise what stands against every cycle of this engine there; else say how it was checked."""
        if self._skip:
            return "skipped"
        require_reachable(point.experiment.config)
        engine, study = point.experiment.engine, point.study
        record = self._directory / f"{_name(runner, point)}.json"
        record.parent.mkdir(exist_ok=True)
        with FileLock(record.with_suffix(".lock")):
            if not record.exists():
                configs = {other.model: other for other in study.experiments if other.engine == engine}
                report = runner.preflight(engine, [other.config for other in configs.values()], devices)
                if report is None:
                    return "none needed"
                write_json(
                    record,
                    {
                        "problems": [problem.to_dict() for problem in report.problems],
                        "notices": encode(report.notices),
                        "facts": encode(report.facts),
                    },
                )
        problems = read_json(record)["problems"]
        if isinstance(problems, list) and problems:
            raise _combined([from_dict(problem) for problem in problems if isinstance(problem, Mapping)])
        return "passed"

    def settings(self, runner: Runner, point: ExperimentCycle, devices: DeviceSet) -> Note | None:
        """Raise when the engine does not take the point's settings; a note where nothing could be compared.

        To be called under the lease of the devices, because the engine's import would disturb another's measurement.
        """
        if self._skip:
            return None
        directory = self._directory / _name(runner, point)
        unchecked = require_accepted_settings(runner, point.study, point.experiment, devices, directory)
        return None if unchecked is None else Note("settings_unchecked", unchecked)


def _name(runner: Runner, point: ExperimentCycle) -> str:
    spec = runner.spec
    engine = point.experiment.engine
    return slug(f"{point.study.name}-{engine}-{spec.name}-{spec.image or spec.address or 'default'}")


def _combined(problems: Sequence[LlemError]) -> LlemError:
    """All problems of a preflight in one error, of the first one's kind."""
    first = problems[0]
    if len(problems) == 1:
        return first
    also = "; ".join(problem.message for problem in problems[1:])
    fixes = "; ".join(dict.fromkeys(problem.fix for problem in problems if problem.fix))
    return from_dict({**first.to_dict(), "message": f"{first.message}; also: {also}", "fix": fixes or None})
