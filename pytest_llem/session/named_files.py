"""Looks at the models, adapters and data sets that a study names on this machine, before anything runs.

`options.load_for_run` calls it, also in a dry run. What is looked at must be cheap, and only what cycles will read from
here: files within an image, on a cluster's nodes or of a running server are theirs to look at.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

from pytest_llem.engines import engine_info, shipped_engines, starts_server
from pytest_llem.engines.builtin import is_builtin, require_known
from pytest_llem.engines.model_files import GGUF, find_adapter, find_model, require_chat_template, require_checkpoint
from pytest_llem.errors import (
    EngineNotInstalledError,
    JsonValue,
    LlemError,
    ModelNotFoundError,
    StudyError,
    WorkloadError,
)
from pytest_llem.job.config import DATA_FILES, SYNTHETIC, ExperimentConfig, Thresholds, WorkloadSettings
from pytest_llem.job.files import expanded, found, is_path, reason
from pytest_llem.job.report import RunnerName
from pytest_llem.job.request import Texts
from pytest_llem.machine.parquet import parquet_texts
from pytest_llem.runners import RUNNERS
from pytest_llem.study import Experiment, Study
from pytest_llem.study.canonical import getter
from pytest_llem.workload.arrivals import arrival_places, read_times, too_few
from pytest_llem.workload.hub import cached_repository
from pytest_llem.workload.rows import unknown_ending
from pytest_llem.workload.texts import read_rows, texts_of_package
from pytest_llem.workload.traffic import require_few_broken, require_fitting

UNREADABLE = "make it readable to this user, or name another"

_MODEL = ("model", "lora", "weights", *(f"{info.name}.base_url" for info in shipped_engines().values()))

_READ_BY = (
    *(f"workload.{name}" for name in ("dataset", "column", "order", "input_tokens", "chat_template", "speed")),
    *("workload.arrival", "model", "openai.api"),
)
"""What decides whether a data set can be read as it is, besides `workload.prompts`."""

Wrong = tuple[str, JsonValue, LlemError]
"""A setting, its value in the study, and what is wrong with it."""


def require_named_files(study: Study, runner_of: Callable[[str], RunnerName]) -> None:
    """Raise `LlemError` for the local paths that cannot be what the study takes them for, each where it is written."""
    wrong: dict[str, LlemError] = {}
    for check, experiments in (
        (_models, study.distinct("engine", *_MODEL)),
        (_data_set, _largest(study)),
        (_arrival_times, study.distinct("engine", "workload.arrival", "workload.prompts", "workload.dataset")),
    ):
        for experiment in experiments:
            runner = runner_of(experiment.engine)
            if RUNNERS[runner].distributed:
                continue
            for setting, value, error in check(study, experiment, runner != "local"):
                where = study.locate(setting, value)
                wrong.setdefault(f"{where}: {error.message}", error)
    if len(wrong) == 1:
        ((message, error),) = wrong.items()
        raise error.restated(message)
    if wrong:
        raise StudyError("\n".join(str(error.restated(message)) for message, error in wrong.items()))


def _largest(study: Study) -> list[Experiment]:
    """Of each way to read a data set the experiment with the most prompts: what is enough for it is enough for all."""
    largest: dict[str, tuple[int, Experiment]] = {}
    for experiment in study.distinct("engine", "workload.prompts", *_READ_BY):
        get = getter(experiment.flat_settings)
        key, prompts = repr((experiment.engine, *map(get, _READ_BY))), get("workload.prompts")
        if isinstance(prompts, int) and prompts > largest.get(key, (0, experiment))[0]:
            largest[key] = prompts, experiment
    return [experiment for _, experiment in largest.values()]


@dataclass(frozen=True)
class Named:
    """A path, or a name on the hub: as the study writes it, and as the worker gets it.

    `elsewhere`: it may mean something where cycles run, in an image, to a server that runs already or to an engine of
    another package; only relative paths are this machine's there.
    """

    study: Study
    setting: str
    written: str
    resolved: str
    elsewhere: bool

    def is_here(self) -> bool:
        """Whether something lies there that can be looked at. Raises `LlemError` where it has to."""
        if found(self.resolved) is not None:
            return True
        is_name = self.resolved == self.written and not is_path(self.written)
        if is_name and (self.elsewhere or not self._means_a_path()):
            return False
        if self.elsewhere and not self._relative:
            return False
        if is_name and self.setting == "workload.dataset":
            raise unknown_ending(self.written)
        looked = "" if self.resolved == self.written else f": {expanded(self.resolved)}"
        try:
            expanded(self.resolved).stat()
        except (OSError, ValueError) as problem:
            raise self.error(problem, looked, self._advice()) from None
        return True

    def error(self, problem: Exception, looked: str = "", fix: str = UNREADABLE) -> LlemError:
        """The error for what the system says of the path; `fix` is for one where nothing lies."""
        kind = WorkloadError if self.setting == "workload.dataset" else ModelNotFoundError
        text = f"{self.setting} {self.written!r}: {reason(problem).lower()}{looked}"
        return kind(text, fix=UNREADABLE if isinstance(problem, PermissionError) else fix)

    @property
    def _relative(self) -> bool:
        return not self.written.startswith(("/", "~"))

    def _means_a_path(self) -> bool:
        """Whether what could be a name on the hub is a path that lacks its `./`, or has none of the hub's forms."""
        beside = found(str(self.study.path.parent / self.written))
        if self.setting == "workload.dataset":
            return beside is not None and beside.is_file()
        if self.written.count("/") > 1 or self.written.lower().endswith(GGUF):
            return True
        cached = found(str(cached_repository("models", self.written)))
        return "/" in self.written and cached is None and beside is not None and any(beside.glob("*config.json"))

    def _may_be(self, path: Path) -> bool:
        suffix = path.suffix.lower()
        return suffix in DATA_FILES if self.setting == "workload.dataset" else suffix == GGUF or path.is_dir()

    def _advice(self) -> str:
        study = self.study.path.parent
        written_in = Path(self.study.locate(self.setting, self.written).file).parent
        for base in (study, Path.cwd(), written_in) if self._relative else ():
            if found(str(base / self.written)) is not None:
                path = os.path.relpath(base / self.written, study)
                return f"write {path if path.startswith('..') else f'./{path}'}: a relative path starts at the study"
        target = expanded(self.resolved)
        beside: list[Path] = []
        with suppress(OSError):  # there is no such directory, or it may not be read
            beside = sorted(target.parent.iterdir())
        close = get_close_matches(target.name, [path.name for path in beside if self._may_be(path)], n=1)
        if close:
            return f"did you mean {str(Path(self.written).with_name(close[0]))!r}?"
        return "correct the path" + ("; a relative one starts at the study" if self._relative else "")


def _models(study: Study, experiment: Experiment, in_image: bool) -> Iterator[Wrong]:
    info, config = engine_info(experiment.engine), experiment.config
    unknown = info.name not in shipped_engines() or (info.serves_over_http and not config.settings.get("command"))
    elsewhere = in_image or unknown
    get = getter(experiment.flat_settings)
    for setting, resolved, check in (("model", config.model, _check_model), ("lora", config.lora, _check_adapter)):
        if resolved is None:
            continue
        name = Named(study, setting, str(get(setting)), resolved, elsewhere)
        try:
            if name.is_here():
                check(config)
            elif is_builtin(name.written):
                require_known(name.written)
        except LlemError as problem:
            yield setting, name.written, problem
        except OSError as problem:
            yield setting, name.written, name.error(problem)


def _check_model(config: ExperimentConfig) -> None:
    info, weights = engine_info(config.engine), config.weights != "dummy"
    if info.serves_over_http and starts_server(config):
        find_model(config.model, weights=weights)
    elif info.name in shipped_engines() and not info.serves_over_http:
        require_checkpoint(config.model, weights=weights, gguf=info.loads_gguf)


def _check_adapter(config: ExperimentConfig) -> None:
    find_adapter(str(config.lora))


def _data_set(study: Study, experiment: Experiment, in_image: bool) -> Iterator[Wrong]:
    settings = experiment.config.workload
    if settings.dataset == SYNTHETIC:
        return
    written = str(getter(experiment.flat_settings)("workload.dataset"))
    try:
        allowed_rel = Thresholds.of(study.thresholds).failed_requests_rel
        if (texts := texts_of_package(settings)) is not None:
            require_few_broken(texts, allowed_rel)
            return
        here = Named(study, "workload.dataset", written, settings.dataset, in_image).is_here()
        if here and not expanded(settings.dataset).is_dir():
            texts = _read(settings, allowed_rel)
            by_server = (
                engine_info(experiment.engine).serves_over_http and experiment.config.settings.get("api") == "chat"
            )
            if texts.recorded and texts.recorded[0].messages is not None and not by_server:
                require_chat_template(experiment.config.model)
        elif not in_image and find_spec("datasets") is None:
            what = "is a directory" if here else "is a data set of the hub"
            raise EngineNotInstalledError(
                f"workload.dataset {written!r} {what}, and the package 'datasets' is not installed",
                fix="pip install datasets, or name a file, or use workload.dataset: synthetic",
            )
    except LlemError as problem:
        if (setting := problem.details.get("setting")) is not None:
            yield str(setting), getter(experiment.flat_settings)(str(setting)), problem
        elif problem.details.get("available"):
            yield "workload.prompts", settings.prompts, problem
        elif "columns" in problem.details and settings.column is not None:
            yield "workload.column", settings.column, problem
        else:
            yield "workload.dataset", written, problem


def _arrival_times(study: Study, experiment: Experiment, in_image: bool) -> Iterator[Wrong]:
    workload = experiment.config.workload
    if workload.times_file is None or (in_image and found(workload.times_file) is None):
        return
    try:
        available, needed = len(read_times(workload.times_file)), _arrivals(workload)
        if available < needed:
            raise too_few(workload.times_file, available, needed)
    except WorkloadError as problem:
        if problem.details.get("available"):
            yield "workload.prompts", workload.prompts, problem
        else:
            yield "workload.arrival", getter(experiment.flat_settings)("workload.arrival"), problem


def _arrivals(workload: WorkloadSettings) -> int:
    """How many times a schedule needs: one for each prompt, of sessions one for each of these."""
    if workload.dataset != SYNTHETIC and found(workload.dataset) is not None:
        with suppress(LlemError):  # which `_data_set` reports
            recorded = (parquet_texts(workload) or read_rows(workload)).recorded
            return max(arrival_places(recorded)) + 1 if recorded else workload.prompts
    return workload.prompts


def _read(settings: WorkloadSettings, allowed_rel: float) -> Texts:
    """Read as many rows of a local data set as the workload needs, in the order of the file."""
    in_order = replace(settings, order="interleaved")
    texts = parquet_texts(in_order) or read_rows(in_order)
    require_few_broken(texts, allowed_rel)
    if texts.recorded:
        require_fitting(texts.format, settings)
    return texts
