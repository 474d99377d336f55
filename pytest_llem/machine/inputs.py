"""Digests of what an experiment reads from this machine: models, adapters, data sets, and the hub's cached commits.

Results and reuse of idle power compare them. A name is part of the configuration, but the files under it may change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from pytest_llem.engines import engine_info, starts_server
from pytest_llem.engines.builtin import is_builtin
from pytest_llem.engines.model_files import fingerprint
from pytest_llem.errors import JsonValue
from pytest_llem.job.config import ExperimentConfig
from pytest_llem.workload.build import SYNTHETIC, resolve_alias
from pytest_llem.workload.hub import hub_cache

DIGITS = 16
"""Chosen: 64 bits, which no number of runs brings to a collision."""
READ_WHOLE_BYTES = 4 << 20
"""Larger files, weights above all, are known by their size and the time of their last change."""


def input_facts(config: ExperimentConfig) -> dict[str, JsonValue]:
    """A fact per input: `model_files`, `lora_files`, `dataset_files` for what lies here, a digest over names and
    content; `model_commit` and so on for the hub's, the commit that the local cache has under the revision asked for.

    `lora_fingerprint` is the adapter's `model_files.fingerprint`. Nothing for built-in models, synthetic prompts and
    served models, and for what the cache does not hold.
    """
    facts: dict[str, JsonValue] = {}
    for kind, hub_kind, name, revision in _named(config):
        path = Path(name).expanduser()
        if path.exists():
            facts[f"{kind}_files"] = content_digest(path)
            if kind == "lora":
                # No engine states it as it does the model's, and a gate compares across checkouts of large files.
                facts["lora_fingerprint"] = fingerprint(path)
        elif (commit := _cached_commit(hub_kind, name, revision)) is not None:
            facts[f"{kind}_commit"] = commit
    return facts


def content_digest(path: Path) -> str:
    """Sixteen hex digits over a file, or over a directory's files with their relative names, hidden ones left out.

    Moving or copying a small file does not change it; large ones count by size and modification time.
    """
    digest = hashlib.sha256()
    for name, file in _files(path):
        try:
            facts = file.stat()
            content = _file_digest(str(file), facts.st_size, facts.st_mtime_ns)
        except OSError as problem:
            content = f"unreadable: {problem.strerror}"
        digest.update(f"{name}\n{content}\n".encode())
    return digest.hexdigest()[:DIGITS]


def _named(config: ExperimentConfig) -> Iterator[tuple[str, str, str, str | None]]:
    """What a configuration names, as kind, kind on the hub, name and revision."""
    served_elsewhere = engine_info(config.engine).serves_over_http and not starts_server(config)
    if not served_elsewhere and not is_builtin(config.model):
        yield "model", "models", config.model, config.revision
    if config.lora:
        yield "lora", "models", config.lora, None
    workload = resolve_alias(config.workload)
    if workload.dataset != SYNTHETIC:
        yield "dataset", "datasets", workload.dataset, workload.revision


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    if path.is_file():
        yield "", path
        return
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path)
        if not file.is_dir() and not any(part.startswith((".", "__pycache__")) for part in name.parts):
            yield name.as_posix(), file


@lru_cache(maxsize=4096)
def _file_digest(path: str, size: int, changed_ns: int) -> str:
    if size > READ_WHOLE_BYTES:
        return f"{size} {changed_ns}"
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _cached_commit(kind: str, name: str, revision: str | None) -> str | None:
    ref = hub_cache() / f"{kind}--{name.replace('/', '--')}" / "refs" / (revision or "main")
    try:
        return ref.read_text(encoding="ascii").strip() or None
    except (OSError, ValueError):
        return None
