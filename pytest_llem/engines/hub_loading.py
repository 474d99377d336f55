"""A model's tokenizer and configuration, for engines that keep theirs in other processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytest_llem.engines.builtin import PREFIX, builtin_path
from pytest_llem.engines.model_files import ModelSource, unreachable
from pytest_llem.job import ExperimentConfig

FALLBACK_TOKENIZER = f"{PREFIX}tiny-llama"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


def tokenizer_of(config: ExperimentConfig, source: ModelSource) -> tuple[str, str]:
    """Where a model's tokenizer lies, and its name.

    A directory that holds nothing but a configuration is enough for random weights: any token ids will do.
    """
    if config.weights == "dummy" and source.local:
        directory = Path(source.location)
        if not any((directory / name).is_file() for name in TOKENIZER_FILES):
            return str(builtin_path(FALLBACK_TOKENIZER)), FALLBACK_TOKENIZER
    return source.location, config.model


def load_tokenizer(location: str, config: ExperimentConfig, source: ModelSource) -> Any:
    """The tokenizer at `location`. Raises `ModelNotFoundError`."""
    from transformers import AutoTokenizer

    return _load(AutoTokenizer, location, config, source)


def load_text_config(config: ExperimentConfig, source: ModelSource) -> Any:
    """The configuration of the model's text part. Raises `ModelNotFoundError`."""
    from transformers import AutoConfig

    return _load(AutoConfig, source.location, config, source).get_text_config()


def _load(loader: Any, location: str, config: ExperimentConfig, source: ModelSource) -> Any:
    keywords: dict[str, Any] = {"trust_remote_code": config.trust_remote_code, "revision": config.revision or "main"}
    if source.offline is not None:
        keywords["local_files_only"] = True
    try:
        return loader.from_pretrained(location, **keywords)
    except OSError as problem:
        raise unreachable(config.model, problem, source.offline) from problem
