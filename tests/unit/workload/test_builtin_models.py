"""The built-in models: the same bytes wherever and however often they are made."""

from __future__ import annotations

import errno
import hashlib
import json
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from pytest_llem.engines import builtin
from pytest_llem.engines.builtin import builtin_path, known_builtins, make_builtin
from pytest_llem.engines.model_files import find_model, fingerprint
from pytest_llem.errors import ModelNotFoundError, StoreError

tokenizers = pytest.importorskip("tokenizers")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def digest(directory: Path) -> str:
    whole = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        whole.update(path.name.encode() + path.read_bytes())
    return whole.hexdigest()[:16]


@pytest.mark.parametrize(("name", "expected"), [("tiny-llama", "869947b2faa186e3"), ("tiny-moe", "8b4eaeffbcf6baed")])
def test_every_making_gives_the_same_bytes(tmp_path: Path, name: str, expected: str) -> None:
    """A stored baseline refers to exactly this model: when this changes, raise `RECIPE`."""
    make_builtin(name, tmp_path)
    assert digest(tmp_path) == expected


def test_of_many_at_once_one_makes_it_and_the_others_wait(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several processes of a test run ask for it at the same moment on a fresh machine."""
    waiting, make = Barrier(4), builtin.make_builtin
    made: list[str] = []

    def make_while_others_wait(name: str, directory: Path) -> None:
        made.append(name)
        waiting.wait(timeout=120)
        make(name, directory)

    monkeypatch.setattr(builtin, "make_builtin", make_while_others_wait)

    def wait(_text: str) -> None:
        waiting.wait(timeout=120)

    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(lambda model: builtin_path(model, wait), ["builtin:tiny-llama"] * 4))
    assert made == ["tiny-llama"]
    assert [path.name for path in (cache / "llem" / "models").glob("[!.]*")] == [path.name for path in paths]
    assert {path.name for path in paths.pop().iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_what_a_killed_maker_left_is_removed(cache: Path) -> None:
    """Half a folder of a large model would fill the disk unseen."""
    left = cache / "llem" / "models" / ".tiny-llama-half"
    left.mkdir(parents=True)
    builtin_path("builtin:tiny-llama")
    assert not left.exists()


def test_a_cached_model_is_not_made_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = builtin_path("builtin:tiny-llama")
    monkeypatch.setattr(builtin, "make_builtin", lambda *_: pytest.fail("made again"))
    assert builtin_path("builtin:tiny-llama") == made


def test_a_failed_making_leaves_nothing_behind(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_name: str, directory: Path) -> None:
        (directory / "config.json").write_text("{}", encoding="utf-8")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(builtin, "make_builtin", fail)
    with pytest.raises(StoreError, match=r"No space left on device\nfix: .*has the room"):
        builtin_path("builtin:tiny-llama")
    assert [path.name for path in (cache / "llem" / "models").iterdir()] == [".tiny-llama.lock"]


def test_weights_are_a_valid_safetensors_file(tmp_path: Path) -> None:
    make_builtin("tiny-llama", tmp_path)
    data = (tmp_path / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    assert len(data) == 8 + length + end


def test_tokenizer_keeps_any_text(tmp_path: Path) -> None:
    make_builtin("tiny-llama", tmp_path)
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = "Naïve Größe, 光の色 🌈\t\n  two  spaces"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == text


def test_unknown_builtin_names_the_known_ones() -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        builtin_path("builtin:huge")
    assert all(name in (caught.value.fix or "") for name in known_builtins())


def test_a_path_that_does_not_exist_is_not_taken_for_a_hub_id(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no such directory"):
        find_model(str(tmp_path / "absent"))
    assert not find_model("owner/name").local


def test_fingerprint_tells_weights_apart(tmp_path: Path) -> None:
    make_builtin("tiny-llama", tmp_path)
    before = fingerprint(tmp_path)
    with (tmp_path / "model.safetensors").open("r+b") as stream:
        stream.seek(20_000)
        stream.write(b"\x01\x02\x03\x04")
    assert before is not None
    assert fingerprint(tmp_path) not in (None, before)
    assert fingerprint(tmp_path / "absent") is None
