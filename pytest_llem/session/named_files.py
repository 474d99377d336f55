"""Looks at the models, adapters, data sets and scorers that a study names on this machine, before anything runs.

`options.load_for_run` calls it, also in a dry run. What is looked at must be cheap, and only what cycles will read from
here: files within an image, on a cluster's nodes or of a running server are theirs to look at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from pytest_llem.engines import engine_info, shipped_engines, starts_server
from pytest_llem.engines.builtin import is_builtin, require_known, require_makeable
from pytest_llem.engines.model_files import find_adapter, find_gguf, find_model, require_checkpoint
from pytest_llem.errors import LlemError, StudyError
from pytest_llem.job.config import SYNTHETIC, ExperimentConfig
from pytest_llem.job.report import RunnerName
from pytest_llem.runners import RUNNERS
from pytest_llem.servers.spec import server_settings
from pytest_llem.session.named_path import Named, Wrong
from pytest_llem.study import Experiment, Study
from pytest_llem.study.canonical import getter

_MODEL = ("model", "lora", "weights", *(f"{info.name}.base_url" for info in shipped_engines().values()))

Check = Callable[[Study, Experiment, bool], Iterator[Wrong]]


def require_named_files(study: Study, runner_of: Callable[[str], RunnerName]) -> None:
    """Raise `LlemError` for the local paths that cannot be what the study takes them for, each where it is written."""
    wrong: dict[str, LlemError] = {}
    for check, experiments, always in _checks(study):
        for experiment in experiments:
            runner = runner_of(experiment.engine)
            if RUNNERS[runner].distributed and not always:
                continue
            for setting, value, error in check(study, experiment, runner != "local"):
                where = study.locate(setting, value)
                wrong.setdefault(f"{where}: {error.message}", error)
    if len(wrong) == 1:
        ((message, error),) = wrong.items()
        raise error.restated(message)
    if wrong:
        raise StudyError("\n".join(str(error.restated(message)) for message, error in wrong.items()))


def _checks(study: Study) -> Iterator[tuple[Check, Sequence[Experiment], bool]]:
    """What is looked at, in which experiments, and whether always, since it happens here wherever cycles run."""
    yield _models, study.distinct("engine", *_MODEL), False
    yield _scorer, study.distinct("engine", "workload.score"), True
    if any(map(_names_data, study.distinct("workload.dataset", "workload.arrival", "workload.task"))):
        from pytest_llem.session import named_data  # with what it takes to read them

        most = named_data.most_prompts(study)
        yield named_data.data_set, most, False
        yield named_data.arrival_times, most, False
        yield named_data.task, study.distinct(*named_data.OF_TASK), True


def _names_data(experiment: Experiment) -> bool:
    get = getter(experiment.flat_settings)
    arrival = get("workload.arrival")
    has_times = isinstance(arrival, Mapping) and arrival.get("file") is not None
    return get("workload.dataset") != SYNTHETIC or get("workload.task") is not None or has_times


def _scorer(study: Study, experiment: Experiment, in_image: bool) -> Iterator[Wrong]:
    written = getter(experiment.flat_settings)("workload.score")
    if written is None:
        return
    from pytest_llem.scoring.registry import scorer_of  # with what it takes to score

    try:
        if (scorer := scorer_of(experiment.config.workload)) is not None:
            scorer.load()
    except LlemError as problem:
        yield "workload.score", written, problem


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
                _check_builtin(config)
        except LlemError as problem:
            yield setting, name.written, problem
        except OSError as problem:
            yield setting, name.written, name.error(problem)


def _check_model(config: ExperimentConfig) -> None:
    info, weights = engine_info(config.engine), config.weights != "dummy"
    if info.serves_over_http and starts_server(config):
        if server_settings(config).gets_gguf:
            find_gguf(config.model)
            return
        find_model(config.model, weights=weights)
    elif info.name in shipped_engines() and not info.serves_over_http:
        require_checkpoint(config.model, weights=weights, gguf=info.loads_gguf)


def _check_builtin(config: ExperimentConfig) -> None:
    if starts_server(config) and server_settings(config).gets_gguf:
        find_gguf(config.model)
    elif engine_info(config.engine).serves_over_http and not starts_server(config):
        require_known(config.model)  # for its tokenizer, or else the server's
    else:
        require_makeable(config.model)


def _check_adapter(config: ExperimentConfig) -> None:
    find_adapter(str(config.lora))
