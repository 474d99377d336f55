"""Resolves a study's `model` and `lora` to a built-in model, a local directory, or an id on the hub.

Engines and servers call it, and the session before anything runs (`require_checkpoint`); `machine` takes `fingerprint`,
which results record: how it is made must not change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pytest_llem.engines.builtin import PREFIX, builtin_path, is_builtin, is_packaged, require_known
from pytest_llem.engines.packaged_models import PACKAGED, packaged_gguf
from pytest_llem.errors import EngineError, EngineSettingError, JsonValue, LlemError, ModelNotFoundError
from pytest_llem.job.files import found, is_path, open_regular, parse_object, read_json, reason
from pytest_llem.workload.hub import hub_obstacle

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf", ".pt")
GGUF = ".gguf"
ARCHITECTURES = ("config.json", "params.json")
"""Files that say what a checkpoint's shape is: those of transformers, and of Mistral's own format."""
TOKENIZER = ("token", "vocab", "tekken", "spiece", "sentencepiece")
"""Of these one is part of the name of a file of any tokenizer that transformers or Mistral save."""
BESIDE_WEIGHTS = (".json", ".jinja", ".md", ".model", ".py", ".txt", ".gitattributes", "")
"""Endings of files that hold no weights."""
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\n"
"""How a file begins that git-lfs has not fetched (git-lfs, docs/spec.md)."""
HEAD_BYTES = 1 << 20
"""Chosen: holds the header of a safetensors file, with names and shapes of all tensors."""


@dataclass(frozen=True)
class ModelSource:
    """What the loader gets: a directory (`local`) or a hub id; `offline` says why only the cache can be used."""

    location: str
    local: bool
    offline: str | None = None


def find_model(model: str, *, weights: bool = True) -> ModelSource:
    """Resolve `builtin:NAME`, a path or a hub id; `ModelNotFoundError` for an unknown name or a missing path.

    Files that git-lfs has not fetched are missing as well; those of `weights` only where these are wanted.
    """
    if is_builtin(model):
        return ModelSource(str(builtin_path(model)), local=True)
    path = _local_path("model", model)
    if path is not None:
        _require_fetched("model", path, weights=weights)
        return ModelSource(str(path), local=True)
    return ModelSource(model, local=False, offline=hub_obstacle())


def find_gguf(model: str) -> ModelSource:
    """The GGUF file that a model is: that of a built-in one, or a path. `ModelNotFoundError` for one that is none."""
    if is_builtin(model):
        require_known(model)
        if is_packaged(model):
            return ModelSource(str(packaged_gguf(model.removeprefix(PREFIX))), local=True)
    path = None if is_builtin(model) else _local_path("model", model)
    if path is None or path.suffix.lower() != GGUF:
        known = ", ".join(f"{PREFIX}{name}" for name in PACKAGED)
        raise ModelNotFoundError(
            f"model {model!r} is no GGUF file, which the server's {{gguf}} stands for",
            fix=f"name a file, or {known}; a server that takes a directory or a hub id gets {{model}}",
            details={"model": model},
        )
    _require_fetched("model", path)
    return ModelSource(str(path), local=True)


def find_adapter(adapter: str) -> str:
    """A LoRA adapter's directory, or its hub id. Raises `ModelNotFoundError` for a missing or incomplete directory."""
    path = _local_path("adapter", adapter)
    if path is None:
        return adapter
    if not (path / "adapter_config.json").is_file():
        raise ModelNotFoundError(
            f"adapter {adapter!r} has no adapter_config.json",
            fix="name the directory that peft's save_pretrained wrote",
            details={"adapter": adapter},
        )
    _require_fetched("adapter", path)
    return str(path)


def require_checkpoint(model: str, *, weights: bool = True, gguf: bool = True) -> None:
    """Raise `ModelNotFoundError` for a local model that cannot be one, by its files' names, without loading it.

    `gguf` says whether the engine loads GGUF files.
    """
    path = _local_path("model", model)
    if path is None:
        return
    _require_fetched("model", path, weights=weights)
    problem = _not_a_directory(path, gguf) if not path.is_dir() else _incomplete(path, weights)
    if problem is not None:
        raise ModelNotFoundError(f"model {model!r} {problem[0]}", fix=problem[1], details={"model": model})


TEMPLATES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates")
"""Where transformers keeps chat templates beside `tokenizer_config.json`."""


def require_chat_template(model: str, setting: str) -> None:
    """Raise `EngineSettingError` for a directory whose tokenizer has no chat template, as base models have none.

    `setting` is what asks for one.
    """
    directory = found(model)
    settings = None if directory is None else directory / "tokenizer_config.json"
    if directory is None or settings is None or not settings.is_file():
        return
    if "chat_template" in read_json(settings) or any((directory / name).exists() for name in TEMPLATES):
        return
    what = "sessions" if setting == "workload.dataset" else "prompts"
    raise EngineSettingError(
        f"{what} are put into the model's chat template, and {model} has none",
        fix="use an instruction-tuned model, or openai.api: chat with a server that has a template",
        details={"setting": setting},
    )


def _not_a_directory(path: Path, gguf: bool) -> tuple[str, str] | None:
    """What is wrong with a model that is a file, and what to do; GGUF begins with its name (ggml, docs/gguf.md)."""
    if path.suffix.lower() != GGUF:
        return "is a file and no model", "name the directory that holds its config.json"
    if not gguf:
        return "is a GGUF file, which this engine does not load", "use the engine vllm, or a server of llama.cpp"
    try:
        with open_regular(path) as stream:
            whole = stream.read(4) == b"GGUF"
    except OSError as problem:
        return f"cannot be read: {reason(problem)}", "make it readable"
    return None if whole else ("has the ending of a GGUF file, and is none", "download or convert it again")


def _incomplete(path: Path, weights: bool) -> tuple[str, str] | None:
    try:
        names = {file.name: file.is_dir() for file in path.iterdir()}
    except OSError as problem:
        return f"cannot be read: {problem.strerror}", "make it readable"
    if not any(name in names for name in ARCHITECTURES) and not any(name.endswith(GGUF) for name in names):
        inside = sorted(path.glob("*/config.json")) or sorted(path.glob("snapshots/*/config.json"))
        near = f"did you mean {str(inside[-1].parent)!r}?" if inside else "name the directory that holds config.json"
        return "has no config.json", near
    try:
        if "config.json" in names:
            with open_regular(path / "config.json") as stream:
                parse_object(stream.read(), "config.json")
        missing = sorted({name for name in _indexed(path) if name not in names}) if weights else []
    except (OSError, ValueError) as problem:
        return f"cannot be read: {problem}", "download it again"
    if missing:
        return f"lacks {len(missing)} files of its weights ({missing[0]}, ...)", "finish its download"
    if weights and not any(
        is_directory or Path(name).suffix not in BESIDE_WEIGHTS for name, is_directory in names.items()
    ):
        return "has no weights", "finish its download, or set weights: dummy for random ones of its shape"
    holds_torch = any(name.endswith((".safetensors", ".bin")) for name in names)
    if weights and holds_torch and not any(part in name.lower() for name in names for part in TOKENIZER):
        return "has no tokenizer", "save it there as well: tokenizer.save_pretrained, or copy its files"
    return None


def _indexed(path: Path) -> Iterator[str]:
    """The files that a checkpoint's indices name."""
    for index in path.glob("*.safetensors.index.json"):
        files = parse_object(index.read_bytes(), index.name).get("weight_map")
        yield from map(str, files.values() if isinstance(files, dict) else ())


def _require_fetched(kind: str, path: Path, *, weights: bool = True) -> None:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    pointers = [file for file in files if (weights or file.suffix not in WEIGHT_SUFFIXES) and _is_pointer(file)]
    if pointers:
        more = f" (and {len(pointers) - 1} more)" if len(pointers) > 1 else ""
        raise ModelNotFoundError(
            f"{kind} {path}: {pointers[0].name}{more} is a git-lfs pointer instead of the file itself",
            fix=f"fetch what it points to: git -C {path} lfs pull",
            details={kind: str(path), "pointers": [file.name for file in pointers]},
        )


def _is_pointer(path: Path) -> bool:
    try:
        if not path.is_file():
            return False
        with path.open("rb") as stream:
            return stream.read(len(LFS_POINTER)) == LFS_POINTER
    except OSError:
        return False


def _local_path(kind: str, name: str) -> Path | None:
    """The path that `name` is, or `None` for what can only be a hub id."""
    path = found(name)
    if path is not None:
        return path
    if is_path(name) or name.count("/") > 1:
        fix = "correct the path; a hub id has the form OWNER/NAME"
        raise ModelNotFoundError(f"{kind} {name!r}: no such directory", fix=fix, details={kind: name})
    return None


def on_hub(model: str) -> bool:
    """Whether a study's `model` is a hub id rather than something on this machine."""
    return not is_builtin(model) and found(model) is None


def unreachable(model: str, problem: Exception, offline: str | None = None) -> LlemError:
    """The error for a model that cannot be loaded; an `OSError` with a number is the operating system's."""
    names = {cls.__name__ for cls in type(problem).__mro__}
    text = " ".join(str(problem).split())
    details: dict[str, JsonValue] = {"model": model, "type": type(problem).__name__}
    if isinstance(problem, OSError) and problem.errno is not None:
        return EngineError(
            f"model {model!r} could not be loaded: {text[:300]}",
            fix="read the lines before it in worker.log: what the loader needs on this machine failed",
            details={**details, "errno": problem.errno},
        )
    if offline is not None:
        return ModelNotFoundError(
            f"model {model!r} is not in the local cache, and cannot be fetched: {offline}",
            fix="download it where the hub can be reached, give a local path, or use builtin:tiny-llama",
            details={**details, "cause": text[:300]},
        )
    if "GatedRepoError" in names or "gated repo" in text.lower():
        fix = "accept the model's terms on the hub and set HF_TOKEN"
    elif "RepositoryNotFoundError" in names or "is not a valid model identifier" in text:
        fix = "correct the model's name; for a private model set HF_TOKEN"
    elif Path(model).exists() or is_builtin(model):
        fix = "complete the directory: config.json, tokenizer files and safetensors weights"
    else:
        fix = "offline? the hub was not reached: download the model first, give a local path, or use builtin:tiny-llama"
    return ModelNotFoundError(f"model {model!r} cannot be loaded: {text[:300]}", fix=fix, details=details)


def fingerprint(directory: Path) -> str | None:
    """sha256 over `config.json` and name, size and first MiB of each weight file, in order; `None` if missing."""
    if not directory.is_dir():
        return None
    digest = hashlib.sha256()
    config = directory / "config.json"
    if config.is_file():
        digest.update(config.read_bytes())
    for path in sorted(p for p in directory.iterdir() if p.suffix in WEIGHT_SUFFIXES):
        digest.update(f"\n{path.name} {path.stat().st_size}\n".encode())
        with path.open("rb") as stream:
            digest.update(stream.read(HEAD_BYTES))
    return digest.hexdigest()
