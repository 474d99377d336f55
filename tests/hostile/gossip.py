"""An engine that says what it should not, wherever an engine can say anything; and a server that does the same.

`secrets` and `text` run them, and put the texts into the file that the variable `GOSSIP` names; without one, the engine
says its environment, in every spelling.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import sys
import warnings
from collections.abc import Mapping
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

from pytest_llem.errors import EngineError, JsonValue
from pytest_llem.job.config import ExperimentConfig
from pytest_llem.job.job import DeviceSet
from tests.plugin.faulty_engine.llem_faulty import FaultyEngine
from tests.plugin.serving import scripted_server

SAYS = "GOSSIP"


def spellings(value: str) -> dict[str, str]:
    """A value as programs write it, by the name of the spelling; written apart from what hides it."""
    raw = value.encode()
    return {
        "plain": value,
        "json": json.dumps(value)[1:-1],
        "percent": quote(value, safe=""),
        "percent, slashes kept": quote(value),
        "form": quote_plus(value),
        "base64": base64.b64encode(raw).decode(),
        "base64 behind a user": base64.b64encode(b"user:" + raw).decode(),
        "base64 for URLs": base64.urlsafe_b64encode(b"k=" + raw + b"&more").decode(),
    }


def sayings() -> list[str]:
    """What is said."""
    path = os.environ.get(SAYS)
    if path:
        texts: list[str] = json.loads(Path(path).read_text(encoding="utf-8"))
        return texts
    return [text for value in os.environ.values() if len(value) < 4096 for text in spellings(value).values()]


class GossipEngine(FaultyEngine):
    """The model `tells` only talks; `fails` raises all of it, `refuses` raises it as an error of this package."""

    name = "gossip"

    def prepare(self, config: ExperimentConfig, devices: DeviceSet) -> str:
        """Its version is gossip too."""
        super().prepare(config, devices)
        return f"1.0 {sayings()[0]}"

    def load(self) -> None:
        """Talk on every channel, and then fail with it where that is asked."""
        for text in sayings():
            sys.stdout.buffer.write(f"out {text}\n".encode(errors="replace"))
            sys.stderr.buffer.write(f"err {text}\n".encode(errors="replace"))
            logging.getLogger("gossip").error("log %s", text)
            warnings.warn(f"warn {text}", stacklevel=1)
        sys.stdout.flush()
        everything = "\n".join(sayings())
        if self.fault == "fails":
            raise RuntimeError(everything)
        if self.fault == "refuses":
            raise EngineError(everything, fix=everything, details={"said": list(sayings())})

    def effective(self) -> Mapping[str, JsonValue]:
        """The dtype, and everything that was said as value; Base64 of no text is a key."""
        return {"dtype": self.dtype, "said": list(sayings()), "whole": " ".join(sayings())}


class Handler(scripted_server.Handler):
    """Repeats its client's headers and what was said: in the model's name, and in every refusal."""

    def do_GET(self) -> None:  # noqa: N802
        """Name the model by gossip."""
        if self.path == "/v1/models":
            self._answer({"object": "list", "data": [{"id": self._gossip(), "object": "model"}]})
        else:
            super().do_GET()

    def do_POST(self) -> None:  # noqa: N802
        """Refuse."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer({"error": {"message": self._gossip(), "code": self._gossip()}}, 400)

    def _gossip(self) -> str:
        return "\n".join([*self.headers.values(), *sayings()])


class Server(ThreadingHTTPServer):
    """The server, on a port of its own of loopback."""

    def __init__(self, handler: type[Any] = Handler) -> None:
        super().__init__(("127.0.0.1", 0), handler)

    @property
    def url(self) -> str:
        """Its API's root."""
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


def register(directory: Path) -> str:
    """Make the engine known to whoever has this directory's path in PYTHONPATH, which is returned."""
    info = directory / "llem_gossip-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llem-gossip\nVersion: 1.0\n", encoding="utf-8")
    points = "[pytest_llem.engines]\ngossip = tests.hostile.gossip:GossipEngine\n"
    (info / "entry_points.txt").write_text(points, encoding="utf-8")
    return os.pathsep.join([str(directory), str(Path(__file__).parents[2])])
