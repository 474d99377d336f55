"""Scores answers to a task of lm-evaluation-harness as the harness does: its first metric behind its first filter.

`registry` finds it where a study names a task. Filters and metrics must stay the harness's own: nothing is computed
here.
"""

from __future__ import annotations

from pytest_llem.errors import JsonValue, ScoringError
from pytest_llem.job.request import Question
from pytest_llem.scoring.scorer import Scorer
from pytest_llem.workload.harness import GENERATIVE, alone, load_task, words


class TaskScorer(Scorer):
    """The scorer of a task: its name has metric and filter, its version those of harness and task.

    Raises as `load_task`.
    """

    with_thoughts = True

    def __init__(self, task: str, include_path: str | None) -> None:
        self._task = load_task(task, include_path)
        self.name = f"{task} {self._task.metric},{self._task.filter}"
        self.version = self._task.version

    def check(self, target: JsonValue) -> None:
        """Keys are the task's own."""

    def score(self, text: str, question: Question) -> float:
        """The metric of an answer; the task must ask the question, and have its key."""
        from lm_eval.api.instance import Instance

        task, where = self._task, f"{self._task.name}[{question.id}]"
        if not question.id.isdecimal() or int(question.id) >= len(task.docs):
            raise ScoringError(f"{where}: the task asks no such question", fix="score by the task that asked it")
        with alone():
            doc = task.docs[int(question.id)]
            if task.key(doc) != question.target:
                raise ScoringError(f"{where}: the task has another answer key than the answer", fix="measure again")
            given = Instance(GENERATIVE, doc, (), 0, metadata=(task.name, int(question.id), 1), resps=[text])
            try:
                task.own._filters[0].apply([given])
                value = task.own.process_results(doc, [given.filtered_resps[task.filter]])[task.metric]
                score = float(value)
            except Exception as problem:  # whatever the task's own code raises
                raise ScoringError(f"{where}: no {task.metric}: {words(problem)}", fix="correct the task") from problem
        if not 0 <= score <= 1:
            fix = "write a task that includes this one, with a metric from 0 to 1 first"
            raise ScoringError(f"{where}: {task.metric} is {value!r}, and no score from 0 to 1", fix=fix)
        return score
