"""Rules for settings of questions: what is asked, what is in front of it, and what answers are scored by.

`rules` has them among its own. They must refuse what would score an answer that is none: one of a cut question, or one
that could not end.
"""

from __future__ import annotations

from collections.abc import Mapping

from pytest_llem.job.config import SYNTHETIC
from pytest_llem.study.canonical import ENDED_BY, OF_TASKS, Get
from pytest_llem.study.rule import Rule, refused
from pytest_llem.study.values import shown

SCORE, TASK, DATASET = "workload.score", "workload.task", "workload.dataset"
ANSWERS, FEW_SHOT, SYSTEM = "workload.answer_column", "workload.few_shot", "workload.system_prompt"
EOS = "workload.ignore_eos"


def _task(get: Get) -> str | None:
    if get(TASK) is None:
        return None
    for path, what in ((DATASET, "questions"), (SCORE, "scoring")):
        value = get(path)
        if value not in (None, SYNTHETIC):
            text = f"{TASK} {get(TASK)} cannot be combined with {path} {shown(value)}: a task has its own {what}"
            return refused(text, "leave one of them out")
    return None


def _of_tasks(path: str) -> Rule:
    def check(get: Get) -> str | None:
        if get(path) is not None or get(TASK) is not None:
            return None
        return refused(f"{path} null is what a {TASK} has of its own", "write a number, or leave it out")

    return Rule((path, TASK), check)


def _scored(get: Get) -> str | None:
    score = get(SCORE)
    if score is None or get(TASK) is not None:
        return None
    if isinstance(score, Mapping) and sum(value is not None for value in score.values()) != 1:
        return refused(f"{SCORE}: one of regex and python is needed", "give one of them, or a scorer's name")
    if get(DATASET) == SYNTHETIC:
        text = f"{SCORE} {shown(score)} needs questions, and synthetic prompts have no answers"
        return refused(text, f"name a file of questions as {DATASET}, or a {TASK}")
    if get(ANSWERS) is None:
        text = f"{SCORE} {shown(score)} needs {ANSWERS}, the column of the data set that holds the answer keys"
        return refused(text, f"write {ANSWERS}: answer")
    return None


def _examples(get: Get) -> str | None:
    if not get(FEW_SHOT) or get(ANSWERS) is not None or get(DATASET) == SYNTHETIC:
        return None
    text = f"{FEW_SHOT} {get(FEW_SHOT)} needs {ANSWERS}: an example is a question with its answer"
    return refused(text, f"write {ANSWERS}: answer, or leave {FEW_SHOT} out")


def _columns(get: Get) -> str | None:
    column = get("workload.column")
    if column is None or column != get(ANSWERS):
        return None
    return refused(f"{ANSWERS} and workload.column are both {shown(column)}", "name the column of the answers")


def _ends(get: Get) -> str | None:
    if not get(EOS):
        return None
    for path in ENDED_BY:
        if get(path):
            text = f"{EOS} true cannot be combined with {path}"
            text += ": an answer must end where the model or a stop string ends it"
            return refused(text, f"leave {EOS} out: it is false with {path}")
    return None


def _whole(get: Get) -> str | None:
    length = get("workload.input_tokens")
    if length is None:
        return None
    front = () if get(DATASET) == SYNTHETIC else (FEW_SHOT, SYSTEM)
    for path in (SCORE, TASK, *front):
        if get(path):
            text = (
                f"workload.input_tokens {shown(length)} cannot be combined with {path}: what is cut is another question"
            )
            return refused(text, "leave workload.input_tokens out")
    return None


QUESTION_RULES = (
    Rule((TASK, DATASET, SCORE), _task),
    *map(_of_tasks, OF_TASKS),
    Rule((SCORE, TASK, DATASET, ANSWERS), _scored),
    Rule((FEW_SHOT, DATASET, ANSWERS), _examples),
    Rule((ANSWERS, "workload.column"), _columns),
    Rule((EOS, *ENDED_BY), _ends),
    Rule(("workload.input_tokens", SCORE, TASK, DATASET, FEW_SHOT, SYSTEM), _whole),
)
