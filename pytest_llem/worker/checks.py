"""Compares what an engine did with what it was asked to do.

The cycle calls it at its end; every note makes the measurement invalid. Note codes are part of the result format.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pytest_llem.engines.protocol import CacheState, Capabilities, Completion, Request
from pytest_llem.errors import JsonValue
from pytest_llem.job.config import ExperimentConfig
from pytest_llem.job.report import Note

RESOLVED = ("device_map", "revision")
"""Settings that an engine resolves to other values (`auto` to a device map, a branch to a commit)."""


def settings_differ(config: ExperimentConfig, effective: Mapping[str, JsonValue]) -> list[Note]:
    """`effective_differs` for each requested setting that the engine reports with another value."""
    asked: dict[str, JsonValue] = {key: value for key, value in config.settings.items() if key not in RESOLVED}
    if not effective.get("quantized"):
        asked["dtype"] = config.dtype
    notes = []
    for key, value in asked.items():
        if value is None or key not in effective or not isinstance(value, (bool, int, float, str)):
            continue
        if effective[key] != value:
            notes.append(
                Note(
                    "effective_differs", f"{key} was asked to be {value!r}, and the engine runs with {effective[key]!r}"
                )
            )
    return notes


def work_notes(
    requests: Sequence[Request], completions: Iterable[Completion], *, caching_asked: bool = False
) -> list[Note]:
    """Notes on completions that differ from the requested work; failed requests are reported elsewhere.

    Cached prompt tokens are intended if the study enables a prefix cache (`caching_asked`).
    """
    wanted = {request.index: request for request in requests}
    wrong_length = cached = 0
    for completion in completions:
        if completion.error is not None:
            continue
        request = wanted[completion.index]
        count = completion.generated
        wrong_length += count > request.max_new_tokens or (request.ignore_eos and count != request.max_new_tokens)
        cached += completion.cached_tokens or 0
    notes = []
    if wrong_length:
        notes.append(
            Note("output_length_differs", f"{wrong_length} answers do not have the number of tokens that was asked for")
        )
    if cached and not caching_asked:
        notes.append(
            Note("prefix_cache_hit", f"{cached} prompt tokens came from a prefix cache instead of being computed")
        )
    return notes


def cache_note(
    state: CacheState | None,
    capabilities: Capabilities,
    asked_for_caching: bool,
    completions: Iterable[Completion] = (),
) -> Note | None:
    """`prefix_cache_not_reset` if an engine has a prefix cache and could not confirm that it was emptied.

    If each answer states how many of its prompt tokens came from a cache, no confirmation is needed.
    """
    if state != "unknown" or not capabilities.prefix_cache or asked_for_caching:
        return None
    stated = [completion.cached_tokens is not None for completion in completions if completion.error is None]
    if stated and all(stated):
        return None
    return Note("prefix_cache_not_reset", "the engine could not confirm that its prefix cache was emptied")
