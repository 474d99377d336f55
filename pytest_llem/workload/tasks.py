"""What a task of lm-evaluation-harness asks, by the harness's own code, and what decoding it needs.

The pytest side hands the texts over with the job, as those of data sets of other packages. Prompts must be those of
`lm_eval.simple_evaluate` with its default seeds; a model's chat template is applied where the model is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pytest_llem.errors import WorkloadError
from pytest_llem.job.config import Decoding, WorkloadSettings
from pytest_llem.job.request import Question, Texts
from pytest_llem.workload.harness import (
    GENERATIVE,
    MOST_TOKENS,
    OTHER_SEED,
    HarnessTask,
    alone,
    cannot_score,
    generators,
    load_task,
    words,
)

ANSWER_TOKENS = 256
"""How many tokens the harness lets an answer have where a task does not say (`lm_eval.defaults`)."""

NEUTRAL = {"temperature": 1, "top_p": 1, "top_k": 0, "min_p": 0, "repetition_penalty": 1}
"""Settings of `decoding` that a study may write beside those of a task: nothing changes with them."""


def texts_of_task(settings: WorkloadSettings) -> Texts:
    """What a workload's task asks, in its own order, with its answer keys. Raises as `load_task`."""
    task = _loaded(settings)
    available, wanted = len(task.docs), settings.prompts
    if wanted > available:
        raise WorkloadError(
            f"workload.task {settings.task} has {available} questions, and {wanted} were asked for",
            fix=f"set workload.prompts to at most {available}",
            details={"setting": "workload.prompts", "available": available, "wanted": wanted},
        )
    asked = _asked(task, settings)
    until = task.generation.get("until") or ()
    most = next((value for name in MOST_TOKENS if (value := task.generation.get(name)) is not None), ANSWER_TOKENS)
    prompts = tuple(one.args[0] for one in asked)
    return Texts(
        () if settings.chat_template else prompts,
        0,
        questions=tuple(
            Question(str(one.doc_id), task.key(one.doc), f"{settings.task}[{one.doc_id}]") for one in asked
        ),
        stop=tuple(text for text in ((until,) if isinstance(until, str) else until) if text),
        output_tokens=int(most),
        chats=tuple(map(tuple, prompts)) if settings.chat_template else (),
    )


def require_decoding(settings: WorkloadSettings, decoding: Decoding) -> None:
    """Raise `WorkloadError` where an experiment does not draw tokens as its task does: the harness's score is of that.

    As in the harness, a temperature alone says that a task samples, sampling is needed for one to count, and 0 is
    greedy.
    """
    given = _loaded(settings).generation
    temperature = given.get("temperature")
    samples = bool(float(temperature or 0) if given.get("do_sample") is None else given["do_sample"])
    samples = samples and (temperature is None or float(temperature) != 0)
    names = NEUTRAL if samples else ("repetition_penalty",)
    wanted: dict[str, Any] = {"do_sample": samples}
    wanted |= {name: float(given[name]) for name in names if given.get(name) is not None}
    drawn: dict[str, Any] = {"do_sample": decoding.do_sample and decoding.temperature != 0}
    for name in names:
        value = getattr(decoding, name)
        if name in wanted or value not in (None, NEUTRAL[name]):
            drawn[name] = value
    if drawn != wanted:
        needed, here = (", ".join(f"{name}: {json.dumps(of[name])}" for name in of) for of in (wanted, drawn))
        raise WorkloadError(
            f"workload.task {settings.task} decodes with {{{needed}}}, and this experiment with {{{here}}}",
            fix=f"write decoding: {{{needed}}}, or a task that includes this one with other generation_kwargs",
        )


def _loaded(settings: WorkloadSettings) -> HarnessTask:
    return load_task(settings.task or "", settings.include_path)


def _asked(task: HarnessTask, settings: WorkloadSettings) -> list[Any]:
    """The harness's requests, one for each question, with its prompt, or the messages of a chat."""
    few_shot, as_chat = settings.few_shot, settings.chat_template
    if few_shot and task.few_shot == 0:
        raise WorkloadError(
            f"workload.few_shot {few_shot}: {settings.task} says num_fewshot: 0, which the harness does not change",
            fix="leave workload.few_shot out",
            details={"setting": "workload.few_shot"},
        )
    if as_chat and task.setting("gen_prefix"):
        raise WorkloadError(
            f"workload.chat_template true: {settings.task} begins the answer (gen_prefix), which a chat does not",
            fix="set workload.chat_template: false, or write a task that includes this one with gen_prefix: null",
            details={"setting": "workload.chat_template"},
        )
    with alone(), generators(task.generators):
        try:
            task.own.set_config(key="num_fewshot", value=(task.few_shot or 0) if few_shot is None else few_shot)
            task.own.set_fewshot_seed(seed=OTHER_SEED)
            task.own.build_all_requests(
                limit=settings.prompts,
                system_instruction=settings.system_prompt,
                apply_chat_template=as_chat,
                # What the harness does with chats by default.
                fewshot_as_multiturn=as_chat,
                chat_template=_messages if as_chat else None,
            )
        except Exception as problem:  # more examples than there are, or whatever the task's own code raises
            raise WorkloadError(
                f"workload.task {settings.task}: its prompts cannot be made: {words(problem)}",
                fix="correct the task, or lower workload.few_shot to the examples that it has",
            ) from problem
        asked = list(task.own.instances)
    if len({one.doc_id for one in asked}) < len(asked) or any(one.request_type != GENERATIVE for one in asked):
        raise cannot_score(task.name, "makes several requests of a question")
    if any(one.args[1] != task.generation for one in asked):
        raise cannot_score(task.name, "generates otherwise than its generation_kwargs say, or each answer otherwise")
    return asked


def _messages(messages: list[Mapping[str, str]], add_generation_prompt: bool = True) -> Any:
    """Stands where the harness applies a model's chat template, and leaves the messages as they are."""
    return messages
