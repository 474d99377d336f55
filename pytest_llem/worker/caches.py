"""What a prefix cache may give to the requests of a cycle, and whether it gave that and nothing else.

`cycle` asks it. The rule is `workload.cache`, as docs/protocol.md has it; the codes of notes are published.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from pytest_llem.engines.protocol import Capabilities, Completion, Request
from pytest_llem.job.config import ExperimentConfig
from pytest_llem.job.report import Note
from pytest_llem.job.request import Texts
from pytest_llem.worker.repeats import Observed

NO_CACHE = ("disabled", "none")
"""What `Engine.reset` says where there is nothing to empty."""
NOT_RESET, OFF = "prefix_cache_not_reset", "prefix_cache_off"
UNCONFIRMED = "the engine could not confirm that its prefix cache was emptied"
REMEDY = "make it able to, allow hits (workload.cache: warm), or say that it has none (enable_prefix_caching: false)"


def with_rule(config: ExperimentConfig, texts: Texts | None, capabilities: Capabilities) -> ExperimentConfig:
    """The configuration with what a null `workload.cache` means: `cold` for what was recorded, if there is a cache."""
    recorded = texts is not None and bool(texts.recorded)
    if config.workload.cache is not None or not recorded or not capabilities.prefix_cache:
        return config
    return replace(config, workload=replace(config.workload, cache="cold"))


def in_effect(asked: str | None, rule: str | None, observed: Observed) -> str | None:
    """The rule, but `None` where the study states none and there turned out to be no cache."""
    return rule if asked is not None or observed.cache_state not in NO_CACHE else None


def cache_notes(
    cache: str | None,
    observed: Observed,
    capabilities: Capabilities,
    requests: Sequence[Request],
    *,
    hits_wanted: bool = False,
) -> list[Note]:
    """Why the cycle's cache was not what `cache` says; without a rule hits may be what the engine's section wants."""
    if cache is None:
        return [] if hits_wanted else _not_reset(observed, capabilities)
    if observed.cache_state in NO_CACHE:
        text = f"workload.cache is {cache}, and the engine runs without a prefix cache ({observed.cache_state})"
        return [Note(OFF, f"{text}: switch it on, or leave workload.cache out")]
    if cache == "warm":
        return []
    if observed.cache_state == "unknown":
        # Answers that tell their hits tell no more: were they of this repeat or of the one before?
        return [Note(NOT_RESET, f"{UNCONFIRMED} before each repeat; {REMEDY}")]
    asked = {request.index: request for request in requests}
    left = sum(map(partial(hits_from_before, asked), observed.by_repeat()))
    if left:
        text = f"{left} prompts found more in the prefix cache than the repeat had put there, though it was emptied"
        return [Note(NOT_RESET, f"{text}: the server keeps prefixes in another place as well")]
    return []


def hits_from_before(requests: Mapping[int, Request], completions: Sequence[Completion]) -> int:
    """How many answers of a repeat found more in the cache than an empty one could have held by then.

    That is the longest beginning that the prompt shares with one that was sent before its own answer began, or the
    turn before with its answer. Prompts that went as text, whose tokens are not known, are judged together: the first
    one that the engine took found nothing.
    """
    answered = [completion for completion in completions if completion.error is None]
    if not all(requests[completion.index].token_ids for completion in completions):
        return _opening_hits(completions)
    before = sorted(completions, key=lambda completion: completion.start_ns, reverse=True)
    sent: list[tuple[tuple[int, ...], int]] = []
    longest: dict[str, int] = {}
    found = 0
    for completion in sorted(answered, key=_first_ns):
        while before and before[-1].start_ns <= _first_ns(completion):
            other = before.pop()
            insort(sent, (requests[other.index].token_ids, other.index))
        request = requests[completion.index]
        shared = _longest_shared(sent, request)
        # A server's own template may begin with more than is known here.
        shared += max(0, completion.input_tokens - len(request.token_ids))
        if request.session is not None:
            shared = max(shared, longest.get(request.session, 0))
            longest[request.session] = completion.input_tokens + completion.generated
        found += (completion.cached_tokens or 0) > shared
    return found


def _longest_shared(sent: list[tuple[tuple[int, ...], int]], request: Request) -> int:
    """The longest beginning that a prompt shares with another of these, sorted ones: a neighbour has it."""
    place = bisect_left(sent, (request.token_ids, request.index))
    beside = sent[max(0, place - 1) : place] + sent[place + 1 : place + 2]
    return max((_shared(request.token_ids, ids) for ids, _ in beside), default=0)


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two prompts begin with alike, by halving."""
    same, different = 0, min(len(one), len(other)) + 1
    while different - same > 1:
        middle = (same + different) // 2
        if one[same:middle] == other[same:middle]:
            same = middle
        else:
            different = middle
    return same


def _opening_hits(completions: Sequence[Completion]) -> int:
    """The requests that were sent before the first answer began, if all of them found something."""
    began_ns = min((_first_ns(c) for c in completions if c.error is None), default=0)
    opening = [completion for completion in completions if completion.start_ns <= began_ns]
    return len(opening) if all(completion.cached_tokens for completion in opening) else 0


def _first_ns(completion: Completion) -> int:
    times = completion.token_times_ns
    return times[0] if times else completion.first_token_ns or completion.end_ns


def _not_reset(observed: Observed, capabilities: Capabilities) -> list[Note]:
    """Where emptying was not confirmed, and not every answer states its cached tokens."""
    if observed.cache_state != "unknown" or not capabilities.prefix_cache:
        return []
    stated = [c.cached_tokens is not None for c in observed.completions if c.error is None]
    if stated and all(stated):
        return []
    return [Note(NOT_RESET, f"{UNCONFIRMED}; {REMEDY}")]
