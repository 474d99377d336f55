"""`llem init`: writes a commented study that runs as it is, with the schema by which editors complete and check it.

`cli` calls `init` by name. The study must stay short, and every comment in it true of the engine that it names.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

import yaml

from pytest_llem.engines import engine_names, engines, shipped_engines
from pytest_llem.engines.info import EngineInfo
from pytest_llem.errors import SettingsError
from pytest_llem.job.files import write_text
from pytest_llem.study.problems import suggest_or_list
from pytest_llem.study.schema import build_schema

TINY = "builtin:tiny-llama"
SCHEMA = "study.schema.json"

AXES = {"vllm": "vllm.max_num_seqs", "openai": "openai.concurrency"}
"""What is worth a first sweep where an engine has no `batch_size`."""

TEXT = """\
# yaml-language-server: $schema={schema}
# Run it with:  pytest --llem-study={file}
title: Energy per output token by {title}

model: {model}  # {about}
engine: {engine}
{section}
# What is asked: random tokens, the same for every engine and model; or the name of a file with
# prompts of your own: dataset: mine.jsonl
workload: {{dataset: synthetic, prompts: {prompts}, input_tokens: 64, output_tokens: 32}}

# An experiment per value. Any setting can be an axis, and axes are crossed with each other; a
# second one would be  dtype: [float32, bfloat16]
sweep:
  {axis}: [1, 4]

{measurement}
# Gates are tests as well: a budget, and a comparison with a run that --llem-save-baseline kept.
# expect: {{joules_per_output_token: "<= 5"}}
# compare: {{fail_if: {{joules_per_output_token: 5%}}}}
"""

CYCLES = """\
# So often is each experiment measured, every time in a fresh process; in turn, so that a drift
# of the machine meets them all alike.
execution: {cycles: 3, order: interleaved}
"""

SHORT = """\
# Short, to try things out. Leave this section out for figures that you publish.
measurement:
  min_duration_s: 1.5
  warmup: {max_repeats: 2, max_s: 5}
  idle: {duration_s: 0.5, max_wait_s: 2}

"""


def init(options: argparse.Namespace) -> int:
    """`llem init`: write the study and its schema, and say what comes next. `SettingsError` rather than overwrite."""
    path: Path = options.file
    if path.suffix not in (".yaml", ".yml"):
        raise SettingsError(f"{path}: a study's name ends with .yaml", fix=f"llem init {path}.yaml")
    if path.exists():
        raise SettingsError(f"{path}: exists already", fix="name another file: llem init other.yaml")
    engine = _engine(options.engine)
    model: str = options.model or TINY
    if engine.serves_over_http and options.model is None:
        raise SettingsError(f"--engine={engine.name}: nobody knows the server's model", fix="name it: --model=NAME")
    if model.startswith(("./", "../")):  # a study's paths begin where it lies
        below = os.path.relpath(model, path.parent)
        model = below if below.startswith("..") else f"./{below}"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, study_text(path, engine, model))
    schema = path.with_name(SCHEMA)
    if not schema.exists():
        write_text(schema, json.dumps(build_schema("study"), indent=2) + "\n")
    run = f"pytest --llem-study={shlex.quote(str(path))}"
    lines = [f"{path}: {model} on {engine.name}; editors check it by {schema}"]
    if _missing(engine) and engine.install:
        lines.append(f"install the engine:  {engine.install}")
    lines += [f"see the plan:        {run} --collect-only", f"measure:             {run}"]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def study_text(path: Path, engine: EngineInfo, model: str) -> str:
    """The study as text: of the tiny model one that takes a minute, else with the measurement's defaults."""
    tiny = model == TINY
    batch = f"{engine.name}.{engine.batch_size}" if engine.batch_size else "workload.prompts"
    axis = AXES.get(engine.name, batch)
    about = "made here, no download; yours: a hub id, or ./a/path" if tiny else "a hub id, or ./a/path"
    section = ""
    if engine.serves_over_http:
        about = "as the server calls it"
        section = 'openai: {base_url: "${SERVER:-http://127.0.0.1:8000/v1}"}  # a server that runs\n'
    elif tiny and engine.name == "transformers":
        section = "transformers: {threads: 1}  # a model this small only loses by more\n"
    return TEXT.format(
        schema=SCHEMA,
        file=shlex.quote(str(path)),
        title=axis.rpartition(".")[2].replace("_", " "),
        model=_scalar(model),
        about=about,
        engine=engine.name,
        section=section,
        prompts=8 if tiny else 32,
        axis=axis,
        measurement=SHORT + CYCLES.replace("interleaved", "interleaved, cooldown: 0") if tiny else CYCLES,
    )


def _engine(name: str | None) -> EngineInfo:
    """The engine of this name; without one the first that can be imported and runs a model itself, else the first."""
    if name is None:
        shipped = [info for info in shipped_engines().values() if not info.serves_over_http]
        return next((info for info in shipped if not _missing(info)), shipped[0])
    if name not in engines():
        raise SettingsError(f"--engine={name}: unknown engine", fix=suggest_or_list(name, engine_names()))
    return engines()[name]


def _missing(engine: EngineInfo) -> bool:
    return any(find_spec(module) is None for module in engine.modules)


def _scalar(text: str) -> str:
    """A text as YAML reads it back, quoted only where it must be."""
    try:
        plain = yaml.safe_load(text) == text
    except yaml.YAMLError:
        plain = False
    return text if plain else json.dumps(text)
