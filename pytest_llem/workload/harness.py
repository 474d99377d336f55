"""Loads a task of lm-evaluation-harness, and refuses what would not be scored as the harness scores it.

`tasks` makes prompts of it, and `scoring.lm_eval` scores. No worker calls it, which need not have the harness. What the
harness does between its seeds must happen here in the same order, or examples and choices differ from its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import inspect
import io
import json
import os
import random
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from pytest_llem.errors import EngineNotInstalledError, JsonValue, WorkloadError
from pytest_llem.workload.harness_files import HARNESS, INCLUDE, directory_of, index_of
from pytest_llem.workload.hub import OFFLINE, hub_cache, hub_obstacle

GENERATIVE = "generate_until"
RANDOM_SEED = 0
"""What `lm_eval.simple_evaluate` seeds Python's generator with before it loads tasks (its default `random_seed`)."""
OTHER_SEED = 1234
"""What it seeds numpy's and the choice of examples with (`numpy_random_seed`, `fewshot_random_seed`)."""
MOST_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""The names that the harness has for the longest answer, the first of them first (`lm_eval.models.utils`)."""
SAMPLING = ("top_p", "top_k", "min_p", "repetition_penalty")
"""Settings that `decoding` has by the same names."""
SWITCHES = (OFFLINE, "HF_EVALUATE_OFFLINE")
"""Environment variables that keep `huggingface_hub` and `evaluate`, where metrics come from, off the hub."""
_UNDERSTOOD = {*MOST_TOKENS, *SAMPLING, "until", "do_sample", "temperature"}
_OTHER_TASK = f"name another task, or write one of your own ({INCLUDE})"
_OTHER_METRIC = f"write a task that includes this one and lists another metric first ({INCLUDE})"

_busy = threading.RLock()


@dataclass(frozen=True)
class HarnessTask:
    """A task, `own` as the harness has it: its questions, its first metric and filter, the examples that it asks for.

    `generators` are the states in which loading left those of Python and numpy.
    """

    name: str
    own: Any
    docs: Sequence[Any]
    metric: str
    filter: str
    version: str
    few_shot: int | None
    generators: tuple[Any, Any]

    @property
    def generation(self) -> Mapping[str, Any]:
        """How the harness lets answers be generated."""
        return self.setting("generation_kwargs") or {}

    def setting(self, name: str) -> Any:
        """What the task's configuration says."""
        return getattr(self.own.config, name, None)

    def key(self, doc: Any) -> JsonValue:
        """The answer key of a question, as it is stored."""
        key: JsonValue = json.loads(json.dumps(self.own.doc_to_target(doc), default=str))
        return key


@lru_cache(maxsize=8)
def load_task(task: str, include_path: str | None) -> HarnessTask:
    """Find a task by its name in a study, and load it with its data set.

    Raises `WorkloadError`, whose `details` name the setting where that is another one than `workload.task`, and
    `EngineNotInstalledError` without the harness.
    """
    kind, _, name = task.partition(":")
    if kind != HARNESS or not name:
        raise WorkloadError(f"workload.task {task!r} is no task", fix=f"write {HARNESS}:NAME, e.g. {HARNESS}:gsm8k")
    _require_harness(task)
    offline = hub_obstacle()
    with alone():
        index = index_of(directory_of(name, include_path))
        written = index.task_index[name].cfg or {}
        if "class" not in written:
            _require_generation(name, {"output_type": GENERATIVE, **written}.get)  # before its data set is fetched
        with generators():
            try:
                own = index.load(name)["tasks"][name]
                docs, left = own.eval_docs, _states()
                docs = docs if hasattr(docs, "__getitem__") else list(docs)
            except Exception as problem:  # a data set that is not there, or whatever the task's own code raises
                where = str(index.task_index[name].yaml_path)
                raise _unloadable(task, where, written.get("dataset_path"), problem, offline) from problem
        _require_generation(name, lambda key: getattr(own.config, key, None))
        metric = _require_mean(name, own)
        stated = f"{HARNESS} {version(HARNESS)}, task {own.VERSION}, {_digest(own)}"
    return HarnessTask(name, own, docs, metric, own._filters[0].name, stated, own.config.num_fewshot, left)


def _require_harness(task: str) -> None:
    """Raise `EngineNotInstalledError` where the harness is not there, or not as it is asked here."""
    problem = "is not installed" if find_spec(HARNESS) is None else None
    if problem is None:
        with alone():
            try:
                tasks = importlib.import_module(f"{HARNESS}.tasks")
            except ImportError as caught:
                problem = f"cannot be imported: {words(caught)}"
            else:
                problem = None if hasattr(tasks.TaskManager, "load") else f"is too old: {version(HARNESS)}"
    if problem is not None:
        raise EngineNotInstalledError(
            f"workload.task {task!r} needs lm-evaluation-harness, which {problem}",
            fix="pip install 'pytest-llem[quality]'",
        )


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """The harness at work: one thread at a time, without its progress on the terminal, or its warnings as errors.

    A hub that is not there is not asked: its libraries would try for half a minute.
    """
    with (
        _busy,
        _switched_off() if hub_obstacle() is not None else contextlib.nullcontext(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _switched_off() -> Iterator[None]:
    """The environment by which the hub's libraries ask nothing; they read it when they are imported."""
    before = {name: os.environ.get(name) for name in SWITCHES}
    os.environ.update(dict.fromkeys(SWITCHES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def generators(states: tuple[Any, Any] | None = None) -> Iterator[None]:
    """Python's and numpy's generators in these states, else as the harness seeds them; afterwards as they were."""
    import numpy

    before = _states()
    if states is None:
        random.seed(RANDOM_SEED)
        numpy.random.seed(OTHER_SEED)
    else:
        _set_states(states)
    try:
        yield
    finally:
        _set_states(before)


def _states() -> tuple[Any, Any]:
    import numpy

    return random.getstate(), numpy.random.get_state()


def _set_states(states: tuple[Any, Any]) -> None:
    import numpy

    random.setstate(states[0])
    numpy.random.set_state(states[1])


def words(problem: BaseException) -> str:
    """What a task's code or data set says, as one line."""
    return " ".join(f"{type(problem).__name__}: {problem}".split())[:500]


def cannot_score(name: str, why: str, fix: str = _OTHER_TASK) -> WorkloadError:
    """The error for a task whose score here would not be the harness's."""
    return WorkloadError(f"workload.task {HARNESS}:{name} cannot be scored: it {why}", fix=fix)


def _require_generation(name: str, get: Callable[[str], Any]) -> None:
    """Raise `WorkloadError` for a task that asks otherwise than engines here answer; `get` reads its configuration."""
    output_type, repeats, generation = get("output_type"), get("repeats") or 1, get("generation_kwargs") or {}
    unknown = [key for key in generation if key not in _UNDERSTOOD and (key, generation[key]) != ("num_beams", 1)]
    if output_type != GENERATIVE:
        raise cannot_score(name, f"asks for {output_type} of given texts, and engines here answer ({GENERATIVE})")
    if get("doc_to_image") or get("doc_to_audio"):
        raise cannot_score(name, "asks of pictures or sounds")
    if get("unsafe_code"):
        raise cannot_score(name, "runs answers as programs (unsafe_code), for which nothing here is a sandbox")
    if repeats > 1:
        raise cannot_score(name, f"asks each question {repeats} times (repeats) for one score")
    if unknown:
        raise cannot_score(name, f"generates with {', '.join(unknown)} (generation_kwargs)")


def _require_mean(name: str, own: Any) -> str:
    """The task's first metric, where its mean over answers is the harness's result."""
    from lm_eval.api.metrics import mean

    aggregation = own.aggregation()
    metric = str(next(iter(aggregation), None))
    if aggregation.get(metric) is not mean:
        how = getattr(aggregation.get(metric), "__name__", "no function")
        raise cannot_score(name, f"has {metric} first, whose result is no mean over answers ({how})", _OTHER_METRIC)
    if not own.higher_is_better().get(metric, True):
        raise cannot_score(name, f"has {metric} first, of which less is better", _OTHER_METRIC)
    return metric


def _unloadable(task: str, where: str, dataset: object, problem: Exception, offline: str | None) -> WorkloadError:
    text = words(problem)
    if offline is not None and (isinstance(problem, ConnectionError) or "Hub" in text):
        what = f"the data set {str(dataset)!r}" if dataset and isinstance(problem, ConnectionError) else "a file"
        return WorkloadError(
            f"workload.task {task} needs {what} of the hub, which is not in the cache {hub_cache().parent}, and cannot "
            f"be fetched: {offline}",
            fix="load it once where the hub can be reached, and set HF_HOME to that cache here; or write a task with a "
            f"local data set ({INCLUDE})",
            details={"cause": text},
        )
    return WorkloadError(
        f"workload.task {task} ({where}) cannot be loaded: {text}",
        fix="install what the task needs"
        if isinstance(problem, ImportError)
        else "correct the task; its data_files are relative to where pytest is started",
        details={"type": type(problem).__name__},
    )


def _digest(own: Any) -> str:
    """Twelve hex digits of what the task says. Its data are in the questions' own hash, and may lie elsewhere."""
    config = {key: value for key, value in own.dump_config().items() if key not in ("dataset_kwargs", "num_fewshot")}
    metadata = config.get("metadata")
    if isinstance(metadata, Mapping):
        config["metadata"] = {key: value for key, value in metadata.items() if key != "config_source"}
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=_source).encode()).hexdigest()[:12]


def _source(value: Any) -> str:
    """A function as its source, since its own text has an address in it."""
    try:
        return inspect.getsource(value)
    except (OSError, TypeError):
        return str(getattr(value, "__qualname__", type(value).__qualname__))
