"""Which token counts belong to the identity of the work, and which are left to chance."""

from __future__ import annotations

from collections.abc import Mapping


def output_lengths_determined(config: Mapping[str, object]) -> bool:
    """Whether every repeat of a configuration must generate as many tokens: not where sampling may draw its end.

    `config` is a resolved configuration, as a job and a result hold it.
    """
    decoding, workload = config.get("decoding"), config.get("workload")
    samples = isinstance(decoding, Mapping) and decoding.get("do_sample") is True
    may_end = isinstance(workload, Mapping) and workload.get("ignore_eos") is False
    return not (samples and may_end)
