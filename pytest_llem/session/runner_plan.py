"""The runners of a study's engines, planned together and once per study.

The session and `options` ask while studies are collected, `measuring`, `prefetch` and `reporting` later. What a plan
forbids must be raised before any cycle runs, except in dry runs and with `--llem-skip-preflight`.
"""

from __future__ import annotations

import os
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

from pytest_llem.engines import engine_names
from pytest_llem.errors import LlemError, RunnerError
from pytest_llem.job.report import RunnerSpec
from pytest_llem.runners import RUNNERS
from pytest_llem.runners.resolution import (
    RunnerPlan,
    detect_runner,
    missing_modules,
    parse_runner_options,
    plan_runners,
    resolve_runner,
)
from pytest_llem.session.run import RunOptions
from pytest_llem.study import Study


class RunnerPlans:
    """The runner of every engine, by the settings of this run."""

    def __init__(self, options: RunOptions) -> None:
        self._options = options
        self._plans: dict[Path, RunnerPlan] = {}

    def spec(self, engine: str, study: Study) -> RunnerSpec:
        """The runner chosen for an engine, and which setting chose it."""
        return self.plan(study).specs[engine]

    def plan(self, study: Study) -> RunnerPlan:
        """The runners of a study's engines, with what the user should know about them."""
        if study.path not in self._plans:
            engines = tuple(dict.fromkeys(experiment.engine for experiment in study.experiments))
            installed = [engine for engine in engines if not missing_modules(engine)]
            specs = {engine: self._resolve(engine, study) for engine in engines}
            daemon = len(installed) < len(engines) and _daemon_answers()
            self._plans[study.path] = plan_runners(engines, specs, installed, daemon)
        return self._plans[study.path]

    def require(self, study: Study) -> None:
        """Raise the first problem of a study's plan, placed where the study names its engine."""
        plan = self.plan(study)
        infos = [RUNNERS[name] for name in dict.fromkeys(spec.name for spec in plan.specs.values())]
        absent = [
            RunnerError(f"{info.module} is not installed here", fix=info.install)
            for info in infos
            if info.module is not None and find_spec(info.module) is None
        ]
        for problem in (*absent, *plan.problems):
            raise problem.restated(f"{study.locate('engine')}: {problem.message}") from problem

    def _resolve(self, engine: str, study: Study) -> RunnerSpec:
        return resolve_runner(
            engine,
            command_line=parse_runner_options(self._options.runner, engine_names()),
            environment=os.environ,
            study=study.runners,
            user_settings=self._options.user_runners,
            detect=partial(detect_runner, installed=lambda name: not missing_modules(name), daemon=_daemon_answers),
        )


@cache
def _daemon_answers() -> bool:
    from pytest_llem.containers.daemon import daemon_answers

    try:
        return daemon_answers()
    except LlemError:
        return False
