"""Recognises data sets of sessions and traces by their first row, and reads the requests that they recorded.

`texts` calls it. A line that cannot be read is left out, counted and named, as long as the study allows so many; times
that do not rise are an error, because no schedule follows from them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol

from pytest_llem.errors import WorkloadError
from pytest_llem.job.config import WorkloadSettings
from pytest_llem.job.request import Recorded, Texts
from pytest_llem.workload.conversations import MessagesReader, ShareGptReader, holds_sessions
from pytest_llem.workload.rows import Row
from pytest_llem.workload.traces import AZURE, BURSTGPT, MOONCAKE, AzureReader, BurstGptReader, MooncakeReader

NAMED = 3
"""How many broken lines are named. Chosen: the first ones show what is wrong, and a screen holds them."""


class Reader(Protocol):
    """Reads the rows of one format."""

    format: str

    def read(self, where: str, row: Mapping[str, Any]) -> tuple[Recorded, ...]:
        """The requests of a row; none where there is nothing to send. `WorkloadError` for a row that is broken."""


def recognise(row: Any, column: str | None, text_columns: Collection[str]) -> Reader | None:
    """What reads a data set that begins with this row, or `None` for a table of texts.

    A table it is where a column of texts is there; `column` may name that of the sessions.
    """
    if not isinstance(row, Mapping):
        return None
    if column is not None:
        kind = holds_sessions(row.get(column))
        return None if kind is None else kind(column)
    if any(isinstance(row.get(name), str) and row[name].strip() for name in text_columns):
        return None
    for name, reader in (("messages", MessagesReader), ("conversations", ShareGptReader)):
        if isinstance(row.get(name), list):
            kind = holds_sessions(row[name])
            return (kind or reader)(name)
    for keys, trace in TRACES:
        if row.keys() >= keys:
            return trace()
    return None


TRACES: tuple[tuple[frozenset[str], Callable[[], Reader]], ...] = (
    (MOONCAKE, MooncakeReader),
    (AZURE, AzureReader),
    (BURSTGPT, BurstGptReader),
)


def read_traffic(reader: Reader, rows: Iterable[Row], settings: WorkloadSettings) -> Texts:
    """The first `prompts` requests, in the order of the file, of which the last session may be cut.

    Raises `WorkloadError` for settings that have no meaning here, for times out of order, and for too few requests.
    """
    require_fitting(reader.format, settings)
    counts, faults = Counter[str](), list[WorkloadError]()
    requests = _in_order(_requests(reader, rows, counts, faults))
    recorded = tuple(islice(requests, settings.prompts))
    if len(recorded) < settings.prompts:
        left_out = [f"{counts[name]} {what}" for name, what in LEFT_OUT.items() if counts[name]]
        named = f", first: {faults[0].message}" if faults else ""
        why = f"{' and '.join(left_out)} were left out{named}" if left_out else ""
        raise too_few(settings, len(recorded), why, faults[0].fix if faults else None)
    timed, gaps = recorded[0].at_ns is not None, any(request.think_s for request in recorded)
    require_used_times(settings, timed=timed, gaps=gaps)
    messages = tuple(problem.message for problem in faults)
    remedy = faults[0].fix if faults else None
    return Texts((), counts["skipped"], reader.format, recorded, counts["lines"], counts["broken"], messages, remedy)


LEFT_OUT = {"skipped": "rows with nothing to send", "broken": "broken lines"}


def require_few_broken(texts: Texts, allowed_rel: float) -> None:
    """Raise `WorkloadError` where more of the lines that were read are broken than this share."""
    if texts.broken <= allowed_rel * texts.lines:
        return
    setting = "measurement.validity.failed_requests_rel"
    if not allowed_rel:
        more = f" ({texts.broken} of {texts.lines} lines are broken)" if texts.broken > 1 else ""
        raise WorkloadError(texts.faults[0] + more, fix=f"{texts.remedy}; {setting} allows a share of broken lines")
    raise WorkloadError(
        f"{named_faults(texts.broken, texts.faults)} of {texts.lines}, more than {setting} {allowed_rel:g} allows",
        fix="correct or remove them, or allow a larger share",
    )


def named_faults(broken: int, faults: Sequence[str]) -> str:
    """How many lines are broken, with the first ones."""
    return f"{broken} broken lines ({'; '.join(faults)}{'; ...' if broken > len(faults) else ''})"


def _requests(
    reader: Reader, rows: Iterable[Row], counts: Counter[str], faults: list[WorkloadError]
) -> Iterator[tuple[str, Recorded]]:
    for where, row in rows:
        counts["lines"] += 1
        try:
            if isinstance(row, WorkloadError):
                raise row
            if row is not None and not isinstance(row, Mapping):
                text = f"{where}: expected an object, got {type(row).__name__}"
                raise WorkloadError(text, fix="correct or remove it")
            found = () if row is None else reader.read(where, row)
        except WorkloadError as problem:
            counts["broken"] += 1
            faults += [problem] if len(faults) < NAMED else []
            continue
        counts["skipped"] += not found
        for request in found:
            yield where, request


def _in_order(requests: Iterable[tuple[str, Recorded]]) -> Iterator[Recorded]:
    """The requests; `WorkloadError` for one that has no time although the first has, or one before its predecessor."""
    before: tuple[str, int] | None = None
    timed: bool | None = None
    for where, request in requests:
        if request.turn in (None, 1) or request.at_ns is not None:
            timed = request.at_ns is not None if timed is None else timed
            if timed != (request.at_ns is not None):
                missing = "no time, and the first one has" if timed else "a time, and the first one has none"
                raise WorkloadError(f"{where}: {missing}", fix="give all of them a time, or none")
        if request.at_ns is not None:
            if before is not None and request.at_ns < before[1]:
                raise WorkloadError(
                    f"{where}: timestamp: {(before[1] - request.at_ns) / 1e9:g} s before that of {before[0]}",
                    fix="sort the file by its timestamps",
                )
            before = where, request.at_ns
        yield request


def require_fitting(format_: str, settings: WorkloadSettings) -> None:
    """Raise `WorkloadError` for settings that have no meaning with sessions or traces; `details` name the setting."""
    chats = format_ in (MessagesReader.format, ShareGptReader.format)
    what = "sessions" if chats else "a trace"
    for name, effect in _FOR_TEXTS.items():
        if getattr(settings, name):
            raise _unfit(name, f"cannot be combined with {what}: {effect}", "leave it out, or name a data set of texts")
    if settings.order != "interleaved":
        text = f"{settings.order} cannot be combined with {what}, whose order is recorded"
        raise _unfit("order", text, "leave it out")
    if settings.chat_template and not chats:
        text = f"cannot be combined with {what}, whose prompts have recorded lengths"
        raise _unfit("chat_template", text, "leave it out")
    if settings.input_tokens is not None and (chats or not isinstance(settings.input_tokens, int)):
        why = "which are sent whole" if chats else "which recorded its lengths: a number cuts longer prompts"
        raise _unfit("input_tokens", f"cannot be combined with {what}, {why}", "leave it out")


_FOR_TEXTS = {
    "score": "nothing there is an answer key",
    "system_prompt": "what is sent was recorded",
    "few_shot": "no row there is an example",
}
"""Settings for data sets of texts alone, and why."""


def require_used_times(settings: WorkloadSettings, *, timed: bool = False, gaps: bool = False) -> None:
    """Raise `WorkloadError` for a schedule without times, and for a speed at which nothing passes.

    `timed` says that the data set recorded when requests came, `gaps` that it has waits between turns.
    """
    if settings.times_file is not None:
        return
    if settings.arrival is not None and settings.arrival.process == "schedule":
        if not timed:
            why = f"process schedule needs times, and {settings.dataset} has none"
            fix = "name workload.arrival.file, or a data set that recorded when its requests came"
            raise _unfit("arrival", why, fix)
    elif settings.speed != 1.0 and not gaps:
        why = "only arrival.process: schedule keeps its times" if timed else "it has no times"
        raise _unfit("speed", f"has no effect on {settings.dataset}: {why}", "leave it out")


def _unfit(setting: str, text: str, fix: str) -> WorkloadError:
    return WorkloadError(f"workload.{setting}: {text}", fix=fix, details={"setting": f"workload.{setting}"})


def too_few(settings: WorkloadSettings, available: int, left_out: str, remedy: str | None = None) -> WorkloadError:
    """The error for a data set that has fewer prompts than were asked for; `remedy` gives it more.

    It stands alone: a data set with broken lines is refused with fewer prompts as well.
    """
    fewer = f"set workload.prompts to at most {available}" if available else "name a data set that has some"
    return WorkloadError(
        f"workload.dataset {settings.dataset!r} has {available} prompts, and {settings.prompts} were asked for"
        f"{'; ' if left_out else ''}{left_out}",
        fix=remedy or fewer,
        details={"available": available, "wanted": settings.prompts},
    )
