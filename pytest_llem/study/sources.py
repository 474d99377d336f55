"""Reads the files of a study, the file itself and the chain of its bases, and merges their data.

The loader reads through `Sources`, which knows the file and position of every key; `experiments` locates settings.
Files of LLenergyMeasure are translated while they are read, and must mean what they mean there, no more.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pytest_llem.engines import shipped_engines
from pytest_llem.errors import JsonValue
from pytest_llem.study import fields
from pytest_llem.study.document import Document, KeyPath, UnreadableError, deep_merge, kind, read_document
from pytest_llem.study.llenergymeasure import ENGINES, HARMLESS, MARKS, PREFIXES, REFUSED, RENAMES
from pytest_llem.study.problems import MAX_PROBLEMS, Location, Problem

# Chosen: far beyond any chain of shared settings that a reader could follow.
MAX_BASES = 32


@dataclass
class Sources:
    """The merged data of a study, and the documents it came from, the study's own first."""

    data: dict[str, JsonValue]
    documents: list[Document]
    problems: list[Problem] = field(default_factory=list)
    is_older: bool = False

    def locate(self, path: KeyPath, *, key: bool = False) -> Location:
        """Where the value (or key) at `path` of the merged data was written."""
        for document in self.documents:
            if document.holds(path):
                return document.locate(path, key=key)
        return self.documents[0].locate(path, key=key)

    def locate_setting(self, path: str) -> Location:
        """Where the setting with a dotted path was written: shared, swept or in an experiment; else the beginning."""
        nested: KeyPath = tuple(path.split("."))
        candidates: list[KeyPath] = [nested, (path,), ("sweep", path)]
        experiments = self.data.get("experiments")
        count = len(experiments) if isinstance(experiments, list) else 0
        candidates += [("experiments", index, *rest) for index in range(count) for rest in (nested, (path,))]
        for key_path in candidates:
            if any(document.holds(key_path) for document in self.documents):
                return self.locate(key_path, key=True)
        return self.documents[0].locate(())

    def report(self, path: KeyPath, text: str, fix: str | None = None, at_key: bool = False) -> None:
        """Note a problem with what stands at `path`. Raises `UnreadableError` when there are `MAX_PROBLEMS`."""
        self.problems.append(Problem(self.locate(path, key=at_key), text, fix))
        if len(self.problems) >= MAX_PROBLEMS:
            raise UnreadableError(self.problems)


def read_sources(path: Path, env: Mapping[str, str]) -> Sources:
    """Read a study and its bases. Raises `UnreadableError` when the study itself cannot be read."""
    problems: list[Problem] = []
    documents: list[Document] = []
    data = _read(path, env, documents, problems, ())
    renamed = {path[0] for document in documents for path in document.moved.values()}
    words = renamed.union(*(document.data for document in documents))
    return Sources(data, documents, problems, bool(MARKS & words))


def locate_setting(path: Path, setting: str) -> Location:
    """Where a setting (dotted path) of a study was written, or the study's beginning if it or the file is not there."""
    try:
        return read_sources(path, os.environ).locate_setting(setting)
    except UnreadableError:
        return Location(str(path))


def _read(
    path: Path, env: Mapping[str, str], documents: list[Document], problems: list[Problem], chain: tuple[Path, ...]
) -> dict[str, JsonValue]:
    document = read_document(path, env)
    documents.append(document)
    problems.extend(_translate(document))
    data = dict(document.data)
    bases = data.pop("base", None)
    entries = [(("base",), bases)] if not isinstance(bases, list) else [(("base", i), b) for i, b in enumerate(bases)]
    merged: dict[str, JsonValue] = {}
    chain = (*chain, _resolved(path))
    for key_path, base in entries:
        if base is None and bases is None:
            continue
        where = document.locate(key_path)
        if not isinstance(base, str) or not base:
            problems.append(Problem(where, f"base: expected a file name, got {kind(base)}", "write base: common.yaml"))
            continue
        target = path.parent / base
        if _resolved(target) in chain:
            problems.append(Problem(where, f"base: {base} is a base of itself", "break the circle"))
            continue
        if len(documents) >= MAX_BASES:
            problems.append(Problem(where, f"base: more than {MAX_BASES} files", "use fewer"))
            continue
        try:
            below = _read(target, env, documents, problems, chain)
        except UnreadableError as unreadable:
            if unreadable.problems[0].location == Location(str(target)):
                first = unreadable.problems[0]
                problems.append(Problem(where, f"base: {target}: {first.text}", "the path is relative to this file"))
            else:
                problems.extend(unreadable.problems)
            continue
        merged = deep_merge(merged, below)
    return deep_merge(merged, data)


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):
        return path


_CONTAINERS = ("dataset", "lora", "energy", "task", "offline", "measurement")
_RAW = ("name", "title", "tags", "base", "expect", "compare", "on_invalid", "id", "meter", "docker", "ray")
_IMPLY_SAMPLING = ("temperature", "top_k", "top_p", "min_p")
_CONVERGENCE = {
    "cv_threshold": "cv",
    "window_size": "window",
    "min_prompts": "min_repeats",
    "max_prompts": "max_repeats",
}
_OLD_WARMUP = ("enabled", "n_warmup", "n_prompts", "thermal_floor_seconds", "convergence_detection", *_CONVERGENCE)


def _translate(document: Document) -> list[Problem]:
    """Rewrite older words in `document.data`, noted in `document.moved`; returns what has no counterpart."""
    work = _Translator(document)
    data = work.study(document.data)
    if work.changed:
        document.data = data
        document.moved.update(work.moved)
    return work.problems


@dataclass
class _Translator:
    """Rewrites one document."""

    document: Document
    changed: bool = False
    samples: bool = False
    moved: dict[KeyPath, KeyPath] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    runners: dict[str, JsonValue] = field(default_factory=dict)

    def study(self, data: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
        """The whole document in this project's words."""
        own = {key: value for key, value in data.items() if key not in ("sweep", "experiments", "exclude", "runners")}
        out = self.settings(own, (), ())
        runners = data.get("runners")
        if isinstance(runners, Mapping):
            self._add_runners(runners, ("runners",))
        elif "runners" in data:
            out["runners"] = runners
        for key in ("sweep", "exclude", "experiments"):
            if key in data:
                out[key] = self._part(key, data[key])
        if self.runners:
            out["runners"] = dict(self.runners)
        decoding = out.get("decoding")
        if self.samples and not (isinstance(decoding, Mapping) and {"do_sample", "preset"} & decoding.keys()):
            out["decoding"] = {**(decoding if isinstance(decoding, Mapping) else {}), "do_sample": True}
        self._name_engines(data, out)
        return out

    def _part(self, key: str, value: JsonValue) -> JsonValue:
        if key == "sweep":
            return self._sweep(value, ("sweep",)) if isinstance(value, Mapping) else value
        if not isinstance(value, list):
            return value
        if key == "exclude":
            return [self._flat(e, ("exclude", i)) if isinstance(e, Mapping) else e for i, e in enumerate(value)]
        return [self._entry(entry, index) if isinstance(entry, Mapping) else entry for index, entry in enumerate(value)]

    def _entry(self, entry: Mapping[str, JsonValue], index: int) -> dict[str, JsonValue]:
        key_path: KeyPath = ("experiments", index)
        runners = entry.get("runners")
        if isinstance(runners, Mapping):
            self.changed = True
            self._add_runners(runners, (*key_path, "runners"))
        return self.settings({key: value for key, value in entry.items() if key != "runners"}, key_path, key_path)

    def _add_runners(self, runners: Mapping[str, JsonValue], key_path: KeyPath) -> None:
        for engine, spec in runners.items():
            new = ENGINES.get(engine, engine)
            self.changed |= new != engine or key_path != ("runners",)
            self.moved[("runners", new)] = (*key_path, engine)
            self.runners[new] = spec

    def settings(self, data: Mapping[str, JsonValue], new: KeyPath, old: KeyPath) -> dict[str, JsonValue]:
        """A mapping of settings (a study's shared part, or an experiment) rewritten below `new`."""
        out: dict[str, JsonValue] = {}
        self._walk(data, "", out, new, old)
        return out

    def _walk(
        self, data: Mapping[str, JsonValue], above: str, out: dict[str, JsonValue], new: KeyPath, old: KeyPath
    ) -> None:
        for key, value in data.items():
            word = _word(f"{above}.{key}" if above else key)
            key_path = (*old, key)
            if not above and key in _RAW:
                out[key] = value
            elif word == "passthrough_kwargs" and isinstance(value, Mapping):
                self._emit(f"{_engine(data)}.extra", value, out, new, key_path)
            elif isinstance(value, Mapping) and _is_old_warmup(word, value):
                for path, inner, part in _warmup(value):
                    self._emit(path, inner, out, new, (*key_path, part))
            elif isinstance(value, Mapping) and word in REFUSED and word not in _CONTAINERS:
                self._refuse(word, key_path)
            elif word == "baseline" and isinstance(value, Mapping) and value.get("enabled") is False:
                self._emit("measurement.idle.duration_s", 0, out, new, (*key_path, "enabled"))
            elif isinstance(value, Mapping) and value and (word in _CONTAINERS or _goes_deeper(word)):
                self._walk(value, word, out, new, key_path)
            else:
                for path, inner in self._take(word, value, data, key_path):
                    self._emit(path, inner, out, new, key_path)

    def _take(
        self, word: str, value: JsonValue, siblings: Mapping[str, JsonValue], key_path: KeyPath
    ) -> list[tuple[str, JsonValue]]:
        """One word in this project's words: no, one or several settings."""
        if word == "transformers.torch_compile" and value is True:
            self.changed = True
            has_mode = any(key.endswith("torch_compile_mode") for key in siblings)
            return [] if has_mode else [("transformers.compile.mode", "default")]
        if word in HARMLESS and (not HARMLESS[word] or value in HARMLESS[word]):
            self.changed = True
            return []
        if word in REFUSED:
            self._refuse(word, key_path)
            return []
        self.samples |= word.partition(".")[2].rpartition(".")[2] in _IMPLY_SAMPLING and word in RENAMES
        return [(path, convert(value)) for path, convert in RENAMES.get(word, ((word, lambda same: same),))]

    def _refuse(self, word: str, key_path: KeyPath) -> None:
        written = ".".join(part for part in key_path if isinstance(part, str))
        where = self.document.locate(key_path, key=True)
        self.problems.append(Problem(where, f"{written} has no counterpart here", REFUSED[word]))

    def _emit(self, path: str, value: JsonValue, out: dict[str, JsonValue], new: KeyPath, key_path: KeyPath) -> None:
        level, last = fields.innermost(out, path)
        target = (*new, *path.split("."))
        if target != key_path:
            self.changed = True
            if last in level and level[last] != value:
                text = f"{'.'.join(str(p) for p in key_path)} sets {path}, which is set already"
                self.problems.append(Problem(self.document.locate(key_path, key=True), text, f"keep one, as {path}"))
            self.moved[target] = key_path
        level[last] = value

    def _sweep(self, data: Mapping[str, JsonValue], key_path: KeyPath, above: str = "") -> dict[str, JsonValue]:
        out: dict[str, JsonValue] = {}
        for key, value in data.items():
            word, at = _word(f"{above}{key}"), (*key_path, key)
            if isinstance(value, list) and value and all(isinstance(entry, Mapping) for entry in value):
                out[word] = [self._flat(entry, (*at, i)) for i, entry in enumerate(value) if isinstance(entry, Mapping)]
                self._note(word, at)
            elif isinstance(value, Mapping) and _goes_deeper(word) and not _is_shorthand(value):
                out.update(self._sweep(value, at, f"{word}."))
            else:
                self._axis(word, _range(value), out, at)
        return out

    def _axis(self, word: str, value: JsonValue, out: dict[str, JsonValue], key_path: KeyPath) -> None:
        if word in REFUSED and word not in HARMLESS:
            self._refuse(word, key_path)
            return
        targets = RENAMES.get(word, ((word, lambda same: same),))
        self.samples |= word.rpartition(".")[2] in _IMPLY_SAMPLING and word in RENAMES
        if word == "transformers.torch_compile":
            targets = (("transformers.compile.mode", lambda item: "default" if item is True else None),)
        if len(targets) > 1:
            values = value if isinstance(value, list) else [value]
            out[word] = [{path: convert(item) for path, convert in targets} for item in values]
            self.changed = True
        else:
            path, convert = targets[0]
            out[path] = [convert(item) for item in value] if isinstance(value, list) else convert(value)
            self._note(path, key_path)

    def _note(self, path: str, key_path: KeyPath) -> None:
        if ("sweep", path) != key_path:
            self.changed = True
            self.moved[("sweep", path)] = key_path

    def _flat(self, entry: Mapping[str, JsonValue], key_path: KeyPath) -> dict[str, JsonValue]:
        """A mapping of dotted paths in a group or an exclusion, rewritten word by word."""
        out: dict[str, JsonValue] = {}
        for key, value in entry.items():
            word = _word(key)
            if isinstance(value, list) and word in RENAMES:
                pairs = [(path, [convert(item) for item in value]) for path, convert in RENAMES[word]]
            else:
                pairs = list(self._take(word, value, entry, (*key_path, key)))  # type: ignore[arg-type]
            for path, inner in pairs:
                out[path] = inner
                if path != key:
                    self.changed = True
                    target: KeyPath = (*key_path, path)
                    self.moved[target] = (*key_path, key)
        return out

    def _name_engines(self, data: Mapping[str, JsonValue], out: dict[str, JsonValue]) -> None:
        """Give an older study without an engine those whose sections it sweeps; several become an axis."""
        sweep = out.get("sweep")
        engine = out.get("engine")
        if isinstance(engine, list):
            out["sweep"] = {"engine": engine, **(sweep if isinstance(sweep, Mapping) else {})}
            self.moved["sweep", "engine"] = self.moved.get(("engine",), ("engine",))
            del out["engine"]
            self.changed = True
        elif engine is None and isinstance(sweep, Mapping) and "engine" not in sweep and MARKS & data.keys():
            heads = (key.partition(".")[0] for key in sweep)
            named = [head for head in dict.fromkeys(heads) if head in shipped_engines()]
            if len(named) == 1:
                out["engine"] = named[0]
            elif named:
                out["sweep"] = {"engine": list(named), **sweep}


def _word(path: str) -> str:
    for old, new in PREFIXES:
        if path.startswith(old):
            path = new + path[len(old) :]
    return path


def _goes_deeper(word: str) -> bool:
    item = fields.find(word)
    return item is None or (item.kind == "section" and item.path == word)


def _engine(data: Mapping[str, JsonValue]) -> str:
    named = data.get("engine", data.get("backend", "transformers"))
    return ENGINES.get(str(named), str(named))


def _is_old_warmup(word: str, value: Mapping[str, JsonValue]) -> bool:
    return word in ("warmup", "measurement.warmup") and any(key in _OLD_WARMUP for key in value)


def _warmup(value: Mapping[str, JsonValue]) -> list[tuple[str, JsonValue, str]]:
    """An older `warmup` section; its prompts become repeats of the workload."""
    target = "measurement.warmup"
    settings: list[tuple[str, JsonValue, str]] = []
    if value.get("enabled") is False:
        return [(f"{target}.max_repeats", 0, "enabled")]
    if "thermal_floor_seconds" in value:
        settings.append(("measurement.idle.max_wait_s", value["thermal_floor_seconds"], "thermal_floor_seconds"))
    if value.get("convergence_detection") is True:
        settings += [(f"{target}.{new}", value[old], old) for old, new in _CONVERGENCE.items() if old in value]
    else:
        for old in ("n_warmup", "n_prompts"):
            if old in value:
                settings += [(f"{target}.min_repeats", value[old], old), (f"{target}.max_repeats", value[old], old)]
    return settings + [(f"{target}.{key}", inner, key) for key, inner in value.items() if key not in _OLD_WARMUP]


def _is_shorthand(value: Mapping[str, JsonValue]) -> bool:
    return bool(value) and set(value) <= {"min", "max", "num", "log", "pow2", "range", "linspace", "scale"}


def _range(value: JsonValue) -> JsonValue:
    """The older shorthands of a range, as this project writes them."""
    if not isinstance(value, Mapping):
        return value
    if set(value) == {"min", "max", "num"}:
        return {"linspace": [value["min"], value["max"], value["num"]]}
    inner = value.get("pow2")
    if isinstance(inner, Mapping) and set(inner) == {"min", "max"}:
        return {"range": [inner["min"], inner["max"]], "scale": "log2"}
    inner = value.get("log")
    if isinstance(inner, Mapping) and set(inner) == {"min", "max", "num"}:
        return _log_spaced(inner["min"], inner["max"], inner["num"]) or value
    return value


def _log_spaced(low: JsonValue, high: JsonValue, count: JsonValue) -> list[JsonValue] | None:
    if not isinstance(low, (int, float)) or not isinstance(high, (int, float)) or not isinstance(count, int):
        return None
    if isinstance(count, bool) or not 2 <= count <= 10_000 or not 0 < low <= high <= 1e15:
        return None
    step = math.log(high / low) / (count - 1)
    numbers = [float(f"{low * math.exp(step * index):.12g}") for index in range(count)]
    whole = isinstance(low, int) and isinstance(high, int) and all(number.is_integer() for number in numbers)
    return [int(number) if whole else number for number in numbers]
