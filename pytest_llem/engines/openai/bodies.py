"""Builds the JSON bodies of requests: the fields of the API, and those beyond it that the server takes.

`OpenAIEngine` and `probe` use it. Bodies must be made before they are sent, so that no window pays for it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pytest_llem.engines.openai.settings import ClientSettings, reuses_prefixes
from pytest_llem.engines.protocol import Request
from pytest_llem.engines.refusals import sampling_settings
from pytest_llem.errors import EngineSettingError, JsonValue
from pytest_llem.job.config import ExperimentConfig

Decode = Callable[[Sequence[int]], str]
IGNORE_EOS = "ignore_eos"
STOP = "stop"
LIMIT, OTHER_LIMIT = "max_tokens", "max_completion_tokens"
"""Names of the longest answer's tokens: the API's, and the one that some servers of chats take alone."""


class Bodies:
    """Makes the bodies of requests, each once: a repeat sends the same bytes as the one before.

    `optional` fields are sent for as long as the server takes them: what it refuses by name is left out from then on
    (`leave_out`) and kept in `refused`. Settings that the study asked for are not left out.
    """

    def __init__(self, config: ExperimentConfig, settings: ClientSettings, model: str, server: str) -> None:
        self.refused: list[str] = []
        self.sends_ids = settings.api == "completions"
        self._limit = LIMIT
        self._settings = settings
        self._workload = config.workload
        self._common: dict[str, Any] = {"model": model, "stream": settings.stream, **decoding_fields(config, server)}
        self._asked = {name for name in self._common if name not in ("model", "stream", "temperature", "seed")}
        self._optional: dict[str, Any] = {}
        if settings.stream:
            self._optional["stream_options"] = {"include_usage": True}
        if server == "llama.cpp":
            self._optional["cache_prompt"] = reuses_prefixes(config)
            if settings.stream:
                self._optional["timings_per_token"] = True
        else:
            self._optional["return_token_ids"] = True
        if "seed" in self._common:
            self._optional["seed"] = self._common.pop("seed")
        self._made: dict[int, tuple[Request, bytes]] = {}

    def sends(self, name: str) -> bool:
        """Whether an optional field is still sent."""
        return name in self._optional or (name == IGNORE_EOS and name not in self.refused)

    def body(self, request: Request, decode: Decode) -> bytes:
        """The body of a request as JSON; `decode` makes the text of a prompt that is sent as such."""
        made = self._made.get(request.index)
        if made is None or made[0] is not request:
            made = request, json.dumps(self._fields(request, decode), ensure_ascii=False).encode()
            self._made[request.index] = made
        return made[1]

    def leave_out(self, complaint: str) -> bool:
        """Drop what a server complains of; false if nothing is left. `EngineSettingError` for a study's setting."""
        self._made.clear()
        words = set(re.findall(r"\w+", complaint))
        named_settings = sorted(words & {*self._asked, *self._settings.extra})
        if OTHER_LIMIT in words and self.limit_otherwise():
            return True
        named = [name for name in (*self._optional, IGNORE_EOS) if name in words and self.sends(name)]
        if named:
            self._drop(named)
        elif named_settings:
            name = named_settings[0]
            where = "openai.extra" if name in self._settings.extra else "decoding"
            raise EngineSettingError(
                f"{where}.{name}: the server refuses it: {complaint[:200]}",
                fix=f"leave {where}.{name} out, or measure a server that has it",
            )
        elif LIMIT in words and self.limit_otherwise():
            pass
        elif self.sends_ids and words & {"prompt", "string", "str"}:
            self.sends_ids = False
        elif left := [name for name in (*self._optional, IGNORE_EOS) if self.sends(name)]:
            self._drop(left)
        elif self.sends_ids:
            self.sends_ids = False
        else:
            return False
        return True

    def limit_otherwise(self, *, back: bool = False) -> bool:
        """State the limit of chats' answers by its other name; false where that is no way."""
        before, after = (OTHER_LIMIT, LIMIT) if back else (LIMIT, OTHER_LIMIT)
        if self._settings.api != "chat" or self._limit != before:
            return False
        self._made.clear()
        self._limit = after
        self.refused = [name for name in self.refused if name != LIMIT] + ([] if back else [LIMIT])
        return True

    def _drop(self, names: Sequence[str]) -> None:
        for name in names:
            self._optional.pop(name, None)
            self.refused.append(name)

    def _fields(self, request: Request, decode: Decode) -> dict[str, Any]:
        fields = {**self._common, **self._optional, self._limit: request.max_new_tokens}
        if request.ignore_eos and self.sends(IGNORE_EOS):
            fields[IGNORE_EOS] = True
        if request.stop:
            fields[STOP] = list(request.stop)
        fields.update(self._prompt(request, decode))
        return {**fields, **self._settings.extra}

    def _prompt(self, request: Request, decode: Decode) -> Mapping[str, JsonValue]:
        chat = self._settings.api == "chat"
        if chat and request.messages is not None:
            sent: dict[str, JsonValue] = {"messages": [dict(message) for message in request.messages]}
            return {**sent, "tools": [dict(tool) for tool in request.tools]} if request.tools else sent
        if self.sends_ids and request.token_ids:
            return {"prompt": list(request.token_ids)}
        # For a chat the server applies its template itself; for a completion nobody does but this side.
        as_it_is = request.text is not None and (chat or not self._workload.chat_template)
        text = request.text if as_it_is else decode(request.token_ids)
        if not chat:
            return {"prompt": text}
        return {"messages": [{"role": "user", "content": text}]}


def decoding_fields(config: ExperimentConfig, server: str) -> dict[str, Any]:
    """The `decoding` section in the API's words; greedy is a temperature of 0."""
    fields: dict[str, Any] = {"temperature": 0.0}
    if config.decoding.do_sample:
        fields = {"temperature": 1.0, "seed": config.seed}
    fields.update(sampling_settings(config.decoding))
    if server == "llama.cpp" and "repetition_penalty" in fields:
        fields["repeat_penalty"] = fields.pop("repetition_penalty")
    return fields
