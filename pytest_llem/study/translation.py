"""Rewrites a file of LLenergyMeasure in this project's words, while it is read.

`sources` calls it for every file of a study. A file must mean here what it means there: what has no counterpart and
would change a measurement is a problem, and everything else without one is listed.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass, field

from pytest_llem.engines import shipped_engines
from pytest_llem.errors import JsonValue
from pytest_llem.study import fields
from pytest_llem.study.canonical import PRESETS
from pytest_llem.study.document import Document
from pytest_llem.study.first_generation import PARALLEL, SWITCHED
from pytest_llem.study.llenergymeasure import (
    DROPPED,
    ENGINES,
    HARMLESS,
    MARKS,
    PREFIXES,
    REFUSED,
    RENAMES,
    REPLACED,
    RUNNERS,
)
from pytest_llem.study.problems import Problem
from pytest_llem.study.search import is_search
from pytest_llem.study.values import KeyPath, OldBoolean

_SECTIONS = frozenset({"engine", "engine_params", "sampling_params", "llem_execution"})
_APART = ("sweep", "experiments", "exclude", "runners", "images")
_GAPS = ("experiment_gap_seconds", "config_gap_seconds")
_CONTAINERS = ("dataset", "lora", "energy", "task", "offline", "measurement")
_RAW = (
    "name", "title", "tags", "base", "expect", "compare", "on_invalid", "percentiles", "id", "meter", "docker", "ray",
)  # fmt: skip
_IMPLY_SAMPLING = ("temperature", "top_k", "top_p", "min_p")
_CONVERGENCE = {
    "cv_threshold": "cv",
    "window_size": "window",
    "min_prompts": "min_repeats",
    "max_prompts": "max_repeats",
}
_OLD_WARMUP = ("enabled", "n_warmup", "n_prompts", "thermal_floor_seconds", "convergence_detection", *_CONVERGENCE)


@dataclass(frozen=True)
class Translation:
    """What came of one document: whether it is an older file, its problems, and what it says to no effect.

    `keys` are its top-level keys with the settings that each makes.
    """

    is_older: bool
    problems: list[Problem]
    without_effect: list[str]
    keys: Mapping[str, list[str]]


def translate(document: Document) -> Translation:
    """Rewrite older words in `document.data`, noted in `document.moved`."""
    work = _Translator(document, _is_older(document.data))
    if work.is_older:
        document.data = {key: _booleans(value) for key, value in document.data.items()}
    data = work.study(document.data)
    keys = {key: work.shared.get(key, []) for key in document.data}
    if work.changed:
        document.data = data
        document.moved.update(work.moved)
    return Translation(work.is_older, work.problems, work.without_effect, keys)


def replaced(keys: Mapping[str, list[str]], by: Container[str]) -> list[str]:
    """The settings of those of a file's `keys` that other keys replace as a whole, as LLenergyMeasure merges them."""
    kept = {path for key, paths in keys.items() if key not in by for path in paths}
    return [path for key, paths in keys.items() if key in by for path in paths if path not in kept]


def _booleans(value: JsonValue) -> JsonValue:
    """The value with `yes`, `no`, `on` and `off` as the booleans that they are there."""
    if isinstance(value, Mapping):
        return {key: _booleans(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_booleans(item) for item in value]
    return value.lower() in ("yes", "on") if isinstance(value, OldBoolean) else value


def _is_older(data: Mapping[str, JsonValue]) -> bool:
    sections = (value for key in (*ENGINES.values(), "vllm") if isinstance(value := data.get(key), Mapping))
    return bool(MARKS & data.keys()) or any(_SECTIONS & section.keys() for section in sections)


@dataclass
class _Translator:
    """Rewrites one document."""

    document: Document
    is_older: bool
    changed: bool = False
    engine: str = "transformers"
    engines: list[str] = field(default_factory=list)
    without_effect: list[str] = field(default_factory=list)
    samples: bool = False
    decides: bool = False
    sampling: dict[str, bool] = field(default_factory=dict)
    moved: dict[KeyPath, KeyPath] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    runners: dict[str, JsonValue] = field(default_factory=dict)
    shared: dict[str, list[str]] = field(default_factory=dict)
    scoped: list[tuple[str, KeyPath]] = field(default_factory=list)
    """Shared settings of an engine's section that hold for every engine here: the engine, and where they stand."""

    def study(self, data: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
        """The whole document in this project's words."""
        self.engine, self.engines = _engine(data), _engines(data)
        own = {key: value for key, value in data.items() if key not in _APART}
        out = self.settings(own, (), ())
        self.decides = not {"do_sample", "preset"}.isdisjoint(_section(out, "decoding"))
        samples = self.samples
        if samples and not self.decides:
            for paths in self.shared.values():
                paths.extend(["decoding.do_sample"] if any(map(_is_decoding, paths)) else [])
        runners = data.get("runners")
        if isinstance(runners, Mapping):
            self._add_runners(runners, ("runners",))
        elif "runners" in data:
            out["runners"] = runners
        self._add_images(data.get("images"))
        for key in ("sweep", "exclude", "experiments"):
            if key in data:
                out[key] = self._part(key, data[key])
        if self.runners:
            out["runners"] = dict(self.runners)
        self._sample(out)
        entries = out.get("experiments")
        if isinstance(entries, list) and self.samples and not samples and not self.decides:
            for entry in entries:
                self._fill(entry, "decoding.do_sample")
        self._name_engines(out)
        self._check_scopes()
        if self.is_older and data.keys() & {"sweep", "experiments"}:
            out.setdefault("on_invalid", "skip")
        return out

    def _part(self, key: str, value: JsonValue) -> JsonValue:
        if key == "sweep":
            if not isinstance(value, Mapping):
                return value
            self.sampling = self._find_sampling(value)
            return self._sweep(value, ("sweep",))
        if not isinstance(value, list):
            return value
        if key == "exclude":
            samples = self.samples
            found: list[JsonValue] = [
                self._flat(e, ("exclude", i)) if isinstance(e, Mapping) else e for i, e in enumerate(value)
            ]
            self.samples = samples
            return found
        return [self._entry(entry, index) if isinstance(entry, Mapping) else entry for index, entry in enumerate(value)]

    def _entry(self, entry: Mapping[str, JsonValue], index: int) -> dict[str, JsonValue]:
        key_path: KeyPath = ("experiments", index)
        self.engine = _engine(entry if {"engine", "backend"} & entry.keys() else self.document.data)
        runners = entry.get("runners")
        if isinstance(runners, Mapping):
            self.changed = True
            self._add_runners(runners, (*key_path, "runners"))
        shared, self.samples = self.samples, False
        out = self.settings({key: value for key, value in entry.items() if key != "runners"}, key_path, key_path)
        self._sample(out)
        self.samples = shared
        return self._alone(entry, out) if self.is_older else out

    def _sample(self, out: dict[str, JsonValue]) -> None:
        """Sample, where settings of sampling stand without `do_sample`."""
        decoding = _section(out, "decoding")
        if self.samples and {"do_sample", "preset"}.isdisjoint(decoding):
            out["decoding"] = {**decoding, "do_sample": True}

    def _alone(self, entry: Mapping[str, JsonValue], out: dict[str, JsonValue]) -> dict[str, JsonValue]:
        """Give what shared keys that an entry has too set, and the entry does not, its default: an entry's replaces."""
        cleared: dict[str, JsonValue] = {}
        for path in replaced(self.shared, entry):
            item = fields.find(path)
            if item is not None and item.kind == "map":
                cleared[item.path] = None
            elif item is not None and item.kind == "leaf" and path not in ("model", "engine"):
                self._fill(out, path)
        return {**cleared, **out}

    def _fill(self, out: JsonValue, path: str) -> None:
        """Give a setting that an entry leaves out its default, or what the entry's preset says."""
        item = fields.find(path)
        if isinstance(out, dict) and item is not None:
            level, last = fields.innermost(out, path)
            preset = PRESETS.get(str(level.get("preset")), {}) if _is_decoding(path) else {}
            level.setdefault(last, preset.get(last, item.default))

    def _add_runners(self, runners: Mapping[str, JsonValue], key_path: KeyPath) -> None:
        for engine, spec in runners.items():
            new = ENGINES.get(engine, engine)
            self.changed |= new != engine or key_path != ("runners",)
            self.moved[("runners", new)] = (*key_path, engine)
            self.runners[new] = RUNNERS.get(spec, spec) if isinstance(spec, str) and self.is_older else spec
            self.changed |= self.runners[new] != spec

    def _add_images(self, images: JsonValue) -> None:
        """Give the runners the images that newer files name beside them."""
        for engine, image in images.items() if isinstance(images, Mapping) else ():
            new = ENGINES.get(engine, engine)
            if self.runners.setdefault(new, "docker") == "docker":
                self.runners[new] = f"docker:{image}"
                self.moved[("runners", new)] = ("images", engine)
            self.changed = True

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
                for engine in [self.engine] if new else self.engines:
                    self._emit(f"{engine}.extra", value, out, new, key_path)
            elif isinstance(value, Mapping) and _is_old_warmup(word, value):
                for path, inner, part in _warmup(value):
                    self._emit(path, inner, out, new, (*key_path, part))
            elif word in SWITCHED and isinstance(value, Mapping) and not value.get("enabled", word == "schedule"):
                self.changed = True
            elif isinstance(value, Mapping) and word not in _CONTAINERS and (word in REFUSED or word in DROPPED):
                self._take(word, value, data, key_path)
            elif (
                word in ("baseline", "measurement.baseline")
                and isinstance(value, Mapping)
                and value.get("enabled") is False
            ):
                self._emit("measurement.idle.duration_s", 0, out, new, (*key_path, "enabled"))
            elif word == "dataset" and isinstance(value, Mapping) and "input_len" in value:
                self._emit("workload.dataset", "synthetic", out, new, key_path)
                self._walk(value, word, out, new, key_path)
            elif isinstance(value, Mapping) and value and (word in _CONTAINERS or _goes_deeper(word)):
                self._walk(value, word, out, new, key_path)
            else:
                for path, inner in self._take(word, value, data, key_path):
                    self._emit(path, inner, out, new, key_path)

    def _take(
        self, word: str, value: JsonValue, siblings: Mapping[str, JsonValue], key_path: KeyPath
    ) -> list[tuple[str, JsonValue]]:
        """One word in this project's words: no, one or several settings."""
        is_foreign = self.is_older or fields.find(word) is None
        if word == "transformers.torch_compile" and value and value is not None:
            self.changed = True
            has_mode = any(key.endswith("torch_compile_mode") for key in siblings)
            return [] if has_mode else [("transformers.compile.mode", value if isinstance(value, str) else "default")]
        if word == "execution.cycle_gap_seconds" and any(siblings.get(gap) is not None for gap in _GAPS):
            self._drop(key_path, "the gap between experiments is kept before every cycle")
            return []
        is_unset = value is None and (word in REFUSED or word in DROPPED)
        if is_foreign and (is_unset or (word in HARMLESS and (not HARMLESS[word] or value in HARMLESS[word]))):
            self.changed = True
            return []
        if word in ("parallelism.strategy", "sharding.strategy", "num_processes"):
            return self._parallel(word, value, siblings, key_path)
        if word in DROPPED and self.is_older:
            self._drop(key_path, DROPPED[word])
            return []
        if word in DROPPED and not is_foreign:
            return [(word, value)]
        if word in REFUSED or word in DROPPED:
            self._refuse(word, key_path)
            return []
        value = self._replaced(word, value, key_path)
        self.samples |= word in RENAMES and word.rpartition(".")[2].removeprefix("decoder_") in _IMPLY_SAMPLING
        return [(path, convert(value)) for path, convert in RENAMES.get(word, ((word, lambda same: same),))]

    def _parallel(
        self, word: str, value: JsonValue, siblings: Mapping[str, JsonValue], key_path: KeyPath
    ) -> list[tuple[str, JsonValue]]:
        """The engine's setting for a strategy of the first generation and its degree."""
        degrees = (siblings[key] for key in ("degree", "num_shards", "parallelism_degree") if key in siblings)
        if word == "num_processes":
            value, degrees = "data_parallel", (each for each in (value,))
        setting = PARALLEL.get(str(value))
        if setting is None:
            text = f"{_dotted(key_path)}: {value!r} has no counterpart here"
            names = ", ".join(PARALLEL)
            self.problems.append(Problem(self.document.locate(key_path), text, f"use one of: {names}, none"))
            return []
        return [(f"{self.engine}.{setting}", next(degrees, None))]

    def _replaced(self, word: str, value: JsonValue, key_path: KeyPath) -> JsonValue:
        """The value to take for one that this project lacks."""
        known = REPLACED.get(word, {}) if self.is_older else {}
        if not isinstance(value, str) or value not in known:
            return value
        new, why = known[value]
        self._drop(key_path, f"{value} is {new}: {why}")
        return new

    def _each_replaced(self, word: str, values: list[JsonValue], key_path: KeyPath) -> list[JsonValue]:
        new = (self._replaced(word, value, key_path) for value in values)
        return list({repr(value): value for value in new}.values())

    def _drop(self, key_path: KeyPath, why: str) -> None:
        self.changed = True
        self.without_effect.append(f"{_dotted(key_path)} ({why})")

    def _refuse(self, word: str, key_path: KeyPath) -> None:
        where = self.document.locate(key_path, key=True)
        hint = REFUSED.get(word) or f"leave it out: {DROPPED[word]}"
        self.problems.append(Problem(where, f"{_dotted(key_path)} has no counterpart here", hint))

    def _emit(self, path: str, value: JsonValue, out: dict[str, JsonValue], new: KeyPath, key_path: KeyPath) -> None:
        level, last = fields.innermost(out, path)
        target = (*new, *path.split("."))
        engine = _scope(_dotted(key_path))
        if not new:
            self.shared.setdefault(str(key_path[0]), []).append(path)
        if engine is not None and not new and _scope(path) is None and path != "trust_remote_code":
            self.scoped.append((engine, key_path))
        if target != key_path:
            self.changed = True
            if last in level and level[last] != value:
                text = f"{_dotted(key_path)} sets {path}, which is set already"
                self.problems.append(Problem(self.document.locate(key_path, key=True), text, f"keep one, as {path}"))
            self.moved[target] = key_path
        level[last] = value

    def _sweep(self, data: Mapping[str, JsonValue], key_path: KeyPath, above: str = "") -> dict[str, JsonValue]:
        out: dict[str, JsonValue] = {}
        for key, value in data.items():
            word, at = _word(f"{above}{key}"), (*key_path, key)
            if isinstance(value, list) and value and all(isinstance(entry, Mapping) for entry in value):
                out[word] = [self._alternative(e, (*at, i)) for i, e in enumerate(value) if isinstance(e, Mapping)]
                self._note(word, at)
            elif isinstance(value, Mapping) and _goes_deeper(word) and not (_is_shorthand(value) or is_search(value)):
                out.update(self._sweep(value, at, f"{word}."))
            else:
                self._axis(word, _range(value), out, at)
        return out

    def _alternative(self, entry: Mapping[str, JsonValue], key_path: KeyPath) -> dict[str, JsonValue]:
        """An alternative of a group, which samples for itself."""
        shared, self.samples = self.samples, False
        out = self._flat(entry, key_path)
        samples = self.samples and {"decoding.do_sample", "decoding.preset"}.isdisjoint(out)
        self.samples = shared
        return {**out, **(self._sampling(str(key_path[1])) if samples else {})}

    def _sampling(self, key: str) -> dict[str, JsonValue]:
        """What makes the points of one group or engine's axis sample; where several decide it, all points sample."""
        rivals = [other for other in self.sampling if _scope(other) in (None, _scope(key)) or _scope(key) is None]
        if self.decides or key not in rivals or any(self.sampling[other] for other in rivals if other != key):
            self.samples = True
            return {}
        return {"decoding.do_sample": True} if rivals[0] == key else {}

    def _find_sampling(self, sweep: Mapping[str, JsonValue]) -> dict[str, bool]:
        """The entries of a sweep that set how tokens are chosen, and whether their settings are not one engine's."""
        found: dict[str, bool] = {}
        for key, value in sweep.items():
            parts = [part for part in value if isinstance(part, Mapping)] if isinstance(value, list) else []
            words = [_word(word) for word in (key, *(word for part in parts for word in part))]
            if any(_is_decoding(path) for word in words for path, _ in RENAMES.get(word, ())):
                found[key] = bool(parts) or _scope(key) is None
        return found

    def _axis(self, word: str, value: JsonValue, out: dict[str, JsonValue], key_path: KeyPath) -> None:
        if word in DROPPED and self.is_older:
            self._drop(key_path, DROPPED[word])
            return
        if (word in REFUSED and word not in HARMLESS) or (word in DROPPED and fields.find(word) is None):
            self._refuse(word, key_path)
            return
        if isinstance(value, list):
            value = self._each_replaced(word, value, key_path)
        targets = RENAMES.get(word, ((word, lambda same: same),))
        samples = word in RENAMES and word.rpartition(".")[2] in _IMPLY_SAMPLING
        if word == "transformers.torch_compile":
            targets = (("transformers.compile.mode", lambda item: "default" if item is True else None),)
        if len(targets) > 1:
            values = value if isinstance(value, list) else [value]
            out[word] = [{path: convert(item) for path, convert in targets} for item in values]
            self.changed = True
        elif self.is_older and (engine := _scope(_dotted(key_path[1:]))) and _scope(targets[0][0]) is None:
            path, convert = targets[0]
            values = value if isinstance(value, list) else [value]
            also = self._sampling(str(key_path[1])) if samples else {}
            out[f"{engine}.{path.rpartition('.')[2]}"] = [{path: convert(item), **also} for item in values]
            self.changed = True
        else:
            self.samples |= samples
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
            if isinstance(value, list) and word in REPLACED:
                pairs = [(word, self._each_replaced(word, value, (*key_path, key)))]
            elif isinstance(value, list) and word in RENAMES:
                self.samples |= word.rpartition(".")[2] in _IMPLY_SAMPLING
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

    def _check_scopes(self) -> None:
        """Report shared settings of one engine's section that would reach other engines as well."""
        for engine, key_path in self.scoped:
            if any(other != engine for other in self.engines):
                text = f"{_dotted(key_path)} is for {engine} alone there, and would be for every engine here"
                where = self.document.locate(key_path, key=True)
                self.problems.append(Problem(where, text, "write it in each of the experiments of that engine"))

    def _name_engines(self, out: dict[str, JsonValue]) -> None:
        """Give an older study the engines whose sections it sweeps, beside its own; several become an axis."""
        sweep, engine = _section(out, "sweep"), out.get("engine")
        if isinstance(engine, list):
            names = [ENGINES.get(name, name) if isinstance(name, str) else name for name in engine]
            out["sweep"] = {"engine": names, **sweep}
            self.moved["sweep", "engine"] = self.moved.get(("engine",), ("engine",))
            del out["engine"]
            self.changed = True
        elif self.is_older and "engine" not in sweep:
            scopes = (_scope(key) for key in sweep)
            named = list(dict.fromkeys(name for name in (engine, *scopes) if isinstance(name, str)))
            if len(named) == 1:
                out["engine"] = named[0]
            elif named:
                out["sweep"] = {"engine": list(named), **sweep}


def _scope(path: str) -> str | None:
    """The engine whose name a dotted path begins with."""
    head, dot, _ = path.partition(".")
    engine = ENGINES.get(head, head)
    return engine if dot and engine in shipped_engines() else None


def _word(path: str) -> str:
    for old, new in PREFIXES:
        if path.startswith(old):
            path = new + path[len(old) :]
    return path


def _dotted(key_path: KeyPath) -> str:
    return ".".join(part for part in key_path if isinstance(part, str))


def _goes_deeper(word: str) -> bool:
    item = fields.find(word)
    return item is None or (item.kind == "section" and item.path == word)


def _engine(data: Mapping[str, JsonValue]) -> str:
    named = data.get("engine", data.get("backend", "transformers"))
    return ENGINES.get(str(named), str(named))


def _engines(data: Mapping[str, JsonValue]) -> list[str]:
    """Every engine that a study's experiments have."""
    sweep, entries = _section(data, "sweep"), data.get("experiments")
    scopes = (_scope(f"{_word(key)}.") for key in sweep)
    names = [*_named_engines(data), *_named_engines(sweep), *(scope for scope in scopes if scope)]
    default = names[:1] or ["transformers"]
    for entry in entries if isinstance(entries, list) else ():
        names += (_named_engines(entry) if isinstance(entry, Mapping) else []) or default
    return list(dict.fromkeys(names)) or ["transformers"]


def _named_engines(data: Mapping[str, JsonValue]) -> list[str]:
    values = (data.get(key) for key in ("engine", "backend"))
    names = [name for value in values for name in (value if isinstance(value, list) else [value])]
    return [ENGINES.get(name, name) for name in names if isinstance(name, str)]


def _section(data: Mapping[str, JsonValue], name: str) -> Mapping[str, JsonValue]:
    section = data.get(name)
    return section if isinstance(section, Mapping) else {}


def _is_decoding(path: str) -> bool:
    return path.startswith("decoding.")


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
