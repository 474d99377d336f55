"""Any document gives either a plan or a located message: never a traceback, a hang or a silent drop."""

from __future__ import annotations

import math
import re
import tempfile
from pathlib import Path

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_llem.errors import StudyError
from pytest_llem.study import Study, load_study
from pytest_llem.study.declared import keys_of
from pytest_llem.study.fields import table
from pytest_llem.study.llenergymeasure import HARMLESS, REFUSED, RENAMES
from pytest_llem.study.schema import StudyDocument

COMMON = settings(
    deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)

PATHS = sorted(table())
WORDS = sorted(
    {*PATHS, *keys_of(StudyDocument), *RENAMES, *REFUSED, *HARMLESS, "range", "linspace", "scale", "id", "nope"}
)

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**18), 10**18),
    st.floats(allow_nan=True),
    st.sampled_from(
        ["transformers", "vllm", "float32", "auto", "<= 1", "5%", "${X}", "${X:-4}", "log2", "../a", "\0", ""]
    ),
    st.text(max_size=8),
)
keys = st.one_of(st.sampled_from(WORDS), st.text(max_size=5), st.integers(0, 3))
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
)
documents = st.dictionaries(keys, values, max_size=6).map(lambda data: {"model": "m", **data})


def plan_or_message(path: Path) -> Study | StudyError:
    try:
        return load_study(path, env={})
    except StudyError as error:
        return error


def load_text(text: str | bytes) -> Study | StudyError:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "study.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
        study = plan_or_message(path)
        if isinstance(study, StudyError):
            assert re.match(r".*\.yaml:\d+:\d+: .", study.message), study.message
            return study
        for experiment in study.experiments[:50]:
            assert experiment.config.model
            assert len(experiment.config_hash) == 64
            assert experiment.keywords["engine"]
        assert len({experiment.id for experiment in study.experiments}) == len(study.experiments) > 0
        assert len({experiment.config_hash for experiment in study.experiments}) == len(study.experiments)
        assert len(study.schedule(order="shuffled")) == len(study.experiments) * study.execution.cycles
        return study


@COMMON
@given(documents)
def test_any_mapping_gives_a_plan_or_a_located_message(data: object) -> None:
    load_text(yaml.safe_dump(data, allow_unicode=True, sort_keys=False))


@COMMON
@given(st.one_of(st.text(max_size=60), st.binary(max_size=60)))
def test_any_text_gives_a_plan_or_a_located_message(text: str | bytes) -> None:
    load_text(text)


@COMMON
@given(st.text(alphabet="model: {}[]&*a-\n\t'\"|>#!%@,?<\\x0${", max_size=40))
def test_any_yaml_like_text_gives_a_plan_or_a_located_message(text: str) -> None:
    load_text(text)


@COMMON
@given(st.sampled_from(PATHS), values)
def test_any_value_of_any_setting_is_taken_or_refused(path: str, value: object) -> None:
    for text in (
        yaml.safe_dump({"model": "m", path: value}),
        yaml.safe_dump({"model": "m", "sweep": {path: value}}),
        yaml.safe_dump({"model": "m", "sweep": {"seed": [1, 2]}, "exclude": [{path: value}]}),
        yaml.safe_dump({"model": "m", "experiments": [{path: value}]}),
        yaml.safe_dump({"model": "m", "sweep": {"group": [{path: value}, {}]}}),
    ):
        load_text(text)


AXES: dict[str, list[object]] = {
    "engine": ["transformers", "vllm"],
    "dtype": [None, "float16"],
    "seed": [0, 1, 2],
    "transformers.batch_size": [1, 2],
    "transformers.dtype": [None, "float32"],
    "transformers.num_beams": [1, 2],
    "transformers.length_penalty": [None, 1.0],
    "vllm.max_num_seqs": [4, 8],
    "decoding.do_sample": [False, True],
    "decoding.preset": [None, "creative"],
    "decoding.temperature": [None, 0.0, 0.5],
    "decoding.repetition_penalty": [None, 1.1],
    "transformers.quantization": [None, {"load_in_4bit": True}],
}


@COMMON
@given(st.lists(st.sampled_from(sorted(AXES)), min_size=1, max_size=5, unique=True), st.data())
def test_no_point_is_dropped_silently(names: list[str], data: st.DataObject) -> None:
    """The experiments of a sweep are exactly the distinct ones among its points written out one by one."""
    axes = {name: data.draw(st.lists(st.sampled_from(AXES[name]), min_size=1, unique_by=repr)) for name in names}
    points: list[dict[str, object]] = [{}]
    for name, choices in axes.items():
        points = [{**point, name: choice} for point in points for choice in choices]
    shared = {"model": "m", "decoding": data.draw(st.sampled_from([{}, {"temperature": 0.9}, {"preset": "factual"}]))}

    swept = load_text(yaml.safe_dump({**shared, "sweep": axes}, sort_keys=False))
    written = load_text(yaml.safe_dump({**shared, "experiments": points}, sort_keys=False))

    assert isinstance(swept, Study)
    assert isinstance(written, Study)
    assert len(points) == math.prod(map(len, axes.values()))
    assert {e.config_hash for e in swept.experiments} == {e.config_hash for e in written.experiments}
    by_hash = {e.config_hash: e for e in written.experiments}
    for experiment in swept.experiments:
        assert experiment.config == by_hash[experiment.config_hash].config
