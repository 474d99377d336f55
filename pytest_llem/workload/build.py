"""Builds the requests of one repeat from the workload's settings: prompts, and how long prompts and answers are.

The worker calls `read_dataset` before and `build_workload` after it loads the model; others resolve aliases. Equal
settings and tokenizer must give equal requests on every machine and in every version: results compare `prompts_hash`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from pytest_llem.errors import EngineSettingError, JsonValue, WorkloadError
from pytest_llem.job.config import SYNTHETIC, Lengths, WorkloadSettings
from pytest_llem.job.measurement import TruncatedPrompts
from pytest_llem.job.request import Question, Request, Texts
from pytest_llem.workload.arrivals import arrivals_hash, with_times
from pytest_llem.workload.corpus import synthetic_prompts
from pytest_llem.workload.questions import as_chat, as_text
from pytest_llem.workload.registered import ALIASES
from pytest_llem.workload.replayed import replayed, replayed_hash
from pytest_llem.workload.texts import read_rows
from pytest_llem.workload.tokenizer import ChatTokenizer, TextOnly, Tokenizer

Messages = tuple[Mapping[str, JsonValue], ...]

OUTPUT_STREAM = 1
"""Added to the seed for output lengths, so that they do not follow the input lengths."""


@dataclass(frozen=True)
class Workload:
    """The requests of one repeat, in order, and the hashes that tell whether two workloads are the same.

    `arrivals_hash` is that of recorded arrival times; other arrivals follow from settings. `truncated` counts the
    prompts that were cut, `rows_skipped` the rows with nothing to send before the last one used, `rows_broken` those
    that could not be read, with `faults` of the first. `format` is that of the data set.
    """

    requests: tuple[Request, ...]
    prompts_hash: str
    dataset: str
    truncated: TruncatedPrompts
    rows_skipped: int
    format: str
    arrivals_hash: str | None = None
    rows_broken: int = 0
    faults: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()
    """What the answer to each request is scored by, where it is."""

    @property
    def is_recorded(self) -> bool:
        """Whether the requests are those of sessions or of a trace."""
        return self.format not in (SYNTHETIC, "texts")


@dataclass(frozen=True)
class _Prompt:
    """A prompt's tokens, its text where they are those of a whole text, and how many they were before a cut.

    `messages` are what is sent instead, to engines that take chats as messages.
    """

    ids: tuple[int, ...]
    text: str | None
    whole: int
    messages: Messages | None = None


def read_dataset(settings: WorkloadSettings) -> Texts | None:
    """What a data set holds, `None` for synthetic prompts. Raises `WorkloadError` when it cannot give that."""
    settings = resolve_alias(settings)
    if settings.task is not None:
        raise WorkloadError(
            f"workload.task {settings.task!r}: its questions are read where pytest runs, and did not come with the job",
            fix="run the cycle by pytest",
        )
    return None if settings.dataset == SYNTHETIC else read_rows(settings)


def build_workload(
    settings: WorkloadSettings, tokenizer: Tokenizer, texts: Texts | None = None, *, as_messages: bool = False
) -> Workload:
    """Make the requests of one repeat, of `texts` where the data set was read already.

    `as_messages` says that the engine takes chats as messages. Raises `WorkloadError` when the data set cannot give
    them, `EngineSettingError` where the tokenizer cannot.
    """
    if settings.prompts < 1:
        raise WorkloadError(f"workload.prompts: {settings.prompts} is not positive", fix="use 1 or more")
    settings = resolve_alias(settings)
    texts = texts or read_dataset(settings) or Texts((), 0, SYNTHETIC)
    lengths = texts.output_tokens if settings.output_tokens is None else settings.output_tokens
    if lengths is None:
        raise WorkloadError("workload.output_tokens: null is the limit of a task", fix="set it, e.g. to 64")
    outputs = draw_lengths(lengths, settings.prompts, settings.seed + OUTPUT_STREAM)
    if texts.recorded:
        return _of_recorded(texts, outputs, settings, tokenizer, as_messages=as_messages)
    if settings.task is not None:
        settings = dataclasses.replace(settings, system_prompt=None)  # what it asks begins with that already
    in_front = bool(settings.system_prompt or texts.examples)
    chats = texts.chats
    if in_front and (as_messages or settings.chat_template):
        chats = tuple(as_chat(text, settings, texts.examples) for text in texts.texts)
    if texts.format == SYNTHETIC:
        prompts = [_Prompt(ids, None, len(ids)) for ids in _synthetic(settings, tokenizer)]
    elif chats:
        prompts = [_conversation(messages, tokenizer, as_messages=as_messages) for messages in chats]
    else:
        whole = [as_text(text, settings, texts.examples) for text in texts.texts]
        if isinstance(tokenizer, TextOnly) and settings.input_tokens is None and not settings.chat_template:
            prompts = [_Prompt((), text, 0) for text in whole]
        else:
            prompts = _of_texts(whole, settings, tokenizer)
    stop = tuple(dict.fromkeys((*texts.stop, *settings.stop)))
    made = [
        Request(index, prompt.ids, tokens, settings.ignore_eos, prompt.text, messages=prompt.messages, stop=stop)
        for index, (prompt, tokens) in enumerate(zip(prompts, outputs, strict=True))
    ]
    requests = with_times(made, settings)
    return Workload(
        requests,
        token_hash([*map(_sent, requests), *(tuple(one.encode()) for one in texts.stop)]),
        settings.task or settings.dataset,
        _truncated([(prompt.whole, len(prompt.ids)) for prompt in prompts]),
        texts.skipped,
        texts.format,
        arrivals_hash(settings, requests),
        questions=texts.questions,
    )


def _sent(request: Request) -> tuple[int, ...]:
    """What is hashed of a prompt: its tokens; of what this side turns into none, the UTF-8 bytes."""
    if request.messages is not None:
        return tuple(json.dumps(request.messages, sort_keys=True).encode())
    return request.token_ids or tuple((request.text or "").encode())


def _of_recorded(
    texts: Texts, outputs: Sequence[int], settings: WorkloadSettings, tokenizer: Tokenizer, *, as_messages: bool
) -> Workload:
    made = replayed(texts.recorded, outputs, settings, tokenizer, as_messages=as_messages)
    requests = with_times([dataclasses.replace(request, stop=settings.stop) for request in made], settings)
    whole = zip(texts.recorded, requests, strict=True)
    return Workload(
        requests,
        replayed_hash(requests),
        settings.dataset,
        _truncated([(one.prompt_tokens or 0, len(request.token_ids)) for one, request in whole]),
        texts.skipped,
        texts.format,
        arrivals_hash(settings, requests),
        texts.broken,
        texts.faults,
    )


def _truncated(lengths: Sequence[tuple[int, int]]) -> TruncatedPrompts:
    """What was cut, of each prompt's tokens before and after."""
    cut = [(before, after) for before, after in lengths if before > after]
    return TruncatedPrompts(len(cut), sum(before for before, _ in cut), sum(after for _, after in cut))


def resolve_alias(settings: WorkloadSettings) -> WorkloadSettings:
    """The settings with a method's name replaced by the data set that it means; what the user set stays."""
    alias = ALIASES.get(settings.dataset)
    if alias is None:
        return settings
    return dataclasses.replace(
        settings,
        dataset=alias["dataset"],
        column=settings.column or alias["column"],
        split=settings.split or alias["split"],
    )


def token_hash(sequences: Sequence[Sequence[int]]) -> str:
    """sha256 over token ids: each sequence as its length and its ids, 8 bytes each, little-endian."""
    digest = hashlib.sha256()
    for ids in sequences:
        digest.update(b"".join(value.to_bytes(8, "little") for value in (len(ids), *ids)))
    return digest.hexdigest()


def _synthetic(settings: WorkloadSettings, tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    if settings.input_tokens is None:
        raise WorkloadError(
            "workload.input_tokens: synthetic prompts need a length", fix="set workload.input_tokens, e.g. to 128"
        )
    lengths = draw_lengths(settings.input_tokens, settings.prompts, settings.seed)
    if not settings.chat_template:
        return synthetic_prompts(tokenizer, lengths, settings.seed)
    raise WorkloadError(
        "workload.chat_template cannot be combined with synthetic prompts, whose lengths are exact",
        fix="set workload.chat_template: false, or use a data set of texts",
    )


def _of_texts(texts: Sequence[str], settings: WorkloadSettings, tokenizer: Tokenizer) -> list[_Prompt]:
    """Prompts of at most `input_tokens` tokens, with all that is added to a text: what is shorter stays whole."""
    limits: Sequence[int | None] = [None] * len(texts)
    if settings.input_tokens is not None:
        limits = draw_lengths(settings.input_tokens, len(texts), settings.seed)
    if settings.chat_template:
        return [_chat(text, limit, tokenizer) for text, limit in zip(texts, limits, strict=True)]
    first = tokenizer.bos_id
    prompts = []
    for text, limit in zip(texts, limits, strict=True):
        ids = tuple(tokenizer.encode(text))
        # A text that was rendered by a template may begin with it already.
        ids = ids if first is None or ids[:1] == (first,) else (first, *ids)
        if not ids:
            raise WorkloadError(f"workload.dataset {settings.dataset!r}: a prompt has no tokens", fix="remove the text")
        whole = limit is None or len(ids) <= limit
        prompts.append(_Prompt(ids[:limit], text if whole else None, len(ids)))
    return prompts


def _chat(text: str, limit: int | None, tokenizer: Tokenizer) -> _Prompt:
    """A text in the chat template. A cut shortens the text, so that the end of turn and the next header stay."""
    whole = tuple(tokenizer.chat(text))
    if limit is None or len(whole) <= limit:
        return _Prompt(whole, text, len(whole))
    own = tokenizer.encode(text)
    kept = limit - (len(whole) - len(own))
    while kept > 0:
        # A cut within a letter leaves a replacement character.
        shorter = tokenizer.decode(own[:kept]).rstrip("\N{REPLACEMENT CHARACTER}")
        ids = tuple(tokenizer.chat(shorter))
        if len(ids) <= limit:
            return _Prompt(ids, shorter, len(whole))
        kept -= len(ids) - limit
    raise WorkloadError(
        f"workload.input_tokens {limit}: the chat template alone takes {len(whole) - len(own)} tokens",
        fix="raise it, or set it to null to keep the data set's own lengths",
    )


def _conversation(messages: Messages, tokenizer: Tokenizer, *, as_messages: bool) -> _Prompt:
    """A question with what is in front of it: as messages, else in the model's chat template.

    What is sent as messages is rendered only to know how long it is, where that is possible.
    """
    if not as_messages:
        tokenizer.chat(str(messages[-1]["content"]))  # says of a model without a template that it has none
    try:
        if not isinstance(tokenizer, ChatTokenizer):
            raise EngineSettingError("this engine's tokenizer renders single texts only")
        ids = tuple(tokenizer.render(messages, None))
    except EngineSettingError as problem:
        if as_messages:
            return _Prompt((), None, 0, messages)
        why = problem.message.removeprefix("workload.dataset: ").replace("refuses a session", "refuses it")
        raise EngineSettingError(
            f"workload.chat_template: a question cannot be sent as a chat, with what is in front of it: {why}",
            fix="leave workload.system_prompt or workload.few_shot out, or set workload.chat_template: false, which "
            "puts them in front as text",
        ) from None
    return _Prompt(ids, None, len(ids), messages if as_messages else None)


def draw_lengths(wanted: int | Lengths, count: int, seed: int) -> list[int]:
    """`count` lengths of at least 1, from one seeded stream; raises `WorkloadError` for an impossible distribution.

    Only `Random.random` is used, whose sequence Python guarantees: other methods may change between versions.
    """
    if isinstance(wanted, int):
        if wanted < 1:
            raise WorkloadError(f"a length of {wanted} tokens is not possible", fix="use 1 or more")
        return [wanted] * count
    if not 1 <= wanted.low <= wanted.high:
        raise WorkloadError(f"lengths from {wanted.low} to {wanted.high} are not possible", fix="use 1 <= low <= high")
    uniform = random.Random(seed).random
    if wanted.distribution == "uniform":
        span = wanted.high - wanted.low + 1
        return [wanted.low + int(uniform() * span) for _ in range(count)]
    if wanted.mean is None or wanted.sigma is None or wanted.mean <= 0 or wanted.sigma <= 0:
        raise WorkloadError("lognormal lengths need a positive mean and sigma", fix="give `mean` and `sigma`")
    # The mean of a lognormal is exp(mu + sigma^2 / 2): `mean` is that of the lengths, before clipping.
    normal = NormalDist(math.log(wanted.mean) - wanted.sigma**2 / 2, wanted.sigma)
    drawn = (math.exp(normal.inv_cdf(min(max(uniform(), 1e-12), 1 - 1e-12))) for _ in range(count))
    return [min(max(round(length), wanted.low), wanted.high) for length in drawn]
