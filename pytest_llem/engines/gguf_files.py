"""Reads what a GGUF file says of the model in it, and makes the file's fingerprint.

The client of servers calls it for the file that a server has loaded. Standard library only; results record the
fingerprint, and gates compare it: how it is made must not change. The format is that of ggml's docs/gguf.md.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import struct
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pytest_llem.job.files import open_regular

MAGIC = b"GGUF"
VERSIONS = (2, 3)
"""Version 1 has other counts, and llama.cpp no longer reads it."""
STRING, ARRAY = 8, 9
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
"""Types of values and how they are packed (gguf.md, gguf_metadata_value_type)."""
FILE_TYPES = (
    "F32", "F16", "Q4_0", "Q4_1", None, None, None, "Q8_0", "Q5_0", "Q5_1", "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L",
    "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "IQ2_XXS", "IQ2_XS", "Q2_K_S", "IQ3_XS", "IQ3_XXS", "IQ1_S",
    "IQ4_NL", "IQ3_S", "IQ3_M", "IQ2_S", "IQ2_M", "IQ4_XS", "IQ1_M", "BF16", None, None, None, "TQ1_0", "TQ2_0",
    "MXFP4_MOE", "NVFP4", "Q1_0",
)  # fmt: skip
"""`general.file_type` by number: llama.cpp's `llama_ftype` (include/llama.h)."""
TENSOR_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0",
    39: "MXFP4", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip
"""Types of tensors: ggml's `ggml_type` (include/ggml.h)."""
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""The types that quantise nothing, by the names that studies have for them."""
HEADER_BYTES = 64 << 20
"""Chosen: several times the largest vocabulary's; a longer one, which only a damaged file has, would take minutes."""
LONGEST_KEY = 65_535
"""gguf.md: a key has at most 2^16 - 1 bytes."""
WHOLE_BYTES = 256 << 20
"""Files up to this size are hashed whole. Chosen: a second at most, before each cycle."""
BLOCKS, BLOCK_BYTES = 64, 1 << 20
"""Of larger ones so many blocks, evenly spread. Chosen: training and quantising change every block of the weights."""
_PART = re.compile(r"-00001-of-(\d{5})\.gguf$")
"""How llama.cpp names the first part of a split model (llama_split_path)."""


@dataclass(frozen=True)
class GgufModel:
    """A model in a GGUF file: `quantization` is llama.cpp's name, and `None` where the weights are those of `dtype`.

    `fingerprint` is `sha256:` over the whole file, or `sha256-sampled:` over its header and evenly spread blocks.
    """

    quantization: str | None
    dtype: str | None
    parameters: int
    fingerprint: str


def read_gguf(path: Path) -> GgufModel | None:
    """The model in a file and, if it is the first of several, in its other parts; `None` for what is no whole GGUF."""
    try:
        with ExitStack() as stack:
            parts = [stack.enter_context(open_regular(part)) for part in _parts(path)]
            headers = [_Header(part) for part in parts]
            return GgufModel(
                *_types(headers),
                parameters=sum(count for header in headers for count in header.counts.values()),
                fingerprint=_fingerprint(parts, headers),
            )
    except (OSError, ValueError, struct.error, OverflowError, MemoryError):
        return None


def quantization_of(file_type: str | None) -> tuple[str | None, str | None]:
    """`quantization` and `dtype` of a file type's name, which is llama.cpp's short one or the one that it shows.

    It shows `all F32`, `Q4_K - Medium` and `IQ4_XS - 4.25 bpw` (src/llama-model-loader.cpp, llama_model_ftype_name).
    """
    name = (file_type or "").replace("(guessed)", "").strip().removeprefix("all ")
    name = {"Q2_K - Medium": "Q2_K", "IQ3_S mix - 3.66 bpw": "IQ3_M", "MXFP4 MoE": "MXFP4_MOE"}.get(name, name)
    name = re.sub(r" - (S|M|L)(mall|edium|arge)$", r"_\1", re.sub(r" - [\d.]+ bpw.*$", "", name))
    if name in DTYPES:
        return None, DTYPES[name]
    return (name if re.fullmatch(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*", name) else None), None


class _Header:
    """What stands before a file's tensors; raises `ValueError` or `struct.error` for what is no GGUF."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._left = min(os.fstat(stream.fileno()).st_size, HEADER_BYTES)
        self.file_type: int | None = None
        self.counts: dict[int, int] = {}
        """Elements by the type of their tensor."""
        if self._read(4) != MAGIC or self._number("<I") not in VERSIONS:
            raise ValueError("no GGUF")
        tensors, keys = self._number("<Q"), self._number("<Q")
        for _ in range(keys):
            key, kind = self._bytes(LONGEST_KEY), self._number("<I")
            value = self._value(kind)
            if key == b"general.file_type":
                self.file_type = value
        for _ in range(tensors):
            self._bytes(LONGEST_KEY)
            elements = math.prod(self._number("<Q") for _ in range(min(self._number("<I"), 8)))
            kind = self._number("<I")
            self.counts[kind] = self.counts.get(kind, 0) + elements
            self._number("<Q")
        self.end = stream.tell()

    def _value(self, kind: int) -> int | None:
        """Read past a value; the number, where it is a whole one."""
        if kind == STRING:
            self._bytes()
            return None
        if kind != ARRAY:
            value = self._number(_packed(kind))
            return value if isinstance(value, int) else None
        inner, count = self._number("<I"), self._number("<Q")
        if inner == STRING:
            for _ in range(count):
                self._bytes()
        else:
            self._read(count * struct.calcsize(_packed(inner)))
        return None

    def _bytes(self, most: int | None = None) -> bytes:
        length = self._number("<Q")
        if most is not None and length > most:
            raise ValueError("a key that is too long")
        return self._read(length)

    def _number(self, packed: str) -> int:
        number: int = struct.unpack(packed, self._read(struct.calcsize(packed)))[0]
        return number

    def _read(self, size: int) -> bytes:
        self._left -= size
        if self._left < 0:
            raise ValueError("a header that does not end")
        return self._stream.read(size)


def _packed(kind: int) -> str:
    # An array of arrays is allowed, and no model has one.
    if kind not in SCALARS:
        raise ValueError("a value of an unknown type")
    return SCALARS[kind]


def _parts(path: Path) -> list[Path]:
    split = _PART.search(path.name)
    if split is None:
        return [path]
    names = [f"-{number:05}-of-{split[1]}.gguf" for number in range(1, int(split[1]) + 1)]
    return [path.with_name(path.name[: split.start()] + name) for name in names]


def _types(headers: Sequence[_Header]) -> tuple[str | None, str | None]:
    """What the file says; where it says nothing, the type of most weights, which is how llama.cpp guesses."""
    stated = next((header.file_type for header in headers if header.file_type is not None), None)
    if stated is not None and 0 <= stated < len(FILE_TYPES) and FILE_TYPES[stated] is not None:
        return quantization_of(FILE_TYPES[stated])
    counts = [pair for header in headers for pair in header.counts.items()]
    most = max({kind for kind, _ in counts}, key=lambda each: sum(n for kind, n in counts if kind == each), default=-1)
    return quantization_of(TENSOR_TYPES.get(most))


def _fingerprint(parts: Sequence[BinaryIO], headers: Sequence[_Header]) -> str:
    """Of one file up to `WHOLE_BYTES` it is what `sha256sum` prints."""
    digest = hashlib.sha256()
    sizes = [os.fstat(part.fileno()).st_size for part in parts]
    if len(parts) == 1 and sizes[0] <= WHOLE_BYTES:
        _hash(digest.update, parts[0], sizes[0])
        return f"sha256:{digest.hexdigest()}"
    for part, header, size in zip(parts, headers, sizes, strict=True):
        digest.update(f"{size}\n".encode())
        _hash(digest.update, part, header.end)
        for number in range(BLOCKS):
            part.seek((size - BLOCK_BYTES) * number // (BLOCKS - 1) if size > BLOCK_BYTES else 0)
            digest.update(part.read(BLOCK_BYTES))
    return f"sha256-sampled:{digest.hexdigest()}"


def _hash(update: Callable[[bytes], object], stream: BinaryIO, length: int) -> None:
    stream.seek(0)
    while length > 0 and (block := stream.read(min(BLOCK_BYTES, length))):
        update(block)
        length -= len(block)
