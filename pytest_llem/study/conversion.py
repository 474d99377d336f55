"""`llem convert`: a file of LLenergyMeasure as a study in this project's own words.

`cli` calls it. What is written must be the same experiments as the file itself, which loads as a study too.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import yaml

from pytest_llem.errors import JsonValue, StudyError
from pytest_llem.job.files import write_text
from pytest_llem.study import load_study
from pytest_llem.study.document import read_document
from pytest_llem.study.fields import table
from pytest_llem.study.naming import slug
from pytest_llem.study.problems import Problem, UnreadableError, study_error
from pytest_llem.study.sources import read_sources
from pytest_llem.study.translation import translate
from pytest_llem.study.values import deep_merge


def convert(options: argparse.Namespace) -> int:
    """Write the study; notices go to standard error. Raises `StudyError` for what cannot be converted."""
    path: Path = options.file
    out: Path | None = options.out
    if out is not None and out.exists():
        raise StudyError(f"{out} exists already", fix="name a file that does not")
    try:
        is_campaign = "configs" in read_document(path, os.environ).data
        data, lines = _convert_campaign(path) if is_campaign else _convert(path)
    except UnreadableError as unreadable:
        raise study_error(unreadable.problems, path) from None
    lines = [" ".join(line.split()) for line in lines]
    for line in lines:
        sys.stderr.write(f"llem: {line}\n")
    body = yaml.safe_dump(json.loads(json.dumps(data)), sort_keys=False, allow_unicode=True, width=110)
    text = "".join(f"# {line}\n" for line in (f"{slug(path.name)} of LLenergyMeasure, by llem convert", *lines)) + body
    if out is None:
        sys.stdout.write(text)
    else:
        write_text(out, text)
    return 0


def _convert(path: Path) -> tuple[Mapping[str, JsonValue], list[str]]:
    study = load_study(path)
    sources = read_sources(path, os.environ)
    if not sources.is_older:
        raise StudyError(f"{path}: nothing to convert", fix="it is a study of this project already")
    return {"name": "", **sources.data} | {"name": study.name}, [
        notice.message for notice in study.notices if notice.code == "older_words"
    ]


def _convert_campaign(path: Path) -> tuple[Mapping[str, JsonValue], list[str]]:
    """A campaign of the first generation: each of its files becomes an experiment, under the campaign's settings."""
    document = read_document(path, os.environ)
    names = document.data.pop("configs")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        where = document.locate(("configs",))
        raise UnreadableError([Problem(where, "configs: expected a list of files", "write configs: [a.yaml, b.yaml]")])
    campaign = translate(document)
    parts = {str(name): read_sources(path.parent / str(name), os.environ) for name in names}
    problems = [*campaign.problems, *(problem for part in parts.values() for problem in part.problems)]
    if problems:
        raise UnreadableError(problems)
    shared = {key: value for key, value in document.data.items() if key in table()}
    study: dict[str, JsonValue] = {key: value for key, value in document.data.items() if key not in table()}
    lost = [*campaign.without_effect, *(word for part in parts.values() for word in part.without_effect)]
    experiments: dict[str, JsonValue] = {}
    for file, part in parts.items():
        settings = {key: value for key, value in part.data.items() if key in table()}
        apart = (key for key in part.data if key not in table() and key != "name")
        lost += [f"{key} of {file} (the campaign's is for all)" for key in apart]
        id = str(part.data.get("name", slug(Path(file).stem)))
        id = id if id not in experiments else f"{id}.{len(experiments) + 1}"
        experiments[id] = {"id": id, **deep_merge(settings, shared)}
    study["experiments"] = list(experiments.values())
    return study, [f"to no effect: {', '.join(dict.fromkeys(lost))}"] if lost else []
