"""Looks at the data sets and files of arrival times that a study names on this machine, before anything runs.

`named_files` imports it for studies that name some: reading them takes modules that no other study needs to collect.
Of each way to read a data set it must read no more than the experiment with the most prompts does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec

from pytest_llem.engines import engine_info
from pytest_llem.engines.model_files import require_chat_template
from pytest_llem.errors import EngineNotInstalledError, LlemError, ScoringError, SettingsError, WorkloadError
from pytest_llem.job.config import SYNTHETIC, Thresholds, WorkloadSettings
from pytest_llem.job.files import expanded, found
from pytest_llem.job.request import Question, Texts
from pytest_llem.machine.parquet import parquet_texts
from pytest_llem.scoring.registry import require_keys, scorer_of
from pytest_llem.session.named_path import Named, Wrong
from pytest_llem.study import Experiment, Study
from pytest_llem.study.canonical import getter
from pytest_llem.workload.arrivals import arrival_places, read_times, too_few
from pytest_llem.workload.harness import SAMPLING
from pytest_llem.workload.tasks import require_decoding, texts_of_task
from pytest_llem.workload.texts import read_rows, texts_of_package
from pytest_llem.workload.traffic import require_few_broken, require_fitting

_READ_BY = (
    *(f"workload.{name}" for name in ("dataset", "column", "order", "input_tokens", "chat_template", "speed")),
    *(f"workload.{name}" for name in ("answer_column", "score", "few_shot", "system_prompt")),
    *("workload.arrival", "model", "openai.api"),
)
"""What decides whether a data set can be read as it is, besides `workload.prompts`."""

OF_TASK = (
    *(f"workload.{name}" for name in ("task", "include_path", "prompts", "few_shot", "system_prompt", "chat_template")),
    *(f"decoding.{name}" for name in ("do_sample", "temperature", *SAMPLING)),
    *("engine", "openai.api"),
)
"""What decides whether a task can be asked and scored as it is."""


def most_prompts(study: Study) -> list[Experiment]:
    """Of each way to read a data set the experiment with the most prompts: what is enough for it is enough for all."""
    largest: dict[str, tuple[int, Experiment]] = {}
    for experiment in study.distinct("engine", "workload.prompts", *_READ_BY):
        get = getter(experiment.flat_settings)
        key, prompts = repr((experiment.engine, *map(get, _READ_BY))), get("workload.prompts")
        if isinstance(prompts, int) and prompts > largest.get(key, (0, experiment))[0]:
            largest[key] = prompts, experiment
    return [experiment for _, experiment in largest.values()]


def data_set(study: Study, experiment: Experiment, in_image: bool) -> Iterator[Wrong]:
    """What is wrong with an experiment's data set, or with its settings for it."""
    settings = experiment.config.workload
    if settings.dataset == SYNTHETIC:
        return
    written = str(getter(experiment.flat_settings)("workload.dataset"))
    try:
        allowed_rel = Thresholds.of(study.thresholds).failed_requests_rel
        if (texts := texts_of_package(settings)) is not None:
            require_few_broken(texts, allowed_rel)
            _try_scorer(settings, texts.questions)
            return
        here = Named(study, "workload.dataset", written, settings.dataset, in_image).is_here()
        if here and not expanded(settings.dataset).is_dir():
            texts = _read(settings, allowed_rel)
            _try_scorer(settings, texts.questions)
            served = engine_info(experiment.engine).serves_over_http
            by_server = served and experiment.config.settings.get("api") == "chat"
            if texts.recorded and texts.recorded[0].messages is not None and not by_server:
                require_chat_template(experiment.config.model, "workload.dataset")
            elif settings.chat_template and not served:
                require_chat_template(experiment.config.model, "workload.chat_template")
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
        elif isinstance(problem, ScoringError):
            yield "workload.score", getter(experiment.flat_settings)("workload.score"), problem
        else:
            yield "workload.dataset", written, problem


def task(study: Study, experiment: Experiment, in_image: bool) -> Iterator[Wrong]:
    """What is wrong with an experiment's task, or would not be scored as the task's. It is asked for here, always."""
    config, get = experiment.config, getter(experiment.flat_settings)
    if config.workload.task is None:
        return
    try:
        texts_of_task(config.workload)
        require_decoding(config.workload, config.decoding)
        if get("openai.api") == "chat" and experiment.engine == "openai" and not config.workload.chat_template:
            raise WorkloadError(
                "openai.api chat sends messages, and a task makes one text without workload.chat_template",
                fix="write workload.chat_template: true, or openai.api: completions",
                details={"setting": "openai.api"},
            )
    except LlemError as problem:
        setting = str(problem.details.get("setting", "workload.task"))
        yield setting, get(setting), problem


def _try_scorer(settings: WorkloadSettings, questions: Sequence[Question]) -> None:
    """Have the scorer read each key, and score one of them. Raises `WorkloadError` or `ScoringError`."""
    require_keys(settings, questions)
    with suppress(SettingsError):  # `named_files` looks for the scorer, wherever the questions are
        scorer = scorer_of(settings)
        if scorer is not None and questions:
            scorer.rehearse(questions[0])


def arrival_times(study: Study, experiment: Experiment, in_image: bool) -> Iterator[Wrong]:
    """What is wrong with the file of arrival times, or with how many there are."""
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
    """How many times a schedule needs at least: one for each prompt, of sessions one for each of these.

    One, where the data set is elsewhere, and may be of sessions, or cannot be read, which `data_set` reports.
    """
    if workload.dataset == SYNTHETIC and workload.task is None:
        return workload.prompts
    with suppress(LlemError):
        texts = texts_of_package(workload)
        if texts is None and (path := found(workload.dataset)) is not None and path.is_file():
            texts = _rows(workload)
        if texts is not None:
            return max(arrival_places(texts.recorded)) + 1 if texts.recorded else workload.prompts
    return 1


def _read(settings: WorkloadSettings, allowed_rel: float) -> Texts:
    """What the workload needs of a local data set, where its settings go with that."""
    texts = _rows(settings)
    require_few_broken(texts, allowed_rel)
    if texts.recorded:
        require_fitting(texts.format, settings)
    return texts


def _rows(settings: WorkloadSettings) -> Texts:
    """As many rows of a local data set as the workload needs."""
    # Of questions each that is asked must have an answer that can be read; of texts the first ones tell enough.
    in_order = settings if settings.scored else replace(settings, order="interleaved")
    return parquet_texts(in_order) or read_rows(in_order)
