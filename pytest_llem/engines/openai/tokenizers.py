"""Chooses the tokenizer that makes the prompts: the model's own, else the server's, else none.

`OpenAIEngine` and `probe` use it. A tokenizer that does not agree with the server must never be used.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_llem.engines.hub_models import HubTokenizer, shape_of
from pytest_llem.engines.model_files import find_model, on_hub
from pytest_llem.engines.openai.client import Client, Reply
from pytest_llem.engines.openai.events import RequestFailedError
from pytest_llem.engines.protocol import ModelShape, TextOnly, Tokenizer
from pytest_llem.errors import EngineSettingError, JsonValue, LlemError
from pytest_llem.job.config import ExperimentConfig
from pytest_llem.workload.hub import switch_off_when_absent

SAMPLE = "Light is refracted; 1704 = Opticks, the 4th edition?\n  Whites (and Greys) too."
FIX = (
    "set `model` to a local directory or hub id whose tokenizer can be loaded (pip install transformers), use a data "
    "set of texts with workload.input_tokens: null, or measure a server with /tokenize (vLLM, llama.cpp)"
)


@dataclass(frozen=True)
class Found:
    """A tokenizer and whose it is: `model`, `server` or `None`; `doubt` says why the model's own was not taken."""

    tokenizer: Tokenizer
    source: str | None
    shape: ModelShape | None = None
    doubt: str | None = None
    bos_id: int | None = None

    def text_of(self, ids: Sequence[int]) -> str:
        """The text of a prompt's ids, without the token that the server itself puts first."""
        led = self.bos_id is not None and bool(ids) and ids[0] == self.bos_id
        return self.tokenizer.decode(ids[1:] if led else ids)


class ServerTokenizer:
    """The tokenizer of a server of llama.cpp or vLLM, asked over HTTP."""

    def __init__(self, client: Client, root: str, model: str) -> None:
        self._client = client
        self._root = root
        self._model = model

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer.encode`."""
        return self._tokens({"content": text, "prompt": text}, special=False)

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer.decode`."""
        data = self._post("/detokenize", {"model": self._model, "tokens": list(ids)})
        text = data.get("content", data.get("prompt"))
        if not isinstance(text, str):
            raise RequestFailedError("malformed", "no text in the answer of /detokenize")
        return text

    def chat(self, text: str) -> list[int]:
        """See `Tokenizer.chat`."""
        return self._templated({"messages": [{"role": "user", "content": text}]})

    def render(
        self, messages: Sequence[Mapping[str, JsonValue]], tools: Sequence[Mapping[str, JsonValue]] | None
    ) -> list[int]:
        """See `ChatTokenizer.render`."""
        chat: dict[str, Any] = {"messages": [dict(message) for message in messages]}
        if tools:
            chat["tools"] = [dict(tool) for tool in tools]
        try:
            return self._templated(chat)
        except RequestFailedError as problem:
            raise EngineSettingError(
                f"workload.dataset: the server's chat template refuses a session: {problem}",
                fix="leave such sessions out, set openai.api: chat, or use another model",
            ) from None

    def _templated(self, chat: Mapping[str, Any]) -> list[int]:
        rendered = self._client.ask(self._root + "/apply-template", chat)
        if rendered.status == 200 and isinstance(rendered.data, Mapping):
            ids = self._tokens({"content": str(rendered.data.get("prompt"))}, special=True)
            # A template that writes the first token itself would have it twice.
            return ids[1:] if len(ids) > 1 and ids[0] == ids[1] == self.bos_id else ids
        return self._tokens({**chat, "add_generation_prompt": True}, special=False)

    @property
    def bos_id(self) -> int | None:
        """The id that the server itself puts first, or `None` when it puts none."""
        plain = self.encode("a")
        whole = self._tokens({"content": "a", "prompt": "a"}, special=True)
        return whole[0] if len(whole) > len(plain) and whole[1:] == plain else None

    def _tokens(self, body: Mapping[str, Any], *, special: bool) -> list[int]:
        switches = {"add_special": special, "add_special_tokens": special, "model": self._model}
        tokens = self._post("/tokenize", {**switches, **body}).get("tokens")
        if not isinstance(tokens, list) or not all(isinstance(token, int) for token in tokens):
            raise RequestFailedError("malformed", "no tokens in the answer of /tokenize")
        return tokens

    def _post(self, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        reply: Reply = self._client.ask(self._root + path, body, timeout_s=60.0)
        if reply.status != 200 or not isinstance(reply.data, Mapping):
            raise RequestFailedError(f"http_{reply.status // 100}xx", f"{path}: HTTP {reply.status}")
        return reply.data


def find_tokenizer(config: ExperimentConfig, client: Client, root: str, served: str) -> Found:
    """The tokenizer of the study's model where it can be loaded and the server agrees, else the server's, else none.

    The model's is held against the server's on a short text: ids of another vocabulary would be other prompts.
    """
    server = ServerTokenizer(client, root, served)
    try:
        theirs: list[int] | None = server.encode(SAMPLE)
    except RequestFailedError:
        theirs = None
    own, shape, reason = _of_model(config)
    if own is not None:
        if theirs is None or own.encode(SAMPLE) == theirs:
            return Found(own, "model", shape, bos_id=own.bos_id)
        reason = f"the tokenizer of {config.model} is not that of the server"
    if theirs is not None:
        return Found(server, "server", None, reason if own is not None else None, server.bos_id)
    return Found(TextOnly(f"the prompts need a tokenizer: {reason}, and the server has no /tokenize", FIX), None)


def _of_model(config: ExperimentConfig) -> tuple[HubTokenizer | None, ModelShape | None, str]:
    if importlib.util.find_spec("transformers") is None:
        return None, None, "transformers is not installed here"
    if on_hub(config.model):
        switch_off_when_absent()
    try:
        location = find_model(config.model, weights=False).location
        from transformers import AutoConfig, AutoTokenizer

        trust = {"trust_remote_code": config.trust_remote_code, "revision": config.revision}
        tokenizer = HubTokenizer(AutoTokenizer.from_pretrained(location, **trust))
        model_config = AutoConfig.from_pretrained(location, **trust)
    except (LlemError, OSError, ValueError, ImportError, KeyError) as problem:
        if isinstance(problem, EngineSettingError):
            raise
        return None, None, f"that of {config.model} cannot be loaded ({' '.join(str(problem).split())[:200]})"
    return tokenizer, shape_of(model_config.get_text_config(), None), ""
