"""The section `workload`: the identity of the work, and what became of prompts and answers that is not as written.

`derive` calls it. Codes of its notes are published and must stay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from pytest_llem.job.config import WorkloadSettings
from pytest_llem.job.measurement import Measurement
from pytest_llem.job.report import Note
from pytest_llem.results.schema import WorkloadSection

UNNAMED = "error"
"""The class of a failed request whose engine names none."""


def derive_workload(measurement: Measurement) -> WorkloadSection:
    """The section; sums of tokens are those of the first repeat, counts of ends and failures those of all."""
    first = measurement.repeats[0] if measurement.repeats else None
    requests = [request for request in measurement.requests if first is None or request.repeat == first.index]
    return WorkloadSection(
        prompts_hash=measurement.prompts_hash,
        outputs_hash=first.outputs_hash if first else None,
        load_shape=measurement.load_shape,
        cache=measurement.cache,
        arrivals_hash=measurement.arrivals_hash,
        repeats=len(measurement.repeats),
        requests=len(requests),
        sessions=len({request.session for request in requests} - {None}) or None,
        input_tokens=sum(request.input_tokens for request in requests),
        output_tokens=sum(request.output_tokens for request in requests if request.error is None),
        failed_requests=sum(request.error is not None for request in measurement.requests),
        failures=failures_by_class(measurement),
        finish_reasons=finish_reasons(measurement),
        prompts_truncated=measurement.prompts_truncated,
        rows_skipped=measurement.rows_skipped,
        dataset_format=measurement.dataset_format,
        rows_broken=measurement.rows_broken,
    )


def whole_sessions(measurement: Measurement) -> int | None:
    """How many sessions of all repeats had no turn that failed; `None` where a request is no turn of a session."""
    turns = {(request.repeat, request.session) for request in measurement.requests}
    failed = {(request.repeat, request.session) for request in measurement.requests if request.error is not None}
    return None if any(session is None for _, session in turns) else len(turns - failed)


def failures_by_class(measurement: Measurement) -> dict[str, int]:
    """How many requests of all repeats failed, by class."""
    return dict(Counter(request.failure or UNNAMED for request in measurement.requests if request.error is not None))


def finish_reasons(measurement: Measurement) -> dict[str, int]:
    """How many requests of all repeats ended for which reason."""
    return dict(sorted(Counter(request.finish_reason for request in measurement.requests).items()))


def failed_requests(measurement: Measurement) -> Note | None:
    """How many requests failed, by class, with the first error; `None` when none failed."""
    failed = [request for request in measurement.requests if request.error is not None]
    if not failed:
        return None
    classes = ", ".join(f"{count} {name}" for name, count in failures_by_class(measurement).items() if name != UNNAMED)
    return Note(
        "failed_requests",
        f"{len(failed)} of {len(measurement.requests)} requests failed{f' ({classes})' if classes else ''}, "
        f"first: {failed[0].error}",
    )


def work_remarks(settings: WorkloadSettings, measurement: Measurement) -> Iterator[Note]:
    """What changed the work without being a fault: prompts cut, rows passed over, answers that were ended."""
    cut, prompts = measurement.prompts_truncated, len({request.index for request in measurement.requests})
    if cut is not None and cut.prompts:
        yield Note(
            "prompts_truncated",
            f"{cut.prompts} of {prompts} prompts were cut to workload.input_tokens: "
            f"their {cut.tokens_before} tokens became {cut.tokens_after}",
        )
    if measurement.rows_skipped:
        lacking = "hold no text" if measurement.dataset_format in (None, "texts") else "hold nothing to send"
        text = f"{measurement.rows_skipped} rows of {settings.dataset} {lacking}, and the next ones were taken instead"
        yield Note("rows_skipped", text)
    ends = {reason: count for reason, count in finish_reasons(measurement).items() if reason not in ("stop", "error")}
    if ends and not settings.ignore_eos:
        shown = ", ".join(f"{count} ended by {reason}" for reason, count in ends.items())
        yield Note(
            "outputs_truncated",
            f"of {len(measurement.requests)} answers {shown} instead of at their end of sequence "
            "(length: at workload.output_tokens)",
        )
