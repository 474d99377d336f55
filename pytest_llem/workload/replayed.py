"""The requests of sessions and traces: with their recorded prompts, lengths of answers, order and times.

`build_workload` calls it. The hash must cover all that is sent and when, so that equal hashes mean equal work.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from pytest_llem.errors import EngineSettingError
from pytest_llem.job.config import WorkloadSettings
from pytest_llem.job.request import Recorded, Request
from pytest_llem.workload.corpus import CorpusRuns
from pytest_llem.workload.tokenizer import ChatTokenizer, Tokenizer
from pytest_llem.workload.traces import BLOCK


def replayed(
    recorded: Sequence[Recorded],
    lengths: Sequence[int],
    settings: WorkloadSettings,
    tokenizer: Tokenizer,
    *,
    as_messages: bool,
) -> list[Request]:
    """A request for each that was recorded; `lengths` are for answers of which nothing is known.

    Chats are rendered by the model's template; with `as_messages` they go to the engine as they are, and are rendered
    only to know how long they are, where that is possible. Raises `EngineSettingError` for a tokenizer that cannot.
    """
    runs = CorpusRuns(tokenizer, settings.seed) if any(one.messages is None for one in recorded) else None
    first_ns = recorded[0].at_ns
    requests = []
    for index, (one, length) in enumerate(zip(recorded, lengths, strict=True)):
        if one.messages is not None:
            ids = _rendered(one, tokenizer, as_messages=as_messages)
        else:
            assert runs is not None
            ids = _of_corpus(one, index, runs, tokenizer.bos_id)[: _cut(settings)]
        requests.append(
            Request(
                index,
                ids,
                _answer_tokens(one, length, tokenizer),
                settings.ignore_eos,
                session=one.session,
                turn=one.turn,
                due_s=None if one.at_ns is None or first_ns is None else (one.at_ns - first_ns) / 1e9 / settings.speed,
                think_s=one.think_s / settings.speed,
                messages=one.messages if as_messages else None,
                tools=one.tools if as_messages else None,
            )
        )
    return requests


def replayed_hash(requests: Sequence[Request]) -> str:
    """sha256 over what is sent, and in which order: prompts, lengths of answers, sessions and the waits in them.

    Names of sessions do not count, and of chats that are sent as messages not their tokens. When requests arrive is not
    part of it (see `arrivals_hash`).
    """
    digest = hashlib.sha256()
    sessions: dict[str, int] = {}
    for request in requests:
        session = None if request.session is None else sessions.setdefault(request.session, len(sessions))
        ids = b"" if request.messages is not None else b"".join(one.to_bytes(8, "little") for one in request.token_ids)
        facts = (
            *(len(ids), request.max_new_tokens, session, request.turn, request.think_s),
            *(request.messages, request.tools),
        )
        digest.update(json.dumps(facts, sort_keys=True).encode() + ids)
    return digest.hexdigest()


def _cut(settings: WorkloadSettings) -> int | None:
    return settings.input_tokens if isinstance(settings.input_tokens, int) else None


def _of_corpus(one: Recorded, index: int, runs: CorpusRuns, bos_id: int | None) -> tuple[int, ...]:
    """A prompt of the recorded length: the model's own first token, its blocks' runs, and then a run of its own."""
    length = one.prompt_tokens or 0
    ids = [] if bos_id is None else [bos_id]
    for block in one.blocks:
        ids += runs.run(("block", block), min(BLOCK, length - len(ids)))
    if len(ids) < length:
        ids += runs.run(("request", index), length - len(ids))
    return tuple(ids)


def _rendered(one: Recorded, tokenizer: Tokenizer, *, as_messages: bool) -> tuple[int, ...]:
    try:
        if not isinstance(tokenizer, ChatTokenizer):
            raise EngineSettingError(
                "sessions need a chat template, and this engine's tokenizer renders single texts only",
                fix="measure a server with openai.api: chat, or use a data set of texts",
            )
        return tuple(tokenizer.render(one.messages or (), one.tools))
    except EngineSettingError:
        if as_messages:
            return ()
        raise


def _answer_tokens(one: Recorded, length: int, tokenizer: Tokenizer) -> int:
    if one.answer_tokens is not None:
        return one.answer_tokens
    return length if one.answer is None else max(1, len(tokenizer.encode(one.answer)))
