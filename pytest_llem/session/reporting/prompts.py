"""What becomes of a data set's prompts, as far as it is known before anything runs, for the plan of a dry run.

`plan` calls it. It reads files of this machine alone and loads no model: what takes more is said to be in the results.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pytest_llem.errors import EngineSettingError, WorkloadError
from pytest_llem.job.config import SYNTHETIC, WorkloadSettings
from pytest_llem.job.files import found
from pytest_llem.job.request import Texts
from pytest_llem.machine.parquet import parquet_texts
from pytest_llem.session.reporting.footprint import UnknownModelError, model_directory
from pytest_llem.study import Experiment, Study
from pytest_llem.study.canonical import getter
from pytest_llem.workload.build import build_workload, read_dataset
from pytest_llem.workload.tokenizer import TextOnly
from pytest_llem.workload.traffic import named_faults

MAX_BYTES = 32 << 20
"""Chosen: a tokenizer of the library `tokenizers` takes some seconds for so much text."""


def prompt_lines(study: Study) -> Iterator[str]:
    """A line for each data set that is cut, holds questions, sessions or a trace, has rows left out, or too few."""
    seen: set[tuple[str, ...]] = set()
    said: set[str] = set()
    for experiment in study.experiments:
        flat = experiment.flat_settings
        if flat.get("workload.dataset", SYNTHETIC) == SYNTHETIC:
            continue
        own = sorted((path, repr(value)) for path, value in flat.items() if path.startswith("workload."))
        key = (experiment.model, str(flat.get("revision")), *(f"{path} {value}" for path, value in own))
        if key not in seen:
            seen.add(key)
            lines = [line for line in _of_experiment(study, experiment) if line not in said]
            said.update(lines)
            yield from lines


def _of_experiment(study: Study, experiment: Experiment) -> Iterator[str]:
    settings, name = experiment.config.workload, str(getter(experiment.flat_settings)("workload.dataset"))
    path = found(settings.dataset)
    here = path is not None and path.is_file() and path.stat().st_size <= MAX_BYTES
    try:
        texts = (parquet_texts(settings) or read_dataset(settings)) if here else None
        if texts is not None and texts.recorded:
            yield from _recorded(name, texts, settings.speed)
        if texts is not None and texts.questions:
            behind = f", each behind {len(texts.examples)} examples" if texts.examples else ""
            yield f"{name}: {len(texts.questions)} questions{behind}"
        if here and settings.input_tokens is not None:
            tokenizer = _tokenizer(study, experiment)
            if tokenizer is not None:
                yield from _counted(name, settings, tokenizer, texts)
                return
    except (WorkloadError, EngineSettingError) as problem:
        yield str(problem)
        return
    if texts is not None and texts.skipped:
        yield _skipped(name, texts)
    if settings.input_tokens is not None:
        shown = settings.input_tokens if isinstance(settings.input_tokens, int) else "the lengths that are drawn"
        yield f"{name}: longer prompts are cut to {shown} tokens; how many, each result says"


def _counted(name: str, settings: WorkloadSettings, tokenizer: FileTokenizer, texts: Texts | None) -> Iterator[str]:
    workload = build_workload(replace(settings, chat_template=False), tokenizer, texts)
    cut = workload.truncated
    if texts is not None and texts.skipped:
        yield _skipped(name, texts)
    if cut.prompts or settings.chat_template:
        least = "at least " if settings.chat_template else ""
        yield (
            f"{name}: {least}{cut.prompts} of {len(workload.requests)} prompts are cut to workload.input_tokens: "
            f"{cut.tokens_before} tokens to {cut.tokens_after}{' (without the chat template)' if least else ''}"
        )


def _recorded(name: str, texts: Texts, speed: float) -> Iterator[str]:
    """What was recognised, and for how long it takes as it was recorded."""
    sessions = {one.session for one in texts.recorded if one.session is not None}
    times = [one.at_ns for one in texts.recorded if one.at_ns is not None]
    parts = [f"{len(texts.recorded)} requests"]
    parts += [f"{len(sessions)} sessions"] if sessions else []
    parts += [f"recorded over {(times[-1] - times[0]) / 1e9 / speed:.4g} s"] if times else []
    yield f"{name}: {texts.format}: {', '.join(parts)}{f' at speed {speed:g}' if times and speed != 1 else ''}"
    if texts.broken:
        yield f"{name}: {named_faults(texts.broken, texts.faults)} are left out"


def _skipped(name: str, texts: Texts) -> str:
    lacking = "with nothing to send" if texts.recorded else "without text"
    return f"{name}: {texts.skipped} rows {lacking} are passed over"


class FileTokenizer:
    """A model's `tokenizer.json` as a workload sees it; templates need more than that."""

    def __init__(self, path: Path) -> None:
        self._tokenizer: Any = importlib.import_module("tokenizers").Tokenizer.from_file(str(path))
        whole = self._tokenizer.encode("a").ids
        self.bos_id: int | None = whole[0] if whole[:1] != self.encode("a")[:1] else None

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer.encode`."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer.decode`."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def chat(self, text: str) -> list[int]:
        """Always an `EngineSettingError`."""
        return TextOnly("the chat template is not known here", "ask for the prompts without it").chat(text)


def _tokenizer(study: Study, experiment: Experiment) -> FileTokenizer | None:
    """The tokenizer of a model whose files are on this machine; `None` where they or the library are not."""
    revision = getter(experiment.flat_settings)("revision")
    try:
        directory = model_directory(
            experiment.model, study.path.parent, str(revision) if revision is not None else None
        )
        return FileTokenizer(directory / "tokenizer.json")
    except (UnknownModelError, ImportError):
        return None
    except Exception as problem:
        # The library raises plain `Exception` for a file that is absent or that it does not understand.
        if type(problem) is not Exception:
            raise
        return None
