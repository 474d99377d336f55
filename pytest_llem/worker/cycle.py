"""One cycle: what is measured, in which order, and under which conditions (docs/protocol.md).

`entry.run_job` calls it, and the fork server preloads it. It records what the pytest side cannot find out later and
must derive nothing; the order of its steps is the measurement protocol and changes results when it changes.
"""

from __future__ import annotations

import gc
import os
import platform
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from pytest_llem import __version__
from pytest_llem.energy.idle_power import HOT_IDLE, usable, with_reference
from pytest_llem.energy.registry import open_meter
from pytest_llem.energy.thermal import SettlingWatch
from pytest_llem.engines import engine_info
from pytest_llem.engines.protocol import Completion, Engine, Request
from pytest_llem.errors import EngineSettingError, JsonValue
from pytest_llem.job.config import ExperimentConfig, Thresholds
from pytest_llem.job.events import EventLog, clock_facts
from pytest_llem.job.job import IdleReference, Job, JobDir
from pytest_llem.job.measurement import EngineFacts, Measurement, MemoryPeaks, WorkerFacts
from pytest_llem.job.report import Note
from pytest_llem.scoring.registry import require_keys
from pytest_llem.worker.answers import write_answered
from pytest_llem.worker.caches import cache_notes, in_effect, with_rule
from pytest_llem.worker.contention import CpuWatch
from pytest_llem.worker.convergence import settle
from pytest_llem.worker.engine_slot import EngineSlot
from pytest_llem.worker.heartbeat import Heartbeat
from pytest_llem.worker.repeats import Observed, RepeatRunner, measure_phases
from pytest_llem.worker.servers import find_server
from pytest_llem.worker.steady import concurrency_limit, steady_windows
from pytest_llem.worker.windows import NO_PADDING, Metering, WindowRecorder, choose_padding, idle_padding_s, with_step
from pytest_llem.workload.build import build_workload, read_dataset
from pytest_llem.workload.traffic import named_faults, require_few_broken

HOT_REST_S = 0.5
"""Chosen: power falls within some tenths of a second after work, and the die cools by little."""

HOT_IDLE_S = 1.0
"""Chosen: ten steps of the counter of an A100 or H100 (arXiv 2312.02741); a longer window is that of a cooler die."""


def run_cycle(
    job: Job, job_dir: JobDir, events: EventLog, *, start_method: str, isolation: str, slot: EngineSlot | None = None
) -> Measurement:
    """Run one cycle; if `slot` holds a loaded engine, start and load have no times. Raises `LlemError`."""
    slot = slot or EngineSlot()
    loaded = slot.loaded
    stopwatch = Stopwatch({"startup_s": None, "load_s": None} if loaded else {"startup_s": _process_age_s()})
    worker = WorkerFacts(os.getpid(), platform.node(), start_method, isolation)
    with (
        Heartbeat(events, job.deadlines.heartbeat_s) as heartbeat,
        _metering(job, job_dir) as metering,
        slot.engine(job) as engine,
    ):
        measurement = _measure(
            job, job_dir, events, engine, metering, heartbeat, stopwatch, worker, slot, loaded=loaded
        )
        if not slot.keeps:
            events.emit("phase", "unload")
    return measurement


class Stopwatch:
    """Durations in seconds by name: the `timing` section of a measurement."""

    def __init__(self, known: Mapping[str, float | None]) -> None:
        self.seconds: dict[str, float | None] = dict(known)
        self._started = time.monotonic()

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Time the body under `name`."""
        started = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - started

    def total(self) -> float:
        """Seconds since this was made."""
        return time.monotonic() - self._started


@contextmanager
def _metering(job: Job, job_dir: JobDir) -> Iterator[Metering]:
    on_host = job.meter.placement == "host"
    server = find_server(job)
    absent = on_host or server.elsewhere is not None
    meter = None if absent else open_meter(job.meter, job.devices, job_dir.path, server.tree)
    metering = Metering(meter, job_dir.samples)
    metering.notes += [server.elsewhere] if server.elsewhere is not None and job.meter.name != "none" else []
    with TemporaryDirectory() as here:
        if on_host and job.devices.on_gpu and server.elsewhere is None:
            metering.watch(job.devices, Path(here, "samples.jsonl"))
        try:
            yield metering
        finally:
            metering.abandon()


def _measure(
    job: Job,
    job_dir: JobDir,
    events: EventLog,
    engine: Engine,
    metering: Metering,
    heartbeat: Heartbeat,
    stopwatch: Stopwatch,
    worker: WorkerFacts,
    slot: EngineSlot,
    *,
    loaded: bool,
) -> Measurement:
    config, settings, arrival = job.config, job.config.measurement, job.config.workload.arrival
    on_gpu = job.devices.on_gpu
    is_metered = job.meter.name != "none"
    period_s = metering.period_s(job.devices, job.meter.name)
    idle_s = idle_padding_s(period_s, metering.settle_s()) if period_s is not None else 0.0
    recorder = WindowRecorder(events, metering.meter, idle_s)

    events.emit("phase", "prepare")
    with stopwatch.measure("prepare_s"):
        version = slot.prepare(engine, job)
        if arrival is not None and not engine.capabilities.serves:
            raise EngineSettingError(
                f"workload.arrival cannot be combined with engine {engine.name}, which does not serve",
                fix="leave it out: all requests are then there at once",
            )
        if config.workload.cache is not None and not engine.capabilities.prefix_cache:
            raise EngineSettingError(
                f"workload.cache cannot be combined with engine {engine.name}, which keeps no prefix cache",
                fix="leave it out: each prompt is then computed whole",
            )
        # Before the model is loaded, which takes a minute where a wrong column takes none.
        texts = job.texts or read_dataset(config.workload)
        if texts is not None:
            require_few_broken(texts, Thresholds.of(job.meter.thresholds).failed_requests_rel)
            require_keys(config.workload, texts.questions)
        rule = with_rule(config, texts, engine.capabilities)
        if rule != config:
            version = slot.prepare(engine, replace(job, config=rule))
    if not loaded:
        events.emit("phase", "load")
        with stopwatch.measure("load_s"), recorder.window("load"):
            engine.load()
            engine.quiesce()
        stopwatch.seconds.update(engine.load_times())
    effective = dict(engine.effective())
    with stopwatch.measure("workload_s"):
        as_messages = engine_info(config.engine).serves_over_http and config.settings.get("api") == "chat"
        workload = build_workload(config.workload, engine.tokenizer(), texts, as_messages=as_messages)

    reused: IdleReference | None = None
    warnings = list(metering.notes)
    if not engine_info(config.engine).verified:
        message = f"this project's engine {config.engine} has not been verified on hardware yet"
        warnings.append(Note("engine_not_verified", message))
    if workload.rows_broken:
        left_out = f"{named_faults(workload.rows_broken, workload.faults)} of {workload.dataset} were left out"
        warnings.append(Note("lines_broken", left_out))
    if settings.idle.duration_s > 0 and is_metered:
        events.emit("phase", "idle")
        if on_gpu:
            # Only a GPU's power decays for longer than the idle window lasts.
            waited_s, settled = settle(metering.power_w, settings.idle.max_wait_s)
            stopwatch.seconds["settle_s"] = waited_s
            if settled is False:
                warnings.append(Note("idle_not_settled", f"power had not settled {waited_s:.1f} s after the load"))
            reused = usable(job.idle_reference, metering.meter) if settled else None
        if reused is None:
            with recorder.window("idle", engine):
                time.sleep(settings.idle.duration_s)

    runner = RepeatRunner(engine, workload.requests, events, heartbeat, warm=rule.workload.cache == "warm")
    events.emit("phase", "warmup")
    with recorder.window("warmup", engine):
        asked = settings.warmup.thermal == "settled" and is_metered
        watch = SettlingWatch(metering.samples, job.devices.uuids) if asked else None
        warmup = runner.warm_up(settings.warmup, metering.power_w if on_gpu else None, watch)
    metering.end_watch()

    gc.collect()
    resettable = _reset_peak_rss()
    padding = NO_PADDING
    if period_s is not None:
        repeat_s, synchronised = runner.last_repeat_s, engine.quiesce() == "synchronized"
        expected_s = max(settings.min_duration_s, repeat_s or 0.0)
        padding = choose_padding(expected_s, period_s, can_synchronise=synchronised, repeat_s=repeat_s)
    server = find_server(job).tree
    cpu = CpuWatch(os.getpid(), *([server.pid] if server is not None and server.pid is not None else []))
    events.emit("phase", "measure")
    if padding.kind == "same_load":
        runner.run_unmeasured(padding.seconds)
    runner.empty_caches()
    engine.reset_peak_memory()
    engine.reset_statistics()
    with cpu, recorder.window("measure", engine, idle_padding=padding.kind == "idle") as window:
        passes = runner.measure(settings.min_duration_s, window)
    memory = MemoryPeaks(engine.memory(), None, _peak_rss_bytes() if resettable else None)
    statistics = engine.statistics()
    if padding.kind == "same_load":
        runner.run_unmeasured(padding.seconds)
    if on_gpu and is_metered and settings.idle.duration_s > 0:
        if padding.kind != "idle":
            engine.quiesce()
            time.sleep(HOT_REST_S)
        with recorder.window(HOT_IDLE, engine):
            time.sleep(min(HOT_IDLE_S, settings.idle.duration_s))
    passes = runner.finish_reading(passes)
    engine_invalid, engine_warnings = engine.remarks()
    observed = runner.observed(passes)
    cache = in_effect(config.workload.cache, rule.workload.cache, observed)
    if engine.capabilities.serves:
        limit = concurrency_limit(arrival, effective)
        answers = [done.completions for done in passes]
        later_turns = {request.index for request in workload.requests if (request.turn or 1) > 1}
        recorder.windows += steady_windows(answers, limit, arrival, settings.steady_state, later_turns)

    if settings.phases:
        events.emit("phase", "phases")
        warnings += measure_phases(
            engine,
            runner,
            settings.phases,
            recorder,
            heartbeat,
            min_duration_s=settings.min_duration_s,
            outputs_hash=observed.repeats[0].outputs_hash,
        )
    recorder.windows = with_step(recorder.windows, observed.completions)

    stopwatch.seconds["settle_s"] = stopwatch.seconds.get("settle_s")
    stopwatch.seconds["warmup_s"] = warmup.duration_s
    stopwatch.seconds["repeat_s"] = observed.mean_repeat_s
    energy = with_reference(metering.report(recorder), reused)
    as_told = as_messages or config.workload.task is not None
    write_answered(job_dir.answers, workload, observed.completions, engine.tokenizer(), as_told=as_told)
    stopwatch.seconds["cycle_s"] = stopwatch.total()
    return Measurement(
        engine=EngineFacts(engine.name, version, effective, engine.capabilities, observed.cache_state, statistics),
        worker=worker,
        clock=clock_facts(),
        windows=tuple(recorder.windows),
        repeats=observed.repeats,
        requests=observed.records,
        prompts_hash=workload.prompts_hash,
        arrivals_hash=workload.arrivals_hash,
        prompts_truncated=workload.truncated,
        rows_skipped=workload.rows_skipped,
        cache=cache,
        dataset_format=workload.format,
        rows_broken=workload.rows_broken,
        warmup=warmup,
        memory=memory,
        timing=stopwatch.seconds,
        load_shape="offline" if arrival is None else arrival.process,
        cpu=cpu.time,
        energy=energy,
        model=engine.shape(),
        environment={**_software_facts(), **engine.environment()},
        warnings=(*warnings, *engine_warnings),
        invalid=(*_invalid(job, engine, effective, observed, runner, cache), *engine_invalid),
        warmup_repeats=tuple(runner.warmup_repeats),
    )


def _invalid(
    job: Job,
    engine: Engine,
    effective: Mapping[str, JsonValue],
    observed: Observed,
    runner: RepeatRunner,
    cache: str | None,
) -> tuple[Note, ...]:
    notes = settings_differ(job.config, effective)
    asked = bool(job.config.settings.get("enable_prefix_caching"))
    served = engine_info(job.config.engine).serves_over_http
    hits_allowed = asked or cache is not None
    notes += work_notes(runner.requests, observed.completions, caching_asked=hits_allowed, counts_prompts=not served)
    if observed.wrong_times:
        message = f"the times of {observed.wrong_times} answers are out of order, of another clock or not one per token"
        notes.append(Note("wrong_times", message))
    return tuple(notes + cache_notes(cache, observed, engine.capabilities, runner.requests, hits_wanted=asked))


RESOLVED = ("device_map", "revision")
"""Settings that an engine resolves to other values (`auto` to a device map, a branch to a commit)."""


def settings_differ(config: ExperimentConfig, effective: Mapping[str, JsonValue]) -> list[Note]:
    """`effective_differs` for each requested setting that the engine reports with another value."""
    asked: dict[str, JsonValue] = {key: value for key, value in config.settings.items() if key not in RESOLVED}
    # A dtype of `None` is not known: a server may not tell.
    if not effective.get("quantized") and effective.get("dtype") is not None:
        asked["dtype"] = config.dtype
    notes = []
    for key, value in asked.items():
        if value is None or key not in effective or not isinstance(value, (bool, int, float, str)):
            continue
        if effective[key] != value:
            message = f"{key} was asked to be {value!r}, and the engine runs with {effective[key]!r}"
            notes.append(Note("effective_differs", message))
    return notes


def work_notes(
    requests: Sequence[Request],
    completions: Iterable[Completion],
    *,
    caching_asked: bool = False,
    counts_prompts: bool = True,
) -> list[Note]:
    """Notes on completions that differ from the requested work; failed requests are reported elsewhere.

    Prompts are compared where `counts_prompts`: a server may make other tokens of a text, which its engine reports.
    """
    wanted = {request.index: request for request in requests}
    wrong_length = other_prompts = cached = 0
    for completion in completions:
        if completion.error is not None:
            continue
        request = wanted[completion.index]
        count = completion.generated
        wrong_length += count > request.max_new_tokens or (request.ignore_eos and count != request.max_new_tokens)
        given = len(request.token_ids)
        other_prompts += counts_prompts and given > 0 and completion.input_tokens != given
        cached += completion.cached_tokens or 0
    notes = []
    if other_prompts:
        message = f"the engine took other numbers of prompt tokens than it was given for {other_prompts} requests"
        notes.append(Note("input_length_differs", message))
    if wrong_length:
        message = f"{wrong_length} answers do not have the number of tokens that was asked for"
        notes.append(Note("output_length_differs", message))
    if cached and not caching_asked:
        message = f"{cached} prompt tokens came from a prefix cache instead of being computed"
        notes.append(Note("prefix_cache_hit", message))
    return notes


RECORDED_VARIABLES = (
    "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "HF_HUB_OFFLINE", "HIP_VISIBLE_DEVICES", "KMP_AFFINITY",
    "MALLOC_ARENA_MAX", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "OMP_PROC_BIND", "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF", "TOKENIZERS_PARALLELISM",
)  # fmt: skip
"""Variables that change how an engine runs; none of them can hold a secret."""


def _reset_peak_rss() -> bool:
    """Start a new period for `_peak_rss_bytes`, if the kernel allows: 5 to `clear_refs` (proc(5), Linux 4.0)."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _peak_rss_bytes() -> int | None:
    """Peak resident set size of this process in bytes since `_reset_peak_rss` (`VmHWM`)."""
    try:
        text = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def _process_age_s() -> float | None:
    """Seconds since the kernel started this process, to 10 ms; `None` where /proc does not say."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        started_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started_s
    except (OSError, IndexError, ValueError, AttributeError):
        return None


def _software_facts() -> dict[str, JsonValue]:
    """Python, kernel, CPU affinity, and the environment variables that change how an engine runs."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {
        "pytest_llem": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus_allowed": affinity,
        "variables": {name: os.environ[name] for name in RECORDED_VARIABLES if name in os.environ},
    }
