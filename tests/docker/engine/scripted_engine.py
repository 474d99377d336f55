"""An engine without a model, for tests: `settings.script` says what happens in `load`."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from pytest_llem.engines.protocol import (
    CacheState,
    Capabilities,
    Completion,
    DeviceMemory,
    ModelShape,
    Progress,
    Quiesced,
    Request,
)
from pytest_llem.errors import JsonValue
from pytest_llem.job.config import ExperimentConfig
from pytest_llem.job.job import DeviceSet


class Letters:
    bos_id = None

    def encode(self, text: str) -> list[int]:
        return [ord(letter) % 128 for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(number) for number in ids)

    def chat(self, text: str) -> list[int]:
        return self.encode(text)


class ScriptedEngine:
    name: ClassVar[str] = "scripted"

    def __init__(self) -> None:
        self.capabilities = Capabilities()
        self.script = "work"

    def prepare(self, config: ExperimentConfig, devices: DeviceSet) -> str:
        self.script = str(config.settings.get("script", "work"))
        return "1.0"

    def load(self) -> None:
        word, _, rest = self.script.partition(" ")
        if word == "raise":
            raise ValueError("bloom-560m: tokenizer not found in the room")
        if word == "sleep":
            time.sleep(600)
        if word == "exit":
            os._exit(int(rest))
        if word == "crash":
            ctypes.string_at(0)
        if word == "grow":
            blocks = []
            while True:
                blocks.append(b"x" * 2**24)
        if word == "print":
            print(os.environ.get(rest, "unset"))
            print("y" * 300_000)
        if word == "read":
            print(Path(rest).read_text())

    def tokenizer(self) -> Letters:
        return Letters()

    def generate(self, requests: Sequence[Request], progress: Progress) -> list[Completion]:
        done = []
        for request in requests:
            start = time.monotonic_ns()
            time.sleep(0.001)
            ids = tuple(range(request.max_new_tokens))
            done.append(Completion(request.index, len(request.token_ids), ids, start, time.monotonic_ns(), "length"))
        return done

    def reset(self) -> CacheState:
        return "none"

    def quiesce(self) -> Quiesced:
        return "synchronized"

    def effective(self) -> Mapping[str, JsonValue]:
        return {
            "uid": os.getuid(),
            "network": tuple(sorted(path.name for path in Path("/sys/class/net").iterdir())),
            "home": os.environ.get("HOME"),
            "nccl": os.environ.get("NCCL_SOCKET_IFNAME"),
            "ppid": os.getppid(),
        }

    def shape(self) -> ModelShape | None:
        return None

    def reset_peak_memory(self) -> None:
        return

    def memory(self) -> tuple[DeviceMemory, ...]:
        return ()

    def shutdown(self) -> None:
        return
