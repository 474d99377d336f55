"""What a GGUF file says of the model in it, on files that the `gguf` package writes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from pytest_llem.engines import gguf_files
from pytest_llem.engines.gguf_files import FILE_TYPES, TENSOR_TYPES, quantization_of, read_gguf
from tests.engines.servers.gguf_model import write_gguf

pytestmark = pytest.mark.engine

gguf = pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def written(path: Path, file_type: int | None, kind: str = "Q8_0", rows: int = 4) -> Path:
    """A file with one quantised matrix of `rows` times 256 numbers and one small one of float32."""
    import numpy as np

    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "é"])
    writer.add_array("some.numbers", [1, 2, 3])
    writer.add_array("some.switches", [True, False])
    if file_type is not None:
        writer.add_file_type(file_type)
    matrix = np.linspace(-1, 1, rows * 256, dtype=np.float32).reshape(rows, 256)
    raw = gguf.GGMLQuantizationType[kind]
    writer.add_tensor("blk.0.ffn_up.weight", gguf.quants.quantize(matrix, raw), raw_dtype=raw)
    writer.add_tensor("output_norm.weight", np.ones(256, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_type_and_the_parameters_are_those_of_the_file(tmp_path: Path, tiny: Path) -> None:
    whole = read_gguf(tiny)
    assert whole is not None
    assert (whole.quantization, whole.dtype, whole.parameters) == (None, "float32", 360_768)
    assert whole.fingerprint == f"sha256:{hashlib.sha256(tiny.read_bytes()).hexdigest()}"
    packed = read_gguf(written(tmp_path / "q8.gguf", int(gguf.LlamaFileType.MOSTLY_Q8_0)))
    assert packed is not None
    assert (packed.quantization, packed.dtype, packed.parameters) == ("Q8_0", None, 5 * 256)


def test_a_file_that_does_not_say_its_type_has_that_of_most_weights(tmp_path: Path) -> None:
    for file_type in (None, int(gguf.LlamaFileType.GUESSED)):
        model = read_gguf(written(tmp_path / "unsaid.gguf", file_type, "Q4_1"))
        assert model is not None
        assert (model.quantization, model.dtype) == ("Q4_1", None)


def test_the_names_of_types_are_those_of_the_format() -> None:
    """A number that llama.cpp gave to another type would label a file with a quantisation that it does not have."""
    names = {int(kind): kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in gguf.LlamaFileType}
    assert dict(enumerate(FILE_TYPES)).items() >= {number: names[number] for number in names if number < 1024}.items()
    assert all(gguf.GGMLQuantizationType(number).name == name for number, name in TENSOR_TYPES.items())


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        ("all F32", (None, "float32")),
        ("BF16", (None, "bfloat16")),
        ("Q4_1", ("Q4_1", None)),
        ("Q4_K - Medium", ("Q4_K_M", None)),
        ("Q2_K - Medium", ("Q2_K", None)),
        ("(guessed) Q3_K - Large", ("Q3_K_L", None)),
        ("IQ4_XS - 4.25 bpw", ("IQ4_XS", None)),
        ("TQ1_0 - 1.69 bpw ternary", ("TQ1_0", None)),
        ("IQ3_S mix - 3.66 bpw", ("IQ3_M", None)),
        ("MXFP4 MoE", ("MXFP4_MOE", None)),
        ("unknown, may not work", (None, None)),
        (None, (None, None)),
    ],
)
def test_what_llama_cpp_shows_is_the_name_in_its_file(
    shown: str | None, expected: tuple[str | None, str | None]
) -> None:
    """A gate would call a file that was read once by the server and once here two models."""
    assert quantization_of(shown) == expected


def test_a_large_file_is_sampled_and_any_change_of_its_weights_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_files, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(gguf_files, "BLOCK_BYTES", 64)
    path = written(tmp_path / "large.gguf", 7, rows=256)
    before = read_gguf(path)
    assert before is not None
    assert before.fingerprint.startswith("sha256-sampled:")
    changed = bytearray(path.read_bytes())
    changed[-4096:] = bytes(byte ^ 1 for byte in changed[-4096:])
    path.write_bytes(changed)
    after = read_gguf(path)
    assert after is not None
    assert after.fingerprint != before.fingerprint


def test_a_model_in_parts_is_one_model(tmp_path: Path) -> None:
    first = written(tmp_path / "big-00001-of-00002.gguf", 7)
    assert read_gguf(first) is None, "a part is missing"
    written(tmp_path / "big-00002-of-00002.gguf", None)
    both = read_gguf(first)
    assert both is not None
    assert (both.parameters, both.quantization) == (2 * 5 * 256, "Q8_0")


def test_a_broken_file_is_no_model(tmp_path: Path, tiny: Path) -> None:
    """Counts in a header may be anything: none may cost memory, time or the run."""
    whole = tiny.read_bytes()
    huge = (2**60).to_bytes(8, "little")
    broken = {
        "empty": b"",
        "another": b"\x7fELF" + whole[4:],
        "cut": whole[:4096],
        "keys": whole[:16] + huge + whole[24:],
        "tensors": whole[:8] + huge + whole[16:],
        "long key": whole[:24] + huge + whole[32:],
        "array": whole[:16] + (1).to_bytes(8, "little") + (1).to_bytes(8, "little") + b"k"
        + (9).to_bytes(4, "little") + (0).to_bytes(4, "little") + huge,
    }  # fmt: skip
    for name, content in broken.items():
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(content)
        assert read_gguf(path) is None, name
    assert read_gguf(tmp_path) is None
    assert read_gguf(tmp_path / "absent.gguf") is None
    endless = tmp_path / "text.gguf"
    length = 2 * gguf_files.HEADER_BYTES
    endless.write_bytes(whole[:8] + bytes(8) + (1).to_bytes(8, "little") * 2 + b"k" + (8).to_bytes(4, "little")
        + length.to_bytes(8, "little"))  # fmt: skip
    os.truncate(endless, 2 * length)
    assert read_gguf(endless) is None, "a text as long as the memory"
