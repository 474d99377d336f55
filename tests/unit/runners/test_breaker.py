"""What failed twice for a cause that will not heal is not tried again, by those who need the same thing."""

from __future__ import annotations

from pytest_llem.errors import LlemError, ModelNotFoundError, WorkerCrashedError
from pytest_llem.runners.breaker import Breaker

NEEDS = {"model": "org/missing", "runner": "local", "machine": None}
OTHER = {"model": "builtin:tiny-llama", "runner": "local", "machine": None}


MISSING = ModelNotFoundError("org/missing cannot be reached", fix="log in")


def tripped(error: LlemError = MISSING) -> Breaker:
    breaker = Breaker()
    for _ in range(2):
        assert breaker.refuse(NEEDS) is None
        breaker.record(error, NEEDS)
    return breaker


def test_the_third_item_that_needs_what_is_missing_is_refused_with_the_cause() -> None:
    refused = tripped().refuse(NEEDS)
    assert isinstance(refused, ModelNotFoundError)
    assert refused.message.startswith("not run: org/missing cannot be reached")
    assert refused.fix == "log in"


def test_items_that_need_something_else_go_on() -> None:
    assert tripped().refuse(OTHER) is None


def test_a_success_resets_it() -> None:
    breaker = tripped()
    breaker.record(None, OTHER)
    assert breaker.refuse(NEEDS) is None


def test_a_changed_cause_resets_it() -> None:
    breaker = tripped()
    breaker.record(ModelNotFoundError("other"), OTHER)
    assert breaker.refuse(NEEDS) is None


def test_a_cause_that_may_heal_never_trips_it() -> None:
    breaker = Breaker()
    for _ in range(5):
        breaker.record(WorkerCrashedError("killed"), NEEDS)
    assert breaker.refuse(NEEDS) is None
