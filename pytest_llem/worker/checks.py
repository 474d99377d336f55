"""Was measured what was meant? Notes on what an engine did against what it was asked to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pytest_llem.engines.protocol import CacheState, Capabilities, Completion, Request
from pytest_llem.errors import JsonValue
from pytest_llem.job.config import ExperimentConfig
from pytest_llem.job.report import Note

RESOLVED = ("device_map", "revision")
"""Settings that an engine replaces by what they lead to (`auto` by a map, a branch by a commit)."""


def settings_differ(config: ExperimentConfig, effective: Mapping[str, JsonValue]) -> list[Note]:
    """`effective_differs` for each asked setting that the engine reads back with another value."""
    asked: dict[str, JsonValue] = {key: value for key, value in config.settings.items() if key not in RESOLVED}
    if not effective.get("quantized"):
        asked["dtype"] = config.dtype
    found = []
    for key, value in asked.items():
        if value is None or key not in effective or not isinstance(value, (bool, int, float, str)):
            continue
        if effective[key] != value:
            found.append(
                Note(
                    "effective_differs", f"{key} was asked to be {value!r}, and the engine runs with {effective[key]!r}"
                )
            )
    return found


def work_notes(
    requests: Sequence[Request], completions: Iterable[Completion], *, caching_asked: bool = False
) -> list[Note]:
    """Notes on completions that are not the work that was asked for; failed ones are told apart elsewhere.

    Cached prompt tokens are what was meant where the study asks for a prefix cache (`caching_asked`).
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
    found = []
    if wrong_length:
        found.append(
            Note("output_length_differs", f"{wrong_length} answers do not have the number of tokens that was asked for")
        )
    if cached and not caching_asked:
        found.append(
            Note("prefix_cache_hit", f"{cached} prompt tokens came from a prefix cache instead of being computed")
        )
    return found


def cache_note(
    state: CacheState | None,
    capabilities: Capabilities,
    asked_for_caching: bool,
    completions: Iterable[Completion] = (),
) -> Note | None:
    """`prefix_cache_not_reset` when an engine has such a cache, and could not show that it was emptied.

    Where each answer says how many of its prompt's tokens came from a cache, nothing is unknown.
    """
    if state != "unknown" or not capabilities.prefix_cache or asked_for_caching:
        return None
    told = [completion.cached_tokens is not None for completion in completions if completion.error is None]
    if told and all(told):
        return None
    return Note("prefix_cache_not_reset", "the engine could not confirm that its prefix cache was emptied")
