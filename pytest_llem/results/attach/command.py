"""`llem attach`: runs a command, measures it, and says what it drew.

`cli` calls `attach` by name. The command's output and exit code are its own: what this adds goes to standard error.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path

from pytest_llem.errors import InterruptedCycleError, JsonValue, LlemError, SettingsError
from pytest_llem.job.files import slug
from pytest_llem.job.job import JobDir
from pytest_llem.job.measurement import write_measurement
from pytest_llem.job.metric_names import registered_metrics
from pytest_llem.job.redaction import redact_arguments
from pytest_llem.job.report import Note
from pytest_llem.machine.leases import LeaseRequest
from pytest_llem.results.attach.beside import beside
from pytest_llem.results.attach.child import FAILED, NotRunError, require_program
from pytest_llem.results.attach.metering import Asked, Metered, meter_command
from pytest_llem.results.attach.record import ENERGY, Recording, key_of
from pytest_llem.results.attach.work import Circumstances, KnownWork, result_of
from pytest_llem.results.layout import CycleKey
from pytest_llem.results.schema import Result
from pytest_llem.results.sections.energy import MEASURE
from pytest_llem.results.terminal import quantity, significant

STUDY = "attached"
INTERRUPTED = 130
"""What shells state after Ctrl-C: 128 + SIGINT."""
WORDS = 3
"""Leading words of a command that name it. Chosen: `vllm bench serve` has three."""
OPTIONS = (("device.kind: ", "--device "), ("device.kind", "--device"), ("device.gpus", "--gpus"), ("--llem-out", "-o"))
"""What errors call settings of a study, and how they are written here."""
LONGEST_IDLE_S = 86_400
"""Chosen: a day; whoever writes more, or `inf`, meant something else, and the command would never start."""


def attach(options: argparse.Namespace) -> int:
    """Run and measure the command; its exit code, or 125, 126 or 127 where it was not run or not measured."""
    command = [word for position, word in enumerate(options.command) if position or word != "--"]
    try:
        if not command:
            raise SettingsError("llem attach: no command", fix="name it last: llem attach -- COMMAND ARGS...")
        gpus = tuple(int(name) if name.isdecimal() else name for name in (options.gpus or "").split(",") if name)
        if gpus and options.server is None:
            raise SettingsError("--gpus needs --server", fix="CUDA_VISIBLE_DEVICES says which GPUs a command may use")
        if not 0 <= options.idle_s <= LONGEST_IDLE_S:
            told = f"--idle-s {options.idle_s:g}: not between 0 and {LONGEST_IDLE_S:,}"
            raise SettingsError(told, fix="write seconds, such as --idle-s 10; 0 measures no idle power")
        require_program(command)
        registered_metrics()  # the summary needs them all: one that is broken is found before the command is run
        server, device = options.server, options.device
        asked = Asked(tuple(command), options.meter, options.idle_s, device, server, gpus)
        return _measured(asked, options.name or _name(command), options.out)
    except LlemError as error:
        told = str(error)
        for theirs, ours in OPTIONS:
            told = told.replace(theirs, ours)
        say(told)
        return error.code if isinstance(error, NotRunError) else FAILED
    except KeyboardInterrupt:
        say("interrupted before the command was started")
        return INTERRUPTED


def _measured(asked: Asked, name: str, out: Path) -> int:
    with ExitStack() as stack:
        server = stack.enter_context(beside(asked.server)) if asked.server is not None else None
        config: dict[str, JsonValue] = {
            "command": tuple(redact_arguments(asked.command)),
            "server": server.url if server is not None else None,
            "model": server.facts.model or None if server is not None else None,
        }
        key = key_of(STUDY, name, config)
        words = ["llem", "attach", "--", *asked.command]
        recording = Recording(out, [key], words, ENERGY if server is None else None)
        say(f"measuring into {recording.store.run_dir}")
        job_dir = recording.begin(key)
        error: LlemError | None = None
        try:
            run_id = recording.store.run_id
            lease = LeaseRequest(f"llem attach -- {name}", run_id)
            metered = meter_command(asked, server, job_dir, lease, say)
            result = _result(recording, key, config, metered, job_dir)
            recording.end(key, result)
        except LlemError as problem:
            error = problem
            raise
        except BaseException as problem:
            error = InterruptedCycleError("interrupted before the command was done")
            if not isinstance(problem, KeyboardInterrupt):
                error = LlemError(f"{type(problem).__name__}: {problem}")
            raise
        finally:
            if error is not None:
                recording.fail(key, error)
            recording.finish(interrupted=isinstance(error, InterruptedCycleError))
    _report(result, recording.store.run_dir)
    not_measured = metered.meter.name != "none" and result.energy.energy_j is None
    return metered.ended.code or (FAILED if not_measured else 0)


def _result(
    recording: Recording, key: CycleKey, config: dict[str, JsonValue], metered: Metered, job_dir: JobDir
) -> Result:
    write_measurement(job_dir.measurement, metered.measurement)
    counted, measurement = metered.counted, metered.measurement
    about = Circumstances(
        recording.store.run_id,
        key,
        config,
        metered.devices,
        metered.meter,
        recording.store.environment,
        "attach",
        metered.facts,
    )
    duration_s = sum(window.duration_s for window in measurement.windows if window.name == MEASURE)
    work = KnownWork(duration_s, counted.input_tokens, counted.output_tokens, counted.cached_tokens, counted.requests)
    return result_of(about, measurement, work, job_dir.samples)


def _name(command: list[str]) -> str:
    """The words that say what is run, without options and what they take: `vllm-bench-serve`, `python-bench.py`."""
    words: list[str] = []
    for word in redact_arguments(command)[:WORDS]:
        if word.startswith("-"):
            break
        words.append(Path(word).name)
    return slug("-".join(words))


def _report(result: Result, run_dir: Path) -> None:
    for line in figures(result):
        say(line)
    for reason in result.validity.reasons:
        say(f"NOT VALID: {reason.code}: {reason.message}")
    for note in result.warnings:
        say(_noted(note))
    say(f"{run_dir}: llem list, report, compare and export read it")


def figures(result: Result) -> list[str]:
    """What was measured, in a line or two."""
    energy, seconds = result.energy, result.throughput.duration_s or 0.0
    whose = f"{energy.meter}, {energy.scope}" if energy.measured else f"NOT measured but estimated: {energy.meter}"
    stated = "no energy"
    if energy.energy_j is not None:
        stated = f"{quantity(energy.energy_j, 'J', energy.uncertainty_j)} ({whose})"
    if energy.avg_power_w is not None:
        stated += f", {quantity(energy.avg_power_w, 'W', energy.avg_power_w_uncertainty)} on average"
    if energy.energy_above_idle_j is not None:
        stated += f", {quantity(energy.energy_above_idle_j, 'J', energy.energy_above_idle_uncertainty_j)} above idle"
    lines = [f"{significant(seconds, 4)} s, {stated}"]
    if result.tokens.output is not None:
        rate, per_token = result.throughput.output_tokens_per_s, energy.joules_per_output_token
        line = f"{result.tokens.output} output tokens"
        line += "" if rate is None else f", {significant(rate, 4)} tokens/s"
        if per_token is not None:
            line += f", {quantity(per_token, 'J', energy.joules_per_output_token_uncertainty)} per output token"
        lines.append(line)
    return lines


def _noted(note: Note) -> str:
    return f"note: {note.code}: {note.message}"


def say(text: str) -> None:
    """A line on standard error, which is no part of the command's output."""
    sys.stderr.write(f"llem: {text}\n")
    sys.stderr.flush()
