"""xdist's workers get the controller's studies: the same experiments, without what loading needs."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pytest_llem.study import Study
from pytest_llem.study.experiments import Relocator

Load = Callable[..., Study]

STUDY = """
model: builtin:tiny-llama
engine: transformers
sweep:
  transformers.batch_size: [1, 4]
  dtype: [float32, bfloat16]
expect: {joules_per_output_token: "<= 0.5"}
execution: {cycles: 2, order: shuffled}
"""

RECEIVE = """
import pickle, sys
study = pickle.load(sys.stdin.buffer)
print([(experiment.id, cycle, experiment.keywords["dtype"]) for experiment, cycle in study.schedule()])
print(sorted({"pydantic", "yaml"} & sys.modules.keys()))
"""


def handed_over(study: Study) -> bytes:
    return pickle.dumps(replace(study, locate=Relocator(study.path)))


def test_a_study_arrives_as_it_was(load: Load) -> None:
    study = load(STUDY)

    arrived: Study = pickle.loads(handed_over(study))

    assert [one.id for one in arrived.experiments] == [one.id for one in study.experiments]
    assert [one.config_hash for one in arrived.experiments] == [one.config_hash for one in study.experiments]
    assert [one.config for one in arrived.experiments] == [one.config for one in study.experiments]
    assert (arrived.execution, arrived.study_hash) == (study.execution, study.study_hash)
    assert arrived.experiments[0].expect == study.experiments[0].expect
    assert arrived.locate("execution.cycles") == study.locate("execution.cycles")


def test_a_worker_that_is_given_a_study_need_not_be_able_to_load_one(load: Load) -> None:
    """Three processes each paid for pydantic, yaml and the expansion: 1.8 times a bare `parametrize`."""
    study = load(STUDY)

    done = subprocess.run([sys.executable, "-c", RECEIVE], input=handed_over(study), capture_output=True, check=True)

    schedule, loaded = done.stdout.decode().splitlines()
    assert schedule == str([(one.id, cycle, one.keywords["dtype"]) for one, cycle in study.schedule()])
    assert loaded == "[]"


def test_a_place_is_looked_up_when_it_is_asked_for_and_the_study_may_have_gone(load: Load) -> None:
    study = load(STUDY)
    arrived: Study = pickle.loads(handed_over(study))

    assert str(arrived.locate("dtype")).startswith(f"{study.path}:6:")
    Path(study.path).unlink()
    assert str(arrived.locate("dtype")).startswith(f"{study.path}:6:"), "it was read again for each gate"
    later: Study = pickle.loads(pickle.dumps(arrived))
    assert str(later.locate("dtype")) == f"{study.path}:1:1"
