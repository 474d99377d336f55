"""A task of lm-evaluation-harness as a user writes one, and a model of the harness's that answers what was stored.

Without the harness its tests are skipped, or fail where LLEM_REQUIRE_QUALITY=1.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

SUMS = """
task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: DATA/asked.jsonl, train: DATA/shown.jsonl}}
output_type: generate_until
fewshot_split: train
test_split: test
description: "Add up.\\n\\n"
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["Question:", "</s>"], do_sample: false, temperature: 0.0, max_gen_toks: 24}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true,\
 ignore_punctuation: false, regexes_to_ignore: [",", "\\\\$", "(?s).*#### "]}]
filter_list: [{name: strict-match, filter: [{function: regex, regex_pattern: '#### (\\-?[0-9\\.\\,]+)'},\
 {function: take_first}]}, {name: flexible-extract, filter: [{function: regex, group_select: -1,\
 regex_pattern: '(-?[$0-9.,]{2,})|(-?[0-9]+)'}, {function: take_first}]}]
metadata: {version: 3.0}
"""
"""Filters and metric are those of the harness's `gsm8k`."""


def require_harness() -> None:
    """Skip where the harness is missing, or fail where it must be there."""
    if find_spec("lm_eval") is None:
        if os.environ.get("LLEM_REQUIRE_QUALITY") == "1":
            pytest.fail("LLEM_REQUIRE_QUALITY=1, and lm-eval is not installed")
        pytest.skip("lm-eval is not installed")


def write_task(directory: Path, name: str = "sums", **changes: str) -> Path:
    """Write the task and its data below a directory, with lines of its file replaced by key; the include path."""
    data, tasks = directory / "data", directory / "tasks"
    data.mkdir(exist_ok=True)
    tasks.mkdir(exist_ok=True)
    for file, first, count in (("asked", 1, 12), ("shown", 50, 8)):
        rows = [
            {"question": f"What is {n} plus {2 * n}?", "answer": f"{n} + {2 * n} = {3 * n}\n#### {3 * n}"}
            for n in range(first, first + count)
        ]
        (data / f"{file}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    lines = SUMS.replace("DATA", str(data)).strip().split("\n")
    for key, value in {"task": name, **changes}.items():
        kept = [line for line in lines if not line.startswith(f"{key}:")]
        lines = [*kept, f"{key}: {value}"]
    (tasks / f"{name}.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tasks


def harness_result(
    tasks: Path, answers: Sequence[str], *, few_shot: int, chat: bool, system: str | None = None
) -> Mapping[str, Any]:
    """What `lm_eval.simple_evaluate` itself gives for stored answers to the task `sums`, with all its samples."""
    from lm_eval import simple_evaluate
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

    class Stored(LM):  # type: ignore[misc]
        tokenizer_name = "stored"

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            return [answers[request.doc_id] for request in requests]

        def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
            return json.dumps(chat_history)

        def loglikelihood(self, requests: Any) -> Any:
            raise NotImplementedError

        loglikelihood_rolling = loglikelihood

    result: Mapping[str, Any] = simple_evaluate(
        model=Stored(),
        tasks=["sums"],
        num_fewshot=few_shot,
        limit=len(answers),
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
        system_instruction=system,
        bootstrap_iters=0,
    )
    return result
