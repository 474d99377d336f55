"""What this machine knows of a model without loading it: its shape, and its tensors where the weights lie here."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

from pytest_llem.containers.inputs import hub_cache
from pytest_llem.engines.builtin import PREFIX, cache_root, is_builtin, known_builtins, recipe_digest
from pytest_llem.engines.hub_models import shape_of
from pytest_llem.engines.protocol import ModelShape

MAX_HEADER_BYTES = 100 << 20

_SIZES = {
    "F64": 8.0, "F32": 4.0, "F16": 2.0, "BF16": 2.0, "I64": 8.0, "I32": 4.0, "I16": 2.0, "I8": 1.0, "U8": 1.0,
    "BOOL": 1.0, "F8_E4M3": 1.0, "F8_E5M2": 1.0, "U16": 2.0, "U32": 4.0, "U64": 8.0,
}  # fmt: skip
_OUTSIDE_LAYERS = ("embed", "lm_head", "wte", "wpe", "output.weight")


@dataclass(frozen=True)
class Tensor:
    """One tensor of a checkpoint: how many numbers, of how many bytes; `floating` ones can change their dtype."""

    count: int
    bytes_each: float
    floating: bool
    is_matrix: bool


@dataclass(frozen=True)
class ModelFacts:
    """A model's shape, and its tensors; none where only its configuration is here."""

    shape: ModelShape
    tensors: tuple[Tensor, ...] = ()


class UnknownModelError(Exception):
    """Why nothing is known of a model."""


@lru_cache(maxsize=64)
def model_facts(model: str, directory: Path, revision: str | None = None) -> ModelFacts:
    """Read `config.json` and the headers of the weights; `directory` is where relative paths start.

    Nothing is made or downloaded. Raises `UnknownModelError` with the reason.
    """
    place = _place(model, directory, revision)
    config = _json(place / "config.json")
    text = config.get("text_config")
    if isinstance(text, dict):
        config = {**config, **text}
    fields = SimpleNamespace(**{key: value for key, value in config.items() if key.isidentifier()})
    fields.to_dict = lambda: config
    return ModelFacts(shape_of(fields, None), tuple(_tensors(place)))


def _place(model: str, directory: Path, revision: str | None) -> Path:
    if is_builtin(model):
        if model.removeprefix(PREFIX) not in known_builtins():
            raise UnknownModelError("there is no such built-in model")
        made = cache_root() / f"{model.removeprefix(PREFIX)}-{recipe_digest()}"
        if not made.is_dir():
            raise UnknownModelError("it is made when it is first used")
        return made
    for path in (Path(model).expanduser(), directory / model):
        if path.is_dir():
            return path
    cached = hub_cache() / f"models--{model.replace('/', '--')}"
    reference = cached / "refs" / (revision or "main")
    name = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
    if name and (cached / "snapshots" / name / "config.json").is_file():
        return cached / "snapshots" / name
    raise UnknownModelError("it is not in this machine's hub cache")


def _json(path: Path) -> dict[str, object]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UnknownModelError(f"{path} cannot be read") from None
    if not isinstance(data, dict):
        raise UnknownModelError(f"{path} holds no mapping")
    return data


def _tensors(place: Path) -> list[Tensor]:
    """All tensors by the headers of the safetensors files; nothing when one is not readable."""
    found: list[Tensor] = []
    for path in sorted(place.glob("*.safetensors")):
        header = _header(path)
        if header is None:
            return []
        for name, entry in header.items():
            if name != "__metadata__" and isinstance(entry, dict):
                kind, shape = str(entry.get("dtype")), entry.get("shape") or []
                inside = not any(word in name for word in _OUTSIDE_LAYERS)
                is_matrix = len(shape) >= 2 and inside
                floating = kind in ("F64", "F32", "F16", "BF16")
                found.append(Tensor(math.prod(shape), _SIZES.get(kind, 1.0), floating, is_matrix))
    return found


def _header(path: Path) -> dict[str, object] | None:
    """The JSON header of a safetensors file, which eight bytes of little-endian length precede."""
    try:
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            data = json.loads(stream.read(length)) if length <= MAX_HEADER_BYTES else None
    except (OSError, ValueError, struct.error):
        return None
    return data if isinstance(data, dict) else None
