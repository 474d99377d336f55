"""Prints docs/errors.md: every error category, reason code and warning code.

python .ci/errors_page.py > docs/errors.md

A test holds the page and this output together. The categories come from the error classes, the codes of results from
`CODES` below; `main` fails where the package's source writes a code that is not in it, or no longer writes one that is.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

from pytest_llem.containers.errors import error_classes
from pytest_llem.errors import LlemError

PACKAGE = Path(__file__).resolve().parent.parent / "pytest_llem"

HEAD = """\
# Error and reason codes

<!-- Written by .ci/errors_page.py: change the error classes or its table, not this page. -->

Three things can be wrong with a cycle, and each has codes of its own:

- it **failed**: there is no result, and `error.json` says why. Its `category` is in the [first](#error-categories) or
  [second](#docker) table.
- it is **invalid**: there is a result whose numbers must not be used; `validity.reasons` has codes from the
  [third table](#reasons-why-a-result-is-invalid).
- it is valid, and something must be known of it: `warnings` has codes from the [fourth](#warnings).

Codes keep their meaning from release to release; the messages beside them may change. A code that this page does not
list is from a newer version, or from another package's engine or meter. [Troubleshooting](troubleshooting.md) goes from
symptoms to remedies.
"""

CODES: dict[str, tuple[str, str, str]] = {
    "clock_domain_differs": (
        "invalid",
        "The sampler on the host and the worker in its container do not share a clock; the energy is `null`.",
        "Use a daemon of this machine, or `--llem-meter=none`.",
    ),
    "clocks_changed": (
        "invalid",
        "The GPU's SM clock varied by more than `clocks_rel` in the measure window.",
        "Lock the clocks (`nvidia-smi -lgc`), or warm up for longer.",
    ),
    "counter_reset": ("invalid", "A GPU's energy counter jumped back in a window.", "Repeat the cycle."),
    "effective_differs": (
        "invalid",
        "The engine reads a setting back with another value than the study asked for.",
        "Set the value that the engine uses, or find out why it overrides yours.",
    ),
    "failed_requests": (
        "invalid",
        "More requests failed than `failed_requests_rel` allows (none by default); a warning below that.",
        "Read the first failure in the message, and [the classes](#failed-requests).",
    ),
    "foreign_process": (
        "invalid",
        "A process that is not the cycle's own computed on the GPU.",
        "End it, or give the GPU to one user at a time.",
    ),
    "foreign_requests": (
        "invalid",
        "A server answered more than this measurement asked: somebody else used it.",
        "Measure a server that nobody else uses.",
    ),
    "ignore_eos_ignored": (
        "invalid",
        "A server ended answers before the length that was asked for.",
        "`workload.ignore_eos: false`, or the server's own switch in `openai.extra`.",
    ),
    "no_measure_window": ("invalid", "The worker recorded no measure window.", "A fault of the engine: report it."),
    "no_repeats": ("invalid", "The measure window holds no whole repeat.", "A fault of the engine: report it."),
    "output_length_differs": (
        "invalid",
        "Answers do not have the number of tokens that was asked for.",
        "Check what ends them: stop tokens, the model's context length.",
    ),
    "prefix_cache_hit": (
        "invalid",
        "Prompt tokens came out of a prefix cache instead of being computed.",
        "Disable the cache, or ask for it with the engine's setting.",
    ),
    "prefix_cache_not_reset": (
        "invalid",
        "The engine could not confirm that its prefix cache was emptied between repeats.",
        "Disable the cache.",
    ),
    "residual_memory": (
        "invalid",
        "More of a leased GPU was in use before the engine was loaded than `residual_memory_bytes` allows.",
        "End what uses it.",
    ),
    "sensor_gap": (
        "invalid",
        "The sensor's readings have a gap in or around a window, or the sampler died.",
        "Repeat; a loaded CPU starves the sampler, a lost GPU shows in `dmesg`.",
    ),
    "suspended": ("invalid", "The machine slept while it measured.", "Switch suspend off."),
    "throttled_power": (
        "invalid",
        "The power limit held the clocks down, and the study asks to refuse that.",
        "Raise the limit, or leave the threshold at its default.",
    ),
    "throttled_thermal": (
        "invalid",
        "Heat held the clocks down for more than `throttled_thermal_rel` of the measured time.",
        "Improve cooling, or lower the power limit.",
    ),
    "window_too_short": (
        "invalid",
        "The uncertainty of the measure windows' energy is more than `uncertainty_rel`.",
        "Raise `measurement.min_duration_s`, or calibrate: `llem doctor --calibrate`.",
    ),
    "work_differs": (
        "invalid",
        "Repeats or cycles of one experiment did different work (token counts, prompts).",
        "Look for what makes the engine answer differently.",
    ),
    "clock_skew": ("warning", "The Docker daemon's machine has another time of day.", "Synchronise the clocks."),
    "cooldown_limit": (
        "warning",
        "A GPU had not cooled down when the longest waiting time was over.",
        "Let it rest before the run; see `execution.cooldown`.",
    ),
    "cross_check": ("warning", "The meter measures as another tool does, for comparison.", ""),
    "decode_not_split": ("warning", "Decode could not be measured apart from prefill; the message says why.", ""),
    "decode_outputs_differ": (
        "warning",
        "The windows of prefill and decode produced other tokens than the measure window.",
        "Do not compare the phases with the headline numbers.",
    ),
    "elevated_to_docker": (
        "warning",
        "Engines that do not share one environment run in Docker.",
        "Choose with `--llem-runner=ENGINE=SPEC`.",
    ),
    "engine_not_verified": ("warning", "The engine's adapter was never run on the hardware it needs.", ""),
    "estimated": ("warning", "Energy comes from a model of the hardware, not from a sensor.", "Do not publish joules."),
    "fields_refused": ("warning", "The server does not take some request fields; they were left out.", ""),
    "hub_download": ("warning", "The model is downloaded inside the container for each cycle.", "Mount the hub cache."),
    "idle_not_settled": (
        "warning",
        "Power still changed in the idle window: net energy is off by as much.",
        "Raise `measurement.idle.max_wait_s` or `duration_s`.",
    ),
    "image_not_inspected": ("warning", "The image could not be inspected before the run.", ""),
    "in_process": ("warning", "The meter reads its sensor inside the measured process.", ""),
    "input_tokens_differ": ("warning", "The server counts other prompt lengths than were made; its counts stand.", ""),
    "low_priority": ("warning", "The worker runs at a low CPU priority.", "Start Ray with `RAY_worker_niceness=0`."),
    "meter_not_on_device": (
        "warning",
        "The meter reads another device than the one that ran the engine.",
        "`--llem-meter=auto`.",
    ),
    "mig_whole_gpu": ("warning", "The energy is that of the whole GPU, not of one MIG instance.", ""),
    "mixed_runners": ("warning", "A study mixes runners, whose software environments differ.", "Use one for all."),
    "module_scope": ("warning", "The GPU's sensor covers the whole module, CPU included.", ""),
    "node_lacking": ("warning", "The first node lacked something; the cycle was tried on another.", ""),
    "node_lost": ("warning", "A node was lost under the cycle, which was tried again elsewhere.", ""),
    "not_verified": ("warning", "The meter was never compared with hardware.", "Cross-check with another meter."),
    "orphans_removed": ("warning", "Containers of sessions that were killed have been removed.", ""),
    "outputs_differ": ("warning", "Greedy decoding gave different outputs over one cycle's repeats.", ""),
    "power_capped": ("warning", "The GPU ran at its power limit.", "A condition of the experiment: state it."),
    "processes_unknown": (
        "warning",
        "The GPU's processes are of another PID namespace; whose they are was not checked.",
        "",
    ),
    "sent_late": ("warning", "The client was busy and sent a request after it was due.", "Lower the arrival rate."),
    "server_elsewhere": ("warning", "The server runs elsewhere, so no energy was measured.", "Run it on this machine."),
    "server_not_counted": ("warning", "The server's CPU time is not in the estimate.", ""),
    "settings_not_verified": ("warning", "The server does not tell whether it runs with the study's settings.", ""),
    "settings_unchecked": ("warning", "Settings could not be checked against the installed engine beforehand.", ""),
    "start_method": ("warning", "The worker was started with spawn, because a fork would not be safe.", ""),
    "steady_state_short": ("warning", "The steady state lasted less than 30 s.", "Send more requests."),
    "temperature_drift": (
        "warning",
        "The cycles of an experiment ran at temperatures too far apart to be repetitions of one condition.",
        "Warm up for longer, or use `execution.cooldown`.",
    ),
    "token_times_unknown": ("warning", "The server does not tell each token's time; `itl` is `null`.", ""),
    "tokenizer_differs": ("warning", "The model's tokenizer differs from the server's, which was used.", ""),
    "tokens_bunched": ("warning", "Tokens arrive several at a time; `itl` and `tpot` are those of the bunches.", ""),
    "uncalibrated": ("warning", "The sensor was not calibrated: the bounds are wide.", "`llem doctor --calibrate`."),
    "warmup_not_converged": (
        "warning",
        "The warm-up ended before latency or power had converged.",
        "Raise `measurement.warmup.max_repeats` or `max_s`.",
    ),
    "whole_machine": ("warning", "RAPL counts everything that ran on these processors.", "Leave the machine alone."),
}
"""Every code: whether it makes a result invalid, what it means, and what helps (empty: nothing is needed)."""

REQUESTS = {
    "refused": "no connection",
    "timeout": "no answer in time",
    "stalled": "the answer began and was not whole in time",
    "dropped": "the connection was closed before the end",
    "malformed": "the answer is not what the API prescribes",
    "wrong_usage": "the stated token counts contradict the answer",
    "no_usage": "the server stated no token counts",
    "server_error": "an error inside the answer",
    "http_429": "too many requests",
    "http_4xx": "another refusal by status",
    "http_5xx": "a failure of the server by status",
}
"""Classes of failed requests to a server: the docstring of `engines/openai/failures.py` has the same."""


def written_codes() -> set[str]:
    """Codes that the package's source passes to `Note` or `Reason` as a literal."""
    codes = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ("Note", "Reason"):
                given = [*node.args[:1], *(word.value for word in node.keywords if word.arg == "code")]
                codes |= {code.value for code in given if isinstance(code, ast.Constant)}
    return codes


def stale_codes() -> set[str]:
    """Codes of the table that nothing in the package's source names."""
    source = "\n".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    return {code for code in CODES if f'"{code}"' not in source}


def subclasses(cls: type[LlemError]) -> Iterator[type[LlemError]]:
    for sub in cls.__subclasses__():
        yield sub
        yield from subclasses(sub)


def sentence(cls: type[LlemError]) -> str:
    return inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0].replace("\n", " ")


def table(columns: str, rows: list[tuple[str, ...]]) -> str:
    width = columns.count("|") + 1
    lines = [f"| {columns} |", "|---" * width + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)])


def page() -> str:
    """The page; `SystemExit` where the table of codes and the source differ."""
    unlisted, stale = written_codes() - set(CODES), stale_codes()
    if unlisted or stale:
        raise SystemExit(f".ci/errors_page.py: add {sorted(unlisted)}, remove {sorted(stale)} from CODES")
    docker = error_classes()
    general = [
        (f"`{cls.category}`", sentence(cls), f"`{cls.__name__}`")
        for cls in [LlemError, *subclasses(LlemError)]
        if cls.__module__ == "pytest_llem.errors"
    ]
    containers = [
        (f"`{category}`", sentence(cls), (cls.advice or "").format(image="IMAGE")) for category, cls in docker.items()
    ]
    kinds = {
        kind: [(f"`{code}`", meaning, helps) for code, (own, meaning, helps) in CODES.items() if own == kind]
        for kind in ("invalid", "warning")
    }
    return "\n\n".join(
        [
            HEAD.rstrip(),
            "## Error categories\n\nThe message of an error begins with what happened and where, and ends with "
            "`fix: ...` where a remedy is known.",
            table("category | meaning | class", general),
            "## Docker\n\nWhat a failed container run means, as "
            "[`translate_docker_error`](api.md#pytest_llem.translate_docker_error) decides from exit code and texts.",
            table("category | meaning | remedy", containers),
            "## Reasons why a result is invalid\n\nThe limits are settings of a study: "
            "[measurement.validity](configuration.md#measurementvalidity).",
            table("code | meaning | what helps", kinds["invalid"]),
            "## Warnings",
            table("code | meaning | what helps", kinds["warning"]),
            "## Failed requests\n\nClasses of requests to a server that failed, as the message of "
            "`failed_requests` counts them.",
            table("class | meaning", [(f"`{name}`", text) for name, text in REQUESTS.items()]),
        ]
    )  # fmt: skip


if __name__ == "__main__":
    sys.stdout.write(page() + "\n")
