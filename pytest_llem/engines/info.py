"""What the package knows of one engine without importing it, as one record.

Each engine's `__init__.py` holds its record; `pytest_llem.engines` gives them to whoever asks. Public interface: other
packages register records, so new fields need a default, and none may be renamed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pytest_llem.errors import JsonValue
from pytest_llem.job.config import DeviceKind

REGISTERED = 1000
"""`order` of an engine that says nothing. Chosen: after all engines of this package."""

PARALLEL_SIZES = (
    "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "tp_size", "pp_size", "dp_size",
)  # fmt: skip
"""Settings of an engine whose product is how many accelerators it takes."""


def parallel_product(setting: Callable[[str], JsonValue]) -> int:
    """The product of the parallel sizes that `setting` gives by name."""
    needed = 1
    for name in PARALLEL_SIZES:
        size = setting(name)
        if isinstance(size, int) and not isinstance(size, bool):
            needed *= size
    return needed


@dataclass(frozen=True)
class Target:
    """What takes settings: the first of `places` (`module:attribute`) that exists; `more` hide in its `**kwargs`."""

    places: tuple[str, ...]
    more: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """Which of the engine's classes take which settings, so that they can be compared (see `engines.signatures`).

    `main` takes the section itself, `sections` its nested ones; settings named in `own` do not reach the engine.
    """

    main: tuple[Target, ...]
    decoding: Target
    sections: Mapping[str, Target] = field(default_factory=dict)
    own: tuple[str, ...] = ()


@dataclass(frozen=True)
class Inactive:
    """Settings of an engine that have no effect while `setting` has one of `values`; `reason` completes a sentence."""

    names: tuple[str, ...]
    setting: str
    values: tuple[object, ...]
    reason: str


@dataclass(frozen=True)
class PrefixCache:
    """How an engine's cache of common prefixes is switched: there is none while `setting` has one of the values `off`.

    One that nothing empties (`emptied`) can be warm, and never cold.
    """

    setting: str
    off: tuple[object, ...]
    emptied: bool = True


@dataclass(frozen=True)
class ServerApi:
    """What an engine's own OpenAI-compatible server answers beyond that API; the client `openai` asks for it.

    `owner` is what the server states as `owned_by` of its models. `version_path` answers with `version`, and with
    `model_path` where the server states it. `gauges`, `counters` and `latencies` (histograms in seconds) map this
    project's names to those of `/metrics`; `prefix_cache_off` is a regular expression that its metrics match if the
    prefix cache is off.
    """

    owner: str
    version_path: str
    reset_path: str | None = None
    gauges: Mapping[str, str] = field(default_factory=dict)
    counters: Mapping[str, str] = field(default_factory=dict)
    latencies: Mapping[str, str] = field(default_factory=dict)
    prefix_cache_off: str | None = None
    model_paths: tuple[str, ...] = ()
    """Where it tells how it loaded its model; the first that answers counts."""
    model_facts: Mapping[str, str] = field(default_factory=dict)
    """`dtype`, `quantization` and `kv_cache_dtype` by the dotted place in that answer."""
    model_facts_resolved: bool = False
    """Whether these are the values in use, so that a null means none, rather than what was asked for."""


@dataclass(frozen=True)
class EngineInfo:
    """One engine. What is left out says that the engine has no such thing, or that nothing is known of it."""

    name: str
    engine: str = ""
    """Its class as `module:Class`, which is imported where the engine is opened."""
    settings: str | None = None
    """The declaration of its section of a study as `module:Class`; without one the section may hold anything."""
    title: str = ""
    """The product's name, for people."""
    order: int = REGISTERED
    """Position in the published schema and in lists of engines."""
    modules: tuple[str, ...] = ()
    """Modules that must be importable where it runs, the one with its version last."""
    packages: tuple[str, ...] = ()
    """Distributions whose versions decide how fast the same model runs."""
    install: str | None = None
    """The command that installs it."""
    stock_image: str | None = None
    """Its publisher's image, pinned, which works unchanged; engines that have one also have one of this project."""
    preload: tuple[str, ...] = ()
    """Modules and attributes (`module`, `module:attribute`) that the fork server imports before it forks.

    Empty if it is not known that a fork after these imports is safe.
    """
    preload_if_installed: tuple[str, ...] = ()
    """The same, left out where their package is not installed."""
    exclusive: bool = False
    """Pins its own torch or transformers, so that two such engines rarely fit in one environment."""
    verified: bool = True
    """Has run on the hardware that it needs. If not, `llem doctor` and each of its results say so."""
    device_kinds: tuple[DeviceKind, ...] = ("cpu", "cuda", "rocm")
    """The kinds of device that it can compute on: studies that ask for another do not start."""
    one_build_per_kind: bool = False
    """Computes on no other kind of device than it was built for."""
    gpus_by_sizes: bool = False
    """Uses as many GPUs as its parallel sizes ask for, and leaves others idle."""
    serves_over_http: bool = False
    """Is a client: the model, its devices and its memory belong to a server."""
    starts_server_with: tuple[str, ...] = ()
    """Settings of which one has a server started for the client."""
    signatures: Layout | None = None
    """Without one, settings are not compared with the installed version."""
    batch_size: str | None = None
    """The setting of its static batches. An engine without one schedules requests itself."""
    expands_latent_attention: bool = False
    """Keeps the keys and values of multi-head latent attention expanded, not compressed."""
    loads_gguf: bool = False
    """Loads a model that is a single GGUF file."""
    context_length: str | None = None
    """The setting that limits prompt and answer together."""
    inactive: tuple[Inactive, ...] = ()
    stop_strings: bool = False
    """Ends an answer at the first of `Request.stop`, and has no tokens behind it. Studies that need it else do not
    start."""
    prefix_cache: PrefixCache | None = None
    """An engine without one keeps nothing from one request to the next, as far as is known."""
    server: ServerApi | None = None

    def runs_on(self, kind: DeviceKind, build: str | None) -> bool:
        """Whether it can, where the torch beside it was built for the kind `build`; true where that is not known.

        Each build of torch computes on the CPU, of engines not each.
        """
        if build is None or build == kind or "torch" not in (*self.modules, *self.packages):
            return True
        return kind == "cpu" and not self.one_build_per_kind
